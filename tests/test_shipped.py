"""The models that come with the package fit each other."""

import torch
from conftest import ROOT

from dr2pipe.core import files
from dr2pipe.core.config import load_config
from dr2pipe.core.models import find_file, find_model
from dr2pipe.diffusion.auto import load_auto
from dr2pipe.diffusion.student import load_student
from dr2pipe.restoration.settings import load_restorer
from dr2pipe.runs.restore_config import RestoreConfig

MAX_BYTES = 60_000_000


def test_what_was_fitted_or_taught_is_of_the_model():
    model = files.sha256(find_model("portrait128"))
    setting, _ = load_auto("auto_portrait128")
    assert setting.model_sha256 == model
    student = load_student(find_model("portrait128_student"))
    assert student.config.teacher_sha256 == model
    chosen = {(c["factor"], c["tau"], c["omega"]) for c in setting.candidates if c["enabled"]}
    assert chosen <= {tuple(taught) for taught in student.config.taught}


def test_a_face_of_the_default_does_not_depend_on_its_batch():
    """Bit for bit, in float32: some CPUs add in another order in batches of another size."""
    preset = find_file("configs/restore", "default", what="preset")
    config = load_config(RestoreConfig, preset, ["input=-", "output=-", "precision=fp32"])
    restorer, _ = load_restorer(config, "cpu")
    side = restorer.input_size
    faces = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = restorer(faces, [1, 2, 3])
    alone = restorer(faces[1:2], [2])
    assert alone.coarse.equal(batch.coarse[1:2])
    assert alone.restored.equal(batch.restored[1:2])


def test_the_models_stay_small():
    total = sum(p.stat().st_size for p in (ROOT / "checkpoints").rglob("*") if p.is_file())
    assert total < MAX_BYTES
