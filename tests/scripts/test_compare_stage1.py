import sys

import compare_stage1
import numpy as np
from conftest import make_pixels


def test_models_are_compared_by_chain_and_setting(model_folder, tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "faces.npz", images=np.stack([make_pixels(i, 32, 32) for i in range(3)]))
    sheet = tmp_path / "sheet.png"
    arguments = [tmp_path / "faces.npz", model_folder, "--chains", "mild", "--png", sheet]
    arguments += ["--settings", "2,6,16", "4,10,20"]
    monkeypatch.setattr(sys, "argv", ["compare_stage1", *map(str, arguments)])
    compare_stage1.main()
    first, second, *settings = capsys.readouterr().out.splitlines()
    assert first.startswith("x0 at timesteps (20, 60")
    assert len(first.split(": ")[1].split()) == len(compare_stage1._TIMESTEPS) + 1
    assert 5 < float(second.removeprefix("mild: input ")) < 60
    assert [line.split()[1:4] for line in settings] == [
        ["N=2", "tau=6", "omega=16"],
        ["N=4", "tau=10", "omega=20"],
    ]
    assert sheet.is_file()
