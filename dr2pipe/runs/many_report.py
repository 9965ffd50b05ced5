"""Progress of a run on many machines, and its two reports: ``summary.json`` and ``report.html``."""

from __future__ import annotations

import html
import json
import time
from collections import Counter
from types import TracebackType
from typing import Any

from tqdm import tqdm

from dr2pipe.core.config import to_yaml
from dr2pipe.core.storage import Storage
from dr2pipe.runs.batches import RunSummary
from dr2pipe.runs.many import Block
from dr2pipe.runs.shards import DONE, QUARANTINED, Row

SUMMARY, REPORT = "summary.json", "report.html"
_SAMPLE_S = 5.0
_EXAMPLES = 20
# Sides of faces in pixels, and identities, are counted up to these.
_SIDES_PX = (32, 64, 128, 256, 512, 1024)
_IDENTITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
_WIDTH_PX, _HEIGHT_PX = 640, 160


class Progress:
    """Counts what becomes of the pictures; its memory does not grow with their number.

    Args:
        total: pictures of the input.
        done: of them, done by earlier runs.
        given_up: rows of those that failed too often before.
        price: of one actor for an hour; None: unknown.
    """

    def __init__(self, total: int, done: int, given_up: list[Row], price: float | None):
        self.total, self.price = total, price
        self.summary = RunSummary(skipped=done)
        self.kinds: Counter[str] = Counter()
        self.examples: list[dict[str, Any]] = []
        self.sides: Counter[str] = Counter()
        self.identities: Counter[str] = Counter()
        self.samples: list[tuple[float, int]] = []  # (seconds, pictures)
        self.quarantined: list[str] = []
        self.busy_s = 0.0
        self._own = 0  # pictures that this run settled
        self.since: dict[str, float] = {}  # when each actor began with its first block
        self._start = time.perf_counter()
        for row in given_up:
            self._add_failure(row)
        self._bar = tqdm(total=total, initial=done + len(given_up), unit="picture")

    def __enter__(self) -> Progress:
        """Start the clock."""
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the clock."""
        self._sample(force=True)
        self._bar.close()

    def add(self, block: Block) -> None:
        """Count the pictures of a block after its last step."""
        self.busy_s += block.busy_s
        if block.actor:
            began = time.perf_counter() - block.busy_s
            self.since[block.actor] = min(began, self.since.get(block.actor, began))
        for row in block.rows:
            if row.status != DONE:
                self._add_failure(row)
                continue
            if block.is_theirs:
                self.summary.skipped += 1
                continue
            self.summary.restored += 1
            self.summary.warned += bool(row.record.get("warnings"))
            for face in row.record.get("faces", []):
                self.sides[_bin(face["side_px"], _SIDES_PX)] += 1
                if isinstance(face.get("identity"), float):
                    self.identities[_bin(face["identity"], _IDENTITIES)] += 1
        self._bar.update(len(block.rows))
        self._own += 0 if block.is_theirs else len(block.rows)
        self._sample()

    def as_dict(self) -> dict[str, Any]:
        """The numbers of the run."""
        seconds, pictures = self.samples[-1] if self.samples else (0.0, 0)
        rate = pictures / seconds if seconds else 0.0
        now = self._start + seconds
        actors_s = sum(max(now - began, 0.0) for began in self.since.values())
        cost = None
        if self.price is not None and pictures:
            cost = round(self.price * actors_s / 3600 / pictures * 1000, 4)
        return {
            "pictures": self.total,
            "restored": self.summary.restored,
            "already_done": self.summary.skipped,
            "failed": self.summary.failed,
            "interrupted": self.summary.interrupted,
            "seconds": round(seconds, 1),
            "pictures_per_s": round(rate, 3),
            "actors": len(self.since),
            "actors_busy": round(min(self.busy_s / actors_s, 1.0), 3) if actors_s else None,
            "cost_per_1000": cost,
            "failures": dict(self.kinds.most_common()),
            "quarantined": self.quarantined,
            "face_sides_px": _in_order(self.sides),
            "identities": _in_order(self.identities),
        }

    def _add_failure(self, row: Row) -> None:
        self.summary.failed += 1
        is_poison = row.status == QUARANTINED
        self.kinds[row.status if is_poison else row.record.get("kind", "unknown")] += 1
        if is_poison:
            self.quarantined.append(row.path)
        if len(self.examples) < _EXAMPLES:
            self.examples.append({"path": row.path, "status": row.status, **row.record})

    def _sample(self, *, force: bool = False) -> None:
        seconds = time.perf_counter() - self._start
        if not force and self.samples and seconds - self.samples[-1][0] < _SAMPLE_S:
            return
        self.samples.append((seconds, self._own))
        if len(self.samples) > _WIDTH_PX:  # of a long run every other one is kept
            self.samples = self.samples[1::2]
        said = self.as_dict()
        shown = {"busy": said["actors_busy"]}
        if said["cost_per_1000"] is not None:
            shown["per 1000"] = said["cost_per_1000"]
        self._bar.set_postfix(shown, refresh=False)


def write_reports(output: Storage, progress: Progress, description: dict[str, Any]) -> None:
    """Write both reports into the output; ``description`` as ``run.yaml`` has it."""
    numbers = progress.as_dict()
    output.write(SUMMARY, json.dumps(numbers | {"failed_examples": progress.examples}).encode())
    output.write(REPORT, page(progress, description).encode("utf-8", "replace"))


def page(progress: Progress, description: dict[str, Any]) -> str:
    """The report as one HTML page without further files."""
    numbers = progress.as_dict()
    plain = {k: v for k, v in numbers.items() if not isinstance(v, dict | list) and v is not None}
    parts = [
        "<!doctype html><meta charset='utf-8'><title>restore-many</title>",
        "<style>body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "td,th{padding:.1em 1em .1em 0;text-align:left}pre{overflow:auto}</style>",
        "<h1>restore-many</h1>",
        _rows(plain),
        "<h2>Pictures per second over time</h2>",
        _curve(progress.samples),
    ]
    for title, counts in (
        ("Failures by kind", numbers["failures"]),
        ("Sides of the faces in pixels", numbers["face_sides_px"]),
        ("Likeness of faces and results", numbers["identities"]),
    ):
        if counts:
            parts += [f"<h2>{title}</h2>", _rows(counts)]
    if progress.examples:
        failed = {one["path"]: one.get("message", one["status"]) for one in progress.examples}
        parts += [f"<h2>Failures (at most {_EXAMPLES})</h2>", _rows(failed)]
    settings = html.escape(to_yaml(description))
    parts += [f"<h2>Settings</h2><pre>{settings}</pre>"]
    return "\n".join(parts)


def _rows(values: dict[str, Any]) -> str:
    lines = (
        f"<tr><th>{html.escape(str(name)).replace('_', ' ')}<td>{html.escape(str(value))}"
        for name, value in values.items()
    )
    return f"<table>{''.join(lines)}</table>"


def _curve(samples: list[tuple[float, int]]) -> str:
    """Rate between samples, as an SVG line."""
    rates = [
        (after, (pictures - fewer) / (after - before))
        for (before, fewer), (after, pictures) in zip([(0.0, 0), *samples], samples, strict=False)
        if after > before
    ]
    if not rates:
        return "<p>Nothing was to do."
    last, top = rates[-1][0], max(rate for _, rate in rates) or 1.0
    points = " ".join(
        f"{seconds / last * _WIDTH_PX:.1f},{_HEIGHT_PX - rate / top * _HEIGHT_PX:.1f}"
        for seconds, rate in [(0.0, rates[0][1]), *rates]
    )
    return (
        f"<svg viewBox='0 0 {_WIDTH_PX} {_HEIGHT_PX}' width='100%' style='background:#f4f4f4'>"
        f"<polyline points='{points}' fill='none' stroke='#06c' stroke-width='2'/></svg>"
        f"<p>0 to {top:.1f} pictures per second, over {last:.0f} seconds."
    )


def _bin(value: float, tops: tuple[float, ...]) -> str:
    return next((f"up to {top:g}" for top in tops if value <= top), f"over {tops[-1]:g}")


def _in_order(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda entry: float(entry[0].split()[-1])))
