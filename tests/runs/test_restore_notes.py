import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dr2pipe.core.records import RunRecords
from dr2pipe.runs import restore_notes
from dr2pipe.runs.restore_notes import describe_notes


def record(path, **more):
    return {"path": path, "sha256": "0", "settings": "0", "output": path} | more


def face(score, **more):
    return {"score": score, "side_px": 90.0, "quality": {"noise": 2.5}} | more


def test_faces_are_counted_and_only_results_are_measured(tmp_path):
    records = RunRecords(tmp_path)
    records.add_finished(record("a.png", faces=[face(0.9, spread=1.0), face(0.8, skipped="good")]))
    records.add_finished(record("b.png", faces=[face(0.7, spread=3.0)]))
    records.add_finished(record("c.png", faces=[]))
    assert describe_notes(tmp_path) == [
        "faces: 3 found, 1 of them left as they are",
        "spread, median (and 80 % of the faces): 2.000 (1.200..2.800)",
    ]


def test_aligned_faces_are_not_counted(tmp_path):
    RunRecords(tmp_path).add_finished(record("a.png", notes={"spread": 2.0}))
    assert describe_notes(tmp_path) == [
        "spread, median (and 80 % of the faces): 2.000 (2.000..2.000)"
    ]


JSON = st.recursive(
    st.sampled_from([None, True, -1, 0.5, 1e400, "", "good as it is"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["skipped", "identity", "box"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["faces", "notes", "warnings", "seconds"]), JSON))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_manifest_of_any_values_is_described(changes):
    """What is no record of a finished picture is left out, and the others are described."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.jsonl"
        whole = {"path": "a.png", "faces": [{"identity": 0.5}]}
        lines = [json.dumps(record) for record in (whole, {"path": "b.png"} | changes)]
        manifest.write_text("\n".join(lines) + "\n")
        said = describe_notes(folder)
        assert said[0].startswith("faces: ")
        for record in RunRecords(folder).finished().values():
            assert all(isinstance(warning, str) for warning in record.get("warnings", []))


def test_a_result_names_no_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("customers/jane").mkdir(parents=True)
    Path("customers/jane/faces.json").write_text("{}")
    given = {
        "faces": {"file": "customers/jane/faces.json"},
        "dr2": {"model": "google/ddpm-celebahq-256", "student": str(tmp_path / "runs/final")},
        "format": "png",
        "long": "x/" * 5000,
    }
    kept = restore_notes._without_paths(given)
    assert kept == {
        "faces": {"file": "faces.json"},
        "dr2": {"model": "google/ddpm-celebahq-256", "student": "final"},
        "format": "png",
        "long": given["long"],
    }
