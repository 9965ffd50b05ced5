import json

import pytest
from conftest import TINY, make_pictures

from dr2pipe import cli
from dr2pipe.cli.benchmark_report import ratios, read_report
from dr2pipe.core.errors import Dr2pipeError

SMALL = ["--pictures", "5", "--size", "32"]


@pytest.fixture
def benchmark(model_folder, tmp_path, capsys, monkeypatch):
    # A CPU without bf16 takes half a minute for the usual matrix.
    monkeypatch.setattr("dr2pipe.cli.benchmark._MATRIX_SIDE", {"cpu": 256})

    def run(*arguments):
        settings = ["--set", f"dr2.model={model_folder}", *TINY, "batch_size=2"]
        file = tmp_path / "report.json"
        code = cli.main(["benchmark", *SMALL, "--json", str(file), *arguments, *settings])
        said = capsys.readouterr()
        assert code == 0, said.err
        return json.loads(file.read_text()), said.out

    return run


# A CPU without bf16 takes its time.
@pytest.mark.parametrize(
    "precisions", [["fp32"], pytest.param(["fp32", "bf16"], marks=pytest.mark.slow)]
)
def test_the_whole_report(benchmark, tmp_path, precisions):
    report, said = benchmark("--precisions", *precisions, "--batch-sizes", "1", "2")
    rows = {(row["what"], row["precision"], row["batch"]): row for row in report["rows"]}
    files, nothing = "files to files", "files at 32 px, no network"
    parts = ("stage 1, a call", "stage 2", "both stages")
    wanted = {(what, p, b) for what in parts for p in precisions for b in (1, 2)}
    assert rows.keys() == wanted | {(files, p, 2) for p in precisions} | {(nothing, "", 2)}
    assert all(row["pictures_per_s"] > 0 for row in rows.values())
    assert 0 < rows["stage 1, a call", "fp32", 1]["of_peak"] < 2
    assert 0 < rows[files, "fp32", 2]["outside"] < 1
    assert rows[nothing, "", 2]["per_core_s"] > 0
    assert report["matrix_multiply_gflop_s"].keys() == set(precisions)
    differences = report["difference_of_255"]
    assert differences.keys() == {f"{p}, batch {b}" for p in precisions[1:] for b in (1, 2)}
    assert all(0 <= difference < 30 for difference in differences.values())
    assert "torch" in report["versions"]
    assert f"| {files} | {precisions[-1]} | 2 |" in said
    assert read_report(tmp_path / "report.json") == report


def test_parts_inputs_and_comparison(benchmark, tmp_path):
    source = make_pictures(tmp_path / "in", 2)
    only = ["--parts", "machinery", "--input", str(source)]
    report, _ = benchmark(*only)
    assert [row["what"] for row in report["rows"]] == ["files at 32 px, no network"]
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(report))
    _, said = benchmark(*only, "--against", str(earlier))
    assert "times as fast: files at 32 px, no network, batch 2" in said


def test_ratios_are_of_the_same_rows():
    def report(**rates):
        rows = [
            {"what": what, "precision": "fp32", "batch": 1, "pictures_per_s": rate}
            for what, rate in rates.items()
        ]
        return {"rows": rows}

    assert ratios(report(a=6.0, b=1.0), report(a=4.0)) == "1.50 times as fast: a, fp32, batch 1"
    assert ratios(report(a=1.0), report(b=1.0)) == "the two have no row in common"


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", '{"format": 1, "rows": [1]}', '{"format": 0, "rows": []}',
        '{"format": 1, "rows": [{"what": "a", "precision": [], "batch": 1, "pictures_per_s": 1}]}',
        '{"format": 1, "rows": [{"what": "a", "precision": "", "batch": 1, "pictures_per_s": 0}]}',
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(Dr2pipeError, match=r"other\.json"):
        read_report(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "network"], "the parts are networks, restorer, machinery, run"),
        (["--precisions", "fp8"], "the precisions fp32, bf16, fp16"),
        (["--batch-sizes", "0"], "at least 1"),
        (["--size", "4"], "at least 8"),
        (["--preset", "fastest"], "default, "),
        (["--set", "precision=fp8"], "choose auto, fp32"),
    ],
)
def test_wrong_settings_are_named(capsys, arguments, said):
    assert cli.main(["benchmark", *arguments]) == 2
    assert said in capsys.readouterr().err
