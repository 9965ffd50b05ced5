"""How steady ``dr2pipe video`` is, on a clip whose clean frames are known.

python scripts/research/measure_video.py PHOTO PHOTO WORK [--seconds 10] [--set key=value ...]

Two photos with a face each are shown side by side (640x360, 25 frames per second), and a moving
crop lets both faces move, turn and grow. The clip is reduced to a quarter, gets noise, and is
compressed (H.264), with a tone as its sound. Prints, after restoring it:

* the tracks, and in how many frames a track was nearer to the other face;
* whether the packets of the sound are the same;
* flicker: the mean absolute difference of what changes from frame to frame in the result and in
  the clean clip, of luma in levels of 255, inside the faces' ovals: in place, and along the motion,
  in crops in which the clean face stands still. For the clean clip without its finest detail,
  which has no flicker but differs where details move, for the degraded clip, for frames that are
  restored one by one as photos, and for the video;
* PSNR of luma inside the ovals;
* with --kills, whether a run that was killed so often left the same as an undisturbed one;
* the peak memory of the command for clips of 10 and 100 seconds, with the networks left out.

WORK keeps the clips, and a sheet of frames: clean, degraded, frame by frame, video.
"""

from __future__ import annotations

import argparse
import itertools
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from dr2pipe.cli import report_errors
from dr2pipe.core import images
from dr2pipe.core.config import load_config, stable_seed
from dr2pipe.core.models import find_file
from dr2pipe.core.processes import process_state
from dr2pipe.faces import DetectorConfig, align, build_detector, face_mask, photo_weights
from dr2pipe.faces.align import apply, warp
from dr2pipe.restoration.restorer import Restorer
from dr2pipe.restoration.settings import load_photo_engine
from dr2pipe.runs.video import VideoRun
from dr2pipe.runs.video_config import VideoConfig, check_video
from dr2pipe.runs.video_io import read_info

Pixels = npt.NDArray[np.uint8]
WIDTH, HEIGHT, RATE = 640, 360, 25
_FACE_SIDE_PX = 190.0  # of the aligned crop, on the average
_REDUCED, _NOISE, _CRF = 0.25, 8.0, 28
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_STILL_PX = 160  # side of crops in which a face stands still
_SOFT = "clean, reduced and enlarged"
_CHEAP = [
    *("dr2.enabled=false", "enhancer.name=bicubic", "enhancer.options={size: 64}"),
    *("identity.measure=false", "paste.match_colours=false"),
]


@dataclass
class Actor:
    """A photo with one face, and how it moves."""

    photo: Pixels
    landmarks: npt.NDArray[np.float64]
    left: int
    phase: float

    def frame(self, second: float) -> tuple[Pixels, npt.NDArray[np.float64]]:
        """(360,320,3) of the half at a time, and the landmarks in the whole frame."""
        angle = 2 * math.pi * second
        grow = 1 + 0.06 * math.sin(angle / 6 + self.phase)
        turn = math.radians(4 * math.sin(angle / 5 + 2 * self.phase))
        middle = self.landmarks.mean(axis=0)
        side = align(self.landmarks).side_px
        scale = _FACE_SIDE_PX / side * grow
        x = 160 + 25 * math.sin(angle / 5 + self.phase)
        y = 185 + 15 * math.sin(angle / 4 + self.phase)
        turned = scale * np.array(
            [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
        )
        matrix = np.column_stack([turned, [x, y] - turned @ middle])
        half = cv2.warpAffine(
            self.photo, matrix, (WIDTH // 2, HEIGHT), flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        return np.asarray(half, np.uint8), apply(matrix, self.landmarks) + np.array(
            [self.left, 0.0]
        )


def read_actor(path: str, left: int, phase: float) -> Actor:
    """The photo reduced to the size at which it is shown, and its largest face."""
    photo = images.read_image(path).pixels
    detector = build_detector(DetectorConfig())
    side = align(detector.detect(photo)[0].landmarks).side_px
    shrink = min(1.0, 1.15 * _FACE_SIDE_PX / side)
    size = (round(photo.shape[0] * shrink), round(photo.shape[1] * shrink))
    photo = images.resize_pixels(photo, size)
    return Actor(photo, detector.detect(photo)[0].landmarks, left, phase)


def clean_frames(actors: Sequence[Actor], seconds: float) -> Iterator[tuple[Pixels, Any]]:
    """Frames (360,640,3), and (2,5,2) landmarks of each."""
    for number in range(round(seconds * RATE)):
        halves = [actor.frame(number / RATE) for actor in actors]
        yield np.concatenate([half for half, _ in halves], axis=1), [p for _, p in halves]


def soft(frame: Pixels) -> Pixels:
    """A clean frame without the detail that the degraded clip lacks; nothing in it flickers."""
    small = (round(HEIGHT * _REDUCED), round(WIDTH * _REDUCED))
    return images.resize_pixels(images.resize_pixels(frame, small), (HEIGHT, WIDTH))


def degraded(frame: Pixels, number: int) -> Pixels:
    """A frame reduced, with noise, enlarged again."""
    small = (round(HEIGHT * _REDUCED), round(WIDTH * _REDUCED))
    noisy = images.resize_pixels(frame, small).astype(float)
    noisy += np.random.default_rng(number).normal(scale=_NOISE, size=noisy.shape)
    return images.resize_pixels(images.round_to_uint8(noisy), (HEIGHT, WIDTH))


def write_clip(path: Path, actors: Sequence[Actor], seconds: float) -> None:
    """The degraded clip, with a tone."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"crf": str(_CRF)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = out.add_stream("aac", rate=48000)
        for number, (frame, _) in enumerate(clean_frames(actors, seconds)):
            shown = av.VideoFrame.from_ndarray(degraded(frame, number), format="rgb24")
            out.mux(stream.encode(shown))
            at = (np.arange(48000 // RATE) + number * (48000 // RATE)) / 48000
            wave = (0.3 * np.sin(2 * np.pi * 440 * at)).astype(np.float32)
            part = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
            part.sample_rate, part.pts = 48000, number * (48000 // RATE)
            part.time_base = Fraction(1, 48000)
            out.mux(sound.encode(part))
        out.mux(stream.encode(None))
        out.mux(sound.encode(None))


def shown(path: Path) -> Iterator[Pixels]:
    """Frames of a video."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def one_by_one(path: Path, config: VideoConfig, count: int) -> Iterator[Pixels]:
    """The first frames of a video, restored as photos of a folder are."""
    engine, _ = load_photo_engine(config, process_state().device)
    waiting: list[tuple[Any, int]] = []
    for number, pixels in enumerate(itertools.islice(shown(path), count)):
        picture = images.picture_of(Image.fromarray(pixels), keep_own=True, whole_photo=True)
        seed = stable_seed(config.seed, f"frame_{number:06}.png")
        waiting.append((engine.prepare(picture), seed))
        if len(waiting) == 8:
            yield from _results(engine, waiting)
            waiting = []
    yield from _results(engine, waiting)


def _results(engine: Any, waiting: list[tuple[Any, int]]) -> Iterator[Pixels]:
    found = engine.restore([photo for photo, _ in waiting], [seed for _, seed in waiting])
    for (photo, _), result in zip(waiting, found, strict=True):
        yield photo.picture.own.levels if result.levels is None else result.levels


class Meter:
    """Adds up the flicker and the error of frames against clean ones."""

    def __init__(self) -> None:
        self.before: dict[str, tuple[Any, Any]] = {}
        self.in_place, self.along = list[float](), list[float]()
        self.squares = list[float]()

    def add(self, frame: Pixels, clean: Pixels, landmarks: Any) -> None:
        """Compare the next frame."""
        luma, clean_luma = frame @ _LUMA, clean @ _LUMA
        alignments = [align(points) for points in landmarks]
        inside = sum(photo_weights(one, (HEIGHT, WIDTH)) for one in alignments) > 0.5
        self.squares.append(float(np.square(luma - clean_luma)[inside].mean()))
        self._compare("place", luma, clean_luma, inside, self.in_place)
        for number, one in enumerate(alignments):
            to_crop = one.to_crop * _STILL_PX
            crops = [warp(x, to_crop, (_STILL_PX, _STILL_PX)) for x in (luma, clean_luma)]
            mask = face_mask(one, _STILL_PX) > 0.5
            self._compare(str(number), crops[0], crops[1], mask, self.along)

    def _compare(self, what: str, x: Any, clean: Any, inside: Any, found: list[float]) -> None:
        if what in self.before:
            before, clean_before = self.before[what]
            difference = (x - before) - (clean - clean_before)
            found.append(float(np.abs(difference)[inside].mean()))
        self.before[what] = x, clean

    @property
    def psnr(self) -> float:
        """In dB."""
        return 10 * math.log10(255**2 / float(np.mean(self.squares)))


def sound_of(path: Path) -> list[tuple[bytes, float]]:
    """The packets of the sound and their times in seconds."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(audio=0) if p.size]
        return [(bytes(p), round(float((p.pts or 0) * p.time_base), 6)) for p in packets]


def measure(options: argparse.Namespace) -> int:
    """Make the clip, restore it, and print what was found."""
    options.work.mkdir(parents=True, exist_ok=True)
    actors = [read_actor(options.photos[i], i * WIDTH // 2, 1.7 * i) for i in range(2)]
    clip = options.work / f"clip_{options.seconds:g}s.mp4"
    if not clip.is_file():
        write_clip(clip, actors, options.seconds)
    if not options.cheap_only:
        restore_and_compare(options, actors, clip)
    if options.kills:
        kill(clip, options.work, options.kills)
    if not options.no_memory:
        for seconds in (10, 100):
            long = options.work / f"clip_{seconds}s.mp4"
            if not long.is_file():
                write_clip(long, actors, seconds)
            print(f"peak memory of {seconds} s without networks: {peak_mb(long, options.work)} MB")
    return 0


def restore_and_compare(options: argparse.Namespace, actors: Sequence[Actor], clip: Path) -> None:
    """Print tracks, sound, flicker and PSNR."""
    output = options.work / "restored.mp4"
    for leftover in (output, Path(f"{output}.json")):
        leftover.unlink(missing_ok=True)
    preset = find_file("configs/restore", options.preset, what="preset")
    given = [f"input={clip}", f"output={output}", "faces.skip_good=false", *options.set]
    config = load_config(VideoConfig, preset, given)
    check_video(config)
    engine, hashes = load_photo_engine(config, process_state().device)
    run = VideoRun(config, read_info(clip), _restorer_of(engine), hashes)
    plan = run.find_faces()
    began = time.monotonic()
    run.run()
    print(f"video: {len(plan.pts)} frames in {time.monotonic() - began:.0f} s")
    _print_tracks(plan.tracks, actors)
    same = sound_of(clip) == sound_of(output)
    print(f"packets of the sound: {len(sound_of(output))}, the same: {same}")

    saved = options.work / "one_by_one.npz"
    began = time.monotonic()
    if options.reuse and saved.is_file():
        singles: Any = list(np.load(saved)["frames"])
    else:
        singles = list(one_by_one(clip, config, options.singles))
        np.savez(saved, frames=np.stack(singles))
        print(f"frame by frame: {len(singles)} frames in {time.monotonic() - began:.0f} s")
    meters = {name: Meter() for name in (_SOFT, "degraded", "frame by frame", "video")}
    sheet = []
    frames = zip(
        clean_frames(actors, options.seconds), shown(clip), singles, shown(output), strict=False
    )
    for number, ((clean, landmarks), *others) in enumerate(frames):
        for meter, frame in zip(meters.values(), [soft(clean), *others], strict=True):
            meter.add(frame, clean, landmarks)
        if number % (options.singles // 4) == 3:
            sheet.append(np.concatenate([clean, *others], axis=1))
    for name, meter in meters.items():
        print(
            f"{name}: flicker in place {np.mean(meter.in_place):.3f}, along the motion "
            f"{np.mean(meter.along):.3f}, PSNR {meter.psnr:.2f} dB"
        )
    usual, video = meters["frame by frame"], meters["video"]
    for what in ("in_place", "along"):
        less = 1 - float(np.mean(getattr(video, what)) / np.mean(getattr(usual, what)))
        print(f"flicker below frame by frame, {what.replace('_', ' ')}: {100 * less:.1f} %")
    Image.fromarray(np.concatenate(sheet)).save(options.work / "sheet.png")


def _restorer_of(engine: Any) -> Restorer:
    restorer: Restorer = engine.restorer.restorer
    return restorer


def _print_tracks(tracks: Sequence[Any], actors: Sequence[Actor]) -> None:
    for track in tracks:
        owners = []
        for frame in range(track.first, track.last + 1):
            middle = track.points[frame - track.first][:5].mean(axis=0)
            places = [actor.frame(frame / RATE)[1].mean(axis=0) for actor in actors]
            owners.append(int(np.argmin([np.linalg.norm(middle - place) for place in places])))
        swaps = int(np.count_nonzero(np.diff(owners)))
        print(f"track {track.number}: frames {track.first}..{track.last}, swaps {swaps}")


def cheap_command(clip: Path, output: Path) -> list[str]:
    """The command with the networks left out, and no result of it there."""
    output.unlink(missing_ok=True)
    Path(f"{output}.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "dr2pipe", "video", str(clip), str(output)]
    return [*command, "--set", *_CHEAP, "faces.skip_good=false", "look_every=25"]


def peak_mb(clip: Path, work: Path) -> int:
    """Peak resident memory of the command in a process of its own."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = cheap_command(clip, work / f"cheap_{clip.stem}.mp4")
    found = subprocess.run(
        [sys.executable, "-c", code, *command], check=True, capture_output=True, text=True
    )
    return round(int(found.stdout) / 1024)


def kill(clip: Path, work: Path, kills: int) -> None:
    """Kill the command again and again, let it end, and compare with an undisturbed run."""
    whole, killed = work / "undisturbed.mp4", work / "killed.mp4"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(cheap_command(clip, whole), check=True, **quiet)
    command = cheap_command(clip, killed)
    folder, rng, done = work / ".killed.mp4.work", np.random.default_rng(0), 0
    for _ in range(kills):
        process = subprocess.Popen(command, **quiet)
        before = len(list(folder.glob("*.nut")))
        while process.poll() is None and len(list(folder.glob("*.nut"))) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
        done += process.poll() is None
        process.kill()
        process.wait()
    subprocess.run(command, check=True, **quiet)
    frames = all(np.array_equal(a, b) for a, b in zip(shown(whole), shown(killed), strict=True))
    sound = sound_of(whole) == sound_of(killed) == sound_of(clip)
    same = whole.read_bytes() == killed.read_bytes()
    print(f"{done} kills: frames equal {frames}, sound equal {sound}, files equal {same}")


def main() -> int:
    """Parse the arguments, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photos", nargs=2, help="photos with one large face each")
    parser.add_argument("work", type=Path, help="folder for clips and the sheet")
    parser.add_argument("--seconds", type=float, default=10, help="of the clip (10)")
    parser.add_argument(
        "--singles", type=int, default=100, help="frames that are restored one by one (100)"
    )
    parser.add_argument("--preset", default="default")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--cheap-only", action="store_true", help="nothing with the networks")
    parser.add_argument("--kills", type=int, default=0, help="kill a run so often (0)")
    parser.add_argument("--reuse", action="store_true", help="take the single frames of before")
    options = parser.parse_args()
    return report_errors(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
