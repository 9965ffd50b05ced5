"""The functions of the page, and its HTTP interface through gradio's client."""

import os
import re
import shutil
import socket
import sys
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from worn import request_of, say, worn_photo

from dr2pipe import cli
from dr2pipe.core import files
from dr2pipe.core.config import resource
from dr2pipe.core.errors import ConfigError, Dr2pipeError, PictureError
from dr2pipe.core.models import user_folder
from dr2pipe.runs.presets import list_presets
from dr2pipe.web import ServerConfig, serve, server
from dr2pipe.web.about import cards, installation, presets_table
from dr2pipe.web.page import Page, event, told
from dr2pipe.web.server import check
from dr2pipe.web.visits import Limits, Visits
from dr2pipe.web.wishes import Wish
from dr2pipe.web.workshop import Workshop


@pytest.fixture
def page(tmp_path):
    return Page(Workshop(), Visits(tmp_path / "visits"))


def value_of(update):
    return update.value if hasattr(update, "value") else update["value"]


def test_a_visit(page, tmp_path):
    ada = request_of("ada")
    upload = str(worn_photo(tmp_path / "worn.png", faces=2))
    assert value_of(page.canvas(None, ada)) is None
    with pytest.raises(Dr2pipeError, match="add one first"):
        page.mark(None, None, ada)
    photo, _, faces, *_ = page.find([upload], "default", ada, say)
    assert (photo.value, photo.visible) == ("worn.png", False)
    assert [number for _, number in faces.choices] == [0, 1]
    assert re.match("1: .*(noisy|blurred|small)", faces.choices[0][0])
    page.choose("worn.png", [1], ada)
    assert page.show("worn.png", ada)[1].value == [1]
    assert page.canvas("worn.png", ada).value["background"]
    layer = np.zeros((50, 55, 4), np.uint8)
    assert page.mark("worn.png", {"layers": [layer]}, ada) == "Nothing is marked."
    layer[20:25, 10:40, 3] = 255
    assert page.mark("worn.png", {"layers": [layer]}, ada).startswith("Marked: 6.2 %")
    marks = page.visits.of("ada").photos["worn.png"].marks
    assert np.unique(np.asarray(Image.open(marks))).tolist() == [0, 255]
    page.mark("worn.png", {"layers": [layer]}, ada)
    assert page.visits.of("ada").photos["worn.png"].marks != marks  # a run may use those before
    assert marks.exists()
    *_, brush, marked = page.show("worn.png", ada)
    assert (brush.open, marked) == (False, "This photo is marked.")
    assert page.mark("worn.png", None, ada) == "Nothing is marked."
    slider, variants, _, _, status, command = page.restore(ada, say, "worn.png", Wish())
    assert slider.visible
    assert not variants.visible
    assert status.startswith("Faces restored: 1 of 2.")
    assert "face 2 0." in status
    assert "face 1" not in status
    assert "faces.json" in command
    assert page.results("worn.png", 1, ada) == [gr.skip()] * 6  # where the variants differ
    # Another visitor sees nothing of it.
    assert page.results("worn.png", 0, request_of("bob"))[0] == gr.skip()
    with pytest.raises(Dr2pipeError, match="not here any more"):
        page.show("worn.png", request_of("bob"))
    with pytest.raises(Dr2pipeError, match=r"at least one face of worn\.png"):
        page.choose("worn.png", [], ada)
    with pytest.raises(Dr2pipeError, match="at least one face"):
        page.restore(ada, say, "worn.png", Wish())
    folder = page.visits.of("ada").folder
    page.leave(ada)
    assert not folder.exists()


def test_what_is_changed_while_it_works_is_for_the_next_time(page, tmp_path):
    ada = request_of("ada")
    uploads = [str(worn_photo(tmp_path / name, faces=2)) for name in ("a.png", "b.png")]
    page.find(uploads, "default", ada, say)

    def change(share, stage):
        page.choose("a.png", [0], ada)
        page.choose("b.png", [0], ada)
        page.show("b.png", ada)

    *_, status, command = page.restore(ada, change, "a.png", Wish())
    assert status.startswith("Faces restored: 2 of 2.")
    assert "restore b.png" in command  # what is shown is the photo that is chosen now
    kept = page.visits.of("ada").outcome.done[0][0].restored
    for wrong in (Wish(seed=1 << 31), Wish(seed=(1 << 31) - 1, variants=2)):
        with pytest.raises(ConfigError, match="whole numbers from 0 to 2147483647"):
            page.restore(ada, say, "a.png", wrong)
    page.visits.of("ada").photos["a.png"].path.write_bytes(b"gone")
    page.visits.of("ada").photos["b.png"].path.write_bytes(b"gone")
    with pytest.raises(PictureError, match=r"a\.png"):
        page.restore(ada, say, "a.png", Wish())
    assert kept.exists()  # the results before a failure can still be downloaded
    assert page.results("a.png", 0, ada)[0].visible


def test_other_photos_take_the_place_of_those_before(page, tmp_path):
    ada = request_of("ada")
    first, second = (str(worn_photo(tmp_path / name)) for name in ("a.png", "b.png"))
    page.find([first], "default", ada, say)
    page.restore(ada, say, "a.png", Wish())
    kept = page.visits.of("ada").outcome.done[0][0].restored
    (tmp_path / "notes.png").write_text("hello")
    with pytest.raises(PictureError, match="not an image file"):  # nothing is lost by a mistake
        page.find([str(tmp_path / "notes.png")], "default", ada, say)
    assert list(page.visits.of("ada").photos) == ["a.png"]
    assert kept.exists()
    (tmp_path / "other").mkdir()
    same_name = shutil.copy(first, tmp_path / "other" / "b.png")
    *_, slider, _, download, files, status, command, _ = page.find(
        [second, same_name], "default", ada, say
    )
    assert "faces found: 1" in status
    assert "another photo has the same name" in status
    assert not kept.exists()
    # Nothing of the photos before can be downloaded.
    assert (slider, command, value_of(download), value_of(files)) == (None, "", None, None)
    assert not download.interactive


def test_photos_without_a_face(page, tmp_path):
    wall = Image.new("RGB", (60, 40))
    for name in ("wall.png", "door.png"):
        wall.save(tmp_path / name)
    uploads = [str(tmp_path / name) for name in ("wall.png", "door.png")]
    found = page.find(uploads, "default", request_of("ada"), say)
    assert found[-3].splitlines()[0] == (
        "wall.png: No face was found: add a larger or sharper scan that shows the whole face."
    )
    assert "door.png: No face" in found[-3]
    assert not found[-1].interactive  # there is nothing to restore


def test_about_shows_every_card_and_the_terms_of_every_preset():
    shipped = [path.name for path in resource("checkpoints").iterdir() if path.is_dir()]
    assert set(cards()) == set(shipped)
    assert all(
        "licence" in card and "](" not in card.replace("](http", "") for card in cards().values()
    )
    table = presets_table()
    rows = [line for line in table.splitlines() if line.startswith("| **")]
    assert len(rows) == len(list_presets())
    assert all("commercial use: " in row for row in rows)
    assert str(user_folder()) not in installation()


def test_references(page, tmp_path):
    ada = request_of("ada")
    upload = str(worn_photo(tmp_path / "she.png"))
    assert page.refer([upload], ada).startswith("Reference photos: 1.")
    assert [p.name for p in page.visits.of("ada").references.iterdir()] == ["0.png"]
    (tmp_path / "notes.png").write_text("hello")
    with pytest.raises(PictureError, match=r"notes\.png cannot be used \(not an image file"):
        page.refer([str(tmp_path / "notes.png")], ada)
    with pytest.raises(Dr2pipeError, match="up to 20 reference photos, not 21"):
        page.refer([upload] * 21, ada)
    assert page.refer(None, ada) == "No reference photos."
    assert page.visits.of("ada").references is None


def failing(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Dr2pipeError("choose a photo"), "choose a photo"),
        (OSError(28, "No space left on device", "/secret/x"), "Free some space on the computer"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("CUDA out of memory."), "not enough memory"),
    ],
)
def test_what_a_person_can_mend_is_a_message(error, says):
    with pytest.raises(gr.Error, match=says) as told_error:
        told(failing(error))
    assert "secret" not in str(told_error.value)


def test_a_bug_stays_one():
    with pytest.raises(RuntimeError, match="strange"):
        event(failing(RuntimeError("strange")))()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"host": "0.0.0.0"}, "everybody who reaches 0.0.0.0 could use the page: give --user"),
        ({"host": "printer.local"}, "give --user and --password"),
        ({"user": "ada"}, "belong together"),
        ({"user": "ada", "password": ""}, "neither is empty"),
        ({"port": 70000}, "must lie in 0..65535"),
    ],
)
def test_what_is_not_served(settings, says):
    with pytest.raises(ConfigError, match=says):
        check(ServerConfig(**settings))


def test_a_port_in_use(capsys, monkeypatch):
    check(ServerConfig(port=0))
    check(ServerConfig(host="localhost", port=0))
    check(ServerConfig(host="0.0.0.0", port=0, user="ada", password="long"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert cli.main(["web", "--port", str(port)]) == 2
        assert re.search(rf"port {port} cannot be used .*--port 7861", capsys.readouterr().err)
        # Another program may take it after the first look, while the networks are loaded.
        looks = iter([lambda config: None, check])
        monkeypatch.setattr("dr2pipe.web.server.check", lambda config: next(looks)(config))
        monkeypatch.setattr(Workshop, "warm_up", lambda *of: None)
        assert cli.main(["web", "--port", str(port)]) == 2
        assert re.search(rf"port {port} cannot be used .*--port 7861", capsys.readouterr().err)


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["web", "--port", "0"]) == 2
    assert "this needs gradio: pip install 'dr2pipe[web]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("server")))
        patch.setattr("tempfile.tempdir", None)
        blocks = serve(ServerConfig(port=0, limits=Limits(megabytes=1)))
        yield SimpleNamespace(url=blocks.local_url, folder=os.environ["GRADIO_TEMP_DIR"])
        blocks.close()
        shutil.rmtree(os.environ["GRADIO_TEMP_DIR"])
    patch.undo()


def test_over_http(served, tmp_path, capsys):
    photo = worn_photo(tmp_path / "worn.png")
    client = Client(served.url, verbose=False, download_files=tmp_path / "down")
    names, *_ = client.predict([handle_file(photo)], "default", api_name="/find")
    assert names["value"] == "worn.png"
    wish = ("default", "mild", 3, 0, True, 1, 4, 1)
    _, _, download, _, status, command = client.predict("worn.png", *wish, api_name="/restore")
    assert status.startswith("Faces restored: 1 of 1.")
    words = command.split()[1:]
    words[1:3] = str(photo), str(tmp_path / "out")
    assert cli.main(words) == 0
    expected = (tmp_path / "out" / "restored" / "worn.png").read_bytes()
    with open(download["value"], "rb") as file:
        assert file.read() == expected
    # A second visitor has nothing, and finds no way to the first one's files.
    other = Client(served.url, verbose=False, download_files=tmp_path / "other")
    with pytest.raises(Exception, match="not in the list of choices"):
        other.predict("worn.png", *wish, api_name="/restore")
    for path in ("../../etc/passwd", "/etc/passwd", served.folder, f"{served.folder}/worn.png"):
        got = httpx.get(f"{served.url}gradio_api/file={path}")
        assert got.status_code in (400, 403, 404)
    # Uploads that lie, and those that are too large.
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(Exception, match=r"text.png cannot be used .not an image file") as refused:
        client.predict([handle_file(tmp_path / "text.png")], "default", api_name="/find")
    assert served.folder not in str(refused.value)
    (tmp_path / "large.png").write_bytes(bytes(1_200_000))
    with pytest.raises(Exception, match=r"413|exceeds|size"):
        client.predict([handle_file(tmp_path / "large.png")], "default", api_name="/find")


def test_an_upload_that_the_disk_does_not_take(served, monkeypatch):
    full = failing(OSError(28, "No space left on device", "/secret/x"))
    monkeypatch.setattr("gradio.routes.GradioMultiPartParser.parse", lambda self: full())
    got = httpx.post(f"{served.url}gradio_api/upload", files={"files": ("a.png", b"1")})
    assert got.status_code == 507
    assert got.text.startswith("The upload cannot be kept: no space left on device. Free some")
    assert "secret" not in got.text


def test_a_page_with_a_password_asks_for_it(tmp_path):
    blocks = serve(ServerConfig(host="127.0.0.1", port=0, user="ada", password="long"))
    try:
        assert httpx.get(f"{blocks.local_url}config").status_code == 401
        with pytest.raises(Exception, match=r"[Cc]redentials|[Ll]ogin|401"):
            Client(blocks.local_url, verbose=False, auth=("ada", "short"))
        Client(blocks.local_url, verbose=False, auth=("ada", "long"))
    finally:
        blocks.close()


def test_what_a_killed_server_left_is_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed, running, other = (tmp_path / f"dr2pipe_web_{name}" for name in "abc")
    for folder in (killed, running, other):
        folder.mkdir()
        (folder / "photo.png").touch()
    (killed / files.LOCK_NAME).touch()
    lock = files.lock_folder(running)
    server._remove_leftovers()
    lock.release()
    assert [folder.exists() for folder in (killed, running, other)] == [False, True, True]
