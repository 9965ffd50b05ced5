import sys

import compare_student
import numpy as np
import pytest
import torch
from conftest import make_pixels, make_unet

from dr2pipe.core import files
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.stage1 import DR2Config, load_remover
from dr2pipe.diffusion.student import student_of
from dr2pipe.diffusion.timesteps import build_scheduler


def test_a_table_of_teacher_and_student(tmp_path, monkeypatch, capsys):
    unet = make_unet()
    DR2Pipeline(unet, build_scheduler("ddim")).save_pretrained(tmp_path / "teacher")
    student_of(
        unet, [[2, 6, 16]], num_steps=100, prediction_type="epsilon",
        teacher_sha256=files.sha256(tmp_path / "teacher"),
    ).save_pretrained(tmp_path / "student")  # fmt: skip
    faces = np.stack([make_pixels(i, 16, 16) for i in range(3)])
    np.savez(tmp_path / "faces.npz", images=faces)

    preset = tmp_path / "preset.yaml"
    preset.write_text(
        f"dr2: {{model: {tmp_path / 'teacher'}, mode: auto, factor: 2, tau: 6, num_evaluations: 5}}"
    )
    arguments = [tmp_path / "faces.npz", tmp_path / "student", "--families", "halftone"]
    arguments += ["--preset", preset, "--settings", "2,6,16"]
    monkeypatch.setattr(sys, "argv", ["compare_student", *map(str, arguments)])
    compare_student.main()
    first, _, _, *rows, means, speed, verdict = capsys.readouterr().out.splitlines()
    assert first == "N 2, tau 6, omega 16, 3 faces; 5 calls, and 1"
    assert [row.split(" | ")[0] for row in rows] == ["| mild", "| medium", "| severe", "| halftone"]
    assert means.startswith("mean ")
    assert "times as fast" in speed
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--set", "dr2.antithetic=true"])
    compare_student.main()
    assert "; 10 calls, and 2" in capsys.readouterr().out
    assert verdict in ("as good as it should be", "not yet as good as it should be")
    cells = rows[0].split(" | ")
    assert float(cells[4]) == pytest.approx(float(cells[3]) - float(cells[2]), abs=0.011)
    # A student that has learned nothing is the teacher's first estimate: from the same noise.
    config = DR2Config(model=str(tmp_path / "teacher"), factor=2, tau=16, omega=16)
    degraded = compare_student.degraded_faces(faces, "mild")
    first, _ = compare_student.coarse_faces(load_remover(config)[0], degraded)
    untaught, _ = compare_student.coarse_faces(
        compare_student.load_both(str(preset), tmp_path / "student", None, [])[1], degraded
    )
    assert torch.allclose(first, untaught, atol=1e-4)
