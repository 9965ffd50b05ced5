"""Packets of videos: in what order they are decoded, and in what order shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dr2pipe.runs.video_io import address, load_av


def with_dts(container: Any, streams: list[Any]) -> Iterator[Any]:
    """The packets of streams. Some files do not say when the first ones are decoded: they do now."""
    av = load_av()
    waiting: dict[int, list[Any]] = {stream.index: [] for stream in streams}
    known: dict[int, int] = {}
    packets = container.demux(streams)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # cut off: what was read is kept
            packet = None
        if packet is None:
            break
        if packet.size == 0:
            continue
        index = packet.stream.index
        if packet.dts is None and index not in known:
            waiting[index].append(packet)
            continue
        if packet.dts is None:
            packet.dts = known[index] + 1
        known[index] = packet.dts
        yield from _dated(waiting[index], packet.dts)
        waiting[index] = []
        yield packet
    for left in waiting.values():
        yield from _dated(left, min((p.pts or 0 for p in left), default=0))


def _dated(packets: list[Any], before: int) -> Iterator[Any]:
    """Packets, decoded one after the other before a time."""
    at = before - sum(max(packet.duration or 0, 1) for packet in packets)
    for packet in packets:
        packet.dts = at
        at += max(packet.duration or 0, 1)
        yield packet


def packets_of(segment: Path) -> Iterator[Any]:
    """The packets of a file's pictures, in the order in which they are decoded."""
    av = load_av()
    with av.open(address(segment)) as container:
        yield from (p for p in container.demux(container.streams.video[0]) if p.size)


def ranks_of(packets: list[Any]) -> list[int]:
    """The place of each packet's frame in the order in which frames are shown."""
    shown = sorted(range(len(packets)), key=lambda i: packets[i].pts)
    return [int(rank) for rank in np.argsort(shown)]


def reordering_of(segment: Path) -> int:
    """By how many frames packets come earlier than they are shown, at most."""
    ranks = ranks_of(list(packets_of(segment)))
    return max(place - rank for place, rank in enumerate(ranks))
