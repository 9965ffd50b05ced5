import json
import time

import parity
import pytest
import torch
from conftest import ROOT, TINY, run_command

from dr2pipe import cli


def test_help_answers_in_under_a_second():
    run_command("-m", "dr2pipe", "--help")  # compiles the modules once
    start = time.perf_counter()
    process = run_command("-m", "dr2pipe", "--help")
    assert time.perf_counter() - start < 1
    assert process.returncode == 0
    for command in ("restore", "train", "convert", "doctor"):
        assert command in process.stdout


def test_importing_the_package_imports_no_torch():
    code = "import sys, dr2pipe; print('torch' in sys.modules, dr2pipe.__version__)"
    assert run_command("-c", code).stdout.startswith("False")
    code = "import dr2pipe; [getattr(dr2pipe, n) for n in dr2pipe.__all__]"
    assert run_command("-c", code).returncode == 0


def test_restore_command_equals_the_script(pictures, model_folder, tmp_path, capsys):
    out = tmp_path / "with = [odd] ${name} 😀"
    arguments = ["restore", str(pictures), str(out), "--set", f"dr2.model={model_folder}", *TINY]
    assert cli.main(arguments) == 0
    assert "6 restored, 0 already done, 0 failed" in capsys.readouterr().out
    assert len(list((out / "restored").iterdir())) == 6
    preset = ROOT / "configs" / "restore" / "portrait64.yaml"
    plain = out.rename(tmp_path / "out")
    same = [f"input={pictures}", f"output={plain}", f"dr2.model={model_folder}", *TINY]
    assert cli.script("restore", [str(preset), *same]) == 0
    assert "0 restored, 6 already done" in capsys.readouterr().out


def test_the_contract_command_works(tmp_path, pictures, capsys):
    arguments = [str(pictures), str(tmp_path / "out"), "--preset", "portrait64"]
    assert cli.main(["restore", *arguments, "--set", "dr2.tau=22", "enhancer.name=none"]) == 0
    assert "6 restored" in capsys.readouterr().out
    assert cli.main(["restore", "", str(tmp_path / "out2")]) == 2
    assert "must not be empty" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_a_usage_error(pictures, model_folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = ["restore", str(pictures), str(tmp_path / "file"), "--set", *TINY]
    assert cli.main([*arguments, f"dr2.model={model_folder}"]) == 2
    assert "file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["restore", "x", "y", "--preset", "best"], "no preset 'best'; there are celebahq256"),
        (["restore", "x", "y", "--set", "dr2.taus=1"], "unknown key 'dr2.taus'"),
        (["restore", "x", "y", "--config", "none.yaml"], "no configuration file at none.yaml"),
        (["restore", "x", "y", "--set", "dr2.enabled=false"], "no file or folder at x"),
        (["convert", "x", "y", "--kind", "sparnet"], "no checkpoint at x"),
        (["convert", "x", "y", "--kind", "gan"], "unknown kind 'gan'"),
        (["train", "none.yaml"], "no configuration file"),
    ],
)
def test_usage_errors(arguments, says, capsys):
    assert cli.main(arguments) == 2
    errors = capsys.readouterr().err
    assert says in errors
    assert errors.count("\n") == 1


def test_every_preset_is_a_valid_configuration():
    from dr2pipe.core.config import load_config
    from dr2pipe.runs.restore import RestoreConfig

    presets = sorted((ROOT / "configs" / "restore").glob("*.yaml"))
    assert len(presets) >= 3
    for preset in presets:
        config = load_config(RestoreConfig, preset, ["input=a", "output=b"])
        assert config.dr2.tau >= 0


def test_convert_then_restore(tmp_path, pictures, capsys):
    """An official-layout file becomes a folder that restore takes."""
    record, _ = parity.load("dr2_sampler")
    torch.save(parity.make_weights(record["keys"]), tmp_path / "weights.pkl")
    constructor = [f"{k}={json.dumps(v)}" for k, v in record["constructor"].items()]
    folder = tmp_path / "native"
    convert = ["convert", str(tmp_path / "weights.pkl"), str(folder)]
    code = cli.main([*convert, "--kind", "guided_diffusion_unet", "--set", *constructor])
    assert code == 0
    restore = ["restore", str(pictures), str(tmp_path / "out"), "--preset", "dr2_ffhq_sparnethd"]
    settings = [f"dr2.model={folder}", "dr2.tau=10", "dr2.omega=12", "enhancer.name=none"]
    assert cli.main([*restore, "--set", *settings, "enhancer.weights=null"]) == 0
    assert "6 restored" in capsys.readouterr().out


def test_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert f"torch {torch.__version__}" in report
    for word in ("device: ", "precision: ", "attention: sdpa", "xformers: "):
        assert word in report


def test_doctor_warns_of_a_cpu_torch_beside_an_nvidia_gpu(tmp_path, monkeypatch, capsys):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cli.main(["doctor"])
    assert "WARNING: this machine has an NVIDIA driver" in capsys.readouterr().out


def test_benchmark_script(pictures, model_folder):
    preset = ROOT / "configs" / "restore" / "portrait64.yaml"
    process = run_command(
        "scripts/research/benchmark.py", preset, f"input={pictures}", f"dr2.model={model_folder}", *TINY,
        "--full", "--batch-sizes", 2,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "network call s" in process.stdout
    assert "bf16 differs from fp32 by" in process.stdout
