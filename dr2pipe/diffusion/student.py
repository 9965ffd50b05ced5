"""A network that gives the coarse face of DR2 in one call, as it was taught by distillation.

For given settings, DR2's result depends on the noised input x_ω, on the input's low frequencies,
and on fresh noise. The student sees the first two, nothing else, and learns the mean over
the third. So degradations are hidden by the noise before any network looks, as in DR2 itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, UNet2DModel, register_to_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.model_folders import load_network
from dr2pipe.diffusion.dr2 import estimate_x0
from dr2pipe.diffusion.patched_unet import PatchedUNet

_COLOURS = 3


class DR2Student(ModelMixin, ConfigMixin):
    """A UNet on six channels, x_ω and Φ_N(y), with an embedding of the settings.

    Args:
        unet_config: the config of its teacher, a ``UNet2DModel`` or a ``PatchedUNet``: in its place
            stands one with three more input channels and without a variance.
        taught: the settings (N, τ, ω) that it knows, in the order of the embedding's rows.
        num_steps: length of the respaced chain that τ and ω count in.
        prediction_type: what the network predicts, as of a scheduler.
        teacher_sha256: hash of the teacher's folder.
    """

    class_embedding = None

    @register_to_config
    def __init__(
        self,
        unet_config: dict[str, Any],
        taught: Sequence[Sequence[int]],
        num_steps: int = 100,
        prediction_type: str = "epsilon",
        teacher_sha256: str = "",
    ):
        super().__init__()
        if not taught or any(len(setting) != 3 for setting in taught):
            raise ConfigError(f"taught={taught} must be a list of (N, tau, omega)")
        changes = {
            "in_channels": 2 * _COLOURS,
            "out_channels": _COLOURS,
            "num_class_embeds": len(taught),
        }
        self.unet: UNet2DModel | PatchedUNet
        if "patch" in unet_config:
            self.unet = PatchedUNet(**(dict(unet_config) | changes))
        else:
            self.unet = UNet2DModel(**(dict(unet_config) | changes | {"class_embed_type": None}))

    def place_of(self, factor: int, tau: int, omega: int, num_steps: int) -> int | None:
        """The place of a setting in ``taught``; None for one that it does not know."""
        settings = [tuple(setting) for setting in self.config.taught]
        known = num_steps == self.config.num_steps and (factor, tau, omega) in settings
        return settings.index((factor, tau, omega)) if known else None

    def forward(
        self,
        noisy: torch.Tensor,
        guidance: torch.Tensor,
        timestep: int,
        alpha_bar: torch.Tensor,
        place: int,
    ) -> torch.Tensor:
        """Estimate the coarse faces.

        Args:
            noisy: x_ω, (B,3,S,S).
            guidance: Φ_N(y), (B,3,S,S) around [-1,1].
            timestep: that of ω.
            alpha_bar: ᾱ there, a scalar.
            place: of the setting, see :meth:`place_of`.

        Returns:
            (B,3,S,S) float32 around [-1,1], not clamped.
        """
        given = torch.cat([noisy, guidance], dim=1).to(self.unet.dtype)  # (B,6,S,S)
        labels = torch.full((len(noisy),), place, device=noisy.device)
        # A number would be copied to the device, and waited for.
        t = torch.full((), timestep, device=noisy.device)
        output = self.unet(given, t, class_labels=labels).sample.float()
        return estimate_x0(noisy, output, alpha_bar, self.config.prediction_type)


def student_of(
    teacher: UNet2DModel | PatchedUNet,
    taught: Sequence[Sequence[int]],
    *,
    num_steps: int,
    prediction_type: str,
    teacher_sha256: str,
    channels: Sequence[int] | None = None,
) -> DR2Student:
    """A student that begins as its teacher: it ignores the low frequencies and the setting.

    Its first answer is the teacher's estimate of x0 at ω. One of other widths begins with weights
    that torch's global generator gives, see :func:`dr2pipe.core.seeding.random_stream`.

    Args:
        teacher: a face DDPM; its weights are copied.
        taught: the settings (N, τ, ω) it is to learn.
        num_steps: length of the respaced chain.
        prediction_type: what the teacher predicts.
        teacher_sha256: hash of the teacher's folder.
        channels: widths, as many as the teacher's; None for the teacher's own.

    Raises:
        ConfigError: another number of widths than the teacher's, one that its norms do not divide, or
            one that is narrower than a head of its attention.
    """
    config = {key: value for key, value in teacher.config.items() if key[0] != "_"}
    patched = isinstance(teacher, PatchedUNet)
    name = "channels" if patched else "block_out_channels"
    is_copy = channels is None or list(channels) == list(config[name])
    if channels is not None:
        groups = config["norm_groups" if patched else "norm_num_groups"]
        if len(channels) != len(config[name]) or any(w < 1 or w % groups for w in channels):
            raise ConfigError(
                f"channels={list(channels)} must be {len(config[name])} widths, as the teacher has, "
                f"each a multiple of its {groups} norm groups"
            )
        config[name] = tuple(channels)
    student = DR2Student(
        config, [list(setting) for setting in taught], num_steps, prediction_type, teacher_sha256
    )
    if any(getattr(module, "heads", 1) < 1 for module in student.modules()):
        raise ConfigError(
            f"channels={list(channels or ())} are narrower than a head of the teacher's attention"
        )
    if not is_copy:
        return student
    weights = dict(teacher.state_dict())
    inner = "unet." if patched else ""
    first = weights[inner + "conv_in.weight"]
    weights[inner + "conv_in.weight"] = torch.cat([first, torch.zeros_like(first)], dim=1)
    if isinstance(teacher, UNet2DModel):  # it may also predict a variance
        for name in ("conv_out.weight", "conv_out.bias"):
            weights[name] = weights[name][:_COLOURS]
    settings = inner + "class_embedding.weight"  # the teacher has none
    weights[settings] = torch.zeros_like(student.unet.state_dict()[settings])
    student.unet.load_state_dict(weights)
    return student


def load_student(folder: str | Path) -> DR2Student:
    """The student of a folder, in float32.

    Raises:
        CheckpointError: the folder holds none.
    """
    student = load_network(folder, DR2Student, hint="the recipe 'distil' makes one").float()
    return student
