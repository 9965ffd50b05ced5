"""The faces of a video's frames: restored in batches, steady along each track.

The same noise in every frame of a track, and a coarse face that is mixed with that of the frame
before where the face did not change, keep the results from flickering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError, NotFiniteError, is_out_of_memory
from dr2pipe.diffusion.low_pass import build_low_pass
from dr2pipe.enhancers import build_enhancer
from dr2pipe.faces import Alignment, FaceTrack, cut, face_patches
from dr2pipe.restoration.face_batches import FaceRestorer
from dr2pipe.restoration.photos import with_colours_of
from dr2pipe.restoration.placing import good_as_it_is
from dr2pipe.restoration.restorer import Restorer

# Inputs are compared where they change slowly: by so many cells a side, so that noise counts
# little. At this difference, of values in [-1,1], the mix with the frame before falls to 37 %.
_CELLS, _CHANGED = 32, 0.06
_LUMA = np.array(images.LUMA, np.float32)


@dataclass
class FrameFace:
    """A face of a frame on its way through the networks.

    Attributes:
        track: which it belongs to.
        seed: of the track.
        alignment: where it lies in the frame.
        neighbours: where the frame's other faces lie.
        degraded: (1,3,S,S) in [-1,1], the aligned face; S is the networks' input size.
        look: (R,R,3), the same at the size of the results.
        share: 0..1, how much of the restored face is shown.
        is_monochrome: whether luma alone may change.
    """

    track: int
    seed: int
    alignment: Alignment
    neighbours: list[Alignment]
    degraded: torch.Tensor
    look: images.Pixels
    share: float
    is_monochrome: bool = False


@dataclass
class Frame:
    """A frame with its faces.

    Attributes:
        pixels: (H,W,3) uint8 RGB, upright.
        faces: that are restored.
    """

    pixels: images.Pixels
    faces: list[FrameFace] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Change:
    """What is added to a part of a frame.

    Attributes:
        top: its first row.
        left: its first column.
        levels: (h,w,3) float32 RGB, differences of levels of 255; 0 outside the face.
    """

    top: int
    left: int
    levels: npt.NDArray[np.float32]


@dataclass
class Before:
    """What is remembered of a track's frame before, both (1,3,S,S) and mixed over time."""

    degraded: torch.Tensor
    coarse: torch.Tensor


class VideoEngine:
    """Restores the faces of frames, in the order of the frames.

    Args:
        restorer: both stages.
        batch_size: faces at once; they may be of several frames and tracks.
        seed: of the random part of stage 1.
        steadiness: 0..1, share of the frame before in a coarse face that did not change.
        match_colours: keep the colours of the frame where they change slowly.
        blend: 0..1, share of the restored face in the result.

    Attributes:
        before: what is remembered of each track; a run that goes on needs it.

    Raises:
        ConfigError: a share is out of range.
    """

    def __init__(
        self,
        restorer: Restorer,
        *,
        batch_size: int,
        seed: int = 0,
        steadiness: float = 0.7,
        match_colours: bool = True,
        blend: float = 1.0,
    ):
        if not 0 <= blend <= 1:
            raise ConfigError(f"faces.blend={blend} must lie in 0..1")
        if not 0 <= steadiness < 1:
            raise ConfigError(f"steadiness={steadiness} must be at least 0 and below 1")
        self.restorer, self.seed, self.steadiness = restorer, seed, steadiness
        self.match_colours, self.blend = match_colours, blend
        without_stage2 = restorer.with_enhancer(build_enhancer("none"))
        self.stage1 = FaceRestorer(without_stage2, batch_size=batch_size)
        self.before: dict[int, Before] = {}

    @property
    def batch_size(self) -> int:
        """Faces at once; smaller than at first where memory ran out."""
        return self.stage1.batch_size

    def leave_good_alone(self, tracks: Sequence[FaceTrack]) -> None:
        """Mark the tracks whose faces are better than the networks' results, as in photos."""
        for track in tracks:
            if track.skipped is None:
                sizes = self.restorer.input_size, self.restorer.output_size
                track.skipped = good_as_it_is(track.quality, *sizes)

    def prepare(
        self, pixels: images.Pixels, number: int, tracks: Sequence[FaceTrack], path: str
    ) -> Frame:
        """Cut the faces out of a frame.

        Args:
            pixels: (H,W,3) uint8 RGB, upright.
            number: of the frame.
            tracks: of the video.
            path: of the video; seeds depend on it, and on the tracks' numbers.
        """
        frame = Frame(pixels)
        seen = [(track, track.alignment(number)) for track in tracks if track.has(number)]
        for track, alignment in seen:
            if track.skipped is not None:
                continue
            source = images.to_grey(pixels) if track.is_monochrome else pixels
            degraded = cut(source, alignment, self.restorer.input_size)
            look = cut(source, alignment, self.restorer.output_size)
            others = [other for _, other in seen if other is not alignment]
            face = FrameFace(
                track.number,
                self.seed_of(path, track),
                alignment,
                others,
                images.to_tensor(degraded),
                look,
                self.blend * track.share(number),
                track.is_monochrome,
            )
            frame.faces.append(face)
        return frame

    def seed_of(self, path: str, track: FaceTrack) -> int:
        """The seed of all faces of a track."""
        return stable_seed(self.seed, path, "track", track.number)

    def restore(self, frames: Sequence[Frame]) -> list[list[Change]]:
        """What is added to each of several frames, which follow the frames of the last call."""
        faces = [face for frame in frames for face in frame.faces]
        coarse = [
            self._steadied(face, one) for face, one in zip(faces, self._coarse(faces), strict=True)
        ]
        restored = iter(self._enhanced(coarse))
        return [
            [
                change
                for face in frame.faces
                for change in self._changes(frame, face, next(restored))
            ]
            for frame in frames
        ]

    def forget(self, tracks: Sequence[FaceTrack], number: int) -> None:
        """Forget the tracks that end before a frame."""
        ended = {track.number for track in tracks if track.last < number}
        self.before = {n: before for n, before in self.before.items() if n not in ended}

    def _coarse(self, faces: Sequence[FrameFace]) -> list[torch.Tensor]:
        """What stage 1 makes of each; where there is none, the faces as they are."""
        if self.restorer.remover is None:
            return [face.degraded for face in faces]
        found = self.stage1(
            [face.degraded for face in faces],
            [face.seed for face in faces],
            [face.look for face in faces],
        )
        return [one.coarse for one in found]

    def _steadied(self, face: FrameFace, coarse: torch.Tensor) -> torch.Tensor:
        """The coarse face (1,3,S,S), mixed with the frame before where the input did not change.

        The input is mixed likewise, so that slow changes add up until they are seen.
        """
        if self.steadiness == 0:
            return coarse
        new = Before(face.degraded, coarse)
        old = self.before.get(face.track)
        if old is not None:
            slow = build_low_pass("gaussian", sigma_px=coarse.shape[-1] / _CELLS)
            changed = slow(new.degraded - old.degraded).abs().amax(dim=1, keepdim=True)
            share = self.steadiness * torch.exp(-((changed / _CHANGED) ** 2))  # (1,1,S,S)
            new = Before(
                torch.lerp(new.degraded, old.degraded, share),
                torch.lerp(new.coarse, old.coarse, share),
            )
        self.before[face.track] = new
        return new.coarse

    @torch.no_grad()
    def _enhanced(self, coarse: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        results: list[torch.Tensor] = []
        while len(results) < len(coarse):
            batch = torch.cat(list(coarse[len(results) : len(results) + self.batch_size]))
            try:
                restored = self._enhanced_batch(batch.to(self.restorer.device)).cpu()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.stage1.halve_batches(error)
                continue
            results += [restored[i : i + 1] for i in range(len(restored))]
        return results

    def _enhanced_batch(self, batch: torch.Tensor) -> torch.Tensor:
        """Stage 2 on (B,3,S,S); again in float32 where a result was not finite."""
        restored = self.restorer.enhance(batch)
        broken = ~restored.isfinite().flatten(1).all(dim=1)
        if broken.any():
            with self.restorer.in_fp32():
                restored[broken] = self.restorer.enhance(batch[broken])
        if not restored.isfinite().all():
            raise NotFiniteError("the result is not finite, not even in float32")
        return restored

    def _changes(self, frame: Frame, face: FrameFace, restored: torch.Tensor) -> list[Change]:
        if self.match_colours:
            restored = with_colours_of(images.to_tensor(face.look), restored)
        pixels = (restored[0].permute(1, 2, 0).double() + 1).mul(127.5).float().numpy()
        height, width = frame.pixels.shape[:2]
        changes = []
        for patch in face_patches(pixels, face.alignment, (height, width), face.neighbours):
            original = frame.pixels[patch.place].astype(np.float32)
            difference = np.clip(patch.pixels, 0, 255) - original
            if face.is_monochrome:
                luma = (difference @ _LUMA)[..., None]
                difference = np.repeat(luma, 3, axis=2)
            share = (patch.weights * face.share)[..., None]
            levels = np.where(share > 0, share * difference, 0)
            changes.append(Change(patch.top, patch.left, levels.astype(np.float32)))
        return changes
