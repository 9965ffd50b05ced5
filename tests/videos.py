"""Small videos with faces that are coloured discs, and a detector that knows them."""

import json
from fractions import Fraction

import av
import cv2
import numpy as np
from photos import landmarks_at, smooth_photo

from dr2pipe.faces import Face

RED, BLUE, GREEN = (230, 20, 30), (20, 40, 230), (20, 220, 40)
COLOURS = (RED, BLUE, GREEN)
SIDE_PX = 36.0  # of a face's aligned crop
TICKS = 90_000


def picture(places, size=(96, 128), seed=0):
    """A frame with a disc at each (colour, x, y); later ones cover earlier ones."""
    frame = np.array(smooth_photo(*size, seed=seed, cells=6) // 4 + 90)
    frame[:] = frame.mean(axis=2, keepdims=True)
    for colour, x, y in places:
        cv2.circle(frame, (round(x * 16 - 8), round(y * 16 - 8)), 9 * 16, colour, -1, shift=4)
    return frame


class DiscDetector:
    """Finds the discs; counts how often it looked, and shakes if wanted."""

    def __init__(self, jitter_px=0.0, misses=()):
        self.jitter_px, self.misses, self.looks = jitter_px, set(misses), 0
        self.rng = np.random.default_rng(0)

    def detect(self, image, path=""):
        self.looks += 1
        faces = []
        for number, colour in enumerate(COLOURS):
            inside = np.abs(image.astype(int) - colour).sum(axis=2) < 140
            if inside.sum() < 60 or number in self.misses:
                continue
            y, x = np.nonzero(inside)
            shift = self.rng.normal(scale=self.jitter_px, size=2)
            centre = np.array([x.mean() + 0.5, y.mean() + 0.5]) + shift
            points = landmarks_at(*centre, SIDE_PX)
            box = (*(centre - 9), 18.0, 18.0)
            faces.append(Face(tuple(map(float, box)), points, 0.9))
        return faces


def embed_colour(image, landmarks):
    """The identity of a disc: its colour."""
    x, y = landmarks[2].astype(int)
    height, width = image.shape[:2]
    colour = image[min(max(y, 0), height - 1), min(max(x, 0), width - 1)]
    vector = np.zeros(128)
    vector[int(np.argmin(np.abs(np.array(COLOURS) - colour.astype(int)).sum(axis=1)))] = 1
    return vector


def moving(count, seed=0):
    """Frames with two discs that move slowly."""
    return [
        picture([(RED, 30 + 0.7 * i, 40 + 0.3 * i), (BLUE, 95 - 0.4 * i, 50)], seed=seed)
        for i in range(count)
    ]


def write_video(
    path,
    frames,
    *,
    ticks=None,
    codec="libx264",
    pix_fmt="yuv420p",
    rotation=0,
    mirrored=False,
    sound=True,
    full_range=False,
    options=None,
):
    """A video of (H,W,3) frames, of 25 per second unless ``ticks`` of 1/90000 s are given."""
    height, width = frames[0].shape[:2]
    ticks = ticks or [i * TICKS // 25 for i in range(len(frames))]
    with av.open(str(path), "w") as out:
        options = options or {"crf": "10", "bf": "2"}
        stream = out.add_stream(codec, rate=25, options=options if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = Fraction(1, TICKS)
        if "yuv" in pix_fmt:
            stream.codec_context.colorspace = 1
            stream.codec_context.color_range = 2 if full_range else 1
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        audio = out.add_stream("aac", rate=16000) if sound else None
        for tick, frame in zip(ticks, frames, strict=True):
            made = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if "yuv" in pix_fmt:
                made = made.reformat(
                    format=pix_fmt, dst_colorspace="itu709", dst_color_range=2 if full_range else 1
                )
            made.pts, made.time_base = tick, Fraction(1, TICKS)
            out.mux(stream.encode(made))
        out.mux(stream.encode(None))
        if audio is not None:
            length = 16000 * len(frames) // 25
            wave = np.sin(np.arange(length) / 6)[None].repeat(2, axis=0).astype(np.float32)
            for start in range(0, length, 1000):
                part = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(wave[:, start : start + 1000]), "fltp", "stereo"
                )
                part.sample_rate, part.pts = 16000, start
                part.time_base = Fraction(1, 16000)
                out.mux(audio.encode(part))
            out.mux(audio.encode(None))
    return path


def frames_of(path):
    """Decoded frames with their planes, and their times in seconds from the first."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    times = [float((f.pts - frames[0].pts) * f.time_base) for f in frames]
    return [f.to_ndarray() for f in frames], times


def packets_of(path, kind="audio"):
    """Packets of the first stream of a kind, and their times in seconds from the first frame."""
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).time
    with av.open(str(path)) as container:
        (stream, *_) = [s for s in container.streams if s.type == kind]
        return [
            (bytes(p), round(float(p.pts * p.time_base) - first, 3))
            for p in container.demux(stream)
            if p.size
        ]


def record_of(output):
    """What a run of ``dr2pipe video`` left beside its result."""
    return json.loads((output.parent / f"{output.name}.json").read_text())
