import pytest
from conftest import make_pictures

from dr2pipe.runs.folder_run import FolderRun
from dr2pipe.runs.jobs import find_jobs
from dr2pipe.runs.result_folders import is_result_folder, sample_folder


def test_names():
    assert [sample_folder(number) for number in (1, 2, 10)] == [
        "inpainted", "inpainted_2", "inpainted_10",
    ]  # fmt: skip
    assert all(is_result_folder(name) for name in ("restored", "inpainted", "inpainted_10"))
    assert not any(is_result_folder(name) for name in ("photos", "restored_2", "inpainted_x"))


def test_results_in_the_input_are_no_inputs(tmp_path):
    for folder in (".", "restored", "inpainted_2", "photos"):
        make_pictures(tmp_path / folder, 1)
    found = [job.relative for job in find_jobs(tmp_path, tmp_path)]
    assert found == ["face_000.png", "photos/face_000.png"]


def test_a_run_fills_known_folders_alone(tmp_path):
    make_pictures(tmp_path, 1)
    with pytest.raises(ValueError, match="new_one: add new result folders"):
        FolderRun(
            tmp_path, tmp_path / "out", process=lambda pictures, seeds: None, size=None,
            output_size=None, settings={}, outputs=["restored", "new_one"], seed=0, batch_size=1,
        )  # fmt: skip
