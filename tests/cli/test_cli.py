import json

import parity
import pytest
import torch
from conftest import ROOT, TINY, run_command

import dr2pipe
from dr2pipe import cli
from dr2pipe.core.errors import NotFiniteError

HELP = """
import sys
sys.argv = ["dr2pipe", "--help"]
import dr2pipe.cli
try:
    dr2pipe.cli.main()
finally:
    print("torch" in sys.modules)
"""


def test_the_package_and_its_help_import_no_torch():
    done = run_command("-c", HELP)
    assert done.returncode == 0, done.stderr
    *shown, imported = done.stdout.splitlines()
    assert imported == "False"
    for command in ("restore", "train", "convert", "fit-auto", "doctor"):
        assert any(line.split()[:1] == [command] for line in shown)


def test_public_names_can_be_imported():
    assert all(getattr(dr2pipe, name) is not None for name in dr2pipe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dr2pipe.nothing  # noqa: B018


def test_python_dash_m_is_the_command():
    done = run_command("-m", "dr2pipe", "--version")
    assert (done.returncode, done.stdout) == (0, f"dr2pipe {dr2pipe.__version__}\n")


def test_restore_command_equals_the_script(pictures, model_folder, tmp_path, capsys):
    out = tmp_path / "with = [odd] ${name} 😀"
    arguments = ["restore", str(pictures), str(out), "--set", f"dr2.model={model_folder}", *TINY]
    assert cli.main(arguments) == 0
    assert "6 restored, 0 already done, 0 failed" in capsys.readouterr().out
    assert len(list((out / "restored").iterdir())) == 6
    preset = ROOT / "configs" / "restore" / "default.yaml"
    plain = out.rename(tmp_path / "out")
    same = [f"input={pictures}", f"output={plain}", f"dr2.model={model_folder}", *TINY]
    assert cli.script("restore", [str(preset), *same]) == 0
    assert "0 restored, 6 already done" in capsys.readouterr().out


def test_the_contract_command_works(tmp_path, pictures, capsys):
    arguments = [str(pictures), str(tmp_path / "out"), "--preset", "portrait128"]
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
        (["convert", "x", "portrait128", "--kind", "sparnet"], "cannot name a converted model"),
        (["convert", "x", "y", "--kind", "sparnet", "--set", "a"], "not of the form key=value"),
        (["train", "none.yaml"], "no configuration file at none.yaml"),
        (["train", "none"], "no configuration file 'none'; there are ddpm_"),
        (["train", "ddpm_portrait128", "data.path=x"], "no folder of pictures at x"),
        (
            ["make-coarse", "portrait128", "input=x", "output=y", "sources=[1]"],
            "sources selects inside an .npz",
        ),
        (["make-coarse", "portrait128", "input=x", "output=y"], "no file or folder at x"),
        (["sweep", "portrait128", "clean.path=x", "output=y"], "no folder of pictures at x"),
        (["evaluate", "none.yaml"], "no configuration file at none.yaml"),
        (["degrade", "x", "y"], "name a degradation"),
        (["degrade", "x", "y", "--sheet", "--size", "3"], "no --severity, no --size"),
        (["fit-niqe", "x", "y.npz", "--size", "0"], "pictures of 0 pixels are smaller than"),
        (["restore", ".", "y", "--set", "max_pixels=-1"], "max_pixels must be at least 1"),
        (
            ["fit-auto", "none", "auto.json"],
            "none holds no finished sweep: summary.json is missing",
        ),
    ],
)
def test_usage_errors(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    errors = capsys.readouterr().err
    assert says in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (NotFiniteError("the loss is\nnan"), 2, "dr2pipe: error: the loss is nan\n"),
        (FileNotFoundError(2, "No such file", "a.png"), 2, "error: a.png: No such file\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_that_a_user_can_mend_take_one_line(error, code, says, capsys):
    def run():
        raise error

    assert cli.report_errors(run) == code
    assert capsys.readouterr().err.endswith(says)


@pytest.mark.parametrize("error", [ValueError("a bug"), TypeError("another"), KeyError("a")])
def test_a_bug_shows_its_traceback(error):
    def run():
        raise error

    with pytest.raises(type(error)):
        cli.report_errors(run)


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_names_here_do_not_shadow_built_in_models(make, tmp_path, pictures, monkeypatch, capsys):
    for name in ("portrait128", "enhancer256", "auto_portrait128", "portrait128.yaml"):
        getattr(tmp_path / name, make)()
    monkeypatch.chdir(tmp_path)
    settings = ["--set", "dr2.tau=2", "dr2.omega=3", "dr2.num_evaluations=2"]
    assert cli.main(["restore", str(pictures / "face_000.png"), "out", *settings]) == 0
    assert "1 restored" in capsys.readouterr().out


def test_every_preset_is_a_valid_configuration():
    from dr2pipe.core.config import load_config
    from dr2pipe.runs.restore import RestoreConfig

    presets = sorted((ROOT / "configs" / "restore").glob("*.yaml"))
    assert len(presets) >= 3
    for preset in presets:
        config = load_config(RestoreConfig, preset, ["input=a", "output=b"])
        assert (config.input, config.output) == ("a", "b")


def test_convert_then_restore(tmp_path, pictures, monkeypatch, capsys):
    """An official-layout file becomes a model that restore takes by its name."""
    monkeypatch.setenv("DR2PIPE_HOME", str(tmp_path / "home"))
    record, _ = parity.load("dr2_sampler")
    torch.save(parity.make_weights(record["keys"]), tmp_path / "weights.pkl")
    constructor = [f"{k}={json.dumps(v)}" for k, v in record["constructor"].items()]
    convert = ["convert", str(tmp_path / "weights.pkl"), "native"]
    code = cli.main([*convert, "--kind", "guided_diffusion_unet", "--set", *constructor])
    assert code == 0
    assert str(tmp_path / "home" / "models" / "native") in capsys.readouterr().out
    restore = ["restore", str(pictures), str(tmp_path / "out"), "--preset", "dr2_ffhq_sparnethd"]
    settings = ["dr2.model=native", "dr2.tau=10", "dr2.omega=12", "enhancer.name=none"]
    assert cli.main([*restore, "--set", *settings, "enhancer.weights=null"]) == 0
    assert "6 restored" in capsys.readouterr().out


def test_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert f"torch {torch.__version__}" in report
    for word in (
        "downloads and converted models: ",
        "device: ",
        "precision: ",
        "attention: sdpa",
        "xformers: ",
        "identity of faces: ",
        "metrics without metric_files: psnr, ",
    ):
        assert word in report


def test_doctor_warns_of_a_cpu_torch_beside_an_nvidia_gpu(tmp_path, monkeypatch, capsys):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cli.main(["doctor"])
    assert "WARNING: this machine has an NVIDIA driver" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "passed"),
    [
        ([], []),
        (
            ["--contrast", "keep", "--colour", "keep", "--bits", "keep", "--scale", "1"],
            ["bits=keep", "colour=keep", "contrast=keep", "scale=1"],
        ),
        (["--pages", "first", "--format", "png"], ["pages=first", "format=png"]),
    ],
)
def test_options_that_are_given_count_against_a_preset(options, passed, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "dr2pipe.cli.commands.restore", lambda preset, given: seen.extend(given) or 0
    )
    assert cli.main(["restore", "a", "b", *options]) == 0
    assert seen == ["input=a", "output=b", *passed]
