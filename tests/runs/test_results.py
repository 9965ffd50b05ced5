"""What a folder run leaves is whole, belongs to its settings, and replaces nothing of others."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from colour_files import look, profile_of
from conftest import TINY, make_pictures, make_pixels
from PIL import Image
from profiles import photo

from dr2pipe import cli
from dr2pipe.core import images
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.images import colour
from dr2pipe.core.markers import read_marker, result_folders
from dr2pipe.core.records import read_jsonl
from dr2pipe.runs.restore import RestoreConfig, restore_folder

NONE = [
    "faces.mode=aligned",
    "dr2.enabled=false",
    "enhancer.name=bicubic",
    "enhancer.options={size: 32}",
]


def restore(source, output, *overrides):
    """A run whose networks are the bicubic baseline."""
    given = [f"input={source}", f"output={output}", "precision=fp32", *NONE, *overrides]
    return restore_folder(load_config(RestoreConfig, None, given))


def records(output):
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


DAMAGE = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "gone": lambda path: path.unlink(),
    "replaced": lambda path: path.write_bytes(b"a text of another size"),
}


@pytest.mark.parametrize("folder", ["restored", "compare"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_results_are_made_again(pictures, tmp_path, folder, damage):
    out = tmp_path / "out"
    restore(pictures, out, "save_compare=true")
    path = out / folder / "face_002.png"
    whole = path.read_bytes()
    DAMAGE[damage](path)
    summary = restore(pictures, out, "save_compare=true")
    assert (summary.restored, summary.skipped) == (1, 5)
    assert path.read_bytes() == whole


def test_verify_sees_what_the_size_does_not(pictures, tmp_path):
    out = tmp_path / "out"
    restore(pictures, out)
    path = out / "restored/face_000.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + bytes(20))
    assert restore(pictures, out).restored == 0
    assert restore(pictures, out, "verify=true").restored == 1
    assert path.read_bytes() == whole


def test_results_of_former_settings_go(pictures, tmp_path):
    out = tmp_path / "out"
    restore(pictures, out, "save_compare=true", "save_coarse=true")
    (out / "compare/mine.png").write_bytes(b"of the user")
    restore(pictures, out, "enhancer.options={size: 48}")
    assert [p.name for p in (out / "compare").iterdir()] == ["mine.png"]
    assert list((out / "coarse").iterdir()) == []


def test_a_second_input_is_refused_unless_merged(tmp_path):
    first, second = (make_pictures(tmp_path / name, 2) for name in "ab")
    save(second / "other.png", make_pixels(9))
    out = tmp_path / "out"
    restore(first, out)
    before = {p: p.read_bytes() for p in out.rglob("*.png")}
    with pytest.raises(ConfigError, match=r"results of another input.*--merge"):
        restore(second, out)
    assert {p: p.read_bytes() for p in out.rglob("*.png")} == before
    assert restore(second, out, "merge=true").failed == 0
    assert restore(first, out).failed == 0  # both belong to it now
    assert sorted(read_marker(out)["inputs"]) == sorted([str(first), str(second)])


def test_pictures_of_one_name_in_two_inputs_do_not_replace_each_other(tmp_path):
    first, second = (make_pictures(tmp_path / name, 3) for name in "ab")
    save(second / "face_001.png", make_pixels(9))
    out = tmp_path / "out"
    restore(first, out)
    before = (out / "restored/face_001.png").read_bytes()
    summary = restore(second, out, "merge=true")
    assert (summary.restored, summary.skipped, summary.failed) == (0, 2, 1)
    (failure,) = read_jsonl(out / "failures.jsonl").records
    assert f"what was made of {first / 'face_001.png'}, another picture" in failure["message"]
    assert (out / "restored/face_001.png").read_bytes() == before
    assert restore(first, out).skipped == 3
    # A picture of either input that changes is done again, as ever.
    save(second / "new.png", make_pixels(4))
    assert restore(second, out, "merge=true").restored == 1
    save(second / "new.png", make_pixels(5))
    assert restore(second, out, "merge=true").restored == 1
    # The folder was moved, so nothing is lost.
    shutil.rmtree(first)
    assert restore(second, out, "merge=true").restored == 1


@pytest.mark.parametrize(
    "name", ["run.yaml", "manifest.jsonl", "failures.jsonl", ".partial/mine.txt"]
)
def test_files_of_other_programs_are_not_touched(pictures, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine: 1\n")
    with pytest.raises(ConfigError, match="which no run of this command wrote"):
        restore(pictures, tmp_path / "out")
    assert path.read_text() == "mine: 1\n"


@pytest.mark.parametrize("name", ["manifest.jsonl", "failures.jsonl", "run.yaml"])
def test_a_folder_in_the_place_of_a_record_is_an_error(pictures, tmp_path, name, capsys):
    (tmp_path / "out" / name).mkdir(parents=True)
    code = cli.main(["restore", str(pictures), str(tmp_path / "out"), "--set", *NONE])
    assert code == 2
    assert name in capsys.readouterr().err


def test_damaged_lines_are_set_aside(pictures, tmp_path, caplog):
    out = tmp_path / "out"
    restore(pictures, out)
    manifest = out / "manifest.jsonl"
    good = manifest.read_text()
    odd = ["[1, 2]", '{"path": 7}', '{"path": "face_001.png", "files": 3}', "\x00\x01", '{"a":']
    manifest.write_text(good + "\n".join(odd))
    summary = restore(pictures, out)
    assert summary.failed == 0
    assert summary.restored + summary.skipped == 6
    damaged = (out / "manifest.jsonl.damaged").read_text()
    assert "[1, 2]" in damaged
    assert '{"a":' in damaged
    assert "were moved to manifest.jsonl.damaged" in caplog.text
    assert {record["path"] for record in records(out)} == {p.name for p in pictures.iterdir()}


def test_the_marker_tells_own_results(pictures, tmp_path):
    out = pictures / "out"
    restore(pictures, out, "save_compare=true")
    assert result_folders(out) == {"restored", "compare"}
    save(pictures / "compare" / "of_the_user.png", make_pixels(3))
    assert len(images.find_images(pictures).paths) == 7
    assert restore(pictures, tmp_path / "again").restored == 7
    # In place: originals beside the results stay inputs.
    restore(pictures, pictures)
    assert restore(pictures, tmp_path / "third").restored == 7


def test_pages(tmp_path):
    frames = [Image.fromarray(make_pixels(seed, 32, 32)) for seed in range(3)]
    source = tmp_path / "in"
    source.mkdir()
    frames[0].save(source / "scan.tif", save_all=True, append_images=frames[1:])
    save(source / "one.png", make_pixels(5, 32, 32))
    assert restore(source, tmp_path / "first").restored == 2
    (warned,) = [r for r in records(tmp_path / "first") if r["path"] == "scan.tif"]
    assert "3 pages" in warned["warnings"][0]
    assert restore(source, tmp_path / "all", "pages=all").restored == 4
    names = sorted(p.name for p in (tmp_path / "all/restored").iterdir())
    assert names == ["one.png", "scan.page2.png", "scan.page3.png", "scan.png"]
    assert {r["path"] for r in records(tmp_path / "all")} == {
        "one.png", "scan.tif", "scan.tif#2", "scan.tif#3"
    }  # fmt: skip
    third = np.asarray(Image.open(tmp_path / "all/restored/scan.page3.png")).astype(int)
    assert np.abs(third - np.asarray(frames[2])).mean() < 3
    assert restore(source, tmp_path / "all", "pages=all").skipped == 4
    save(source / "scan.page2.png", make_pixels(8, 32, 32))
    assert restore(source, tmp_path / "names", "pages=all").restored == 5
    outputs = [r["output"] for r in records(tmp_path / "names")]
    assert len(set(outputs)) == 5
    assert "restored/scan.tif#2.png" in outputs
    with pytest.raises(ConfigError, match="choose first or all"):
        restore(source, tmp_path / "x", "pages=some")


def test_16_bits_in_16_bits_out(tmp_path):
    deep = make_pixels(3, 32, 32).astype(np.uint16) * 257
    images.write_png(tmp_path / "in/deep.png", deep)
    save(tmp_path / "in/usual.png", make_pixels(3, 32, 32))
    restore(tmp_path / "in", tmp_path / "keep")
    restore(tmp_path / "in", tmp_path / "eight", "bits=8")
    bits = {
        name: images.read_image(path).bits
        for name in ("keep", "eight")
        for path in [tmp_path / name / "restored/deep.png"]
    }
    assert bits == {"keep": 16, "eight": 8}
    assert images.read_image(tmp_path / "keep/restored/usual.png").bits == 8


def coloured(restorer_output):
    return restorer_output.max(axis=2).astype(int) - restorer_output.min(axis=2)


def test_monochrome_pictures_stay_monochrome(tmp_path, model_folder):
    grey = np.repeat(make_pixels(3, 32, 32)[..., :1], 3, axis=2)
    sepia = np.clip(grey * [1.0, 0.9, 0.72], 0, 255).astype(np.uint8)
    save(tmp_path / "in/grey.png", grey)
    save(tmp_path / "in/sepia.png", sepia)
    save(tmp_path / "in/colour.png", make_pixels(4, 32, 32))
    results = {}
    for choice in ("keep", "free"):
        given = [
            f"input={tmp_path / 'in'}", f"output={tmp_path / choice}", f"dr2.model={model_folder}",
            *TINY, "enhancer.name=none", f"colour={choice}", "save_coarse=true",
        ]  # fmt: skip
        assert restore_folder(load_config(RestoreConfig, None, given)).restored == 3
        results[choice] = {
            name: np.asarray(Image.open(tmp_path / choice / f"restored/{name}.png"))
            for name in ("grey", "sepia", "colour")
        }
    assert coloured(results["keep"]["grey"]).max() <= 1
    assert coloured(results["free"]["grey"]).max() > 6  # what an untrained network adds
    bright = results["keep"]["sepia"].astype(float)
    bright = bright[bright.mean(axis=2) > 100]
    assert (bright[:, 0] - bright[:, 2]).min() > 10
    assert (results["keep"]["colour"] == results["free"]["colour"]).all()
    coarse = np.asarray(Image.open(tmp_path / "keep/coarse/grey.png"))
    assert coloured(coarse).max() <= 1


def test_a_wide_profile_looks_the_same(tmp_path):
    profile = profile_of("prophoto")
    pixels = colour.space_of_profile(profile).from_srgb(photo(32, 32))
    save(tmp_path / "in/a.png", pixels, icc_profile=profile)
    restore(tmp_path / "in", tmp_path / "out")
    before = look((tmp_path / "in/a.png").read_bytes())
    after = look((tmp_path / "out/restored/a.png").read_bytes())
    assert np.abs(before - after).mean() < 1.5
    with Image.open(io.BytesIO((tmp_path / "out/restored/a.png").read_bytes())) as result:
        assert result.info["icc_profile"] == colour.srgb_profile()


def test_hidden_colours_stay_hidden(tmp_path):
    pixels = np.full((32, 32, 4), 100, np.uint8)
    pixels[:, 16:] = (255, 0, 255, 0)
    pixels[:, :16, 3] = 255
    save(tmp_path / "in/a.png", pixels)
    restore(tmp_path / "in", tmp_path / "out")
    result = np.asarray(Image.open(tmp_path / "out/restored/a.png"))
    assert np.abs(result[..., :3].astype(int) - 100).max() <= 1
    assert torch.tensor(result[..., 3].astype(int)).unique().tolist() != [255]
