"""``dr2pipe restore`` on folders of photos: what it writes, resumes, copies and refuses."""

import json

import numpy as np
import pytest
from photos import landmarks_at, smooth_photo
from PIL import Image

from dr2pipe import cli
from dr2pipe.core import images
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.runs.restore import RestoreConfig, restore_folder

# Where the faces of three photos are; the fourth has none.
PLACES = {
    "one.png": [(100, 120, 90)],
    "sub/two.jpg": [(100, 120, 90), (280, 150, 110, 25)],
    "deep.tif": [(200, 150, 120)],
}


@pytest.fixture
def photos(tmp_path):
    """Four photos, and the list of their faces."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(smooth_photo(seed=1)).save(folder / "one.png")
    Image.fromarray(smooth_photo(seed=2)).save(folder / "sub/two.jpg", quality=80, dpi=(300, 300))
    Image.fromarray(smooth_photo(seed=3)).save(folder / "deep.tif")
    Image.fromarray(smooth_photo(seed=4)).save(folder / "none.jpg")
    listed = {
        path: [{"landmarks": landmarks_at(*place).round(2).tolist()} for place in places]
        for path, places in PLACES.items()
    }
    (tmp_path / "faces.json").write_text(json.dumps(listed))
    return folder


def settings_for(photos, model_folder, *overrides, output="out"):
    return [
        f"input={photos}", f"output={photos.parent / output}", f"dr2.model={model_folder}",
        "dr2.tau=2", "dr2.omega=8", "dr2.factor=2", "dr2.num_evaluations=2",
        "enhancer.name=none", "faces.skip_good=false", "identity.measure=false",
        "faces.name=file", f"faces.file={photos.parent / 'faces.json'}", *overrides,
    ]  # fmt: skip


def restore(photos, model_folder, *overrides, output="out"):
    given = settings_for(photos, model_folder, *overrides, output=output)
    return restore_folder(load_config(RestoreConfig, None, given))


def records(folder):
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    return {record["path"]: record for record in map(json.loads, lines)}


def files_in(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_of_photos(photos, model_folder):
    out = photos.parent / "out"
    summary = restore(photos, model_folder, "save_faces=true", "save_compare=true", "boxes=true")
    assert (summary.restored, summary.warned, summary.exit_code) == (4, 1, 0)
    found = records(out)
    assert {path: len(record["faces"]) for path, record in found.items()} == {
        "one.png": 1, "sub/two.jpg": 2, "deep.tif": 1, "none.jpg": 0,
    }  # fmt: skip
    assert found["none.jpg"]["warnings"] == ["no face was found"]
    assert files_in(out / "restored") == {"one.png", "sub/two.png", "deep.png", "none.png"}
    pieces = {
        f"sub/two/00{i}_{n}.png" for i in (0, 1) for n in ("input", "coarse", "restored", "mask")
    }
    assert {name for name in files_in(out / "faces") if name.startswith("sub")} == pieces
    for path in ("one.png", "sub/two.jpg", "none.jpg"):
        before = np.asarray(Image.open(photos / path))
        after = np.asarray(Image.open(out / "restored" / path.replace(".jpg", ".png")))
        assert after.shape == before.shape
        changed = (before != after).any(axis=2).mean()
        assert (changed == 0) == (path == "none.jpg")
        assert changed < 0.5
    with Image.open(out / "compare/one.png") as compared:
        assert compared.size == (800, 300)


def test_results_are_resumed_and_mended(photos, model_folder):
    out = photos.parent / "out"
    restore(photos, model_folder, "save_faces=true")
    before = {n: np.asarray(Image.open(out / "restored" / n)) for n in files_in(out / "restored")}
    assert restore(photos, model_folder, "save_faces=true").skipped == 4
    (out / "faces/sub/two/001_coarse.png").unlink()
    (out / "restored/deep.png").write_bytes(b"")
    again = restore(photos, model_folder, "save_faces=true")
    assert (again.restored, again.skipped) == (2, 2)
    for name, was in before.items():  # the last bits depend on the batch
        is_ = np.asarray(Image.open(out / "restored" / name)).astype(int)
        assert np.abs(is_ - was).max() <= 1
    # Without faces/, what is there of it goes when a photo is made again, and nothing else is.
    assert restore(photos, model_folder).skipped == 4
    assert restore(photos, model_folder, "seed=1").restored == 4
    assert not files_in(out / "faces")


def test_saving_faces_later_makes_them(photos, model_folder):
    restore(photos, model_folder)
    assert restore(photos, model_folder, "save_faces=true").restored == 4
    assert len(files_in(photos.parent / "out/faces")) == 4 * 4


def test_a_changed_list_of_faces_is_another_setting(photos, model_folder):
    restore(photos, model_folder)
    (photos.parent / "faces.json").write_text("{}")
    summary = restore(photos, model_folder)
    assert (summary.restored, summary.warned) == (4, 4)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_results_do_not_depend_on_batches(photos, model_folder, batch_size):
    out = photos.parent / "out"
    restore(photos, model_folder, f"batch_size={batch_size}")
    restore(photos, model_folder, "batch_size=2", "loader_threads=1", output="other")
    for name in files_in(out / "restored"):
        a, b = (
            np.asarray(Image.open(photos.parent / folder / "restored" / name)).astype(int)
            for folder in ("out", "other")
        )
        assert np.abs(a - b).max() <= 1, name


def test_formats(photos, model_folder):
    out = photos.parent / "out"
    restore(photos, model_folder, "format=keep", "save_compare=true")
    assert files_in(out / "restored") == {"one.png", "sub/two.jpg", "deep.png", "none.jpg"}
    assert "sub/two.jpg.png" in files_in(out / "compare")
    # A photo without faces is the file that it was; another one is no coarser than it was.
    assert (out / "restored/none.jpg").read_bytes() == (photos / "none.jpg").read_bytes()
    with Image.open(photos / "sub/two.jpg") as was, Image.open(out / "restored/sub/two.jpg") as is_:
        assert is_.quantization == was.quantization
        assert is_.info["dpi"] == was.info["dpi"]
    assert restore(photos, model_folder, "format=keep", "save_compare=true").skipped == 4
    for format, kind in (("jpg", "JPEG"), ("webp", "WEBP")):
        restore(photos, model_folder, f"format={format}", output=format)
        made = photos.parent / format / f"restored/one.{format}"
        with Image.open(made) as result:
            assert result.format == kind
        assert images.SOURCE_TYPE in made.read_bytes()  # for archives: made by a network in parts
    lossless = np.asarray(Image.open(photos.parent / "webp/restored/one.webp"))
    assert (lossless == np.asarray(Image.open(out / "restored/one.png"))).all()


def test_16_bits_and_own_colours(tmp_path, photos, model_folder):
    deep = smooth_photo(seed=3).astype(np.uint16) * 257 + 3
    chunks = ((b"gAMA", (100000).to_bytes(4, "big")),)  # linear light
    (photos / "deep.tif").unlink()
    (photos / "one.png").write_bytes(images.encode_png(deep, colour_chunks=chunks))
    restore(photos, model_folder)
    data = (tmp_path / "out/restored/one.png").read_bytes()
    picture = images.decode_image(data, keep_own=True, whole_photo=True)
    assert picture.own.levels.dtype == np.uint16
    assert picture.own.chunks == chunks
    same = (picture.own.levels == deep).all(axis=2)
    assert 0.8 < same.mean() < 1


def test_strict_makes_a_photo_without_faces_a_failure(photos, model_folder):
    summary = restore(photos, model_folder, "strict=true")
    assert (summary.restored, summary.failed, summary.exit_code) == (3, 1, 3)
    failure = json.loads((photos.parent / "out/failures.jsonl").read_text())
    assert failure["path"] == "none.jpg"
    assert "no face was found" in failure["message"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["repair.mask=m.png", "repair.exemplar=e.png"], "add --aligned"),
        (["save_coarse=true"], "save_faces"),
        (["faces.mode=aligned", "scale=2"], "--aligned"),
        (["faces.mode=aligned", "save_faces=true"], "whole photos"),
        (["faces.mode=both"], "choose photos or aligned"),
        (["format=gif"], "choose png, jpg, webp, keep"),
        (["faces.file=nowhere.json"], "nowhere.json"),
        (["contrast=more"], "contrast 'more': choose keep, stretch"),
    ],
)
def test_settings_that_do_not_fit(photos, model_folder, settings, says):
    with pytest.raises(ConfigError, match=says):
        restore(photos, model_folder, *settings)
    assert not (photos.parent / "out").exists()


def test_dark_photos_get_the_usual_range(photos, model_folder):
    """Also where they have no face; others, and the command without it, change no such pixel."""
    out = photos.parent / "out"
    dark = images.round_to_uint8(np.asarray(Image.open(photos / "none.jpg")) * 0.2)
    Image.fromarray(dark).save(photos / "dark.png")
    Image.fromarray(images.round_to_uint8(smooth_photo(seed=1) * 0.2)).save(photos / "one.png")
    assert restore(photos, model_folder).exit_code == 0
    assert (np.asarray(Image.open(out / "restored/dark.png")) == dark).all()
    none = np.asarray(Image.open(out / "restored/none.png"))
    summary = restore(photos, model_folder, "contrast=stretch", "save_compare=true")
    assert (summary.restored, summary.skipped) == (5, 0)  # another setting
    found = records(out)
    assert {path for path, record in found.items() if "contrast" in record} == {
        "dark.png",
        "one.png",
    }
    after = np.asarray(Image.open(out / "restored/dark.png")).astype(float)
    line = found["dark.png"]["contrast"]
    expected = np.clip(np.round(dark * line["gain"] + line["offset"] * 255), 0, 255)
    assert np.abs(after - expected).max() <= 1
    assert np.ptp(after) > 2 * np.ptp(dark)
    assert (np.asarray(Image.open(out / "restored/none.png")) == none).all()
    # Around the face, the whole photo has it; the other half of the comparison is as it was.
    one = np.asarray(Image.open(out / "restored/one.png")).astype(float)
    was = smooth_photo(seed=1) * 0.2
    line = found["one.png"]["contrast"]
    stretched = np.clip(was * line["gain"] + line["offset"] * 255, 0, 255)
    assert np.abs(one - stretched)[-20:, -20:].max() <= line["gain"]
    compared = np.asarray(Image.open(out / "compare/one.png")).astype(float)
    half = compared[:, : was.shape[1]]
    assert np.abs(half - was).mean() < 2


def test_a_face_outside_its_photo_is_that_photos_failure(photos, model_folder):
    listed = json.loads((photos.parent / "faces.json").read_text())
    listed["one.png"][0]["landmarks"] = landmarks_at(9000, 100, 80).tolist()
    (photos.parent / "faces.json").write_text(json.dumps(listed))
    summary = restore(photos, model_folder)
    assert (summary.restored, summary.failed) == (3, 1)
    failure = json.loads((photos.parent / "out/failures.jsonl").read_text())
    assert failure["path"] == "one.png"
    assert "faces.json" in failure["message"]


def test_the_command(photos, model_folder, capsys):
    given = settings_for(photos, model_folder)[2:]
    arguments = ["restore", str(photos), str(photos.parent / "out"), "--scale", "2"]
    assert cli.main([*arguments, "--format", "keep", "--set", *given]) == 0
    printed = capsys.readouterr()
    assert "4 restored" in printed.out
    with Image.open(photos.parent / "out/restored/none.jpg") as enlarged:
        assert enlarged.size == (800, 600)


def odd_photos(folder):
    """Photos that are no ordinary portraits, by name."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (40, 60), dtype=np.uint8)
    colour = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    made = {
        "thin.png": Image.fromarray(grey[:, :1]),
        "flat.png": Image.fromarray(grey[:1]),
        "dot.png": Image.fromarray(grey[:1, :1]),
        "panorama.jpg": Image.fromarray(np.tile(colour, (1, 20, 1))),
        "bits.png": Image.fromarray(grey > 127),
        "palette.gif": Image.fromarray(colour).quantize(7),
        "inks.jpg": Image.fromarray(colour).convert("CMYK"),
        "clear.png": Image.fromarray(np.dstack([colour, colour[..., 0] * 0])),
    }
    folder.mkdir()
    for name, picture in made.items():
        picture.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colour).save(folder / "turned.jpg", exif=exif)
    return [*made, "turned.jpg"]


def test_odd_photos_among_good_ones(tmp_path, model_folder):
    names = odd_photos(tmp_path / "in")
    (tmp_path / "in/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    summary = restore(
        tmp_path / "in", model_folder, "faces.name=yunet", "faces.file=null", "format=keep"
    )
    assert (summary.restored, summary.failed, summary.exit_code) == (len(names), 1, 3)
    out = tmp_path / "out/restored"
    for name in names:
        found = next(out.glob(f"{name.split('.')[0]}.*"))
        with Image.open(found) as result, Image.open(tmp_path / "in" / name) as was:
            shown = images.decode_image(found.read_bytes(), whole_photo=True).pixels
            expected = images.picture_of(was, whole_photo=True).pixels
            assert result.width * result.height == was.width * was.height
            assert np.abs(shown.astype(int) - expected).mean() < 4, name


# -- what later runs find --------------------------------------------------------------------


def forget(out, *paths):
    """Take lines out of the manifest, as a kill between a file and its line leaves it."""
    manifest = out / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(s for s in lines if json.loads(s)["path"] not in paths))


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "keep"])
def test_files_without_a_record_are_made_again(photos, model_folder, format):
    out = photos.parent / "out"
    restore(photos, model_folder, f"format={format}")
    before = {name: (out / "restored" / name).read_bytes() for name in files_in(out / "restored")}
    forget(out, "one.png", "none.jpg")
    again = restore(photos, model_folder, f"format={format}")
    assert (again.restored, again.skipped, again.failed) == (2, 2, 0)
    assert files_in(out / "restored") == before.keys()


def test_the_users_own_file_is_not_replaced(photos, model_folder):
    out = photos.parent / "out"
    restore(photos, model_folder, "format=keep")
    forget(out, "none.jpg")
    Image.new("RGB", (400, 300), "red").save(out / "restored/none.jpg")
    mine = (out / "restored/none.jpg").read_bytes()
    assert restore(photos, model_folder, "format=keep").failed == 1
    assert (out / "restored/none.jpg").read_bytes() == mine


def test_results_of_another_format_go(photos, model_folder):
    out = photos.parent / "out"
    restore(photos, model_folder, "format=keep", "save_faces=true")
    restore(photos, model_folder, "format=webp")
    names = {"one.webp", "sub/two.webp", "deep.webp", "none.webp"}
    assert files_in(out / "restored") == names
    assert not list((out / "faces").glob("*/*"))


def test_an_ending_in_capitals_is_a_png_too(photos, model_folder):
    chunks = ((b"gAMA", (100000).to_bytes(4, "big")),)  # linear light
    data = images.encode_png(smooth_photo(seed=1), colour_chunks=chunks)
    (photos / "one.png").unlink()
    (photos / "ONE.PNG").write_bytes(data)
    listed = json.loads((photos.parent / "faces.json").read_text())
    listed["ONE.PNG"] = listed.pop("one.png")
    (photos.parent / "faces.json").write_text(json.dumps(listed))
    restore(photos, model_folder, "format=keep")
    result = (photos.parent / "out/restored/ONE.PNG").read_bytes()
    picture = images.decode_image(result, keep_own=True, whole_photo=True)
    assert picture.own.chunks == chunks
    assert (picture.own.levels == smooth_photo(seed=1)).all(axis=2).mean() > 0.8


def test_8_bits_also_where_nothing_changes(photos, model_folder):
    deep = smooth_photo(seed=4).astype(np.uint16) * 257
    (photos / "none.jpg").unlink()
    (photos / "none.png").write_bytes(images.encode_png(deep))
    restore(photos, model_folder, "bits=8")
    picture = images.read_image(photos.parent / "out/restored/none.png")
    assert picture.bits == 8


def test_strict_and_boxes_count_for_photos_that_are_done(photos, model_folder):
    restore(photos, model_folder, "save_compare=true")
    strict = restore(photos, model_folder, "save_compare=true", "strict=true")
    assert (strict.restored, strict.skipped, strict.failed) == (0, 3, 1)
    compared = photos.parent / "out/compare/one.png"
    plain = compared.read_bytes()
    assert restore(photos, model_folder, "save_compare=true", "boxes=true").restored == 4
    assert compared.read_bytes() != plain
    assert restore(photos, model_folder, "save_compare=true", "boxes=true").skipped == 4


def test_a_list_that_names_no_photo(photos, model_folder, caplog):
    listed = json.loads((photos.parent / "faces.json").read_text())
    path = photos.parent / "faces.json"
    path.write_text(json.dumps({"ghost.jpg": listed["one.png"]}))
    with pytest.raises(ConfigError, match=r"names no photo of the input; it names ghost\.jpg"):
        restore(photos, model_folder)
    path.write_text(json.dumps(listed | {"ghost.jpg": listed["one.png"]}))
    assert restore(photos, model_folder).restored == 4
    assert "ghost.jpg" in caplog.text


def test_listed_faces_need_no_score(photos, model_folder):
    listed = json.loads((photos.parent / "faces.json").read_text())
    listed["one.png"][0]["score"] = 0.1
    (photos.parent / "faces.json").write_text(json.dumps(listed))
    restore(photos, model_folder)
    assert len(records(photos.parent / "out")["one.png"]["faces"]) == 1


def test_what_a_kind_of_file_cannot_hold_is_said_before_the_work(photos, model_folder):
    clear = np.dstack([smooth_photo(seed=1), smooth_photo(seed=2)[..., 0]])
    Image.fromarray(clear).save(photos / "one.png")
    Image.fromarray(np.zeros((20, 5000, 3), np.uint8)).save(photos / "deep.tif")
    listed = json.loads((photos.parent / "faces.json").read_text())
    del listed["deep.tif"]
    (photos.parent / "faces.json").write_text(json.dumps(listed))
    assert restore(photos, model_folder, "format=jpg", output="jpg").failed == 1
    summary = restore(photos, model_folder, "format=webp", "scale=4", output="webp")
    assert summary.failed == 1
    failure = json.loads((photos.parent / "webp/failures.jsonl").read_text())
    assert "at most 16383 pixels a side, not 20000x80; choose png" in failure["message"]


def test_jpeg_keeps_what_the_photo_says(photos, model_folder):
    """A comment of its own, IPTC, resolution; the mark of the run stands elsewhere."""
    path = photos / "sub/two.jpg"
    iptc = b"\x1c\x02\x78\x00\x05hello"
    block = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + len(iptc).to_bytes(4, "big") + iptc
    block += bytes(len(iptc) % 2)
    segment = b"\xff\xed" + (len(block) + 2).to_bytes(2, "big") + block
    Image.fromarray(smooth_photo(seed=2)).save(
        path, quality=80, dpi=(300, 300), comment="by hand", extra=segment
    )
    restore(photos, model_folder, "format=keep")
    result = photos.parent / "out/restored/sub/two.jpg"
    with Image.open(result) as found:
        assert found.info["comment"] == b"by hand"
        assert found.info["dpi"] == (300, 300)
        assert found.info["photoshop"][0x0404] == iptc
    assert images.is_marked(result)
    assert not images.is_marked(path)
