import demo
import numpy as np
import pytest
from PIL import Image

from dr2pipe.faces.align import align, cut
from dr2pipe.faces.paste import photo_weights


def test_the_demo_restores_two_portraits(tmp_path):
    table = demo.restore_portraits(tmp_path)
    assert len(list((tmp_path / "input").iterdir())) == 2
    with Image.open(tmp_path / "compare" / "grace_hopper.png") as picture:
        assert picture.width >= 4 * picture.height  # degraded | coarse | restored | original
    psnr = {tuple(line.split()[:2]): float(line.split()[2]) for line in table.splitlines()[2:8]}
    for name in ("grace_hopper", "eileen_collins"):
        assert psnr[name, "restored"] > psnr[name, "degraded"] + 0.5


def test_the_demo_restores_every_face_of_a_photo(tmp_path):
    table = demo.restore_photo(tmp_path)
    lines = [line.split() for line in table.splitlines()[3:9]]
    assert [line[0] for line in lines] == [shown.portrait for shown in demo.PRINTS]
    for _, _, found, before, after in lines:
        assert found == "yes"
        assert float(after) > float(before) + 0.3
    with Image.open(tmp_path / "output" / "compare" / "table.png") as picture:
        assert picture.width >= 2 * demo._PHOTO_SIZE_PX[1]  # before | after


def test_a_print_shows_its_face_where_the_alignment_says():
    shown = demo.Print("eileen_collins", 420, 280, 140, 20)
    photo, (alignment,) = demo.compose_photo([shown])
    assert alignment.side_px == pytest.approx(140, rel=1e-3)
    portrait = demo.PORTRAITS["eileen_collins"]
    expected = cut(portrait.load(), align(np.array(portrait.landmarks)), 64)
    error = np.abs(cut(photo, alignment, 64).astype(float) - expected)
    assert error[8:56, 8:56].mean() < 3  # the border of the crop is the table
    assert error.mean() < 30


def test_the_psnr_of_a_face_counts_its_mask_alone():
    shown = demo.Print("grace_hopper", 420, 280, 120, 0)
    photo, (alignment,) = demo.compose_photo([shown])
    inside = photo_weights(alignment, photo.shape[:2]) > 0
    changed = np.where(inside[..., None], 110, 255 - photo).astype(np.uint8)
    original = np.where(inside[..., None], 100, photo).astype(np.uint8)
    expected = 20 * np.log10(255 / 10)
    assert demo.face_psnr(changed, original, alignment) == pytest.approx(expected)


def test_a_face_is_found_only_where_its_landmarks_are():
    _, (alignment,) = demo.compose_photo([demo.Print("grace_hopper", 420, 280, 120, 10)])
    landmarks = points_in_photo(alignment)
    assert demo.is_found(alignment, [{"landmarks": landmarks.tolist()}])
    assert not demo.is_found(alignment, [{"landmarks": (landmarks + 15).tolist()}])
    assert not demo.is_found(alignment, [])


def points_in_photo(alignment):
    return alignment.landmarks @ alignment.to_photo[:, :2].T + alignment.to_photo[:, 2]
