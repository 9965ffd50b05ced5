"""What ``dr2pipe explain`` says of photos."""

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from dr2pipe import cli
from dr2pipe.core.sheets import check_sheet, write_sheet
from dr2pipe.diffusion.auto import load_auto, unfamiliar_damage
from dr2pipe.runs.explain import explain


@pytest.fixture(scope="module")
def worn(tmp_path_factory):
    """A small noisy print of a face."""
    path = tmp_path_factory.mktemp("photos") / "worn.png"
    face = Image.fromarray(skimage.data.astronaut()).crop((120, 0, 330, 230)).resize((160, 175))
    noise = np.random.default_rng(0).normal(0, 14, (175, 160, 3))
    Image.fromarray(np.clip(np.asarray(face) + noise, 0, 255).astype(np.uint8)).save(path)
    return path


def test_a_worn_photo(worn, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain", str(worn)]) == 0
    said = capsys.readouterr().out
    assert "160 x 175 pixels, faces: 1" in said
    assert "blurred, about" in said
    assert "noise: some" in said or "noise: much" in said
    assert "auto would choose" in said
    assert said.splitlines()[-1].startswith("run: dr2pipe restore ")
    assert said.endswith("worn.png OUTPUT\n")
    sheet = np.asarray(Image.open(tmp_path / "worn_explained.png"))
    assert sheet.shape[1] > 4 * 160
    assert sheet.std() > 20


def test_a_sheet_replaces_nothing_of_the_users(worn, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = worn.read_bytes()
    Image.new("RGB", (64, 48), "grey").save(tmp_path / "mine.png")
    link = tmp_path / "link.png"
    link.symlink_to(worn)
    for sheet, says in (
        (worn, "which is the input"),
        (link, "which is the input"),
        ("mine.png", "is there, and is no sheet"),
        ("sheet.jpg", "has to end in .png"),
        (tmp_path, "is a folder"),
    ):
        assert cli.main(["explain", str(worn), "--sheet", str(sheet)]) == 2
        assert says in capsys.readouterr().err
    assert worn.read_bytes() == before
    write_sheet(tmp_path / "new.png", np.zeros((8, 8, 3), np.uint8))
    check_sheet(tmp_path / "new.png", worn)  # a sheet may be made again
    (tmp_path / "worn_explained.png").write_bytes((tmp_path / "mine.png").read_bytes())
    assert cli.main(["explain", str(worn)]) == 2


def test_a_photo_without_a_face(tmp_path):
    Image.new("RGB", (64, 48), "grey").save(tmp_path / "wall.png")
    found = explain(str(tmp_path / "wall.png"), preset="default")
    assert found.sheet is None
    assert "no face was found" in found.lines[1]
    assert "faces.min_score" in found.lines[1]


def test_settings_change_what_is_found_and_stand_in_the_command(
    worn, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain", str(worn), "--set", "faces.min_px=150"]) == 0
    assert "faces: 0" in capsys.readouterr().out
    settings = ["faces.min_score=0.4", "dr2.enabled=false"]
    assert cli.main(["explain", str(worn), "--set", *settings]) == 0
    said = capsys.readouterr().out
    assert "faces: 1" in said
    assert "auto would choose" not in said
    assert said.endswith("worn.png OUTPUT --set faces.min_score=0.4 dr2.enabled=false\n")
    assert not list(tmp_path.glob("*_explained.png"))


def test_damage_that_auto_does_not_know_is_named():
    setting, _ = load_auto("auto_portrait128")
    stripes = torch.ones(1, 3, 128, 128)
    stripes[:, :, :, ::2] = -1
    assert "direction" in unfamiliar_damage(setting, stripes)


def test_usage(tmp_path, capsys):
    assert cli.main(["explain", str(tmp_path / "none.png")]) == 2
    assert cli.main(["explain", "x.png", "--preset", "gfpgan14_only"]) == 2
    assert "dr2pipe setup gfpgan14" in capsys.readouterr().err
    assert cli.main(["explain", "x.png", "--set", "faces.least_score=0.4"]) == 2
    assert "least_score" in capsys.readouterr().err
    assert cli.main(["explain", "x.png", "--set", "faces.mode=aligned"]) == 2
