import json
import sys

import gpu_check
import pytest


def test_a_rehearsal(tmp_path, monkeypatch, capsys):
    """All but what takes long here: the tests themselves, the compiler, and the default preset."""
    file = tmp_path / "found.json"
    arguments = ["--toy", "--only", "attention", "published", "training", "--json", file]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *map(str, arguments)])
    monkeypatch.setattr(gpu_check, "_MINUTES", 60)
    assert gpu_check.main() == 0
    said = capsys.readouterr().out
    assert said.endswith("all is well\n")
    found = json.loads(file.read_text())["found"]
    assert found["published"].keys() == {"21 calls", "5 calls", "1 calls", "batch_size=auto"}
    rows = {row["what"] for row in found["published"]["21 calls"]}
    assert rows == {"stage 1, a call", "stage 2", "both stages", "files to files"}
    assert found["training"]["images_per_second"] > 0


def test_what_fails_is_said_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    def fail(check):
        raise RuntimeError("the device is on fire")

    monkeypatch.setitem(gpu_check.CHECKS, "tests", fail)
    monkeypatch.setitem(gpu_check.CHECKS, "files", lambda check: "fast")
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--only", "tests", "files"])
    assert gpu_check.main() == 1
    said = capsys.readouterr().out
    assert "RuntimeError: the device is on fire" in said
    assert "files (0 s): fast" in said
    assert said.endswith("FAILED\n")
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--only", "tests", "--minutes", "-1"])
    assert gpu_check.main() == 1
    assert "tests: left out" in capsys.readouterr().out


def test_the_devices_are_compared(monkeypatch):
    check = gpu_check.Check(gpu_check.torch.device("cpu"), True, None)
    assert gpu_check.compare_devices(check) == {"largest_difference_of_255": 0.0}

    class Shifted:
        def __init__(self, device, *overrides):
            self.shift, self.input_size = (0.1 if device != "cpu" else 0.0), 8

        def __call__(self, pictures, seeds):
            self.restored = pictures + self.shift
            return self

    monkeypatch.setattr(gpu_check, "_default", Shifted)
    with pytest.raises(RuntimeError, match=r"differ by 12\.75 of 255"):
        gpu_check.compare_devices(check)
