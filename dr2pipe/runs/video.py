"""``dr2pipe video``: the same video out, with the faces of its frames restored.

First the faces are followed through the whole video, then its frames are restored in segments,
each a file of its own; at the end these are joined with the sound. A run that is killed goes on
after the last whole segment.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from dr2pipe.core import files
from dr2pipe.core.config import stable_hash
from dr2pipe.core.errors import UnreadableFileError
from dr2pipe.core.precision import name_of
from dr2pipe.core.processes import process_state
from dr2pipe.core.records import EXIT_DONE, EXIT_NONE_SUCCEEDED, EXIT_SOME_FAILED, versions
from dr2pipe.diffusion.stage1 import describe_dr2
from dr2pipe.faces import SCORE_SLACK, FaceDetector, FaceTrack, FaceTracker, build_detector
from dr2pipe.faces.tracker import Embed
from dr2pipe.features.dlib_identity import load_identity, weights_file
from dr2pipe.restoration.batch_size import resolve_batch_size
from dr2pipe.restoration.photos import NO_FACE
from dr2pipe.restoration.restorer import Restorer, describe_enhancer
from dr2pipe.restoration.settings import load_restorer
from dr2pipe.restoration.video import Frame, VideoEngine
from dr2pipe.runs import video_frames, video_io
from dr2pipe.runs.video_config import VideoConfig, check_video
from dr2pipe.runs.video_io import Damage, VideoInfo
from dr2pipe.runs.video_output import VideoOutput
from dr2pipe.runs.video_plan import Plan, read_before, read_plan, save_before, save_plan
from dr2pipe.runs.video_writing import CODECS, Join, encode_segment, find_codec, supported

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

T = TypeVar("T")

SEGMENT_FRAMES = 48  # what a killed run loses at most
# Frames wait for others that fill a batch with their faces; so many for each face of a batch, and
# so many pixels.
_WAITING_PER_FACE, _WAITING_PIXELS = 2, 100_000_000


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
        OSError: the disk is full or read-only.
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
        self.source, self.files = Path(config.input), VideoOutput(Path(config.output))
        self.work = self.files.work
        self.codec = CODECS[config.codec]
        looked_for = dataclasses.replace(
            config.faces, min_score=config.faces.min_score * SCORE_SLACK
        )
        self.detector = detector or build_detector(looked_for)
        has_network = config.identity.measure is not False and weights_file() is not None
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
        if not self.work.is_dir():
            if (done := self._done(key)) is not None:
                return done
            self.files.check()  # before a folder is made
        with files.locked(self.work):
            self.files.place()
            summary = self._done(key) or self._make(key, sha256)
        shutil.rmtree(self.work, ignore_errors=True)
        return summary

    def _make(self, key: str, sha256: str) -> VideoSummary:
        self.files.check()
        self.files.keep_work_of(key)
        join = Join(self.source, self.files.joined, self.info, self.config.preview_s)
        plan = self._load_plan()
        if plan is None:
            try:
                join.check(self.codec)
            except BaseException:
                shutil.rmtree(self.work, ignore_errors=True)  # nothing is in it
                raise
            plan = self._make_plan()
        restored = [track for track in plan.tracks if track.skipped is None]
        if self.config.strict and not plan.tracks:
            return VideoSummary(0, 0, 0, False, [NO_FACE], EXIT_NONE_SUCCEEDED)
        segments = self._restore(plan) if restored else []
        left_out = join.write(segments, plan.pts).left_out
        summary = VideoSummary(len(plan.pts), len(plan.tracks), len(restored))
        summary.warnings = [*self._warnings(plan), *left_out]
        summary.exit_code = EXIT_SOME_FAILED if plan.damage.sentences() else EXIT_DONE
        content = {
            "source": self.source.name,
            "source_sha256": sha256,
            "summary": dataclasses.asdict(summary),
            "tracks": [self._describe_track(track, plan) for track in plan.tracks],
            "settings": self.settings,
            "versions": versions(),
        }
        self.files.finish(key, content)
        return summary

    # -- what is there already ---------------------------------------------------------------

    def _done(self, key: str) -> VideoSummary | None:
        """What the record says if the output is there, and was made with the same settings."""
        record = self.files.finished(key)
        try:
            summary = VideoSummary(**record["summary"] | {"was_done": True}) if record else None
        except (TypeError, KeyError):
            return None
        if summary is not None and self.config.strict and not summary.followed:
            summary.exit_code = EXIT_NONE_SUCCEEDED
        return summary

    def _known(self, path: Path, read: Callable[[Path], T]) -> T:
        """What is in a file of the work folder."""
        try:
            return read(path)
        except (ValueError, KeyError, TypeError, EOFError, OSError, BadZipFile):
            raise UnreadableFileError(
                path, f"damaged or gone; delete the folder {self.work} and begin anew"
            ) from None

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
            tracker.add(video_frames.upright(frame, self.info), time_s)
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
        return self._known(path, read_plan) if path.is_file() else None

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
        remembered = self.work / f"{done - 1:06}.npz"
        self.engine.before = self._known(remembered, read_before) if done else {}
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
        pixels_of_frame = self.info.width * self.info.height
        for number, frame in enumerate(frames, start):
            seen = [track for track in plan.tracks if track.has(number)]
            prepared = Frame(np.empty((0, 0, 3), np.uint8))
            if any(track.skipped is None for track in seen):
                pixels = video_frames.upright(frame, self.info)
                prepared = self.engine.prepare(pixels, number, seen, self.source.name)
            waiting.append((frame, prepared))
            faces = sum(len(one.faces) for _, one in waiting)
            batch_size = self.engine.batch_size
            most = min(_WAITING_PER_FACE * batch_size, max(1, _WAITING_PIXELS // pixels_of_frame))
            if faces >= batch_size or len(waiting) >= most:
                yield from self._restored(waiting, progress)
                waiting = []
        yield from self._restored(waiting, progress)

    def _restored(
        self, waiting: Sequence[tuple[VideoFrame, Frame]], progress: Any
    ) -> Iterator[VideoFrame]:
        changes = self.engine.restore([prepared for _, prepared in waiting])
        for (frame, _), of_frame in zip(waiting, changes, strict=True):
            yield video_frames.changed_frame(frame, of_frame, self.info)
            progress.update()

    # -- the end -----------------------------------------------------------------------------

    def _warnings(self, plan: Plan) -> list[str]:
        said = plan.damage.sentences()
        if all(track.skipped is not None for track in plan.tracks):
            what = "every face was left as it is" if plan.tracks else NO_FACE
            return [*said, f"{what}; the pictures were copied as they are"]
        encoded = supported(self.codec, self.info.kept_pix_fmt)
        bits = [
            10 if "10le" in n else 12 if "12le" in n else 8 for n in (self.info.pix_fmt, encoded)
        ]
        if bits[1] < bits[0]:
            said.append(f"{self.config.codec} keeps {bits[1]} of the {bits[0]} bits")
        elif encoded != self.info.pix_fmt.replace("yuvj", "yuv"):
            said.append(f"the samples' layout is {encoded}, not {self.info.pix_fmt}")
        if self.info.has_alpha:
            said.append("what was transparent is opaque")
        if self.info.is_hdr:
            said.append("the video is HDR; the networks know SDR, so faces may come out wrong")
        if plan.is_interlaced:
            said.append("the video is interlaced; faces that move come out better deinterlaced")
        return said

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
