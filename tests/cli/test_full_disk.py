"""A limit of the file size stops every command with a clear error, and it goes on without the limit.

Read-only and full file systems need root: scripts/research/full_disk.py.
"""

import os

import full_disk
import pytest
import toy_commands

QUICK = ("degrade", "evaluate", "embed", "fit-niqe", "convert", "fetch")
SLOW = (
    "photos",
    "video",
    "cut-faces",
    "restore",
    "inpaint",
    "train",
    "sweep",
    "make-coarse",
    "fit-auto",
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder, and the commands that write there."""
    folder = tmp_path_factory.mktemp("toy")
    toy_commands.load_everything()
    commands = toy_commands.make_commands(folder)
    assert set(commands) == {*QUICK, *SLOW}
    with pytest.MonkeyPatch.context() as patch, full_disk.served(folder / "mirror") as address:
        patch.setenv("DR2PIPE_TOY_MIRROR", address)
        patch.setenv("DR2PIPE_HOME", str(folder / "home"))
        yield folder, commands


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_limit_of_the_file_size(name, toy):
    folder, commands = toy
    if name == "fit-auto":
        toy_commands.make_sweep(folder, commands)
    reference = folder / f"{name}_reference"
    assert toy_commands.run_child(commands[name].arguments(reference)) == 0
    sizes = [path.stat().st_size for path in reference.rglob("*") if path.is_file()]
    tally, expected = full_disk.Tally(), toy_commands.content(reference)
    assert expected
    for share in (0, 0.5):
        with full_disk.limited(folder / "disk", share, sizes, 0) as place:
            full_disk.disturb(commands[name], place, expected, tally)
    assert (tally.tries, tally.stopped, tally.faults) == (2, 2, 0)
    assert not os.path.lexists(folder / "disk")
