"""Files that the authors of networks publish: where they are, and under which terms.

Most publishers state neither sizes nor sha256. So the first download of a file is remembered, and
later ones are compared with it (:mod:`dr2pipe.convert.fetch`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OfficialFile:
    """A file that its authors publish.

    Attributes:
        address: of the file, or in ``BY_HAND`` where its authors say how to get it.
        licence: of the weights.
        commercial_use: None where the licence of the weights leaves it unclear.
        kind: for ``convert_checkpoint``; None for a file that is read as it is.
        megabytes: of the network's numbers in float32; the file has as many at least.
        sha256: whole or its first digits; None where the publisher names none.
        file_name: where it is not the end of the address.
    """

    address: str
    licence: str
    commercial_use: bool | None
    kind: str | None = None
    megabytes: int | None = None
    sha256: str | None = None
    file_name: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.file_name or self.address.rsplit("/", 1)[1]

    @property
    def terms(self) -> str:
        """Licence and commercial use in a few words."""
        uses = {True: "yes", False: "no", None: "unclear"}
        return f"{self.licence}, commercial use: {uses[self.commercial_use]}"


_GFPGAN = "https://github.com/TencentARC/GFPGAN/releases/download"
_SPARNET = "https://github.com/chaofengc/Face-SPARNet/releases/download"
_VQFR = "https://github.com/TencentARC/VQFR/releases/download"
_NON_COMMERCIAL = "CC BY-NC-SA 4.0"
_APACHE = "Apache-2.0"

# What `dr2pipe fetch` downloads.
FILES: dict[str, OfficialFile] = {
    "gfpgan14": OfficialFile(
        f"{_GFPGAN}/v1.3.0/GFPGANv1.4.pth", _APACHE, True, "gfpgan_clean", 349
    ),
    "gfpgan13": OfficialFile(
        f"{_GFPGAN}/v1.3.0/GFPGANv1.3.pth", _APACHE, True, "gfpgan_clean", 349
    ),
    "gfpgan12": OfficialFile(
        f"{_GFPGAN}/v0.2.0/GFPGANCleanv1-NoCE-C2.pth", _APACHE, True, "gfpgan_clean", 349
    ),
    "gfpgan1": OfficialFile(f"{_GFPGAN}/v0.1.0/GFPGANv1.pth", _APACHE, True, "gfpgan_original"),
    "vqfr1": OfficialFile(
        f"{_VQFR}/v1.0.0/VQFR_v1-33a1fac5.pth", _APACHE, True, "vqfr_v1", 306, sha256="33a1fac5"
    ),
    "stylegan2_ffhq512": OfficialFile(
        f"{_GFPGAN}/v0.1.0/StyleGAN2_512_Cmul1_FFHQ_B12G4_scratch_800k.pth",
        _APACHE,
        None,
        "stylegan2_generator",
    ),
    "arcface_resnet18": OfficialFile(f"{_GFPGAN}/v0.1.0/arcface_resnet18.pth", _APACHE, None),
    "ffhq_landmarks": OfficialFile(
        f"{_GFPGAN}/v0.1.0/FFHQ_eye_mouth_landmarks_512.pth", _APACHE, None
    ),
    "sparnethd_v4_2d": OfficialFile(
        f"{_SPARNET}/v0.1.0/SPARNetHD_V4_Attn2D_net_H-epoch10.pth",
        _NON_COMMERCIAL,
        False,
        "sparnet",
        345,
    ),
    "sparnethd_v4_3d": OfficialFile(
        f"{_SPARNET}/v0.1.0/SPARNetHD_V4_Attn3D_net_H-epoch10.pth",
        _NON_COMMERCIAL,
        False,
        "sparnet",
    ),
}

_DR2 = "https://github.com/Kaldwin0106/DR2_Drgradation_Remover (link in its readme)"
_PANINI = "the repository of Panini-Net (link in its readme)"
# What people download from file-sharing links, by the names that presets use.
BY_HAND: dict[str, OfficialFile] = {
    "dr2_ffhq": OfficialFile(
        _DR2,
        "code under MIT, trained on FFHQ",
        None,
        "guided_diffusion_unet",
        374,
        file_name="DR2_FFHQ.pkl",
    ),
    "sparnethd_dr2aug": OfficialFile(
        _DR2,
        _NON_COMMERCIAL,
        False,
        "sparnet",
        345,
        file_name="SPARNetHD_FFHQ_DR2aug.pth",
    ),
    "panini_mfr": OfficialFile(
        _PANINI, "not stated", None, "panini_mfr", 389, file_name="panini_mfr_latest.pth"
    ),
    "panini_sr": OfficialFile(
        _PANINI, "not stated", None, "panini_sr", 447, file_name="panini_sr_latest.pth"
    ),
}

# Models of the Hugging Face hub that presets name; diffusers loads them as they are.
HUB: dict[str, OfficialFile] = {
    "google/ddpm-celebahq-256": OfficialFile(
        "https://huggingface.co/google/ddpm-celebahq-256",
        "Apache-2.0, trained on CelebA-HQ (non-commercial research)",
        None,
        megabytes=455,
    ),
}


def how_to_get(name: str) -> str | None:
    """The one command that brings a converted model, as a sentence; None for unknown names."""
    if name in BY_HAND:
        file = BY_HAND[name]
        return (
            f"download {file.name} from {file.address}, then run: "
            f"dr2pipe setup {name} --file {file.name}"
        )
    if name in FILES and FILES[name].kind is not None:
        return f"get it by: dr2pipe setup {name}"
    return None
