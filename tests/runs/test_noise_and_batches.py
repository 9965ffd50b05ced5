"""The settings noise and batch_size of a run, and what they leave in its records."""

import numpy as np
import pytest
import yaml
from conftest import TINY, make_pictures
from PIL import Image

from dr2pipe.core.config import load_config
from dr2pipe.runs.restore import RestoreConfig, restore_folder


def restore(folder, output, model_folder, *overrides):
    given = [f"input={folder / 'in'}", f"output={folder / output}", f"dr2.model={model_folder}"]
    config = load_config(RestoreConfig, None, [*given, *TINY, *overrides])
    assert restore_folder(config).restored == 3
    settings = yaml.safe_load((folder / output / "run.yaml").read_text())["settings"]
    paths = sorted((folder / output / "restored").iterdir())
    return settings, np.stack([np.asarray(Image.open(path)) for path in paths]).astype(int)


@pytest.fixture
def source(tmp_path):
    make_pictures(tmp_path / "in", 3)
    return tmp_path


def test_noise_stands_in_the_records(source, model_folder):
    reference, pixels = restore(source, "a", model_folder)
    assert "noise" not in reference  # results of earlier versions stay valid
    philox, others = restore(source, "b", model_folder, "noise=philox", "batch_size=auto")
    assert philox.pop("noise") == "philox"
    assert philox == reference
    assert np.abs(pixels - others).mean() > 0.5
    _, singles = restore(source, "c", model_folder, "noise=philox", "batch_size=1")
    assert np.array_equal(singles, others)


def test_photos_take_a_measured_batch(source, model_folder):
    restore(source, "d", model_folder, "faces.mode=photos", "faces.name=none", "batch_size=auto")
