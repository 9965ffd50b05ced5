import json
import subprocess

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_EXEGAN, make_pixels, run_here, start_command, wait_until
from measure_inpainting import measure_inpainting
from PIL import Image

from dr2pipe.cli import main
from dr2pipe.core import images
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import PictureError
from dr2pipe.degradations.masks import MASKS
from dr2pipe.enhancers import build_enhancer
from dr2pipe.features.psp import StyleEncoder
from dr2pipe.restoration.inpainter import InpainterConfig, load_inpainter, read_mask, resize_mask
from dr2pipe.runs.degrade import DegradeConfig, degrade_folder
from dr2pipe.runs.inpaint import InpaintConfig, inpaint_folder
from dr2pipe.runs.restore import RestoreConfig, restore_folder
from dr2pipe.training.recipes.exegan import random_style_encoder

TINY_STYLES = {"rows": 8, "channels": 16, "size": 32, "width": 4, "blocks": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A generator of 16 pixels whose drawings differ by style, and its encoder inside."""
    folder = tmp_path_factory.mktemp("models") / "exegan"
    torch.manual_seed(0)
    network = build_enhancer("exegan", size=16, **TINY_EXEGAN)
    for conv in network.synthesis.convs:
        conv.noise_strength.data.fill_(0.3)
    network.save_pretrained(folder)
    random_style_encoder(TINY_STYLES, torch.Generator().manual_seed(0)).save_pretrained(
        folder / "style_encoder"
    )
    return folder


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mask_of(height=40, width=40, top=10, left=8):
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + 12, left : left + 15] = 255
    return mask


@pytest.fixture
def faces(tmp_path):
    """Three faces with masks and exemplars of their names."""
    for i in range(3):
        write(tmp_path / "in" / f"sub/face_{i}.png", make_pixels(i, 40, 40))
        write(tmp_path / "masks" / f"sub/face_{i}.png", mask_of(left=8 + i))
        write(tmp_path / "exemplars" / f"sub/face_{i}.jpg", make_pixels(10 + i, 30, 30))
    return tmp_path


def run(faces, model, output="out", **changes):
    settings = {
        "input": faces / "in",
        "mask": faces / "masks",
        "exemplar": faces / "exemplars",
        "output": faces / output,
    } | changes
    settings = {k: str(v) if k in ("input", "mask", "exemplar", "output", "mix_with") else v
                for k, v in settings.items()}  # fmt: skip
    return inpaint_folder(InpaintConfig(inpainter=InpainterConfig(str(model)), **settings))


def pixels_of(path):
    return np.asarray(Image.open(path))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_holes_are_filled_and_the_rest_is_untouched(faces, model):
    summary = run(faces, model)
    assert (summary.restored, summary.exit_code) == (3, 0)
    for i in range(3):
        given = pixels_of(faces / "in" / f"sub/face_{i}.png")
        made = pixels_of(faces / "out/inpainted" / f"sub/face_{i}.png")
        hole = mask_of(left=8 + i) > 0
        assert np.array_equal(made[~hole], given[~hole])
        assert (made[hole] != given[hole]).mean() > 0.9
    records = lines(faces / "out/manifest.jsonl")
    assert all(set(r["paired_sha256"]) == {"mask", "exemplar"} for r in records)
    assert records[0]["notes"]["hole_share"] == pytest.approx(180 / 1600, abs=1e-3)
    assert run(faces, model).skipped == 3


def test_a_changed_mask_or_exemplar_is_done_again(faces, model):
    run(faces, model)
    write(faces / "masks/sub/face_1.png", mask_of(top=20))
    write(faces / "exemplars/sub/face_2.jpg", make_pixels(30, 30, 30))
    summary = run(faces, model)
    assert (summary.restored, summary.skipped) == (2, 1)


def test_what_a_run_made_of_a_picture_is_its_exemplar(faces, model):
    """Two pictures share a name, so that the run gave their results names of its own."""
    write(faces / "in/sub/face_0.jpg", make_pixels(7, 40, 40))
    write(faces / "masks/sub/face_0.jpg", mask_of())
    degrade_folder(DegradeConfig(str(faces / "in"), str(faces / "made"), "severe"))
    exemplars = faces / "made/degraded"
    assert run(faces, model, exemplar=exemplars).restored == 4
    for record in lines(faces / "out/manifest.jsonl"):
        made = next(r for r in lines(faces / "made/manifest.jsonl") if r["path"] == record["path"])
        assert record["paired_sha256"]["exemplar"] == made["files"][made["output"]][1]
    write(faces / "in/sub/face_0.jpg", make_pixels(8, 40, 40))
    summary = run(faces, model, exemplar=exemplars)
    assert (summary.failed, summary.skipped) == (1, 3)
    (failure,) = lines(faces / "out/failures.jsonl")
    assert "face_0.jpg has changed since" in failure["message"]
    assert "face_0.jpg.png was made of it" in failure["message"]


def test_one_mask_and_one_exemplar_serve_all(faces, model):
    write(faces / "hole.png", mask_of())
    exemplar = faces / "exemplars/sub/face_0.jpg"
    one = run(faces, model, mask=faces / "hole.png", exemplar=exemplar)
    assert one.restored == 3


def test_samples_differ_in_holes_alone_and_repeat(faces, model):
    run(faces, model, samples=3)
    run(faces, model, "again", samples=3)
    hole = mask_of() > 0
    names = ("inpainted", "inpainted_2", "inpainted_3")
    made = [pixels_of(faces / "out" / name / "sub/face_0.png") for name in names]
    again = [pixels_of(faces / "again" / name / "sub/face_0.png") for name in names]
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
    assert (made[0][hole] != made[1][hole]).any()
    assert (made[1][hole] != made[2][hole]).any()
    assert np.array_equal(made[0][~hole], made[2][~hole])


def test_two_exemplars_are_mixed_at_every_row(faces, model):
    second = faces / "in/sub/face_2.png"
    run(faces, model, mix_with=second, mix_at=1)
    run(faces, model, "first", exemplar=faces / "exemplars")
    run(faces, model, "second", exemplar=second)
    sheet = pixels_of(faces / "out/mixtures/sub/face_0.png")
    assert sheet.shape == (2 * 18 - 2, 3 * 18 - 2, 3)  # two rows of styles are the exemplar's
    places = [[sheet[r * 18 : r * 18 + 16, c * 18 : c * 18 + 16] for c in range(3)] for r in (0, 1)]
    assert np.array_equal(places[0][0], places[1][2])  # all of the second exemplar
    assert np.array_equal(places[0][2], places[1][0])  # all of the first
    assert (places[0][0] != places[0][2]).any()
    mixed, first, other = (
        pixels_of(faces / name / "inpainted/sub/face_0.png") for name in ("out", "first", "second")
    )
    assert (mixed != first).any()
    assert (mixed != other).any()


def test_bad_masks_and_exemplars_are_failures_with_reasons(faces, model):
    (faces / "masks/sub/face_0.png").unlink()
    write(faces / "masks/sub/face_1.png", mask_of(height=20))
    (faces / "exemplars/sub/face_2.jpg").write_bytes(b"no picture")
    for i, mask in ((3, np.zeros((40, 40), np.uint8)), (4, np.full((40, 40), 255, np.uint8))):
        write(faces / f"in/sub/face_{i}.png", make_pixels(i, 40, 40))
        write(faces / f"masks/sub/face_{i}.png", mask)
        write(faces / f"exemplars/sub/face_{i}.png", make_pixels(i, 40, 40))
    for kind in ("png", "jpg"):
        write(faces / f"masks/sub/face_5.{kind}", mask_of())
    write(faces / "in/sub/face_5.bmp", make_pixels(5, 40, 40))
    write(faces / "exemplars/sub/face_5.png", make_pixels(5, 40, 40))
    summary = run(faces, model)
    assert (summary.failed, summary.exit_code) == (6, 4)
    reasons = {r["path"]: r["message"] for r in lines(faces / "out/failures.jsonl")}
    for i, says in enumerate(
        ("its mask: no file of its name", "its mask: 40x20 pixels, and the picture has 40x40",
         "its exemplar: not an image", "its mask: covers nothing", "its mask: covers everything",
         "face_5.jpg and sub/face_5.png")
    ):  # fmt: skip
        name = f"sub/face_{i}.{'bmp' if i == 5 else 'png'}"
        assert says in reasons[name], reasons[name]
    assert not list((faces / "out").rglob("*.png"))


def test_transparency_as_a_mask(faces, model):
    alpha = 255 - mask_of()
    picture = np.dstack([make_pixels(0, 40, 40), alpha])
    write(faces / "clear.png", picture)
    run(faces, model, input=faces / "clear.png", mask=faces / "clear.png",
        exemplar=faces / "exemplars/sub/face_0.jpg")  # fmt: skip
    made = pixels_of(faces / "out/inpainted/clear.png")
    assert made.shape == (40, 40, 3)  # what was transparent is filled
    assert np.array_equal(made[alpha > 0], picture[alpha > 0][:, :3])
    picture[0, 0, 3] = 100  # half transparent and no hole: it stays
    write(faces / "clear.png", picture)
    write(faces / "hole.png", mask_of())
    run(faces, model, input=faces / "clear.png", mask=faces / "hole.png",
        exemplar=faces / "exemplars/sub/face_0.jpg")  # fmt: skip
    made = pixels_of(faces / "out/inpainted/clear.png")
    assert made[0, 0, 3] == 100
    assert (made[alpha == 0][:, 3] == 255).all()
    plain, own = (images.Picture(make_pixels(1, 8, 8), sha256=s) for s in ("a", "a"))
    with pytest.raises(PictureError, match="has no transparency"):
        read_mask(plain, own)


def test_a_thin_scratch_is_not_lost_when_it_shrinks():
    hole = torch.zeros(1, 1, 64, 64)
    hole[..., 31] = 1
    assert resize_mask(hole, 16)[0, 0].sum(dim=1).tolist() == [1.0] * 16
    assert resize_mask(hole, 128).sum() == 2 * 128


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": 0}, "samples=0 must be at least 1"),
        ({"mix_at": 1}, "takes a second exemplar"),
        ({"mix_with": "in", "mix_at": 3}, r"mix_at=3 must lie in 0\.\.2"),
        ({"mask": "nowhere"}, "no file or folder at nowhere"),
        ({"input": "nowhere"}, "no file or folder at nowhere"),
    ],
)
def test_wrong_settings_write_nothing(faces, model, changes, says):
    if changes.get("mix_with") == "in":
        changes = changes | {"mix_with": faces / "in"}
    with pytest.raises(ValueError, match=says):
        run(faces, model, **changes)
    assert not (faces / "out").exists()


def test_wrong_models_are_named(model, model_folder, tmp_path):
    with pytest.raises(ValueError, match="no ExeGAN at"):
        load_inpainter(InpainterConfig(str(model_folder)))
    with pytest.raises(ValueError, match="no StyleEncoder at"):
        load_inpainter(InpainterConfig(str(model), style_encoder=str(tmp_path)))
    narrow = StyleEncoder(rows=8, channels=8, size=32, width=4, blocks=(1, 1, 1, 1))
    narrow.save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match="8 rows of 8 channels, the generator takes 6 of 16"):
        load_inpainter(InpainterConfig(str(model), style_encoder=str(tmp_path / "narrow")))


def test_nothing_is_emptied_and_masks_inside_are_no_inputs(faces, model):
    (faces / "out").mkdir()
    (faces / "out/mine.txt").write_text("keep")
    (faces / "masks").rename(faces / "in/masks")
    assert run(faces, model, mask=faces / "in/masks").restored == 3
    assert (faces / "out/mine.txt").read_text() == "keep"


def test_inputs_are_never_replaced(faces, model):
    (faces / "in").rename(faces / "inpainted")
    before = pixels_of(faces / "inpainted/sub/face_0.png")
    with pytest.raises(ValueError, match="which is an input; choose another output"):
        run(faces, model, ".", input=faces / "inpainted")
    assert np.array_equal(pixels_of(faces / "inpainted/sub/face_0.png"), before)
    write(faces / "out/inpainted/sub/face_1.png", make_pixels(50, 8, 8))  # somebody's own
    summary = run(faces, model, input=faces / "inpainted")
    assert (summary.restored, summary.failed) == (2, 1)
    assert "no run wrote it" in lines(faces / "out/failures.jsonl")[0]["message"]
    assert pixels_of(faces / "out/inpainted/sub/face_1.png").shape == (8, 8, 3)


def test_files_for_all_and_earlier_results_are_no_pictures(faces, model):
    write(faces / "in/hole.png", mask_of())
    write(faces / "in/style.png", make_pixels(9, 30, 30))
    for samples in (2, 1):
        summary = run(faces, model, "in", mask=faces / "in/hole.png",
                      exemplar=faces / "in/style.png", samples=samples)  # fmt: skip
        assert (summary.restored, summary.failed) == (3, 0)


def test_the_command(faces, model, capsys):
    arguments = ["inpaint", str(faces / "in"), str(faces / "masks"), "--exemplar",
                 str(faces / "exemplars"), str(faces / "out"), "--model", str(model)]  # fmt: skip
    assert main(arguments) == 0
    assert "3 inpainted, 0 already done, 0 failed" in capsys.readouterr().out
    assert main([*arguments[:-1], str(faces)]) == 2
    assert "no ExeGAN at" in capsys.readouterr().err


@pytest.mark.slow  # a quick one of restore is killed
def test_killed_and_run_again(faces, model):
    """100 pictures with missing, mismatched and empty masks among them."""
    for i in range(100):
        write(faces / f"many/{i:03d}.png", make_pixels(i, 40, 40))
        mask = {0: None, 1: mask_of(height=20), 2: np.zeros((40, 40), np.uint8)}.get(
            i % 20, mask_of()
        )
        if mask is not None:
            write(faces / f"holes/{i:03d}.png", mask)
    exemplar = faces / "exemplars/sub/face_0.jpg"
    command = ["-m", "dr2pipe", "inpaint", faces / "many", faces / "holes",
               faces / "cut", "--exemplar", exemplar, "--model", model]  # fmt: skip
    done = faces / "cut/inpainted"
    for wanted in (10, 40):
        process = start_command(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda wanted=wanted: len(list(done.glob("*.png"))) >= wanted, process)
        process.kill()
        process.wait()
    result = run_here(*command)
    assert result.returncode == 3, result.stderr
    run(faces, model, "calm", input=faces / "many", mask=faces / "holes", exemplar=exemplar)
    made, calm = (sorted((faces / name / "inpainted").iterdir()) for name in ("cut", "calm"))
    assert [p.name for p in made] == [p.name for p in calm]
    assert len(made) == 85
    assert all(np.array_equal(pixels_of(a), pixels_of(b)) for a, b in zip(made, calm, strict=True))
    assert len(lines(faces / "cut/failures.jsonl")) == 15
    recorded = [record["path"] for record in lines(faces / "cut/manifest.jsonl")]
    assert len(recorded) == len(set(recorded)) == 85
    assert not [p for p in (faces / "cut").rglob("*") if "partial" in p.name]


def test_restoring_with_a_repair_first(faces, model, model_folder):
    def restored(output, *overrides):
        settings = [f"input={faces / 'in'}", f"output={faces / output}", *TINY, *overrides]
        config = load_config(RestoreConfig, None, [f"dr2.model={model_folder}", *settings])
        return restore_folder(config)

    repair = [f"repair.mask={faces / 'masks'}", f"repair.model={model}"]
    assert restored("plain").exit_code == 0
    assert restored("repaired", *repair, "save_coarse=true").exit_code == 0
    name = "sub/face_0.png"
    given = images.read_image(faces / "in" / name).resized(16)
    repaired = images.to_tensor(pixels_of(faces / "repaired/repaired" / name))
    hole = resize_mask(torch.from_numpy(mask_of() > 0).float()[None, None], 16) > 0
    hole = hole.expand_as(given)
    assert ((repaired - given).abs()[~hole] < 1 / 127).all()
    assert ((repaired - given).abs()[hole] > 1 / 127).any()
    plain, result = (pixels_of(faces / out / "restored" / name) for out in ("plain", "repaired"))
    assert (plain != result).any()
    # The hole's content does not matter any more, only what is around it.
    spoilt = pixels_of(faces / "in" / name).copy()
    spoilt[12:20, 10:20] = 0
    write(faces / "in" / name, spoilt)
    exemplar = f"repair.exemplar={faces / 'exemplars'}"
    assert restored("a", *repair, exemplar).exit_code == 0
    assert (pixels_of(faces / "a/restored" / name) != result).any()
    with pytest.raises(ValueError, match=r"give a mask \(repair\.mask\) too"):
        restored("c", exemplar)
    with pytest.raises(ValueError, match="must not be empty"):
        restored("c", "repair.mask=")
    (faces / "masks" / name).unlink()
    summary = restored("b", *repair, "save_compare=true")
    assert pixels_of(faces / "b/compare/sub/face_1.png").shape == (16, 4 * 16, 3)
    assert (summary.failed, summary.restored) == (1, 2)


def test_restore_takes_masks_from_the_command_line(faces, model, model_folder):
    result = run_here(
        "-m", "dr2pipe", "restore", "--aligned", faces / "in", faces / "out", "--mask", faces / "masks",
        "--set", f"dr2.model={model_folder}", f"repair.model={model}", "enhancer.name=none", *TINY,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(list((faces / "out/repaired").rglob("*.png"))) == 3


def test_a_filled_hole_does_not_depend_on_the_batch(model):
    inpainter, _ = load_inpainter(InpainterConfig(model=str(model)))
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(5, 3, 40, 40, generator=generator) * 2 - 1
    masks = torch.zeros(5, 1, 40, 40)
    masks[..., 8:24, 8:24] = 1
    seeds = list(range(5))
    together = inpainter(pictures, masks, inpainter.styles(pictures), seeds)
    part = slice(3, 4)
    alone = inpainter(pictures[part], masks[part], inpainter.styles(pictures[part]), seeds[part])
    assert alone.equal(together[part])


@pytest.mark.parametrize("side", [70, 40, 16, 12])
def test_what_lies_in_a_hole_does_not_reach_its_filling(model, side):
    inpainter, _ = load_inpainter(InpainterConfig(model=str(model)))
    mask = torch.zeros(1, 1, side, side)
    mask[..., side // 4 : side // 2, side // 3 : side - 3] = 1
    pictures = torch.from_numpy(make_pixels(5, side, side)).permute(2, 0, 1)[None] / 127.5 - 1
    styles = inpainter.styles(pictures)
    fillings = [
        inpainter(pictures * (1 - mask) + level * mask, mask, styles, [0]) for level in (-1, 0, 1)
    ]
    for other in fillings[1:]:
        assert (other - fillings[0]).abs().max() < 1e-5
    assert torch.equal(fillings[0] * (1 - mask), pictures * (1 - mask))


def test_the_measuring_command(model, tmp_path):
    faces = np.stack([make_pixels(i, 16, 16) for i in range(3)])
    np.savez(tmp_path / "faces.npz", images=faces)
    result = run_here("scripts/research/measure_inpainting.py", model, tmp_path / "faces.npz")
    assert result.returncode == 0, result.stderr
    rows = [line.split("|")[1].strip() for line in result.stdout.splitlines()]
    assert rows == ["mask", "---", *MASKS, "mean"]


def test_the_sheet_of_a_model_card(model, tmp_path):
    faces = np.stack([make_pixels(i, 16, 16) for i in range(8)])
    np.savez(tmp_path / "faces.npz", images=faces)
    command = ("scripts/research/model_card.py", "inpaintings", tmp_path / "i.png", model)
    result = run_here(*command, tmp_path / "faces.npz")
    assert result.returncode == 0, result.stderr
    assert pixels_of(tmp_path / "i.png").shape == (4 * 34 - 2, 8 * 34 - 2, 3)


def test_fillings_are_measured_inside_the_hole(model):
    faces = np.stack([np.full((16, 16, 3), level, np.uint8) for level in (50, 200)])
    table = measure_inpainting(load_inpainter(InpainterConfig(str(model)))[0], faces)
    assert all(row["mean colour"] == 0 and row["cv2 Telea"] < 2 for row in table.values())
    assert all(row["EXE-GAN, another face"] > 1 for row in table.values())
    with pytest.raises(ValueError, match="needs another one"):
        measure_inpainting(load_inpainter(InpainterConfig(str(model)))[0], faces[:1])


def layer(white, clear):
    """A black mask of 20 pixels with white and with transparent pixels (row, column slices)."""
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[white] = 255
    pixels[clear] = 0
    return pixels


NOTHING = np.s_[0:0, 0:0]


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (layer(np.s_[5:9, 5:9], np.s_[12:16, 5:9]), "ambiguous: 4.00 % is white and 4.00 %"),
        (layer(np.s_[:10], np.s_[10:]), "ambiguous: 50.00 % is white and 50.00 %"),
        (layer(np.s_[:1, :1], np.s_[1:]), "ambiguous"),
        (layer(NOTHING, np.s_[:]), "covers everything: all of it is transparent"),
        (layer(np.s_[:], NOTHING)[..., :3], "covers everything: all of it is white"),
    ],
)
def test_ambiguous_masks_are_refused(pixels, says, tmp_path):
    write(tmp_path / "mask.png", pixels)
    picture = images.Picture(make_pixels(0))
    with pytest.raises(PictureError, match=says):
        read_mask(images.read_image(tmp_path / "mask.png"), picture)


def test_a_painted_layer_is_refused(tmp_path):
    """White paint on a transparent layer: all but the paint is transparent."""
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[5:9, 5:9] = 255
    write(tmp_path / "mask.png", pixels)
    with pytest.raises(PictureError, match=r"4\.00 % is white and 96\.00 %"):
        read_mask(images.read_image(tmp_path / "mask.png"), images.Picture(make_pixels(0)))


@pytest.mark.parametrize(
    ("pixels", "share", "warnings"),
    [
        (layer(np.s_[5:15, 5:15], np.s_[0:1, 0:1]), 101, ["both were taken for holes"]),
        (layer(np.s_[0:1, 0:1], np.s_[5:15, 5:15]), 101, ["both were taken for holes"]),
        (layer(NOTHING, np.s_[5:15, 5:15]), 100, []),
        (layer(np.s_[5:15, 5:15], NOTHING), 100, []),
        (np.tile(np.arange(20, dtype=np.uint8)[:, None] * 12, (1, 20)), 180, ["neither black"]),
    ],
)
def test_what_is_white_or_transparent_is_a_hole(pixels, share, warnings, tmp_path):
    write(tmp_path / "mask.png", pixels)
    picture = images.Picture(make_pixels(0))
    assert read_mask(images.read_image(tmp_path / "mask.png"), picture).sum() == share
    assert len(picture.warnings) == len(warnings)
    assert all(says in found for says, found in zip(warnings, picture.warnings, strict=True))


def test_a_face_with_holes_is_its_own_mask_in_any_file(tmp_path):
    pixels = np.dstack([make_pixels(0), np.full((20, 20), 255, np.uint8)])
    pixels[3:8, 3:8, 3] = 0
    write(tmp_path / "a.png", pixels)
    mask, picture = images.read_image(tmp_path / "a.png"), images.Picture(make_pixels(0))
    assert read_mask(mask, picture).sum() == 25
    assert not picture.warnings


def test_the_rim_of_a_filling_takes_the_colours_around_it(model):
    """A network that draws in other colours leaves no edge around a scratch."""
    inpainter, _ = load_inpainter(InpainterConfig(model=str(model)))
    picture, mask = torch.full((1, 3, 16, 16), 0.3), torch.zeros(1, 1, 16, 16)
    mask[..., 5, 2:14] = 1
    styles = inpainter.styles(torch.rand(1, 3, 32, 32))
    drawn = []
    inpainter.network.register_forward_hook(lambda network, given, output: drawn.append(output))
    filled = inpainter(picture, mask, styles, [0])
    errors = [((found - picture).abs() * mask).sum() / mask.sum() for found in (filled, drawn[0])]
    assert errors[0] < 0.6 * errors[1]
