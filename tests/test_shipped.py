"""The models that come with the package fit each other."""

from conftest import ROOT

from dr2pipe.core import files
from dr2pipe.core.models import find_model
from dr2pipe.diffusion.auto import load_auto
from dr2pipe.diffusion.student import load_student

MAX_BYTES = 60_000_000


def test_what_was_fitted_or_taught_is_of_the_model():
    model = files.sha256(find_model("portrait128"))
    setting, _ = load_auto("auto_portrait128")
    assert setting.model_sha256 == model
    student = load_student(find_model("portrait128_student"))
    assert student.config.teacher_sha256 == model
    chosen = {(c["factor"], c["tau"], c["omega"]) for c in setting.candidates if c["enabled"]}
    assert chosen <= {tuple(taught) for taught in student.config.taught}


def test_the_models_stay_small():
    total = sum(p.stat().st_size for p in (ROOT / "checkpoints").rglob("*") if p.is_file())
    assert total < MAX_BYTES
