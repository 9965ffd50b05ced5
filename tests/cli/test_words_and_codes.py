"""What the command line says where a user, a disk or the network is at fault, and its exit codes."""

import threading

import pytest
from conftest import make_pictures

from dr2pipe import cli


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError("the network said no"), 2, "error: the network said no\n"),
        (OSError(28, "No space left"), 2, "error: No space left\n"),
        (OSError(18, "Invalid link", "a", None, "b"), 2, "error: a -> b: Invalid link\n"),
        (MemoryError(), 2, "error: not enough memory"),
        (RuntimeError("CUDA out of memory. Tried\nto"), 2, "CUDA out of memory. Tried"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on later\n"),
    ],
)
def test_errors_take_one_line(error, code, says, capsys):
    def run():
        raise error

    assert cli.report_errors(run) == code
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_run_without_result_says_that_it_was_interrupted(capsys):
    assert cli.report_errors(lambda: 130) == 130
    assert "interrupted" in capsys.readouterr().err
    assert cli.report_errors(lambda: 3) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("setting", "key"), [("dr2.tau=010", "dr2.tau"), ("seed=1:30", "seed")])
def test_odd_numbers_name_their_key(setting, key, capsys):
    assert cli.main(["restore", "x", "y", "--set", setting]) == 2
    assert f"the override '{key}': {setting.split('=')[1]} is refused" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["010", "1_0", " 1", "1:30", "9" * 40])
def test_arguments_are_plain_numbers(seed, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["degrade", "a", "b", "--with", "mild", "--seed", seed])
    assert ended.value.code == 2
    assert "is not a whole number without leading zeros" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "says", "traced"),
    [(OSError(28, "full", "a"), "dr2pipe: a: full\n", False), (KeyError("a"), "KeyError", True)],
)
def test_errors_of_threads(error, says, traced, capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def fail():
        raise error

    def run():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        return 0

    assert cli.report_errors(run) == 0
    said = capsys.readouterr().err
    assert says in said
    assert ("Traceback" in said) == traced


def test_make_coarse_says_where_the_reasons_are(model_folder, tmp_path, capsys):
    faces = make_pictures(tmp_path / "in", 1)
    (tmp_path / "empty.yaml").write_text("{}\n")
    arguments = [
        "make-coarse", str(tmp_path / "empty.yaml"), f"input={faces}", f"output={tmp_path / 'out'}",
        f"dr2.model={model_folder}", "dr2.num_evaluations=2", "variants=1", "taus=[2]",
        "omegas=[8]", "factors=[2]",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    (faces / "broken.png").write_bytes(b"no picture")
    assert cli.main(arguments) == 3
    said = capsys.readouterr().out
    assert f"the reasons are in {tmp_path / 'out/variant_00/failures.jsonl'}" in said
    # Nothing succeeds in the second variant, where the user has a file in the place of the result.
    (tmp_path / "out/variant_01/restored").mkdir(parents=True)
    (tmp_path / "out/variant_01/restored/face_000.png").write_bytes(b"of the user")
    assert cli.main([*arguments, "variants=2"]) == 3
    assert "variant 1: 0 made, 0 already done, 2 failed" in capsys.readouterr().out
