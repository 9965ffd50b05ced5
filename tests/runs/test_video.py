"""``dr2pipe video``: what is kept of a file, what a killed run leaves, and what is refused."""

import dataclasses
import shutil
import sys
from fractions import Fraction

import numpy as np
import pytest
from videos import (
    RED,
    TICKS,
    DiscDetector,
    frames_of,
    moving,
    packets_of,
    picture,
    record_of,
    write_video,
)

from dr2pipe.cli import main
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError, PictureError, UnreadableFileError
from dr2pipe.core.models import find_file
from dr2pipe.restoration.settings import load_restorer
from dr2pipe.runs import video
from dr2pipe.runs.video_config import VideoConfig, check_video
from dr2pipe.runs.video_io import read_info
from dr2pipe.runs.video_writing import CODECS, find_codec

av = pytest.importorskip("av")


def outside(found, given, places, radius=40):
    """Largest difference of luma away from the faces."""
    height, width = given.shape
    y, x = np.mgrid[:height, :width]
    away = np.min([np.hypot(x - px, y - py) for px, py in places], axis=0) > radius
    return np.abs(found.astype(int) - given.astype(int))[away].max()


def test_times_sound_and_the_rest_are_kept(restore_video, uneven_clip, tmp_path):
    output = tmp_path / "out.mkv"
    summary = restore_video(uneven_clip, output, "codec=ffv1")
    assert (summary.frames, summary.followed, summary.restored) == (16, 2, 2)
    assert (summary.warnings, summary.exit_code) == ([], 0)
    assert packets_of(output) == packets_of(uneven_clip)
    (before, times), (after, new_times) = frames_of(uneven_clip), frames_of(output)
    np.testing.assert_allclose(new_times, times, atol=0.0011)  # Matroska counts milliseconds
    assert len(set(np.round(np.diff(times), 3))) == 3  # they are uneven
    for i in (0, 7, 15):
        places = [(30 + 0.7 * i, 40 + 0.3 * i), (95 - 0.4 * i, 50)]
        assert outside(after[i][:96], before[i][:96], places) == 0
        assert np.abs(after[i].astype(int) - before[i].astype(int))[:96].max() > 20
    record = record_of(output)
    assert [t["last_frame"] for t in record["tracks"]] == [15, 15]
    assert len({t["seed"] for t in record["tracks"]}) == 2
    assert [p.name for p in tmp_path.iterdir()] != []
    assert not list(tmp_path.glob(".*"))


def test_mp4_keeps_times_exactly(restore_video, uneven_clip, tmp_path):
    output = tmp_path / "out.mp4"
    restore_video(uneven_clip, output)
    assert frames_of(output)[1] == frames_of(uneven_clip)[1]
    assert packets_of(output) == packets_of(uneven_clip)
    with av.open(str(output)) as container:
        assert "faces restored by dr2pipe" in container.metadata["comment"]
        assert container.streams.video[0].codec_context.name == "h264"
    assert restore_video(uneven_clip, output).was_done  # nothing is made again


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_kept_and_faces_are_seen_upright(restore_video, tmp_path, rotation):
    shown = [picture([(RED, 40 + i, 30)], size=(128, 96)) for i in range(6)]
    if rotation == 180:
        shown = [picture([(RED, 40 + i, 30)]) for i in range(6)]
    stored = [np.rot90(frame, -rotation // 90) for frame in shown]
    source = write_video(tmp_path / "turned.mp4", stored, rotation=rotation, sound=False)
    output = tmp_path / "out.mp4"
    restore_video(source, output)
    info, kept = read_info(source), read_info(output)
    assert kept.quarter_turns == info.quarter_turns != 0
    (track,) = record_of(output)["tracks"]
    assert track["first_box"][:2] == pytest.approx([31, 21], abs=2)
    before, after = frames_of(source)[0][0], frames_of(output)[0][0]
    height, width = stored[0].shape[:2]
    change = np.abs(before.astype(int) - after.astype(int))[:height] > 12
    y, x = np.nonzero(np.rot90(change[:, :width], rotation // 90))
    assert (x.mean(), y.mean()) == pytest.approx((40, 30), abs=9)


@pytest.mark.parametrize(
    ("kind", "said"), [("full", []), ("10 bits", []), ("odd", ["layout is yuv444p"])]
)
def test_samples_are_kept(restore_video, tmp_path, kind, said):
    frames = moving(6)
    if kind == "odd":
        frames = [frame[:95, :127] for frame in frames]
    given = {"full_range": kind == "full"}
    if kind == "10 bits":
        given["pix_fmt"] = "yuv420p10le"
    codec = "ffv1" if kind == "odd" else "libx264"
    source = write_video(tmp_path / "in.mkv", frames, codec=codec, sound=False, **given)
    output = tmp_path / "out.mkv"
    summary = restore_video(source, output, "codec=h264" if kind != "full" else "codec=ffv1")
    assert all(part in " ".join(summary.warnings) for part in said)
    assert bool(summary.warnings) == bool(said)
    info, kept = read_info(source), read_info(output)
    assert (kept.width, kept.height) == (info.width, info.height)
    assert (kept.is_full_range, kept.matrix) == (info.is_full_range, info.matrix)
    assert info.is_full_range == (kind == "full")
    if kind != "odd":  # which numpy does not take
        (before, *_), (after, *_) = frames_of(source)[0], frames_of(output)[0]
        assert before.dtype == after.dtype
        top = 1023 if kind == "10 bits" else 255
        assert np.abs(before[5:20, 60:70].astype(int) - after[5:20, 60:70]).max() < top / 20


def test_a_killed_run_goes_on_to_the_same_video(restore_video, uneven_clip, tmp_path, monkeypatch):
    whole, killed = tmp_path / "a" / "out.mp4", tmp_path / "b" / "out.mp4"
    restore_video(uneven_clip, whole)
    encode = video.encode_segment

    def killed_in_the_third(path, frames, *arguments, **named):
        if path.stem == "000002":
            next(iter(frames))  # some of its frames have changed what is remembered
            raise KeyboardInterrupt
        encode(path, frames, *arguments, **named)

    monkeypatch.setattr(video, "encode_segment", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        restore_video(uneven_clip, killed)
    left = sorted(path.name for path in (tmp_path / "b" / ".out.mp4.work").iterdir())
    assert left == [".lock", "000000.nut", "000001.npz", "000001.nut", "key", "plan.npz"]
    made = []

    def counted(path, *arguments, **named):
        made.append(path.stem)
        encode(path, *arguments, **named)

    monkeypatch.setattr(video, "encode_segment", counted)
    restore_video(uneven_clip, killed)
    assert made == ["000002"]
    for found, expected in zip(frames_of(killed), frames_of(whole), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert packets_of(killed) == packets_of(whole)
    assert not (tmp_path / "b" / ".out.mp4.work").exists()


def test_other_settings_begin_anew(restore_video, uneven_clip, tmp_path, monkeypatch):
    output = tmp_path / "out.mp4"

    def stops(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(video, "encode_segment", stops)
    with pytest.raises(KeyboardInterrupt):
        restore_video(uneven_clip, output)
    plan = tmp_path / ".out.mp4.work" / "plan.npz"
    before = plan.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        restore_video(uneven_clip, output, "look_every=3")
    assert plan.read_bytes() != before


def test_any_batch_size_gives_the_same_frames(restore_video, uneven_clip, tmp_path):
    outputs = [tmp_path / f"{size}.mkv" for size in (1, 7)]
    for output, size in zip(outputs, (1, 7), strict=True):
        restore_video(uneven_clip, output, f"batch_size={size}", "codec=ffv1", "preview_s=0.24")
    one, many = (np.stack(frames_of(output)[0]).astype(int) for output in outputs)
    assert np.abs(one - many).max() <= 1  # a rounding of the networks' last bits
    assert (one != many).mean() < 0.001


def test_few_frames_are_in_memory(restore_video, tmp_path, waiting):
    """Frames wait for a batch of faces, and no longer, however long the video is."""
    source = write_video(tmp_path / "in.mp4", [picture([])] * 40 + moving(6), sound=False)
    restore_video(source, tmp_path / "out.mp4", segment_frames=46)
    assert sum(waiting) == 46
    assert max(waiting) <= 6  # two for each face of a batch


def test_preview(restore_video, uneven_clip, tmp_path):
    output = tmp_path / "out.mp4"
    summary = restore_video(uneven_clip, output, "preview_s=0.2")
    times = frames_of(uneven_clip)[1]
    assert summary.frames == sum(time < 0.2 for time in times) == len(frames_of(output)[0])
    sound = packets_of(output)
    assert sound == packets_of(uneven_clip)[: len(sound)]
    assert 2 <= len(sound) <= 5


def test_no_face(restore_video, tmp_path):
    source = write_video(tmp_path / "in.mp4", [picture([]) for _ in range(6)])
    output = tmp_path / "out.mp4"
    summary = restore_video(source, output)
    assert summary.exit_code == 0
    assert summary.warnings == ["no face was found; the pictures were copied as they are"]
    assert packets_of(output, "video") == packets_of(source, "video")
    strict = restore_video(source, tmp_path / "strict.mp4", "strict=true")
    assert (strict.exit_code, strict.warnings) == (4, ["no face was found"])
    assert not (tmp_path / "strict.mp4").exists()


def test_a_truncated_video(restore_video, uneven_clip, tmp_path):
    frames = [picture([(RED, 40, 40)])] + [picture([])] * 29
    whole = write_video(tmp_path / "whole.mkv", frames, options={"crf": "5", "g": "4"})
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    output = tmp_path / "out.mp4"
    summary = restore_video(cut, output)
    assert summary.exit_code == 3
    assert 5 < summary.frames < 28
    assert "cut off" in summary.warnings[0]
    assert len(frames_of(output)[0]) == summary.frames
    assert restore_video(cut, output).exit_code == 3  # said again
    headless = tmp_path / "headless.mp4"
    headless.write_bytes(uneven_clip.read_bytes()[:2000])
    with pytest.raises(PictureError, match=r"headless\.mp4 is not a video"):
        restore_video(headless, tmp_path / "none.mp4")


def test_damage_in_the_middle(restore_video, tmp_path):
    source = write_video(tmp_path / "whole.mp4", moving(20), options={"crf": "1", "g": "4"})
    with av.open(str(source)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size][9:12]
    content = bytearray(source.read_bytes())
    for start, size in places:
        content[start : start + size] = b"\xff" * size
    source.write_bytes(content)
    summary = restore_video(source, tmp_path / "out.mp4")
    assert summary.exit_code == 3
    assert "damaged" in summary.warnings[0]
    assert summary.frames == len(frames_of(tmp_path / "out.mp4")[0]) < 20


def test_what_else_is_told(restore_video, uneven_clip, tmp_path, monkeypatch):
    read = video.video_io.read_info
    monkeypatch.setattr(
        video.video_io, "read_info", lambda path: dataclasses.replace(read(path), is_hdr=True)
    )
    monkeypatch.setattr(video, "supported", lambda codec, pix_fmt: "yuv444p")
    summary = restore_video(uneven_clip, tmp_path / "out.mp4", "preview_s=0.1")
    told = " ".join(summary.warnings)
    assert "layout is yuv444p" in told
    assert "HDR" in told


def test_what_is_no_video(restore_video, tmp_path):
    (tmp_path / "text.mp4").write_text("a film about nothing")
    with pytest.raises(PictureError, match="not a video"):
        restore_video(tmp_path / "text.mp4", tmp_path / "out.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(PictureError, match="empty"):
        restore_video(tmp_path / "empty.mp4", tmp_path / "out.mp4")
    with pytest.raises(UnreadableFileError, match="no such file"):
        restore_video(tmp_path / "gone.mp4", tmp_path / "out.mp4")


def test_subtitles_chapters_and_titles_are_kept(restore_video, uneven_clip, tmp_path):
    source, text = tmp_path / "in.mkv", tmp_path / "words.srt"
    text.write_text("1\n00:00:00,100 --> 00:00:00,300\nSo it begins.\n")
    with (
        av.open(str(uneven_clip)) as container,
        av.open(str(text)) as spoken,
        av.open(str(source), "w") as out,
    ):
        streams = container.streams.video[0], spoken.streams.subtitles[0]
        added = [out.add_stream_from_template(stream, opaque=True) for stream in streams]
        added[1].metadata["language"] = "ger"
        out.metadata["title"] = "A film"
        chapter = {"id": 1, "start": 0, "end": 300, "time_base": Fraction(1, 1000)}
        out.set_chapters([{**chapter, "metadata": {"title": "One"}}])
        for stream, copied in zip(streams, added, strict=True):
            for packet in stream.container.demux(stream):
                if packet.size:
                    packet.stream = copied
                    out.mux_one(packet)
    output = tmp_path / "out.mkv"
    restore_video(source, output, "look_every=8")
    assert packets_of(output, "subtitle") == packets_of(source, "subtitle") != []
    with av.open(str(output)) as container:
        assert container.metadata["title"] == "A film"
        assert container.streams.subtitles[0].language == "ger"
        (kept,) = container.chapters()
        assert kept["metadata"] == {"title": "One"}
    with pytest.raises(ConfigError, match=r"\.mp4 files cannot hold subtitle"):
        restore_video(source, tmp_path / "out.mp4")


def test_what_others_wrote_stays(restore_video, uneven_clip, tmp_path):
    output = tmp_path / "mine.mp4"
    output.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="no run of this command wrote it"):
        restore_video(uneven_clip, output)
    assert output.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.mp4"]


def test_a_stream_that_the_output_cannot_hold(restore_video, uneven_clip, tmp_path):
    source = tmp_path / "in.mkv"
    with av.open(str(uneven_clip)) as container, av.open(str(source), "w") as out:
        pictures = out.add_stream_from_template(container.streams.video[0], opaque=True)
        sound = out.add_stream("pcm_s16le", rate=16000)
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = pictures
                out.mux_one(packet)
        samples = np.zeros((1, 3200), np.int16)
        frame = av.AudioFrame.from_ndarray(samples, "s16", "stereo")
        frame.sample_rate, frame.pts = 16000, 0
        out.mux(sound.encode(frame))
    with pytest.raises(ConfigError, match=r"cannot hold audio \(pcm_s16le\): name the output"):
        restore_video(source, tmp_path / "out.mp4")
    restore_video(source, tmp_path / "out.mkv")
    assert packets_of(tmp_path / "out.mkv") == packets_of(source)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("faces.mode=aligned", "belongs to photos"),
        ("samples=3", "belongs to photos"),
        ("scale=2", "belongs to photos"),
        ("identity.minimum=0.4", "belongs to photos"),
        ("dr2.mode=auto", "would flicker"),
        ("look_every=0", "at least 1"),
        ("preview_s=0", "over 0"),
        ("output=out.gif", r"\.mp4"),
        ("output=.mp4", r"\.mp4"),
        ("output=in.mp4", "is the input"),
        ("output=", "must not be empty"),
    ],
)
def test_settings_that_make_no_sense(setting, said):
    config = load_config(VideoConfig, None, ["input=in.mp4", "output=out.mp4", setting])
    with pytest.raises(ConfigError, match=said):
        check_video(config)


def test_the_default_preset_has_fixed_numbers_for_a_video():
    path = find_file("configs/restore", "default", what="preset")
    config = load_config(VideoConfig, path, ["input=in.mp4", "output=out.mp4", "dr2.tau=10"])
    assert (config.dr2.mode, config.dr2.factor, config.dr2.tau) == ("fixed", 4, 10)
    check_video(config)


def test_codecs(monkeypatch):
    assert find_codec("h264", 20).encoder == "libx264"
    for name, quality, said in [
        ("vhs", None, "choose h264, "),
        ("h264", 90, "0 .best. to 51"),
        ("ffv1", 3, "lossless"),
    ]:
        with pytest.raises(ConfigError, match=said):
            find_codec(name, quality)
    monkeypatch.setitem(CODECS, "h264", CODECS["h264"].__class__("libnone", 18, 51, {}))
    with pytest.raises(ConfigError, match="codec 'h264' is not there; choose h265"):
        find_codec("h264", None)


@pytest.mark.parametrize("codec", ["h265", "av1"])
def test_other_codecs_are_joined_too(restore_video, uneven_clip, tmp_path, codec):
    output = tmp_path / "out.mp4"
    restore_video(uneven_clip, output, f"codec={codec}", "quality=10")
    assert frames_of(output)[1] == frames_of(uneven_clip)[1]


def test_the_command(restore_video, uneven_clip, tmp_path, video_settings, capsys, monkeypatch):
    output = tmp_path / "out.mp4"
    given = ["video", str(uneven_clip), str(output), "--preview", "0.3s", "--set", *video_settings]
    preset = ["enhancer.name=none", "enhancer.weights=null"]
    assert main([*given, *preset]) == 0
    said = capsys.readouterr().out
    assert f"2 faces followed -> {output}" in said
    assert "done already" not in said
    assert main([*given, *preset]) == 0
    assert "done already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["video", "a.mp4", "b.mp4", "--preview", "soon"])
    monkeypatch.setitem(sys.modules, "av", None)
    shutil.rmtree(tmp_path / "gone", ignore_errors=True)
    assert main(["video", str(uneven_clip), str(tmp_path / "other.mp4")]) == 2
    assert "pip install 'dr2pipe[video]'" in capsys.readouterr().err


def test_restorers_of_presets_fit(video_settings, uneven_clip, tmp_path):
    """The parts of a run can be given, for programs that have them already."""
    given = [f"input={uneven_clip}", f"output={tmp_path / 'out.mp4'}", *video_settings]
    config = load_config(VideoConfig, None, given)
    restorer, hashes = load_restorer(config, "cpu")
    run = video.VideoRun(config, read_info(uneven_clip), restorer, hashes, detector=DiscDetector())
    plan = run.find_faces()
    assert len(plan.pts) == 16
    assert plan.pts[1] * read_info(uneven_clip).time_base == Fraction(3600, TICKS)
