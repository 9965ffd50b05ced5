"""What presets say of themselves, and getting what they need by one command."""

import math

import parity
import pytest
import toy_commands

from dr2pipe import cli
from dr2pipe.convert import CONVERTERS
from dr2pipe.core.errors import ConfigError, FetchError
from dr2pipe.core.official import BY_HAND, FILES, HUB, OfficialFile
from dr2pipe.runs import presets
from dr2pipe.runs.presets import list_presets, measure, set_up


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DR2PIPE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A file of a small official network, known as ``toy`` (fetched) and ``given`` (by hand)."""
    toy_commands.write_checkpoint(tmp_path / "toy.pth")
    kind = "face_part_discriminator"
    monkeypatch.setitem(FILES, "toy", OfficialFile("http://h/toy.pth", "MIT", True, kind))
    by_hand = OfficialFile("a page", "MIT", True, kind, file_name="toy.pth")
    monkeypatch.setitem(BY_HAND, "given", by_hand)
    monkeypatch.setattr(presets, "fetch", lambda name, mirror: tmp_path / "toy.pth")
    return tmp_path / "toy.pth"


def test_every_preset_says_what_it_needs():
    listed = {preset.name: preset for preset in list_presets()}
    default = listed["default"]
    assert [need.state for need in default.needs] == ["comes with dr2pipe"] * 2
    assert default.needs[0].megabytes == pytest.approx(19.8, abs=0.5)
    assert (default.calls, default.missing, default.seconds) == (4, [], None)
    assert listed["dr2_ffhq_sparnethd"].calls == 21
    assert listed["dr2_ffhq_sparnethd"].missing == ["dr2_ffhq", "sparnethd_dr2aug"]
    assert listed["gfpgan14_only"].calls == 0
    assert listed["gfpgan14_only"].needs[0].megabytes == 349
    for preset in listed.values():  # whatever a preset needs has terms
        assert preset.about
        assert all(need.terms != "unknown" for need in preset.needs), preset.name


def test_kinds_are_known_and_sizes_are_those_of_the_networks():
    for name, file in (FILES | BY_HAND).items():
        assert file.kind is None or file.kind in CONVERTERS, name
    fixtures = {
        "gfpgan14": "gfpgan_clean",
        "sparnethd_dr2aug": "sparnethd",
        "dr2_ffhq": "dr2_unet",
    }
    for name, fixture in fixtures.items():
        keys = parity.load(fixture)[0]["keys"]
        shapes = [key["shape"] for key in (keys.values() if isinstance(keys, dict) else keys)]
        megabytes = sum(math.prod(shape) for shape in shapes) * 4 / 1e6
        assert (FILES | BY_HAND)[name].megabytes == round(megabytes)
    assert HUB["google/ddpm-celebahq-256"].megabytes == 455


def test_a_model_is_set_up_by_one_command(toy, home, capsys):
    assert cli.main(["setup", "toy"]) == 0
    assert "toy.pth (MIT, commercial use: yes) -> " in capsys.readouterr().out
    assert (home / "models" / "toy" / "config.json").exists()
    assert (home / "known" / "toy.pth.sha256").exists()
    assert set_up("toy") == ["toy is here already"]


def test_a_file_by_hand(toy, home):
    with pytest.raises(ConfigError, match=r"download toy.pth from a page, .*--file toy.pth"):
        set_up("given")
    assert "-> " in set_up("given", file=str(toy))[0]
    changed = toy.parent / "new" / "toy.pth"
    changed.parent.mkdir()
    changed.write_bytes(toy.read_bytes() + b"0")
    with pytest.raises(FetchError, match="came first"):
        set_up("given", file=str(changed))


def test_a_preset_is_set_up_by_one_command(capsys):
    assert set_up("default") == [
        "portrait128 is here already",
        "enhancer256 is here already",
        "next: dr2pipe restore PHOTOS OUTPUT --preset default",
    ]
    assert cli.main(["setup", "celebahq256_bicubic"]) == 2  # the tests have no network
    assert "google/ddpm-celebahq-256" in capsys.readouterr().err
    assert cli.main(["setup", "best"]) == 2
    assert "unknown name 'best'; models: gfpgan14" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="default is a preset"):
        set_up("default", file="x")


def test_the_list(home, capsys):
    assert measure("portrait128") > 0
    assert cli.main(["presets"]) == 0
    said = capsys.readouterr().out
    assert "portrait128: The embedded portrait DDPM at 128 px" in said
    assert "4 network calls a face, on this machine not measured" in said
    assert " s a face" in said
    assert "get all: dr2pipe setup gfpgan14_only" in said
    assert "dr2pipe setup dr2_ffhq --file DR2_FFHQ.pkl" in said
    (home / "preset_seconds.json").write_text("[")
    assert {preset.seconds for preset in list_presets()} == {None}


def test_a_download_that_was_altered_is_not_converted(toy, home, capsys):
    set_up("toy")
    (home / "downloads").mkdir()
    (home / "downloads" / "toy.pth").write_bytes(toy.read_bytes() + b"0")
    arguments = ["convert", "toy.pth", "again", "--kind", "face_part_discriminator"]
    assert cli.main(arguments) == 2
    assert "came first" in capsys.readouterr().err
    (home / "downloads" / "toy.pth").write_bytes(toy.read_bytes())
    assert cli.main(arguments) == 0
