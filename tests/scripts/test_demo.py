import demo
import numpy as np
from conftest import make_pixels
from PIL import Image


def test_the_demo_restores_two_portraits(tmp_path):
    table = demo.run_demo(tmp_path)
    assert len(list((tmp_path / "input").iterdir())) == 2
    with Image.open(tmp_path / "compare" / "grace_hopper.png") as picture:
        assert picture.width >= 4 * picture.height  # degraded | coarse | restored | original
    psnr = {tuple(line.split()[:2]): float(line.split()[2]) for line in table.splitlines()[1:7]}
    for name in ("grace_hopper", "eileen_collins"):
        assert psnr[name, "restored"] > psnr[name, "degraded"] + 0.5


def test_a_face_is_cut_out_by_its_landmarks():
    pixels = make_pixels(0, 64, 64)
    landmarks = demo._TEMPLATE * 64
    whole = demo.crop(pixels, landmarks, 64)
    assert np.abs(whole.astype(int) - pixels).mean() < 8
    turned = demo.crop(pixels[::-1, ::-1], 64 - landmarks, 64)  # by 180 degrees
    assert np.abs(turned.astype(int) - whole).mean() < 8
