from pathlib import Path

import huggingface_hub
import platformdirs
import pytest

from dr2pipe.core.config import resource
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.models import (
    downloads_folder,
    find_download,
    find_file,
    find_model,
    is_built_in,
    is_here,
    place_model,
    user_folder,
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty user folder and an empty current directory."""
    monkeypatch.setenv("DR2PIPE_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def make_model(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """The ids that were asked for; ``owner/known`` is there."""
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(name)
        assert not {"*.bin", "*.py", "*"} & set(allow_patterns)
        if name != "owner/known":
            raise OSError("404: no such\nrepository")
        return "/cache/known"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_the_user_folder(home, monkeypatch):
    assert (user_folder(), downloads_folder()) == (home, home / "downloads")
    for value in ("", None):
        monkeypatch.setenv("DR2PIPE_HOME", value) if value is not None else monkeypatch.delenv(
            "DR2PIPE_HOME"
        )
        assert user_folder() == platformdirs.user_cache_path("dr2pipe")


def test_names_are_looked_up_in_order(home, hub):
    built_in = resource("checkpoints") / "portrait128"
    make_model(home / "models" / "portrait128")
    make_model(Path("portrait128"))
    assert find_model("portrait128") == built_in
    converted = make_model(home / "models" / "mine")
    make_model(Path("mine"))
    assert find_model("mine") == converted
    assert find_model("./mine") == Path("mine")
    assert find_model(str(Path("mine").absolute())) == Path("mine").absolute()
    assert hub == []
    assert find_model("owner/known") == Path("/cache/known")
    make_model(Path("owner/known"))
    assert find_model("owner/known") == Path("owner/known")
    assert hub == ["owner/known"]


def test_a_weights_file_is_taken_as_it_is():
    Path("GFPGANv1.4.pth").touch()
    assert find_model("GFPGANv1.4.pth") == Path("GFPGANv1.4.pth")


def test_messages_say_where_a_model_was_looked_for(home, hub):
    make_model(home / "models" / "mine")
    with pytest.raises(ConfigError, match=r"'theirs'\. Built in: .*portrait128.*models: mine\."):
        find_model("theirs")
    Path("theirs").mkdir()
    with pytest.raises(ConfigError, match=r"for the folder here write \./theirs"):
        find_model("theirs")
    with pytest.raises(
        ConfigError, match=r"hub failed: 404: no such repository\. .*dr2pipe setup PRESET$"
    ):
        find_model("owner/unknown")
    assert hub == ["owner/unknown"]


@pytest.mark.parametrize("name", ["./a", "/none/a", "../a/b", "a/b/c", "a b/c"])
def test_a_path_is_never_asked_from_the_hub(name, hub):
    with pytest.raises(ConfigError, match="no such folder or file"):
        find_model(name)
    assert hub == []


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_odd_names_are_no_models(name):
    with pytest.raises(ConfigError, match="no model"):
        find_model(name)
    with pytest.raises(ConfigError, match="cannot name"):
        place_model(name)


def test_downloads_are_found_by_their_names(home):
    downloads_folder().mkdir(parents=True)
    (home / "downloads" / "a.pth").touch()
    assert find_download("a.pth") == home / "downloads" / "a.pth"
    assert find_download("./a.pth") == Path("a.pth")
    Path("a.pth").touch()
    assert find_download("a.pth") == Path("a.pth")
    assert find_download("b.pth") == Path("b.pth")


def test_where_converted_models_go(home):
    assert place_model("gfpgan14") == home / "models" / "gfpgan14"
    assert place_model("./gfpgan14") == Path("gfpgan14")
    assert place_model("runs/gfpgan14") == Path("runs/gfpgan14")
    with pytest.raises(ConfigError, match="cannot name"):
        place_model("portrait128")


def test_built_in_files_by_name_and_others_by_path():
    presets = resource("configs/restore")
    Path("portrait128.yaml").touch()

    def find(name):
        return find_file("configs/restore", name, what="preset")

    Path("portrait128").touch()
    assert find("portrait128") == presets / "portrait128.yaml"
    assert find("portrait128.yaml") == Path("portrait128.yaml")
    with pytest.raises(ConfigError, match=r"no preset .mine.; there are .*portrait128"):
        find("mine")
    for path in ("mine.yaml", "./mine"):
        with pytest.raises(ConfigError, match="no such file"):
            find(path)


def test_a_known_model_that_is_missing_names_the_one_command():
    with pytest.raises(ConfigError, match=r"not here yet; get it by: dr2pipe setup gfpgan14$"):
        find_model("gfpgan14")
    with pytest.raises(ConfigError, match=r"download DR2_FFHQ.pkl .* --file DR2_FFHQ.pkl$"):
        find_model("dr2_ffhq")


def test_what_is_here_is_known_without_the_network(home, monkeypatch):
    def snapshot_download(name, allow_patterns, local_files_only):
        assert local_files_only
        if name != "owner/cached":
            raise OSError("not cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    make_model(home / "models" / "mine")
    here = ("portrait128", "mine", "owner/cached", str(home))
    assert all(is_here(name) for name in here)
    assert not any(is_here(name) for name in ("gfpgan14", "owner/other"))
    assert is_built_in("portrait128")
    assert not is_built_in("mine")
