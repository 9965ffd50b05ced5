import pytest
from conftest import make_pictures

from dr2pipe.runs.folder_run import FolderRun
from dr2pipe.runs.result_folders import is_result_folder, sample_folder
from dr2pipe.runs.steps import Steps


def test_names():
    assert [sample_folder(number) for number in (1, 2, 10)] == [
        "inpainted", "inpainted_2", "inpainted_10",
    ]  # fmt: skip
    assert all(is_result_folder(name) for name in ("restored", "inpainted", "inpainted_10"))
    assert not any(is_result_folder(name) for name in ("photos", "restored_2", "inpainted_x"))


def test_a_run_fills_known_folders_alone(tmp_path):
    make_pictures(tmp_path, 1)
    with pytest.raises(ValueError, match="new_one: add new result folders"):
        FolderRun(tmp_path, tmp_path / "out", Steps(process=lambda pictures, seeds: None, size=None, output_size=None, settings={}, outputs=["restored", "new_one"], seed=0, batch_size=1,))  # fmt: skip
