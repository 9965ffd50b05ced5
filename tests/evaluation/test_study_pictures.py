"""Pictures that a study keeps, and those that it is given: degraded or made elsewhere."""

import json
import shutil

import pytest
import torch
from conftest import make_pictures
from conftest import run_study as run
from conftest import study_rows as rows_of

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.evaluation.protocol import PartnerFolder
from dr2pipe.metrics import psnr, sets
from dr2pipe.runs.degrade import DegradeConfig, degrade_folder


def test_pictures_made_elsewhere(protocol, clean, tmp_path):
    degraded = make_pictures(tmp_path / "degraded", 5, height=16, width=16)
    made = tmp_path / "made" / "given"
    for path in clean.iterdir():
        images.write_png(made / path.name, 255 - images.read_image(path).pixels)
    given = [
        "degradations=[given]",
        f"clean.degraded={degraded}",
        f"methods.elsewhere.folder={made.parent}",
    ]
    run(protocol, tmp_path / "o", *given)
    found = [float(r["psnr"]) for r in rows_of(tmp_path / "o") if r["method"] == "elsewhere"]
    pairs = [
        [images.to_tensor(images.read_image(folder / name).pixels) for folder in (made, clean)]
        for name in sorted(path.name for path in clean.iterdir())
    ]
    assert found == pytest.approx([psnr(*pair).item() for pair in pairs], abs=1e-4)
    (degraded / "face_003.png").unlink()
    with pytest.raises(ConfigError, match=r"face_003\.png: no file of its name"):
        run(protocol, tmp_path / "p", *given)
    make_pictures(degraded, 5, height=20, width=16)
    with pytest.raises(ConfigError, match="has 16x20 pixels"):
        run(protocol, tmp_path / "p", *given)
    assert not (tmp_path / "p").exists()


def test_pictures_made_elsewhere_are_found_by_the_manifest(protocol, clean, tmp_path):
    faces = shutil.copytree(clean, tmp_path / "faces")
    shutil.copyfile(faces / "face_001.png", faces / "face_000.jpg")  # two faces of one name
    degrade_folder(DegradeConfig(str(faces), str(tmp_path / "d"), "mild", size=16))
    degraded = tmp_path / "d/degraded"
    tool = DegradeConfig(str(degraded), str(tmp_path / "tools/given"), "mild", size=32)
    degrade_folder(tool)
    given = [
        "degradations=[given]", f"clean.path={faces}", f"clean.degraded={degraded}",
        f"methods.tool.folder={tmp_path / 'tools'}",
    ]  # fmt: skip
    run(protocol, tmp_path / "o", *given)
    assert len({r["picture"] for r in rows_of(tmp_path / "o")}) == 6
    shutil.copyfile(degraded / "face_002.png", degraded / "face_003.png")
    with pytest.raises(ConfigError, match=r"degraded/face_003\.png has changed since .*given"):
        run(protocol, tmp_path / "p", *given)
    shutil.copyfile(faces / "face_003.png", faces / "face_002.png")
    with pytest.raises(ConfigError, match=r"faces/face_002\.png has changed since .*degraded"):
        run(protocol, tmp_path / "p", *given)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_another_tools_results_for_the_degraded_pictures(protocol, clean, tmp_path, kind):
    faces = tmp_path / "faces"
    faces.mkdir()
    for path in sorted(clean.iterdir())[:2]:
        shutil.copyfile(path, faces / path.with_suffix(f".{kind}").name)
    # The other tool here returns what it gets, so it must be of the size that is compared.
    given = [f"clean.path={faces}", "degraded_size=32", "degradations=[mild,'rain:3']"]
    run(protocol, tmp_path / "o", *given, "save_pictures=true")
    degraded = tmp_path / "o/pictures/degraded"
    names = ["face_000.png", "face_001.png"]
    names = names if kind == "png" else [f"{n[:-4]}.jpg.png" for n in names]
    found = sorted(p.relative_to(degraded).as_posix() for p in degraded.rglob("*.png"))
    assert found == [f"{folder}/{name}" for folder in ("mild", "rain-3") for name in names]
    shutil.copytree(degraded, tmp_path / "tool")
    run(protocol, tmp_path / "p", *given, f"methods.tool.folder={tmp_path / 'tool'}")
    values = {
        m: [r["psnr"] for r in rows_of(tmp_path / "p") if r["method"] == m]
        for m in ("input", "tool", "coarse")
    }
    assert len(values["tool"]) == 4
    assert values["tool"] == values["input"] != values["coarse"]


def test_kept_pictures_are_what_is_measured(protocol, clean, tmp_path):
    given = ["degradations=['rain:3']", "save_pictures=true"]
    run(protocol, tmp_path / "o", *given)
    for row in rows_of(tmp_path / "o"):
        kept = tmp_path / "o/pictures" / row["method"] / "rain-3" / row["picture"]
        pair = [images.to_tensor(images.read_image(p).pixels) for p in (kept, clean / kept.name)]
        assert float(row["psnr"]) == pytest.approx(psnr(*pair).item(), abs=1e-4)
    small = images.read_image(tmp_path / "o/pictures/degraded/rain-3/face_000.png").pixels
    assert small.shape == (16, 16, 3)


def test_points_found_on_kept_pictures(protocol, clean, tmp_path):
    """Keep pictures, let a detector look at them, and measure again by what it found."""
    given = ["degradations=[mild]", "clean.limit=2"]
    run(protocol, tmp_path / "o", *given, "save_pictures=true")
    files = [f"{clean}/face_{i:03d}.png,2,2,22,2" for i in range(2)]
    kept = sorted((tmp_path / "o/pictures").rglob("*.png"))
    files += [f"{path},2,7,22,7" for path in kept if "degraded" not in path.parts]
    listed = tmp_path / "points.csv"
    listed.write_text("\n".join(["file,eyeL_x,eyeL_y,eyeR_x,eyeR_y", *files]))
    more = ["metrics=[listed_landmark_error]", f"metric_files.landmarks={listed}"]
    run(protocol, tmp_path / "p", *given, *more)
    values = [float(r["listed_landmark_error"]) for r in rows_of(tmp_path / "p")]
    assert values == pytest.approx([25] * 2 * 5)


def test_pictures_that_are_missing_are_made_again(protocol, tmp_path):
    given = ["degradations=[mild]", "clean.limit=2"]
    run(protocol, tmp_path / "o", *given)
    table = (tmp_path / "o/results.csv").read_bytes()
    assert not (tmp_path / "o/pictures").exists()
    run(protocol, tmp_path / "o", *given, "save_pictures=true")
    path = tmp_path / "o/pictures/coarse/mild/face_001.png"
    before = path.read_bytes()
    path.unlink()
    run(protocol, tmp_path / "o", *given, "save_pictures=true")
    assert path.read_bytes() == before
    assert (tmp_path / "o/results.csv").read_bytes() == table


def test_partners_by_name(tmp_path):
    for name in ("a.png", "a.jpg.png", "b.png"):
        images.write_png(
            tmp_path / name, images.to_uint8(torch.full((1, 3, 8, 8), len(name) / 20))[0]
        )
    names = ["a.png", "a.jpg", "b.jpg"]
    folder = PartnerFolder(tmp_path, names)
    level = {n: folder.read(n, 8)[0, 0, 0] for n in names}
    assert level["a.jpg"] != level["a.png"] == level["b.jpg"]
    # The result of b.png is not taken for that of b.jpg where both are faces, nor the reverse.
    folder = PartnerFolder(tmp_path, [*names, "b.png"])
    assert folder.path("b.png") == tmp_path / "b.png"
    with pytest.raises(
        ConfigError, match=r"b\.jpg: b\.png in .* may belong to b\.jpg or to b\.png"
    ):
        folder.read("b.jpg", 8)
    (tmp_path / "b.png").rename(tmp_path / "b.jpg")
    with pytest.raises(ConfigError, match=r"b\.png: b\.jpg in .* may belong"):
        PartnerFolder(tmp_path, [*names, "b.png"]).read("b.png", 8)
    with pytest.raises(ConfigError, match=r"c\.png: no file of its name"):
        PartnerFolder(tmp_path / "none", ["c.png"]).read("c.png", 8)


class TinyInception(torch.nn.Module):
    """Counts the pictures that it embeds."""

    seen = 0

    def forward(self, pixels):
        TinyInception.seen += len(pixels)
        return pixels.float().mean(dim=(2, 3))


@pytest.fixture
def with_sets(monkeypatch):
    """Settings of a study with metrics of whole sets."""
    monkeypatch.setattr(sets, "load_inception", lambda path: TinyInception())
    monkeypatch.setattr("dr2pipe.metrics.meter.find_spec", lambda name: True)
    TinyInception.seen = 0
    return [
        "metrics=[psnr,fid,kid]",
        f"metric_files.inception={__file__}",
        "degradations=[mild,severe]",
    ]


def test_sets_are_embedded_once(protocol, with_sets, tmp_path):
    run(protocol, tmp_path / "o", *with_sets)
    assert TinyInception.seen == 5 + 2 * 5 * 5  # originals, and 5 methods twice
    found = json.loads((tmp_path / "o/summary.json").read_text())["sets"]
    assert len(found) == 2 * 5 * 2
    assert all(cell["value"] is not None for cell in found)
    table = (tmp_path / "o/table.md").read_text()
    for metric in ("fid", "kid"):
        line = table.partition(f"\n{metric}, lower is better, of all 5 faces together\n")[2]
        mild = next(row for row in line.splitlines() if row.startswith("| mild |"))
        values = [c["value"] for c in found if (c["degradation"], c["metric"]) == ("mild", metric)]
        shown = [float(text.replace("−", "-")) for text in mild.strip("| ").split(" | ")[1:]]
        assert shown == pytest.approx(values, abs=0.006)
    broken = tmp_path / "o/pictures/coarse/mild/face_000.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"coarse/mild/face_000\.png cannot be used"):
        run(protocol, tmp_path / "o", *with_sets)


def test_pictures_are_not_merged(protocol, with_sets, tmp_path):
    run(protocol, tmp_path / "a", *with_sets)
    merge = f"merge=[{tmp_path / 'a'}]"
    with pytest.raises(ConfigError, match="leave out save_pictures, fid, kid"):
        run(protocol, tmp_path / "b", *with_sets, merge)
    with pytest.raises(ConfigError, match="leave out save_pictures"):
        run(protocol, tmp_path / "b", merge, "save_pictures=true")
    assert not (tmp_path / "b").exists()


def test_spread_is_compared_with_the_error(protocol, tmp_path):
    given = ["uncertainty_samples=3", "clean.limit=2", "degradations=[mild]"]
    run(protocol, tmp_path / "o", *given)
    found = json.loads((tmp_path / "o/summary.json").read_text())["uncertainty"]
    assert -1 <= found["correlation"] <= 1
    assert sum(b["count"] for b in found["bins"]) == 2 * 32 * 32
    with pytest.raises(ConfigError, match="all its samples would be equal"):
        run(protocol, tmp_path / "p", *given, "main=enhancer")


def test_a_face_without_stage_1_has_no_spread(protocol, model_folder, auto_by_brightness, tmp_path):
    faces = tmp_path / "faces"
    for i, level in enumerate((0.6, -0.6, 0.4)):
        shade = torch.linspace(-0.3, 0.3, 32).expand(1, 3, 32, 32) + level
        images.write_png(faces / f"{i}.png", images.to_uint8(shade)[0])
    auto = f"methods.coarse.dr2={{model: {model_folder}, mode: auto, auto: {auto_by_brightness}}}"
    given = [f"clean.path={faces}", "degradations=[mild]", "uncertainty_samples=2", "main=coarse"]
    run(protocol, tmp_path / "o", *given, auto)
    found = json.loads((tmp_path / "o/summary.json").read_text())["uncertainty"]
    assert found["without_spread"] == 1
    assert sum(b["count"] for b in found["bins"]) == 2 * 32 * 32
    assert "all samples are equal:\n1." in (tmp_path / "o/report.html").read_text()
    for path in (faces / "0.png", faces / "2.png"):
        path.unlink()
    run(protocol, tmp_path / "p", *given, auto)
    found = json.loads((tmp_path / "p/summary.json").read_text())["uncertainty"]
    assert (found["without_spread"], found["correlation"], found["bins"]) == (1, None, [])
