"""``dr2pipe video``: the same video out, with the faces of its frames restored.

First the faces are followed through the whole video, then its frames are restored in segments,
each a file of its own; at the end these are joined with the sound. A run that is killed goes on
after the last whole segment.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dr2pipe.core import files
from dr2pipe.core.config import stable_hash
from dr2pipe.core.errors import ConfigError, UnreadableFileError
from dr2pipe.core.processes import process_state
from dr2pipe.core.records import EXIT_DONE, EXIT_NONE_SUCCEEDED, EXIT_SOME_FAILED, finite, versions
from dr2pipe.diffusion.stage1 import describe_dr2
from dr2pipe.faces import SCORE_SLACK, FaceDetector, FaceTrack, FaceTracker, build_detector
from dr2pipe.faces.tracker import Embed
from dr2pipe.features.dlib_identity import load_identity, weights_file
from dr2pipe.restoration.batch_size import resolve_batch_size
from dr2pipe.restoration.photos import NO_FACE
from dr2pipe.restoration.precision import name_of
from dr2pipe.restoration.restorer import Restorer, describe_enhancer
from dr2pipe.restoration.settings import load_restorer
from dr2pipe.restoration.video import Frame, VideoEngine
from dr2pipe.runs import video_io
from dr2pipe.runs.video_config import VideoConfig, check_video
from dr2pipe.runs.video_io import Damage, VideoInfo
from dr2pipe.runs.video_plan import Plan, read_before, read_plan, save_before, save_plan
from dr2pipe.runs.video_writing import CODECS, Join, encode_segment, find_codec, supported

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

logger = logging.getLogger(__name__)

SEGMENT_FRAMES = 48  # what a killed run loses at most
_KEY, _FORMAT = "dr2pipe_video", 1
_MAX_RECORD_BYTES = 1 << 28
# Frames wait for others that fill a batch with their faces; so many for each face of a batch.
_WAITING_PER_FACE = 2


@dataclass
class VideoSummary:
    """What a run did.

    Attributes:
        frames: of the output.
        followed: faces that were followed.
        restored: those of them that were restored.
        was_done: whether the output was there already.
        warnings: sentences.
        exit_code: of the command.
    """

    frames: int
    followed: int
    restored: int
    was_done: bool = False
    warnings: list[str] = field(default_factory=list)
    exit_code: int = EXIT_DONE


def restore_video(config: VideoConfig, *, segment_frames: int = SEGMENT_FRAMES) -> VideoSummary:
    """Restore the faces of a video.

    Args:
        config: the settings.
        segment_frames: frames that are encoded together, and lost together by a kill.

    Raises:
        Dr2pipeError: an invalid setting, a file that is no video, missing weights.
    """
    check_video(config)
    find_codec(config.codec, config.quality)
    info = video_io.read_info(config.input)
    device = process_state().device
    restorer, weight_hashes = load_restorer(config, device)
    run = VideoRun(config, info, restorer, weight_hashes, segment_frames=segment_frames)
    return run.run()


class VideoRun:
    """One video on its way.

    Args:
        config: the settings, which have been checked.
        info: of the input.
        restorer: both stages.
        weight_hashes: sha256 of their files.
        detector: finds faces; None: the one that the settings name.
        embed: tells faces apart; None: dlib's network, where it is installed.
        segment_frames: see :func:`restore_video`.
    """

    def __init__(
        self,
        config: VideoConfig,
        info: VideoInfo,
        restorer: Restorer,
        weight_hashes: dict[str, str],
        *,
        detector: FaceDetector | None = None,
        embed: Embed | None = None,
        segment_frames: int = SEGMENT_FRAMES,
    ):
        self.config, self.info, self.segment_frames = config, info, segment_frames
        self.source, self.output = Path(config.input), Path(config.output)
        self.record = self.output.with_name(f"{self.output.name}.json")
        self.work = self.output.with_name(f".{self.output.name}.work")
        self.codec = CODECS[config.codec]
        looked_for = dataclasses.replace(
            config.faces, min_score=config.faces.min_score * SCORE_SLACK
        )
        self.detector = detector or build_detector(looked_for)
        has_network = config.identity.measure and weights_file() is not None
        self.embed = embed or (load_identity(restorer.device).embed if has_network else None)
        self.engine = VideoEngine(
            restorer,
            batch_size=resolve_batch_size(config.batch_size, restorer),
            seed=config.seed,
            steadiness=config.steadiness,
            match_colours=config.paste.match_colours,
            blend=config.faces.blend,
        )
        self.settings = self._describe(restorer, weight_hashes)

    def _describe(self, restorer: Restorer, weight_hashes: dict[str, str]) -> dict[str, Any]:
        """Everything besides the video that decides the result."""
        config = self.config
        dr2: dict[str, Any] = {"enabled": False}
        if restorer.remover is not None:
            dr2 = describe_dr2(config.dr2, restorer.remover)
        return {
            "seed": config.seed,
            "dr2": dr2,
            "enhancer": describe_enhancer(config.enhancer, restorer.enhancer),
            "precision": name_of(restorer.dtype),
            "noise": restorer.noise,
            "faces": dataclasses.asdict(config.faces),
            "paste": dataclasses.asdict(config.paste),
            "look_every": config.look_every,
            "steadiness": config.steadiness,
            "matched_by_identity": self.embed is not None,
            "codec": config.codec,
            "quality": self.codec.quality if config.quality is None else config.quality,
            "preview_s": config.preview_s,
            "segment_frames": self.segment_frames,
            "weights_sha256": weight_hashes,
        }

    def run(self) -> VideoSummary:
        """Do what is missing."""
        sha256 = files.sha256(self.source)
        key = stable_hash({"settings": self.settings, "source": sha256, "versions": versions()})
        done = self._done(key)
        if done is not None:
            return done
        self._check_output()
        join = Join(self.source, self.output, self.info, self.config.preview_s)
        join.check(self.codec)
        with files.locked(self.work):
            self._keep_work_of(key)
            plan = self._load_plan() or self._make_plan()
            restored = [track for track in plan.tracks if track.skipped is None]
            if self.config.strict and not plan.tracks:
                shutil.rmtree(self.work)
                return VideoSummary(0, 0, 0, False, [NO_FACE], EXIT_NONE_SUCCEEDED)
            segments = self._restore(plan) if restored else []
            left_out = self._join(join, segments, plan)
            summary = VideoSummary(len(plan.pts), len(plan.tracks), len(restored))
            summary.warnings = [*self._warnings(plan), *left_out]
            summary.exit_code = EXIT_SOME_FAILED if plan.damage.sentences() else EXIT_DONE
            self._write_record(key, sha256, plan, summary)
        shutil.rmtree(self.work, ignore_errors=True)
        return summary

    # -- what is there already ---------------------------------------------------------------

    def _done(self, key: str) -> VideoSummary | None:
        """What the record says if the output is there, and was made with the same settings."""
        record = self._read_record()
        if record is None or record.get("key") != key or not self.output.is_file():
            return None
        if record.get("bytes") != self.output.stat().st_size:
            return None
        try:
            return VideoSummary(**record["summary"] | {"was_done": True})
        except (TypeError, KeyError):
            return None

    def _read_record(self) -> dict[str, Any] | None:
        try:
            content = json.loads(files.read_regular(self.record, max_bytes=_MAX_RECORD_BYTES))
        except (UnreadableFileError, ValueError, RecursionError):
            return None
        is_own = isinstance(content, dict) and content.get(_KEY) == _FORMAT
        return content if is_own else None

    def _check_output(self) -> None:
        """Refuse to write over what no run of this command wrote."""
        for path in (self.output, self.record):
            if os.path.lexists(path):
                files.check_regular(path)
                if self._read_record() is None:
                    raise ConfigError(
                        f"{path} is there, and no run of this command wrote it; choose another "
                        "output, or delete it"
                    )
        self.output.parent.mkdir(parents=True, exist_ok=True)

    def _keep_work_of(self, key: str) -> None:
        """Delete what a run with other settings left."""
        mark = self.work / "key"
        if not mark.is_file() or mark.read_text() != key:
            for path in self.work.iterdir():
                if path.name != files.LOCK_NAME:
                    path.unlink()
            files.write_bytes(mark, key.encode())

    # -- first pass --------------------------------------------------------------------------

    def find_faces(self) -> Plan:
        """Follow the faces through the video."""
        tracker = FaceTracker(
            self.detector, self.config.faces, every=self.config.look_every, embed=self.embed
        )
        damage, pts, is_interlaced = Damage(), list[int](), False
        duration = self.info.duration_s or 0.0
        if self.config.preview_s is not None:
            duration = min(duration or self.config.preview_s, self.config.preview_s)
        total = round(duration * self.info.rate) or None
        for frame in tqdm(self._frames(damage), "finding faces", total, unit="frame"):
            assert frame.pts is not None
            pts.append(frame.pts)
            is_interlaced |= frame.interlaced_frame
            time_s = float((frame.pts - pts[0]) * self.info.time_base)
            tracker.add(video_io.upright(frame, self.info), time_s)
        plan = Plan(pts, tracker.finish(), damage, is_interlaced)
        if self.config.faces.skip_good:
            self.engine.leave_good_alone(plan.tracks)
        return plan

    def _make_plan(self) -> Plan:
        plan = self.find_faces()
        save_plan(self.work / "plan.npz", plan)
        return plan

    def _load_plan(self) -> Plan | None:
        path = self.work / "plan.npz"
        return read_plan(path) if path.is_file() else None

    def _frames(self, damage: Damage) -> Iterator[VideoFrame]:
        return video_io.read_frames(self.source, self.info, damage, until_s=self.config.preview_s)

    # -- second pass -------------------------------------------------------------------------

    def _restore(self, plan: Plan) -> list[Path]:
        """Make the segments that are missing; returns all of them."""
        count = -(-len(plan.pts) // self.segment_frames)
        segments = [self.work / f"{number:06}.nut" for number in range(count)]
        done = next((n for n, path in enumerate(segments) if not path.is_file()), count)
        if done == count:
            return segments
        self.engine.before = read_before(self.work / f"{done - 1:06}.npz") if done else {}
        first = done * self.segment_frames
        frames = itertools.islice(self._frames(Damage()), first, None)
        with tqdm(None, "restoring", len(plan.pts), unit="frame", initial=first) as progress:
            for number in range(done, count):
                start = number * self.segment_frames
                part = itertools.islice(frames, self.segment_frames)
                changed = self._changed(part, start, plan, progress)
                encode_segment(
                    segments[number],
                    changed,
                    self.info,
                    self.codec,
                    self.config.quality,
                    before_rename=lambda: self._save_before(number, plan),  # noqa: B023
                )
                (self.work / f"{number - 1:06}.npz").unlink(missing_ok=True)
        return segments

    def _save_before(self, number: int, plan: Plan) -> None:
        self.engine.forget(plan.tracks, (number + 1) * self.segment_frames)
        save_before(self.work / f"{number:06}.npz", self.engine.before)

    def _changed(
        self, frames: Iterator[VideoFrame], start: int, plan: Plan, progress: Any
    ) -> Iterator[VideoFrame]:
        """Frames with their faces restored; those of several frames share batches."""
        waiting: list[tuple[VideoFrame, Frame]] = []
        for number, frame in enumerate(frames, start):
            seen = [track for track in plan.tracks if track.has(number)]
            prepared = Frame(np.empty((0, 0, 3), np.uint8))
            if any(track.skipped is None for track in seen):
                pixels = video_io.upright(frame, self.info)
                prepared = self.engine.prepare(pixels, number, seen, self.source.name)
            waiting.append((frame, prepared))
            faces = sum(len(one.faces) for _, one in waiting)
            batch_size = self.engine.batch_size
            if faces >= batch_size or len(waiting) >= _WAITING_PER_FACE * batch_size:
                yield from self._restored(waiting, progress)
                waiting = []
        yield from self._restored(waiting, progress)

    def _restored(
        self, waiting: Sequence[tuple[VideoFrame, Frame]], progress: Any
    ) -> Iterator[VideoFrame]:
        changes = self.engine.restore([prepared for _, prepared in waiting])
        for (frame, _), of_frame in zip(waiting, changes, strict=True):
            yield video_io.changed_frame(frame, of_frame, self.info)
            progress.update()

    # -- the end -----------------------------------------------------------------------------

    def _join(self, join: Join, segments: list[Path], plan: Plan) -> list[str]:
        partial = self.work / f"joined{self.output.suffix}"
        join.output = partial
        left_out = join.write(segments, plan.pts).left_out
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, self.output)
        files.sync_folder(self.output.parent)
        return left_out

    def _warnings(self, plan: Plan) -> list[str]:
        said = plan.damage.sentences()
        if not plan.tracks:
            said.append(f"{NO_FACE}; the pictures were copied as they are")
        encoded = supported(self.codec, self.info.kept_pix_fmt)
        bits = [
            10 if "10le" in n else 12 if "12le" in n else 8 for n in (self.info.pix_fmt, encoded)
        ]
        if bits[1] < bits[0]:
            said.append(f"{self.config.codec} keeps {bits[1]} of the {bits[0]} bits")
        elif encoded != self.info.pix_fmt.replace("yuvj", "yuv"):
            said.append(f"the samples' layout is {encoded}, not {self.info.pix_fmt}")
        if self.info.is_hdr:
            said.append("the video is HDR; the networks know SDR, so faces may come out wrong")
        if plan.is_interlaced:
            said.append("the video is interlaced; faces that move come out better deinterlaced")
        return said

    def _write_record(self, key: str, sha256: str, plan: Plan, summary: VideoSummary) -> None:
        content = {
            _KEY: _FORMAT,
            "key": key,
            "source": self.source.name,
            "source_sha256": sha256,
            "bytes": self.output.stat().st_size,
            "sha256": files.sha256(self.output),
            "summary": dataclasses.asdict(summary),
            "tracks": [self._describe_track(track, plan) for track in plan.tracks],
            "settings": self.settings,
            "versions": versions(),
        }
        files.write_bytes(self.record, json.dumps(finite(content), indent=1).encode())

    def _describe_track(self, track: FaceTrack, plan: Plan) -> dict[str, Any]:
        def time_s(frame: int) -> float:
            return round(float((plan.pts[frame] - plan.pts[0]) * self.info.time_base), 3)

        return {
            "track": track.number,
            "first_frame": track.first,
            "last_frame": track.last,
            "first_s": time_s(track.first),
            "last_s": time_s(track.last),
            "seed": self.engine.seed_of(self.source.name, track),
            "first_box": track.boxes[0].round(1).tolist(),
            "score": round(track.score, 3),
            "side_px": round(track.quality.side_px, 1),
            "quality": {
                "effective_px": round(track.quality.effective_px),
                "noise": round(track.quality.noise, 1),
                "blockiness": round(track.quality.blockiness, 2),
            },
            "is_monochrome": track.is_monochrome,
            **({"skipped": track.skipped} if track.skipped else {}),
        }
