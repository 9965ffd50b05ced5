"""The work behind the page equals that of the command line."""

import dataclasses
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from worn import say, worn_photo

from dr2pipe import cli
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.core.models import find_file
from dr2pipe.web.visits import Limits, Visits
from dr2pipe.web.wishes import Wish
from dr2pipe.web.workshop import Workshop


@pytest.fixture(scope="module")
def shop():
    workshop = Workshop(Limits(photos=2))
    workshop.warm_up("default")
    return workshop


@pytest.fixture
def visit(tmp_path):
    return Visits(tmp_path / "visits").of("someone")


def upload(tmp_path, name, **options):
    (tmp_path / "up").mkdir(exist_ok=True)
    return str(worn_photo(tmp_path / "up" / name, **options))


def test_the_result_is_that_of_the_command_line(shop, visit, tmp_path):
    kept = worn_photo(tmp_path / "worn.png")
    assert shop.take(visit, [upload(tmp_path, "worn.png")], "default", say) == []
    photo = visit.photos["worn.png"]
    assert len(photo.faces) == 1
    assert np.asarray(Image.open(photo.boxes)).shape == (190, 210, 3)
    outcome = shop.restore(visit, Wish(damage="severe", seed=3), say)
    ((done,),) = outcome.done
    assert done.command.startswith("dr2pipe restore worn.png OUTPUT --set dr2.factor=8")
    words = done.command.split()[1:]
    words[1], words[2] = str(kept), str(tmp_path / "out")
    assert cli.main(words) == 0
    assert done.restored.read_bytes() == (tmp_path / "out" / "restored" / "worn.png").read_bytes()
    assert done.lines[0] == "Faces restored: 1 of 1."
    with zipfile.ZipFile(outcome.zip) as archive:
        names = archive.namelist()
        texts = [archive.read(n).decode() for n in names if n.endswith((".jsonl", ".txt"))]
    assert {"restored/worn.png", "faces/worn/000_restored.png", "manifest.jsonl"} <= set(names)
    assert len(texts) == 2
    assert all(str(tmp_path) not in text for text in texts)
    assert len(shop._engines) == 2


def test_variants_and_where_they_differ(shop, visit, tmp_path):
    shop.take(visit, [upload(tmp_path, "worn.png")], "default", say)
    outcome = shop.restore(visit, Wish(variants=2, seed=5), say)
    assert [done[0].seed for done in outcome.done] == [5, 6]
    a, b = (np.asarray(Image.open(done[0].faces[0])).astype(float) for done in outcome.done)
    spread = np.asarray(Image.open(outcome.spread["worn.png"]))
    assert np.abs(spread[..., 0] - 4 * np.abs(a - b).mean(axis=2) / 2).max() < 1
    assert "seed=6" in outcome.done[1][0].command
    with zipfile.ZipFile(outcome.zip) as archive:
        assert {"seed_5/restored/worn.png", "seed_6/restored/worn.png"} <= set(archive.namelist())


def test_variants_that_do_not_differ_say_so(shop, visit, tmp_path, monkeypatch):
    monkeypatch.setattr("dr2pipe.web.workshop.overrides_of", lambda wish: ["dr2.enabled=false"])
    shop.take(visit, [upload(tmp_path, "worn.png")], "default", say)
    outcome = shop.restore(visit, Wish(variants=2), say)
    assert outcome.spread == {}
    assert all(done[0].lines[-1].startswith("The variants are the same") for done in outcome.done)


def test_chosen_faces_alone_change(shop, visit, tmp_path):
    shop.take(visit, [upload(tmp_path, "two.png", faces=2)], "default", say)
    before = np.asarray(Image.open(visit.photos["two.png"].path)).astype(int)
    outcome = shop.restore(visit, Wish(faces={"two.png": [1]}), say)
    ((done,),) = outcome.done
    changed = (
        np.abs(np.asarray(Image.open(done.restored)).astype(int) - before).max(axis=(0, 2)) > 0
    )
    assert not changed[:200].any()
    assert changed[200:].any()
    assert done.command.endswith("--set faces.name=file faces.file=faces.json")
    with zipfile.ZipFile(outcome.zip) as archive:
        (tmp_path / "again").mkdir()
        archive.extract("faces.json", tmp_path / "again")
    listed = json.loads((tmp_path / "again" / "faces.json").read_text())
    assert list(listed) == ["two.png"]
    shutil.copy(visit.photos["two.png"].path, tmp_path / "again")
    arguments = ["restore", str(tmp_path / "again" / "two.png"), str(tmp_path / "out"), "--set"]
    faces = [f"faces.file={tmp_path / 'again' / 'faces.json'}", "faces.name=file"]
    assert cli.main([*arguments, *faces]) == 0
    assert (tmp_path / "out" / "restored" / "two.png").read_bytes() == done.restored.read_bytes()


def test_a_preset_may_choose_among_the_chosen_faces(shop, visit, tmp_path):
    text = find_file("configs/restore", "default", what="preset").read_text()
    (tmp_path / "one.yaml").write_text(f"{text}\nfaces: {{max_count: 1}}\n")
    shop.take(visit, [upload(tmp_path, "two.png", faces=2)], "default", say)
    visit.photos["two.png"].faces.append(
        visit.photos["two.png"].faces[0]
    )  # so that not all are chosen
    ((done,),) = shop.restore(
        visit, Wish(str(tmp_path / "one.yaml"), faces={"two.png": [0, 1]}), say
    ).done
    assert done.lines[0] == "Faces restored: 1 of 3."


def test_marks_are_filled(shop, visit, tmp_path):
    shop.take(visit, [upload(tmp_path, "worn.png")], "default", say)
    photo = visit.photos["worn.png"]
    x, y, width, height = (round(v) for v in photo.faces[0].face.box)
    scratch = np.zeros((*photo.size, 3), np.uint8)
    scratch[y + height // 2 - 3 : y + height // 2 + 3, x : x + width] = 255
    torn = np.where(scratch > 0, 255, np.asarray(Image.open(photo.path)))
    Image.fromarray(torn.astype(np.uint8)).save(tmp_path / "up" / "torn.png")
    shop.take(visit, [str(tmp_path / "up" / "torn.png")], "default", say)
    photo = visit.photos["torn.png"]
    ((plain,),) = shop.restore(visit, Wish(), say).done
    without = np.asarray(Image.open(plain.restored)).astype(int)
    photo.marks = tmp_path / "marks.png"
    Image.fromarray(scratch).save(photo.marks)
    outcome = shop.restore(visit, Wish(marks=True), say)
    ((done,),) = outcome.done
    filled = np.asarray(Image.open(done.restored)).astype(int)
    where = scratch[..., 0] > 0
    assert filled[where].mean() < without[where].mean() - 20
    assert "--mask marks/torn.png.png" in done.command
    with zipfile.ZipFile(outcome.zip) as archive:
        assert "marks/torn.png.png" in archive.namelist()
    elsewhere = np.zeros_like(scratch)
    elsewhere[:3, :3] = 255
    Image.fromarray(elsewhere).save(photo.marks)
    ((done,),) = shop.restore(visit, Wish(marks=True), say).done
    assert done.lines[-1].startswith("Note: the marks lie outside of the faces")


def test_several_photos_and_refusals(shop, visit, tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "wall.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "third.png").write_text("hello")
    three = [str(tmp_path / name) for name in ("wall.png", "text.png", "third.png")]
    with pytest.raises(PictureError, match="choose a photo first"):
        shop.restore(visit, Wish(), say)
    refused = shop.take(visit, three[:2], "default", say)
    assert refused == [
        "text.png cannot be used (not an image file, whatever its name says): add the photo as another "
        "file, such as JPEG or PNG"
    ]
    outcome = shop.restore(visit, Wish(), say)
    assert outcome.done[0][0].lines[0].startswith("No face was found: add a larger or")
    with pytest.raises(PictureError, match="choose a photo with a face"):
        shop.tune(visit, "wall.png", 0, Wish())
    with pytest.raises(PictureError, match="3 photos are too many at a time: choose up to 2"):
        shop.take(visit, three, "default", say)
    with pytest.raises(ConfigError, match="dr2pipe setup gfpgan14"):
        shop.restore(visit, Wish("gfpgan14_only"), say)
    with pytest.raises(PictureError, match="choose a photo first"):
        shop.take(visit, [], "default", say)


def test_a_photo_that_fails_is_named(shop, visit, tmp_path):
    paths = [upload(tmp_path, name) for name in ("a.png", "b.png")]
    shop.take(visit, paths, "default", say)
    visit.photos["a.png"].path.write_bytes(b"gone")
    outcome = shop.restore(visit, Wish(), say)
    assert outcome.failures == ["a.png: not an image file, whatever its name says"]
    assert [one.name for one in outcome.done[0]] == ["b.png"]
    visit.photos["b.png"].path.write_bytes(b"gone")
    with pytest.raises(PictureError, match=r"a.png: .*b.png: "):
        shop.restore(visit, Wish(), say)


@pytest.mark.slow
def test_references_choose(shop, visit, tmp_path):
    shop.take(visit, [upload(tmp_path, "worn.png")], "default", say)
    visit.references = visit.new_folder("references")
    worn_photo(visit.references / "0.png", seed=1)
    ((done,),) = shop.restore(visit, dataclasses.replace(Wish()), say).done
    assert "--reference REFERENCES --set samples=4" in done.command


def test_a_grid(shop, visit, tmp_path):
    shop.take(visit, [upload(tmp_path, "worn.png")], "default", say)
    grid = shop.tune(visit, "worn.png", 0, Wish())
    assert len({(one.factor, one.tau) for _, one in grid}) == len(grid) == 12
    assert Image.open(grid[0][0]).size == (256, 256)
