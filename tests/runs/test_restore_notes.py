from dr2pipe.core.records import RunRecords
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
