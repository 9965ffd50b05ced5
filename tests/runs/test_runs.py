import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch
from conftest import (
    PATIENCE_SECONDS,
    ROOT,
    TINY,
    make_pictures,
    make_pixels,
    run_command,
    run_here,
    start_command,
    wait_until,
)
from PIL import ExifTags, Image

from dr2pipe.core import files, images
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError, FolderInUseError
from dr2pipe.core.records import RunRecords
from dr2pipe.runs.batches import BatchResult
from dr2pipe.runs.folder_run import FolderRun
from dr2pipe.runs.jobs import find_jobs
from dr2pipe.runs.options import RunOptions
from dr2pipe.runs.restore import RestoreConfig, restore_folder
from dr2pipe.runs.restore_config import check_config
from dr2pipe.runs.steps import Steps

SCRIPT = ROOT / "scripts" / "restore.py"
PRESET = ROOT / "configs" / "restore" / "portrait128.yaml"


def config_for(source, output, model, *overrides):
    return load_config(
        RestoreConfig,
        None,
        [f"input={source}", f"output={output}", f"dr2.model={model}", *TINY, *overrides],
    )


def restored_pixels(output, subfolder="restored"):
    folder = Path(output) / subfolder
    return {
        p.relative_to(folder).as_posix(): np.asarray(Image.open(p).convert("RGB")).astype(int)
        for p in sorted(folder.rglob("*.png"))
    }


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def same_pictures(a, b):
    a, b = restored_pixels(a), restored_pixels(b)
    return a.keys() == b.keys() and all(np.abs(a[k] - b[k]).max() <= 1 for k in a)


# -- names -------------------------------------------------------------------------------------


def test_result_names(tmp_path):
    for name in ("a.png", "a.JPG", "b.jpeg", "sub/a.png", "c.tif", "c.tif.png", "d.png.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = {job.relative: job.output_name for job in find_jobs(tmp_path, tmp_path / "out")}
    assert names == {
        "a.png": "a.png.png",
        "a.JPG": "a.JPG.png",
        "b.jpeg": "b.png",
        "c.tif": "c.png",
        "c.tif.png": "c.tif.png.png",
        "d.png.png": "d.png.png",
        "sub/a.png": "sub/a.png",
    }
    assert len(set(names.values())) == len(names)


def test_single_pictures_of_one_name_do_not_overwrite_each_other(tmp_path):
    for name, seed in (("a/me.jpg", 1), ("b/me.png", 2)):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(make_pixels(seed)).save(tmp_path / name)
    assert folder_run(tmp_path / "a/me.jpg", tmp_path / "out", FakeNetwork()).run().restored == 1
    second = folder_run(tmp_path / "b/me.png", tmp_path / "out", FakeNetwork())
    with pytest.raises(ConfigError, match="results of another input"):
        second.run()
    options = RunOptions(merge=True)
    for name, restored in (("b/me.png", 1), ("a/me.jpg", 0), ("b/me.png", 0)):
        run = folder_run(tmp_path / name, tmp_path / "out", FakeNetwork(), options=options)
        assert run.run().restored == restored
    assert sorted(os.listdir(tmp_path / "out" / "restored")) == ["me.png", "me.png.png"]


def test_results_of_other_runs_and_companions_are_no_inputs(pictures, model_folder):
    (pictures / "._face_000.png").write_bytes(b"resource fork")
    assert restore_folder(config_for(pictures, pictures / "one", model_folder)).restored == 6
    second = config_for(pictures, pictures / "two", model_folder, "seed=1")
    assert restore_folder(second).restored == 6


def test_no_input_is_a_usage_error(tmp_path):
    with pytest.raises(ConfigError, match="no file or folder"):
        find_jobs(tmp_path / "none", tmp_path)
    with pytest.raises(ConfigError, match="no pictures"):
        find_jobs(tmp_path, tmp_path / "out")


def test_the_output_may_lie_inside_the_input(pictures, model_folder):
    for output in (pictures, pictures / "out"):
        source = make_pictures(pictures / "more", 3)
        assert restore_folder(config_for(source, output, model_folder)).restored == 3
        assert restore_folder(config_for(source, output, model_folder)).skipped == 3
    inside = pictures / "more" / "out"
    assert restore_folder(config_for(source, inside, model_folder)).restored == 3
    assert restore_folder(config_for(source, inside, model_folder)).skipped == 3
    assert restore_folder(config_for(inside.parent, inside.parent, model_folder)).restored == 3


# -- what a run leaves -------------------------------------------------------------------------


def test_a_run_leaves_what_the_readme_says(pictures, model_folder, tmp_path):
    out = tmp_path / "out"
    flags = ["save_coarse=true", "save_compare=true"]
    summary = restore_folder(config_for(pictures, out, model_folder, *flags))
    assert (summary.restored, summary.failed, summary.exit_code) == (6, 0, 0)
    assert sorted(os.listdir(out)) == [
        ".lock", "coarse", "compare", "failures.jsonl", "manifest.jsonl", "restored", "run.yaml"
    ]  # fmt: skip
    record = {r["path"]: r for r in lines(out / "manifest.jsonl")}["face_000.png"]
    fields = "path sha256 settings output files seed seconds warnings"
    assert record.keys() == set(fields.split())
    assert record["sha256"] == images.hash_bytes((pictures / "face_000.png").read_bytes())
    assert (out / record["output"]).is_file()
    assert Image.open(out / "compare" / "face_000.png").size == (48, 16)
    run = (out / "run.yaml").read_text()
    assert "weights_sha256" in run
    assert "torch:" in run
    text = json.loads(Image.open(out / "restored" / "face_000.png").text["dr2pipe"])
    assert text["settings"]["dr2"]["tau"] == 2
    assert text["settings"]["weights_sha256"]["dr2"]
    assert text["seed"] == record["seed"]


def test_a_second_run_does_what_is_missing_or_changed(pictures, model_folder, tmp_path):
    out = tmp_path / "out"
    config = config_for(pictures, out, model_folder)
    restore_folder(config)
    before = restored_pixels(out)
    assert restore_folder(config).skipped == 6
    (out / "restored" / "face_001.png").unlink()
    Image.fromarray(make_pixels(99)).save(pictures / "face_002.png")
    Image.fromarray(make_pixels(98)).save(pictures / "new.png")
    summary = restore_folder(config)
    assert (summary.restored, summary.skipped) == (3, 4)
    after = restored_pixels(out)
    assert (before["face_001.png"] == after["face_001.png"]).all()
    assert (before["face_002.png"] != after["face_002.png"]).any()
    assert len(lines(out / "manifest.jsonl")) == 9
    assert restore_folder(config).skipped == 7
    assert len(lines(out / "manifest.jsonl")) == 7  # one line a picture, the last one
    changed = config_for(pictures, out, model_folder, "dr2.tau=3")
    assert restore_folder(changed).restored == 7


def test_pictures_do_not_depend_on_batch_or_neighbours(pictures, model_folder, tmp_path):
    restore_folder(config_for(pictures, tmp_path / "b1", model_folder, "batch_size=1"))
    restore_folder(config_for(pictures, tmp_path / "b4", model_folder, "batch_size=4"))
    assert same_pictures(tmp_path / "b1", tmp_path / "b4")
    restore_folder(config_for(pictures / "face_003.png", tmp_path / "one", model_folder))
    one = restored_pixels(tmp_path / "one")["face_003.png"]
    assert np.abs(one - restored_pixels(tmp_path / "b1")["face_003.png"]).max() <= 1


def test_alpha_and_exif_come_along(tmp_path, model_folder):
    source = tmp_path / "in"
    source.mkdir()
    image = Image.fromarray(make_pixels(0, 40, 20))
    image.putalpha(Image.fromarray(np.full((40, 20), 100, np.uint8)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "A"
    image.save(source / "a.png", exif=exif)
    restore_folder(config_for(source, tmp_path / "out", model_folder))
    with Image.open(tmp_path / "out" / "restored" / "a.png") as result:
        assert result.mode == "RGBA"
        assert set(np.unique(np.asarray(result)[..., 3])) == {100}
        assert result.getexif()[ExifTags.Base.Artist] == "A"
        assert result.getexif()[ExifTags.Base.Orientation] == 1
    (record,) = lines(tmp_path / "out" / "manifest.jsonl")
    assert record["warnings"] == [
        "40x20 reduced: the result has 16 pixels a side",
        "40x20 squeezed to a square",
    ]


# -- failures ----------------------------------------------------------------------------------


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


def png_bomb(width, height):
    """A small file that is a complete black PNG of the given size."""

    def chunk(kind, body):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    pixels = zlib.compressobj(1)
    rows = b"\0" * (1 + 3 * width) * 100
    body = b"".join(pixels.compress(rows) for _ in range(height // 100)) + pixels.flush()
    header = png_header(width, height)[:-8]
    return header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def make_hostile(folder):
    """40 inputs that do harm or look odd; returns the names that cannot be restored."""
    folder.mkdir()
    good = Image.fromarray(make_pixels(1))

    def save(name, image=good, **options):
        image.save(folder / name, **options)
        return (folder / name).read_bytes()

    jpeg, png = save("good.jpg"), save("good_upper.PNG")
    bad = {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": png[: len(png) // 2],
        "cut_header.png": png[:20],
        "flipped.png": png[:60] + bytes(40) + png[100:],
        "empty.png": b"",
        "empty.jpg": b"",
        "text.png": b"I am a text file\n" * 50,
        "html.jpg": b"<html><body>404</body></html>",
        "zip.webp": b"PK\3\4" + bytes(200),
        "gif_named.bmp": b"GIF89a" + bytes(3),
        "random.tif": np.random.default_rng(0).bytes(5000),
        "random.webp": np.random.default_rng(1).bytes(5000),
        "zeros.bmp": bytes(5000),
        "thin_header.png": png_header(30_000, 10),
        "bomb_header.png": png_header(20_000, 20_000),
        "bomb.png": png_bomb(20_000, 20_000),
        "header_only.png": png_header(300, 300),
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    save("one_pixel.png", Image.new("RGB", (1, 1)))
    save("line.png", Image.new("RGB", (400, 8)))
    save("float.tif", Image.new("F", (32, 32), 0.5))
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.png")
    (folder / "locked.png").write_bytes(png)
    (folder / "locked.png").chmod(0)
    names = [
        *bad, "one_pixel.png", "line.png", "float.tif", "loop.png", "gone.jpg", "pipe.png",
    ]  # fmt: skip
    if not os.access(folder / "locked.png", os.R_OK):
        names.append("locked.png")
    # Odd but good.
    deep = make_pixels(2).astype(np.uint16) * 257
    (folder / "deep.png").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    (folder / "deep_grey.png").write_bytes(cv2.imencode(".png", deep[..., 0])[1].tobytes())
    transparent = good.copy()
    transparent.putalpha(Image.fromarray(make_pixels(3, channels=1)))
    save("alpha.png", transparent)
    save("alpha.webp", transparent)
    save("cmyk.jpg", good.convert("CMYK"))
    save("palette.png", good.quantize(8))
    save("bilevel.png", good.convert("1"))
    save("grey.jpg", good.convert("L"))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    save("rotated.jpg", exif=exif)
    save("same.png")
    save("same.jpg")
    save("émoji 😀 [x]{y}=z.png")
    save("wide.bmp", good.resize((60, 20)))
    save("not a picture by name.txt", format="PNG")
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to(folder)
    save("sub/deeper.tiff")
    return names


def test_hostile_inputs(tmp_path, model_folder):
    bad = make_hostile(tmp_path / "in")
    total = sum(1 for p in (tmp_path / "in").rglob("*") if not p.is_dir())
    assert total >= 40
    summary = restore_folder(config_for(tmp_path / "in", tmp_path / "out", model_folder))
    assert summary.exit_code == 3
    failures = {f["path"]: f for f in lines(tmp_path / "out" / "failures.jsonl")}
    assert sorted(failures) == sorted(bad)
    for failure in failures.values():
        assert failure["kind"] in ("PictureError", "TooManyPixelsError"), failure
        assert len(failure["message"]) > 10
        assert "Traceback" not in failure["message"]
    finished = {r["path"] for r in lines(tmp_path / "out" / "manifest.jsonl")}
    assert len(finished) == total - len(bad) - 1  # the .txt is no input
    results = restored_pixels(tmp_path / "out")
    assert len(results) == len(finished)
    assert {"same.png.png", "same.jpg.png", "émoji 😀 [x]{y}=z.png"} <= results.keys()


def test_exit_codes(tmp_path, model_folder, pictures):
    def run(source, *overrides):
        return run_here(
            SCRIPT, PRESET, f"input={source}", f"output={tmp_path / 'out'}",
            f"dr2.model={model_folder}", *TINY, *overrides,
        )  # fmt: skip

    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no")
    assert run(tmp_path / "bad").returncode == 4
    usage = run(tmp_path / "nowhere")
    assert usage.returncode == 2
    assert "error: no file or folder" in usage.stderr
    assert "Traceback" not in usage.stderr
    wrong = run(pictures, "dr2.tua=3")
    assert wrong.returncode == 2
    assert "did you mean 'tau'" in wrong.stderr


class FakeNetwork:
    """Stands in for both stages where a test needs them to fail."""

    def __init__(self, fails=lambda batch: None):
        self.fails, self.batches = fails, []

    def __call__(self, pictures, seeds, decoded):
        self.batches.append(len(pictures))
        error = self.fails(pictures)
        if error:
            raise error
        results = [{"restored": p} for p in images.to_uint8(pictures)]
        return BatchResult(results, notes=[{} for _ in seeds])


def folder_run(source, output, network, **changes):
    settings = {
        "process": network, "size": 16, "output_size": 16, "settings": {}, "seed": 0,
        "outputs": ["restored"], "batch_size": 4,
    }  # fmt: skip
    of_run = {
        name: changes.pop(name) for name in ("loader_threads", "writer_threads") if name in changes
    }
    return FolderRun(source, output, Steps(**settings | changes), **of_run)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path, error):
    source = make_pictures(tmp_path / "in", 24)
    network = FakeNetwork(lambda batch: error if len(batch) > 2 else None)
    summary = folder_run(source, tmp_path / "out", network, batch_size=8).run()
    assert (summary.restored, summary.failed) == (24, 0)
    assert network.batches[:2] == [8, 4]
    assert max(network.batches[2:]) <= 2  # the smaller size is kept


def test_a_picture_that_breaks_the_network_does_not_take_its_neighbours_along(tmp_path):
    source = make_pictures(tmp_path / "in", 8)
    Image.new("RGB", (16, 16), (255, 255, 255)).save(source / "white.png")
    network = FakeNetwork(
        lambda batch: FloatingPointError("not finite") if (batch > 0.99).all((1, 2, 3)).any() else 0
    )
    summary = folder_run(source, tmp_path / "out", network).run()
    assert (summary.restored, summary.failed, summary.exit_code) == (8, 1, 3)
    (failure,) = lines(tmp_path / "out" / "failures.jsonl")
    assert failure == {
        "path": "white.png", "kind": "FloatingPointError", "message": "not finite"
    }  # fmt: skip


def failing_write(monkeypatch, error):
    """Writing the result of ``face_001`` fails."""
    write = files.write_bytes

    def fails(path, *arguments, **options):
        if Path(path).name == "face_001.png":
            raise error
        write(path, *arguments, **options)

    monkeypatch.setattr(files, "write_bytes", fails)


def test_a_write_that_fails_is_recorded(tmp_path, monkeypatch):
    source = make_pictures(tmp_path / "in", 3)
    failing_write(monkeypatch, OSError(errno.ENAMETOOLONG, "File name too long", "face_001.png"))
    summary = folder_run(source, tmp_path / "out", FakeNetwork()).run()
    assert (summary.restored, summary.failed) == (2, 1)
    (failure,) = lines(tmp_path / "out" / "failures.jsonl")
    assert "File name too long" in failure["message"]


def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(tmp_path, monkeypatch):
    source = make_pictures(tmp_path / "in", 3)
    with monkeypatch.context() as patch:
        failing_write(patch, OSError(errno.ENOSPC, "No space left on device", "face_001.png"))
        run = folder_run(source, tmp_path / "out", FakeNetwork())
        with pytest.raises(OSError, match="No space left"):
            run.run()
    summary = folder_run(source, tmp_path / "out", FakeNetwork()).run()
    assert summary.failed == 0
    assert summary.restored + summary.skipped == 3


def test_failures_are_tried_again_and_forgotten_when_mended(tmp_path):
    source = make_pictures(tmp_path / "in", 2)
    (source / "bad.png").write_bytes(b"x")
    assert folder_run(source, tmp_path / "out", FakeNetwork()).run().exit_code == 3
    Image.fromarray(make_pixels(5)).save(source / "bad.png")
    summary = folder_run(source, tmp_path / "out", FakeNetwork()).run()
    assert (summary.restored, summary.skipped, summary.exit_code) == (1, 2, 0)
    assert lines(tmp_path / "out" / "failures.jsonl") == []


def test_a_manifest_line_cut_off_by_a_kill_is_no_obstacle(tmp_path):
    source = make_pictures(tmp_path / "in", 3)
    folder_run(source, tmp_path / "out", FakeNetwork()).run()
    manifest = tmp_path / "out" / "manifest.jsonl"
    manifest.write_text(manifest.read_text()[:-20])
    summary = folder_run(source, tmp_path / "out", FakeNetwork()).run()
    assert (summary.restored, summary.skipped) == (1, 2)
    assert len(lines(manifest)) == 3


def test_two_runs_in_one_folder_are_refused(tmp_path, pictures):
    first = RunRecords(tmp_path / "out")
    first.prepare({})
    with pytest.raises(FolderInUseError, match="another run"):
        folder_run(pictures, tmp_path / "out", FakeNetwork()).run()
    assert first.partial_folder.is_dir()  # the refused run leaves the first one's files alone
    first.close()
    assert folder_run(pictures, tmp_path / "out", FakeNetwork()).run().exit_code == 0


# -- interruptions -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_finish_the_batch_in_flight(tmp_path, number):
    source = make_pictures(tmp_path / "in", 30)
    batches = []

    def stopped_in_the_second(batch):
        batches.append(batch)
        if len(batches) == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    network = FakeNetwork(stopped_in_the_second)
    summary = folder_run(source, tmp_path / "out", network, batch_size=2).run()
    assert summary.exit_code == 130
    assert summary.restored == 4
    assert len(lines(tmp_path / "out" / "manifest.jsonl")) == 4
    assert len(restored_pixels(tmp_path / "out")) == 4
    assert signal.getsignal(number) is before
    rest = folder_run(source, tmp_path / "out", FakeNetwork()).run()
    assert rest.restored == 26


def test_sigterm_through_the_command(tmp_path, model_folder):
    out = tmp_path / "out"
    process = start_command(
        "-m", "dr2pipe", "restore", make_pictures(tmp_path / "in", 300), out,
        "--set", f"dr2.model={model_folder}", *TINY, "batch_size=2",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: results_in(out), process)
    process.terminate()
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    done = len(lines(out / "manifest.jsonl"))
    assert f"{done} restored" in said
    assert 0 < done < 300
    assert len(restored_pixels(out)) == done
    assert not [p for p in out.rglob("*") if "partial" in p.name]


def test_a_changed_scheduler_is_seen_and_a_moved_model_is_not(pictures, model_folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    run = [pictures, tmp_path / "out"]
    flags = ["dr2.scheduler=null"]
    assert restore_folder(config_for(*run, model, *flags)).restored == 6
    assert restore_folder(config_for(*run, model_folder, *flags)).skipped == 6
    file = model / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.03}))
    assert restore_folder(config_for(*run, model, *flags)).restored == 6


MEMORY = """
import sys
from test_runs import FakeNetwork, folder_run

def peak_mb():  # ru_maxrss would begin with the memory of the process that started this one
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000

folder_run(sys.argv[1], sys.argv[3] + "_small", FakeNetwork()).run()
before = peak_mb()
summary = folder_run(sys.argv[2], sys.argv[3], FakeNetwork()).run()
print(summary.restored, summary.failed, peak_mb() - before)
"""


@pytest.mark.slow  # several pictures of 25 million pixels
def test_large_pictures_fit_in_memory(tmp_path, pictures):
    """Several large pictures at once, of the kinds that need most, and a bomb.

    The limit is in proportion to the pixels: a picture of max_pixels needs 2.5 times as much.
    """
    side, most_mb = 5000, 1100
    folder = tmp_path / "large"
    folder.mkdir()
    deep = cv2.imencode(".png", np.full((side, side, 4), 30000, np.uint16))[1].tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = Image.new("RGBA", (side, side), (1, 2, 3, 4))
    turned.save(folder / "turned0.png", exif=exif, compress_level=1)
    shutil.copyfile(folder / "turned0.png", folder / "turned1.png")
    for i in range(2):
        (folder / f"deep{i}.png").write_bytes(deep)
    (folder / "bomb.png").write_bytes(png_bomb(20_000, 20_000))
    # The memory of the imports and of a small run is not counted.
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "runs")))
    process = run_command("-c", MEMORY, pictures, folder, tmp_path / "out", PYTHONPATH=paths)
    assert process.returncode == 0, process.stderr
    restored, failed, more_mb = process.stdout.split()
    assert (restored, failed) == ("4", "1")
    assert float(more_mb) < most_mb


def kill_often(tmp_path, model_folder, *, count, kills):
    source = make_pictures(tmp_path / "in", count)
    arguments = [f"input={source}", f"dr2.model={model_folder}", *TINY, "batch_size=4"]
    calm, out = tmp_path / "calm", tmp_path / "out"
    undisturbed = run_here(SCRIPT, PRESET, f"output={calm}", *arguments)
    assert undisturbed.returncode == 0, undisturbed.stderr
    rng = np.random.default_rng(0)
    recorded = set()
    for _ in range(kills):
        process = start_command(
            SCRIPT, PRESET, f"output={out}", *arguments,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        goal = len(recorded) + int(rng.integers(1, count // kills))
        wait_until(lambda goal=goal: len(results_in(out)) >= goal, process)
        time.sleep(float(rng.uniform(0, 0.05)))  # so that every moment of a batch has its turn
        process.kill()
        process.wait()
        finished = [r["path"] for r in RunRecords(out).finished().values()]
        assert recorded <= set(finished)  # nothing recorded is lost
        recorded = set(finished)
        for name in results_in(out):
            Image.open(out / "restored" / name).load()  # whole, or an error
    last = run_here(SCRIPT, PRESET, f"output={out}", *arguments)
    assert last.returncode == 0, last.stderr
    assert f"{count - len(recorded)} restored, {len(recorded)} already done" in last.stdout
    assert same_pictures(out, calm)
    paths = [r["path"] for r in lines(out / "manifest.jsonl")]
    assert sorted(paths) == sorted(set(paths))  # nothing was done twice
    assert len(paths) == count
    left = [p for p in out.rglob("*") if ".partial" in p.name]
    assert left == []


def results_in(out):
    folder = Path(out) / "restored"
    return [p.name for p in folder.glob("*.png")] if folder.exists() else []


def test_kill_and_run_again(tmp_path, model_folder):
    kill_often(tmp_path, model_folder, count=40, kills=1)


@pytest.mark.slow
def test_ten_kills_over_300_pictures(tmp_path, model_folder):
    kill_often(tmp_path, model_folder, count=300, kills=10)


# -- processes ---------------------------------------------------------------------------------


def test_two_processes_equal_one(tmp_path, model_folder):
    source = make_pictures(tmp_path / "in", 9)
    (source / "bad.png").write_bytes(b"x")
    arguments = [f"input={source}", f"dr2.model={model_folder}", *TINY, "batch_size=3"]
    one = run_here(SCRIPT, PRESET, f"output={tmp_path / 'one'}", *arguments)
    assert one.returncode == 3, one.stderr
    two = run_command(
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2,
        "--main_process_port", 0, "--mixed_precision", "no", "--num_machines", 1,
        "--dynamo_backend", "no", SCRIPT, PRESET,
        f"output={tmp_path / 'two'}", *arguments, ACCELERATE_USE_CPU="1",
    )  # fmt: skip
    assert "9 restored, 0 already done, 1 failed" in two.stdout, two.stderr
    assert two.stdout.count("restored,") == 1  # the main process alone speaks
    assert same_pictures(tmp_path / "one", tmp_path / "two")
    paths = [r["path"] for r in lines(tmp_path / "two" / "manifest.jsonl")]
    assert len(paths) == 9
    assert sorted(paths) == sorted(set(paths))
    assert [f["path"] for f in lines(tmp_path / "two" / "failures.jsonl")] == ["bad.png"]


@pytest.mark.slow
def test_a_process_without_a_picture(tmp_path, model_folder):
    source = make_pictures(tmp_path / "in", 1)
    command = (
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, SCRIPT, PRESET,
        f"output={tmp_path / 'out'}", f"input={source / 'face_000.png'}",
        f"dr2.model={model_folder}", *TINY,
    )  # fmt: skip
    for said in ("1 restored, 0 already done", "0 restored, 1 already done"):
        run = run_command(*command, ACCELERATE_USE_CPU="1")
        assert run.returncode == 0, run.stderr
        assert said in run.stdout


@pytest.mark.slow
def test_memory_stays_flat_over_500_pictures(tmp_path, model_folder, monkeypatch):
    source = make_pictures(tmp_path / "in", 500, height=200, width=200)
    used, write = [], FolderRun._write

    def noting_memory(self, done):
        used.append(psutil.Process().memory_info().rss)
        write(self, done)

    monkeypatch.setattr(FolderRun, "_write", noting_memory)
    config = config_for(source, tmp_path / "out", model_folder, "batch_size=5")
    assert restore_folder(config).restored == 500
    fifth = len(used) // 5
    assert fifth >= 20
    second, last = np.mean(used[fifth : 2 * fifth]), np.mean(used[-fifth:])
    assert abs(last - second) < 0.05 * second


@pytest.mark.parametrize(
    "override",
    ["faces.blend=0.5", "faces.only=largest", "paste.match_colours=false", "identity.measure=true"],
)
def test_settings_of_photos_do_not_go_with_aligned_faces(override):
    given = ["input=i", "output=o", "faces.mode=aligned", override]
    with pytest.raises(ConfigError, match="belongs to whole photos"):
        check_config(load_config(RestoreConfig, None, given))
