"""The detectors on real portraits, and what is kept of their finds."""

import itertools
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import skimage.data

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.degradations import degrade
from dr2pipe.faces import yunet
from dr2pipe.faces.detect import DetectorConfig, Face, build_detector, select_faces
from dr2pipe.faces.listed import box_around

PORTRAIT = skimage.data.astronaut()
SIDE = len(PORTRAIT)
# Placed by hand.
LANDMARKS = np.array([[202.5, 101], [248, 103.5], [223.5, 127.5], [205, 143.5], [243.5, 144.5]])
COLUMNS = "file," + ",".join(
    f"{p}_{a}" for p in ("eyeL", "eyeR", "nose", "mouthL", "mouthR") for a in "xy"
)


@pytest.fixture(scope="module")
def detector():
    return build_detector(DetectorConfig())


def error_of(face, expected):
    eyes = np.linalg.norm(expected[0] - expected[1])
    return np.linalg.norm(face.landmarks - expected, axis=1).mean() / eyes * 100


def on_grass(height, width, *places):
    """Grass with the portrait's face at each (x, y, side of the portrait), and the landmarks."""
    picture = np.repeat(cv2.resize(skimage.data.grass(), (width, height))[..., None], 3, axis=2)
    wanted = []
    for x, y, side in places:
        picture[y : y + side, x : x + side] = images.resize_pixels(PORTRAIT, (side, side))
        wanted.append(LANDMARKS * side / SIDE + [x, y])
    return picture, wanted


def test_a_portrait(detector):
    (face,) = detector.detect(PORTRAIT)
    assert error_of(face, LANDMARKS) < 6
    assert 0.7 <= face.score <= 1
    x, y, width, height = face.box
    assert (face.landmarks > [x, y]).all()
    assert (face.landmarks < [x + width, y + height]).all()
    assert face.landmarks.shape == (5, 2)
    assert all(type(value) is float for value in (*face.box, face.score))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_photo_has_the_same_face_turned(detector, turns):
    (upright,) = detector.detect(PORTRAIT)
    (face,) = detector.detect(np.rot90(PORTRAIT, turns))
    x, y = face.landmarks.T
    back = {1: (SIDE - y, x), 2: (SIDE - x, SIDE - y), 3: (y, SIDE - x)}[turns]
    np.testing.assert_allclose(np.stack(back, axis=1), upright.landmarks, atol=0.02)
    sides = face.box[2:] if turns == 2 else face.box[:1:-1]
    np.testing.assert_allclose(sides, upright.box[2:], atol=1e-3)


@pytest.mark.parametrize("degrees", [-60, -30, 30, 60])
def test_a_face_that_leans(detector, degrees):
    matrix = cv2.getRotationMatrix2D((225, 125), degrees, 1.0)
    picture = cv2.warpAffine(PORTRAIT, matrix, (SIDE, SIDE), borderValue=(128, 128, 128))
    wanted = (LANDMARKS - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5
    (face,) = detector.detect(picture)
    assert error_of(face, wanted) < 8


@pytest.mark.parametrize(
    "change",
    [
        lambda p: np.repeat(p.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8),
        lambda p: cv2.GaussianBlur(p, (0, 0), 3),
        lambda p: np.clip(p + np.random.default_rng(0).normal(0, 25, p.shape), 0, 255).astype("u1"),
        lambda p: p // 3,
        np.asfortranarray,
    ],
    ids=["grey", "blurred", "noisy", "dark", "not contiguous"],
)
def test_a_spoilt_portrait(detector, change):
    (face,) = detector.detect(change(PORTRAIT))
    assert error_of(face, LANDMARKS) < 8


@pytest.mark.parametrize("enlarged", [1, 5])
@pytest.mark.parametrize("family", ["halftone", "film_grain"])
def test_dots_and_grain_hide_no_face(detector, family, enlarged):
    """Also where the dots were scanned large."""
    small = images.resize_pixels(PORTRAIT, (256, 256))
    damaged, _ = degrade(small, family, np.random.default_rng(0), severity=2)
    (face,) = detector.detect(np.kron(damaged, np.ones((enlarged, enlarged, 1), np.uint8)))
    assert error_of(face, LANDMARKS * 256 * enlarged / SIDE) < 12


@pytest.mark.parametrize("side", [80, 160, 1400])
def test_sizes(detector, side):
    (face,) = detector.detect(images.resize_pixels(PORTRAIT, (side, side)))
    assert error_of(face, LANDMARKS * side / SIDE) < 8


@pytest.mark.parametrize(("left", "right"), [(225, 512), (0, 226)])
def test_half_a_face_at_the_border(detector, left, right):
    (face,) = detector.detect(PORTRAIT[:, left:right])
    inside = LANDMARKS[[1, 4]] if left else LANDMARKS[[0, 3]]
    found = face.landmarks[[1, 4]] if left else face.landmarks[[0, 3]]
    assert np.abs(found - (inside - [left, 0])).max() < 15


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 40000), (16, 16), (33000, 20)])
def test_pictures_of_odd_sizes_have_no_faces(detector, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert detector.detect(noise) == []


@pytest.mark.parametrize("name", ["brick", "grass", "coins", "page", "chelsea", "rocket"])
def test_pictures_without_faces(detector, name):
    pixels = getattr(skimage.data, name)()
    pixels = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    assert detector.detect(pixels) == []


def test_small_and_large_faces_of_a_large_photo(detector):
    # The first tiles end at 1,920: one small portrait lies across, one behind their border.
    picture, wanted = on_grass(2300, 2500, (60, 60, 1700), (1880, 100, 120), (2300, 2100, 110))
    found = detector.detect(picture)
    assert len(found) == 3
    for face, landmarks in zip(found, wanted, strict=False):
        assert error_of(face, landmarks) < 12
    assert found[0].side_px > 250
    assert found[0].area_px > found[1].area_px


def test_tiles_find_what_the_whole_photo_shows(detector, monkeypatch):
    places = [(x, y, 150) for x in (20, 330, 620) for y in (10, 240)]
    picture, wanted = on_grass(420, 800, *places)
    whole = detector.detect(picture)
    monkeypatch.setattr(yunet, "_TILE_PX", 400)
    monkeypatch.setattr(yunet, "_OVERLAP_PX", 100)
    tiled = detector.detect(picture)
    assert len(whole) == len(tiled) == len(wanted)
    for landmarks in wanted:
        for found in (whole, tiled):
            assert min(error_of(face, landmarks) for face in found) < 10


def test_pieces_cover_a_side_and_overlap():
    for length in (1, 1920, 1921, 5000, 7728, 40000):
        pieces = yunet._pieces(length)
        assert pieces[0][0] == 0
        assert sum(pieces[-1]) == length
        for (start, size), (following, _) in itertools.pairwise(pieces):
            assert following <= start + size - yunet._OVERLAP_PX


def test_of_overlapping_finds_the_best_stays():
    def row(x, y, side, score):
        return [x, y, side, side, *np.zeros(10), score]

    rows = np.array(
        [
            row(0, 0, 100, 0.9),
            row(40, 40, 50, 0.95 - 0.1),  # a part of the first
            row(10, 0, 100, 0.8),
            row(80, 0, 100, 0.7),  # its neighbour
            row(300, 300, 20, 0.99),
        ]
    )
    kept = yunet._merge(rows)
    assert [(r[0], r[14]) for r in kept] == [(0, 0.9), (80, 0.7), (300, 0.99)]


def test_threads_get_the_same(detector):
    pictures = [PORTRAIT, images.resize_pixels(PORTRAIT, (300, 400)), PORTRAIT[:300]]
    alone = [detector.detect(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.detect, pictures * 3))
    for i, found in enumerate(together):
        assert [f.box for f in found] == [f.box for f in alone[i % 3]]
        for a, b in zip(found, alone[i % 3], strict=True):
            assert (a.landmarks == b.landmarks).all()


def test_it_can_be_sent_to_another_process(detector):
    (face,) = pickle.loads(pickle.dumps(detector)).detect(PORTRAIT)
    assert error_of(face, LANDMARKS) < 6


def test_larger_min_px_finds_large_faces_alone():
    detector = build_detector(DetectorConfig(min_px=60))
    picture, wanted = on_grass(700, 900, (0, 0, 500), (600, 300, 120))
    found = select_faces(detector.detect(picture), DetectorConfig(min_px=60), (700, 900))
    assert len(found) == 1
    assert error_of(found[0], wanted[0]) < 8


def a_face(x=0.0, y=0.0, side=100.0, score=1.0):
    return Face((x, y, side, side), np.zeros((5, 2)), score)


def test_which_faces_are_selected():
    small, central, weak = a_face(side=15), a_face(450, 450), a_face(side=300, score=0.5)
    large = a_face(700, 0, 200)
    faces = [small, central, weak, large]

    def selected(**settings):
        return select_faces(faces, DetectorConfig(**settings), (1000, 1000))

    assert selected() == [large, central]
    assert selected(max_count=1) == [large]
    assert selected(only="largest") == [large]
    assert selected(only="center") == [central]
    assert selected(min_px=10, min_score=0.1) == [weak, large, central, small]
    assert select_faces([], DetectorConfig(only="center"), (10, 10)) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "dlib"}, "unknown face detector 'dlib'; choose from yunet, file, none"),
        ({"name": "file"}, "needs its setting 'file'"),
        ({"file": "faces.csv"}, "belongs to the face detector 'file', not to 'yunet'"),
        ({"only": "best"}, "unknown only=best; choose from all, largest, center"),
        ({"min_px": 0}, "min_px must be 1 or more"),
        ({"max_count": 0}, "max_count must be 1 or more"),
        ({"min_score": float("nan")}, "min_score must be over 0 and at most 1"),
        ({"name": "file", "file": "nowhere.csv"}, r"nowhere\.csv: no such file"),
    ],
)
def test_wrong_settings(settings, says):
    with pytest.raises(ConfigError, match=says):
        build_detector(DetectorConfig(**settings))


def test_none_finds_nothing():
    assert build_detector(DetectorConfig(name="none")).detect(PORTRAIT) == []


def listed(path, text):
    path.write_text(text)
    return build_detector(DetectorConfig(name="file", file=str(path)))


def cells(points):
    return ",".join(f"{value:g}" for value in np.ravel(points))


def test_a_csv_of_landmarks(tmp_path):
    twice = f"a/b.jpg,{cells(LANDMARKS)}\n\n./a/b.jpg,{cells(LANDMARKS / 2)}\nempty.jpg,,,,,,,,,,\n"
    detector = listed(tmp_path / "faces.csv", f"{COLUMNS}\n{twice}")
    large, small = detector.detect(PORTRAIT, "a/b.jpg")
    assert (large.landmarks == LANDMARKS).all()
    assert (small.landmarks == LANDMARKS / 2).all()
    assert large.score == 1
    assert large.box == box_around(LANDMARKS)
    assert detector.detect(PORTRAIT, "empty.jpg") == detector.detect(PORTRAIT, "other.jpg") == []


def test_a_csv_with_boxes_and_scores(tmp_path):
    text = f"{COLUMNS},x,y,width,height,score\na.jpg,{cells(LANDMARKS)},170,60,100,120,0.8\n"
    (face,) = listed(tmp_path / "faces.csv", text).detect(PORTRAIT, "a.jpg")
    assert (face.box, face.score) == ((170, 60, 100, 120), 0.8)


def test_a_json_list(tmp_path):
    faces = [{"landmarks": LANDMARKS.tolist()}, {"landmarks": LANDMARKS.tolist(), "score": 0.9}]
    faces[1]["box"] = [170, 60, 10, 12]
    detector = listed(tmp_path / "faces.json", json.dumps({"a/b.jpg": faces, "c.jpg": []}))
    first, second = detector.detect(PORTRAIT, "a/b.jpg")
    assert (first.box, first.score) == (box_around(LANDMARKS), 1)
    assert (second.box, second.score) == ((170, 60, 10, 12), 0.9)
    assert detector.detect(PORTRAIT, "c.jpg") == []


def test_the_box_around_landmarks_is_like_yunets(detector):
    for turns in range(4):
        (face,) = detector.detect(np.rot90(PORTRAIT, turns))
        x, y, width, height = face.box
        left, top, wide, tall = box_around(face.landmarks)
        assert abs(wide / width - 1) < 0.35
        assert abs(tall / height - 1) < 0.35
        assert np.hypot(left + wide / 2 - x - width / 2, top + tall / 2 - y - height / 2) < 20


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (LANDMARKS + 600, "the box lies outside the photo of 512 x 512 pixels"),
        (LANDMARKS[[1, 0, 2, 3, 4]], "the eyes are swapped"),
        (LANDMARKS[[0, 0, 2, 3, 4]], "the eyes are in one place"),
        (np.where(LANDMARKS == 101, np.nan, LANDMARKS), "landmarks must be 5 x 2 finite numbers"),
        (np.where(LANDMARKS == 127.5, 1e9, LANDMARKS), "some landmarks lie far outside"),
    ],
)
def test_faces_that_cannot_be(tmp_path, points, says):
    text = f"{COLUMNS}\ngood.jpg,{cells(LANDMARKS)}\nbad.jpg,{cells(points)}\n"
    detector = listed(tmp_path / "faces.csv", text)
    assert len(detector.detect(PORTRAIT, "good.jpg")) == 1
    with pytest.raises(PictureError, match=rf"faces\.csv, line 3: {says}"):
        detector.detect(PORTRAIT, "bad.jpg")


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ("600,600,10,10,1", "the box lies outside"),
        ("1,1,-5,10,1", "the box has the size -5 x 10"),
        ("1,1,,10,1", "box must be 4 finite numbers"),
        ("1,1,10,10,2", "the score must be from 0 to 1, not 2"),
        ("1,1,10,10,good", "score must be a finite number"),
    ],
)
def test_boxes_and_scores_that_cannot_be(tmp_path, box, says):
    text = f"{COLUMNS},x,y,width,height,score\na.jpg,{cells(LANDMARKS)},{box}\n"
    with pytest.raises(PictureError, match=f"line 2: {says}"):
        listed(tmp_path / "faces.csv", text).detect(PORTRAIT, "a.jpg")


def test_an_upside_down_face_has_no_swapped_eyes(tmp_path):
    text = f"{COLUMNS}\na.jpg,{cells(512 - LANDMARKS)}\n"
    assert len(listed(tmp_path / "faces.csv", text).detect(PORTRAIT, "a.jpg")) == 1


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "file,eyeL_x\n", "has no column 'eyeL_y'"),
        ("a.csv", f"{COLUMNS},x,y,width\n1,{cells(LANDMARKS)},1,1,1\n", "has no column 'height'"),
        ("a.csv", "", "has no column 'file'"),
        ("a.json", "[]", "holds a list, not a JSON object"),
        ("a.json", "{", "is no JSON"),
        ("a.json", '{"a.jpg": {"landmarks": 1}}', "'a.jpg' must be a list of objects"),
        ("a.json", '{"a.jpg": [{"box": [1, 1, 1, 1]}]}', "'a.jpg', face 1: no 'landmarks'"),
        ("a.json", '{"a.jpg": [{"landmark": []}]}', "'a.jpg', face 1: unknown 'landmark'"),
    ],
)
def test_lists_of_another_kind(tmp_path, name, text, says):
    with pytest.raises(ConfigError, match=says):
        listed(tmp_path / name, text)


@pytest.mark.parametrize("landmarks", ["[1, 2]", '"x"', "[[1, 2], [3]]", "null", "[[1e999, 1]]"])
def test_json_landmarks_of_another_shape(tmp_path, landmarks):
    detector = listed(tmp_path / "a.json", f'{{"a.jpg": [{{"landmarks": {landmarks}}}]}}')
    with pytest.raises(PictureError, match=r"a\.json, 'a\.jpg', face 1: landmarks must be 5 x 2"):
        detector.detect(PORTRAIT, "a.jpg")
