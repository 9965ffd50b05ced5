"""``dr2pipe video`` with odd files: kinds of videos, and what kills and disks leave."""

import os
import resource
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from videos import frames_of, moving, packets_of, picture, record_of, write_video

from dr2pipe.core.errors import ConfigError, PictureError, UnreadableFileError
from dr2pipe.faces import Quality
from dr2pipe.runs import video, video_output
from dr2pipe.runs.video_frames import upright
from dr2pipe.runs.video_io import read_info

pytestmark = pytest.mark.slow  # many encodings

av = pytest.importorskip("av")


# -- what a kill, a disk, or somebody else leaves ----------------------------------------------


def test_a_run_that_was_killed_before_its_record_was_there_is_done(
    restore_video, uneven_clip, tmp_path, monkeypatch
):
    output, replace = tmp_path / "out.mp4", os.replace

    def killed(source, target):
        if target == tmp_path / "out.mp4.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(video_output.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            restore_video(uneven_clip, output)
    assert output.is_file()
    assert not (tmp_path / "out.mp4.json").exists()
    made = output.read_bytes()
    assert restore_video(uneven_clip, output).was_done
    assert output.read_bytes() == made
    assert record_of(output)["bytes"] == len(made)
    assert not list(tmp_path.glob(".*"))


def test_what_was_changed_since_stays(restore_video, uneven_clip, tmp_path):
    output = tmp_path / "out.mp4"
    restore_video(uneven_clip, output, "preview_s=0.1")
    output.write_bytes(b"another film")
    with pytest.raises(ConfigError, match="was changed since"):
        restore_video(uneven_clip, output)
    assert output.read_bytes() == b"another film"
    output.unlink()
    assert restore_video(uneven_clip, output, "preview_s=0.1").frames == 3


def test_strict_holds_for_a_video_that_is_done(restore_video, tmp_path):
    source = write_video(tmp_path / "in.mp4", [picture([])] * 3)
    output = tmp_path / "out.mp4"
    assert restore_video(source, output).exit_code == 0
    again = restore_video(source, output, "strict=true")
    assert (again.was_done, again.exit_code) == (True, 4)


def test_a_damaged_work_folder(restore_video, uneven_clip, tmp_path, monkeypatch):
    output, work = tmp_path / "out.mp4", tmp_path / ".out.mp4.work"
    encode = video.encode_segment

    def stops(path, *arguments, **named):
        if path.stem == "000001":
            raise KeyboardInterrupt
        encode(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(video, "encode_segment", stops)
        with pytest.raises(KeyboardInterrupt):
            restore_video(uneven_clip, output)
    for name in ("000000.npz", "plan.npz"):
        (work / name).write_bytes(b"PK\x03\x04 half a file")
        with pytest.raises(UnreadableFileError, match=r"delete the folder .*\.work and begin"):
            restore_video(uneven_clip, output)
    (work / "folder").mkdir()
    restore_video(uneven_clip, output, "look_every=4")  # other settings begin anew
    assert not work.exists()


def test_a_full_disk_is_named(restore_video, uneven_clip, tmp_path):
    """Not a word of what the file cannot hold, and no file is left."""
    output = tmp_path / "out.mkv"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for bytes_, name in ((200, "joined.mkv"), (20_000, "000000.nut")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, limit[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                restore_video(uneven_clip, output, "codec=ffv1")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert caught.value.filename.endswith(name)
        assert not output.exists()


# -- kinds of files ----------------------------------------------------------------------------


def test_sound_that_lasts_longer_is_no_damage(restore_video, uneven_clip, tmp_path):
    """Matroska says how long a file is, not how long its pictures are."""
    source = tmp_path / "in.mkv"
    with av.open(str(uneven_clip)) as container, av.open(str(source), "w") as out:
        added = [out.add_stream_from_template(s, opaque=True) for s in container.streams]
        for packet in container.demux():
            if packet.size == 0:
                continue
            if packet.stream.type == "audio":  # a second apart
                packet.pts = packet.dts = packet.pts * 4
            packet.stream = added[packet.stream.index]
            out.mux_one(packet)
    summary = restore_video(source, tmp_path / "out.mkv")
    assert (summary.warnings, summary.exit_code) == ([], 0)
    content = source.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    summary = restore_video(tmp_path / "cut.mkv", tmp_path / "other.mkv")
    assert "cut off" in summary.warnings[0]


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_a_video_that_begins_later_is_whole(restore_video, tmp_path, ending):
    frames = moving(12)
    ticks = [450_000 + 3600 * i for i in range(12)]  # from 5 s on
    source = write_video(tmp_path / f"in.{ending}", frames, ticks=ticks, sound=False)
    summary = restore_video(source, tmp_path / f"out.{ending}")
    assert (summary.warnings, summary.exit_code) == ([], 0)
    assert len(frames_of(tmp_path / f"out.{ending}")[0]) == 12
    with av.open(str(tmp_path / f"out.{ending}")) as container:
        assert round(float(container.streams.video[0].average_rate)) == 25


def test_pictures_that_change_their_size(restore_video, tmp_path):
    small = write_video(tmp_path / "a.ts", moving(6), sound=False)
    large = [cv2.resize(frame, None, fx=1.5, fy=1.5) for frame in moving(6)]
    later = [90_000 + 3600 * i for i in range(6)]
    large = write_video(tmp_path / "b.ts", large, ticks=later, sound=False)
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    summary = restore_video(both, tmp_path / "out.mp4")
    assert any("change their size after" in warning for warning in summary.warnings)
    made, _ = frames_of(tmp_path / "out.mp4")
    assert {frame.shape for frame in made} == {made[0].shape}


def test_mirrored_videos_stay_mirrored(restore_video, tmp_path):
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video(source, moving(4), sound=False, mirrored=True)
    restore_video(source, output)
    info, kept = read_info(source), read_info(output)
    assert info.quarter_turns == 0
    assert info.display_matrix is not None
    assert kept.display_matrix == info.display_matrix
    assert record_of(output)["tracks"][0]["first_box"][:2] == pytest.approx([21, 31], abs=2)


@pytest.mark.parametrize(("codec", "kind"), [("libx264rgb", "bgr24"), ("qtrle", "argb")])
def test_colours_of_rgb_videos(restore_video, tmp_path, codec, kind):
    source, output = tmp_path / "in.mov", tmp_path / "out.mp4"
    write_video(source, moving(4), codec=codec, pix_fmt=kind, sound=False)
    summary = restore_video(source, output)
    assert ("what was transparent is opaque" in summary.warnings) == (kind == "argb")
    kept = read_info(output)
    assert (kept.pix_fmt, kept.is_full_range, kept.matrix[2]) == ("yuv420p", False, "itu709")
    with av.open(str(source)) as given, av.open(str(output)) as made:
        before = next(given.decode(video=0)).to_ndarray(format="rgb24")
        after = upright(next(made.decode(video=0)), kept)
    np.testing.assert_allclose(after[70:].mean((0, 1)), before[70:].mean((0, 1)), atol=1)


def test_names_that_look_like_addresses(restore_video, uneven_clip, tmp_path, monkeypatch):
    shutil.copy(uneven_clip, tmp_path / "12:30.mp4")
    monkeypatch.chdir(tmp_path)
    summary = restore_video("12:30.mp4", "13:00.mp4", "preview_s=0.1")
    assert summary.frames == len(frames_of(tmp_path / "13:00.mp4")[0]) == 3


def test_h265_is_named_as_all_players_know_it(restore_video, uneven_clip, tmp_path):
    output = tmp_path / "out.mp4"
    restore_video(uneven_clip, output, "codec=h265", "preview_s=0.1")
    assert b"hvc1" in output.read_bytes()


def test_lists_and_pictures_are_refused(restore_video, uneven_clip, tmp_path):
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {uneven_clip.name}\n")
    shutil.copy(uneven_clip, tmp_path)
    Image.fromarray(picture([])).save(tmp_path / "photo.jpg")
    for name, said in (("list.mp4", "a list of files"), ("photo.jpg", "dr2pipe restore takes it")):
        with pytest.raises(PictureError, match=said):
            restore_video(tmp_path / name, tmp_path / "out.mp4")


def test_faces_that_are_all_left_alone(restore_video, uneven_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(Quality, "is_better_than", lambda self, *given: True)
    output = tmp_path / "out.mp4"
    summary = restore_video(uneven_clip, output, "faces.skip_good=true")
    assert (summary.followed, summary.restored) == (2, 0)
    assert summary.warnings == [
        "every face was left as it is; the pictures were copied as they are"
    ]
    assert packets_of(output, "video") == packets_of(uneven_clip, "video")


def test_large_frames_wait_for_few_others(
    restore_video, uneven_clip, tmp_path, monkeypatch, waiting
):
    monkeypatch.setattr(video, "_WAITING_PIXELS", 2 * 96 * 128)
    restore_video(uneven_clip, tmp_path / "out.mp4", "batch_size=50")
    assert max(waiting) == 2
