"""``dr2pipe verify``: a result is made again from its original, or it is said what differs."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, make_pictures
from photos import landmarks_at, smooth_photo
from PIL import Image, PngImagePlugin

from dr2pipe import cli
from dr2pipe.core import images
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.runs.restore import RestoreConfig, restore_folder
from dr2pipe.runs.verify import is_same_with_other_threads, verify

ALIGNED = [*TINY, "enhancer.name=none"]


@pytest.fixture(scope="module")
def moved(model_folder, tmp_path_factory):
    """The setting that says where the tiny model is: results do not tell the place."""
    return [f"dr2.model={model_folder}"]


def restore(source, output, *overrides):
    given = [f"input={source}", f"output={output}", *overrides]
    return restore_folder(load_config(RestoreConfig, None, given))


@pytest.fixture(scope="module")
def aligned(moved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned")
    make_pictures(folder / "in", 5)
    restore(folder / "in", folder / "out", *ALIGNED, *moved, "batch_size=3", "seed=7")
    return folder


def test_aligned_faces_are_made_again(aligned, moved):
    for original in sorted((aligned / "in").iterdir()):
        verdict = verify(aligned / "out/restored" / original.name, original, moved)
        assert verdict.is_same, str(verdict)
        assert verdict.reasons == []


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_photos_are_made_again(moved, tmp_path, format):
    (tmp_path / "in/sub").mkdir(parents=True)
    places = {"sub/a.jpg": [(100, 120, 90), (280, 150, 110)], "b.png": [(150, 140, 100)]}
    for seed, name in enumerate(places):
        Image.fromarray(smooth_photo(seed=seed)).save(tmp_path / "in" / name)
    listed = {
        name: [{"landmarks": landmarks_at(*place).round(2).tolist()} for place in found]
        for name, found in places.items()
    }
    (tmp_path / "faces.json").write_text(json.dumps(listed))
    here = [*moved, f"faces.file={tmp_path / 'faces.json'}"]
    restore(
        tmp_path / "in", tmp_path / "out", *here, "dr2.tau=2", "dr2.omega=8", "dr2.factor=2",
        "dr2.num_evaluations=2", "enhancer.name=none", "faces.skip_good=false",
        "faces.name=file", "identity.measure=false", f"format={format}",
    )  # fmt: skip
    for result, original in (("b", "b.png"), ("sub/a", "sub/a.jpg")):
        result = tmp_path / f"out/restored/{result}.{format}"
        said = images.read_mark(result)
        assert str(tmp_path) not in said  # nobody learns how the disk is ordered
        verdict = verify(result, tmp_path / "in" / original, here)
        assert verdict.is_same, str(verdict)


def test_photos_of_any_shape_are_made_again(moved, tmp_path):
    """A photo may be narrow, and a result larger than a photo may be."""
    wide = np.hstack([smooth_photo(seed=seed) for seed in range(5)])[:300]
    (tmp_path / "in").mkdir()
    Image.fromarray(wide).save(tmp_path / "in/wide.png")
    listed = {"wide.png": [{"landmarks": landmarks_at(150, 140, 100).round(2).tolist()}]}
    (tmp_path / "faces.json").write_text(json.dumps(listed))
    here = [*moved, f"faces.file={tmp_path / 'faces.json'}"]
    restore(
        tmp_path / "in", tmp_path / "out", *here, "dr2.tau=2", "dr2.omega=8", "dr2.factor=2",
        "dr2.num_evaluations=2", "enhancer.name=none", "faces.skip_good=false",
        "faces.name=file", "identity.measure=false",
    )  # fmt: skip
    assert wide.shape[1] > 4 * wide.shape[0]
    verdict = verify(tmp_path / "out/restored/wide.png", tmp_path / "in/wide.png", here)
    assert verdict.is_same, str(verdict)


def test_what_differs_is_said(aligned, moved, tmp_path, capsys):
    name = "face_000.png"
    result, original = aligned / "out/restored" / name, aligned / "in" / name
    other = aligned / "in/face_001.png"
    verdict = verify(result, other, moved)
    assert verdict.differing > 0.1
    assert "the original may be another picture" in str(verdict)
    verdict = verify(result, original, [*moved, "dr2.tau=4"])
    assert "another setting: dr2" in verdict.reasons

    # Somebody painted on it, and says that it was made by another version.
    painted = tmp_path / "painted.png"
    with Image.open(result) as picture:
        pixels = np.array(picture)
        said = json.loads(picture.text["dr2pipe"])
    pixels[0, 0, 0] ^= 1
    info = PngImagePlugin.PngInfo()
    info.add_itxt("dr2pipe", json.dumps(said | {"version": "0.0.1", "device": "abacus"}))
    Image.fromarray(pixels).save(painted, pnginfo=info)
    command = ["verify", str(painted), "--original", str(original), "--set", *moved]
    assert cli.main(command) == 3
    said = capsys.readouterr().out
    assert said.startswith(f"different: {1 / pixels.size:.2%} of the samples, by 1 at most")
    assert "made by version 0.0.1" in said
    assert "made with device abacus; here it is" in said

    Image.fromarray(pixels[:8]).save(painted, pnginfo=info)
    assert "another size" in str(verify(painted, original, moved))


def test_a_result_with_the_same_pixels_ends_with_0(aligned, moved, capsys):
    result, original = aligned / "out/restored/face_002.png", aligned / "in/face_002.png"
    assert cli.main(["verify", str(result), "--original", str(original), "--set", *moved]) == 0
    assert capsys.readouterr().out.startswith("the same")


def test_other_weights_are_named(aligned, moved, tmp_path):
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(moved[0].partition("=")[2], tmp_path / "model")
    weights = model / "unet/diffusion_pytorch_model.safetensors"
    save_file({k: torch.zeros_like(v) for k, v in load_file(weights).items()}, weights)
    verdict = verify(
        aligned / "out/restored/face_000.png", aligned / "in/face_000.png", [f"dr2.model={model}"]
    )
    assert not verdict.is_same
    assert verdict.reasons == ["other weights: dr2"]


def test_other_numbers_of_threads_are_tried(monkeypatch):
    """torch adds up in another order with them."""
    usual, seen = torch.get_num_threads(), []
    monkeypatch.setattr("os.cpu_count", lambda: 4)

    def compare():
        seen.append(torch.get_num_threads())
        return (0.0 if seen[-1] == wanted else 0.1), 1

    wanted = 4 if usual != 4 else 2
    assert is_same_with_other_threads(compare)
    assert seen[-1] == wanted
    wanted = 64
    assert not is_same_with_other_threads(compare)
    assert usual not in seen
    assert torch.get_num_threads() == usual


def test_a_difference_of_the_last_bits_is_none_of_the_picture(aligned, moved, tmp_path):
    path = tmp_path / "face_000.png"
    with Image.open(aligned / "out/restored/face_000.png") as picture:
        pixels, text = np.array(picture), picture.text["dr2pipe"]
    pixels[3, 4, 1] ^= 1
    info = PngImagePlugin.PngInfo()
    info.add_itxt("dr2pipe", text)
    Image.fromarray(pixels).save(path, pnginfo=info)
    verdict = verify(path, aligned / "in/face_000.png", moved)
    assert (verdict.largest, verdict.is_same) == (1, False)
    (reason,) = verdict.reasons
    assert reason.startswith("so little differs on processors of another kind")


def test_weights_that_are_gone(aligned, tmp_path):
    result, original = aligned / "out/restored/face_000.png", aligned / "in/face_000.png"
    with pytest.raises(ConfigError, match=r"no model .* --set dr2.model=FOLDER"):
        verify(result, original)  # the tiny model is none of those that have a name
    with pytest.raises(ConfigError, match=r"no such folder or file.* --set dr2.model=FOLDER"):
        verify(result, original, [f"dr2.model={tmp_path / 'gone'}"])


@pytest.mark.parametrize(
    "text", [None, "no JSON", "[]", '{"seed": 1}', '{"config": [], "settings": {}, "seed": 1}']
)
def test_pictures_that_do_not_say_how_they_were_made(tmp_path, text):
    path = tmp_path / "x.png"
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_itxt("dr2pipe", text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    original = tmp_path / "original.png"
    Image.new("RGB", (9, 9)).save(original)
    with pytest.raises(ConfigError, match="does not say how"):
        verify(path, original)


def test_pages_are_made_again_and_copies_are_named(moved, tmp_path):
    first, second = (Image.fromarray(smooth_photo(seed=seed)) for seed in (1, 2))
    (tmp_path / "in").mkdir()
    scan = tmp_path / "in" / "scan.tif"
    first.save(scan, save_all=True, append_images=[second])
    first.save(tmp_path / "in" / "plain.png")
    listed = {f"scan.tif{page}": [{"landmarks": landmarks_at(150, 140, 100).round(2).tolist()}]
              for page in ("", "#2")}  # fmt: skip
    (tmp_path / "faces.json").write_text(json.dumps(listed))
    here = [*moved, f"faces.file={tmp_path / 'faces.json'}"]
    restore(
        tmp_path / "in", tmp_path / "out", *here, *TINY, "enhancer.name=none", "pages=all",
        "faces.mode=photos", "faces.name=file", "faces.skip_good=false", "identity.measure=false",
    )  # fmt: skip
    for name in ("scan.png", "scan.page2.png"):
        verdict = verify(tmp_path / "out/restored" / name, scan, here)
        assert verdict.is_same, str(verdict)
        assert verdict.reasons == []
    # A photo without faces is copied: its file cannot say anything.
    verdict = verify(tmp_path / "out/restored/plain.png", tmp_path / "in/plain.png", here)
    assert str(verdict).endswith("the original itself: nothing was restored in it")


def test_what_a_result_says_cannot_read_the_environment(aligned, tmp_path):
    path = tmp_path / "x.png"
    info = PngImagePlugin.PngInfo()
    config = {"dr2": {"model": "${oc.env:HOME}"}}
    info.add_itxt("dr2pipe", json.dumps({"config": config, "settings": {}, "seed": 1}))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    with pytest.raises(ConfigError):
        verify(path, aligned / "in/face_000.png")
