"""Whole photos: what changes, what does not, and how faces are treated."""

import io
import json

import cv2
import numpy as np
import pytest
import torch
from photos import detailed_photo, landmarks_at, smooth_photo
from PIL import Image, ImageCms

import dr2pipe
from dr2pipe.core import images
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.diffusion.stage1 import Remover
from dr2pipe.faces import Face
from dr2pipe.faces.align import align
from dr2pipe.faces.listed import load_list
from dr2pipe.faces.paste import photo_weights
from dr2pipe.restoration.photo_restorer import PhotoRestorer
from dr2pipe.restoration.placing import FacesConfig
from dr2pipe.restoration.settings import RestorationConfig, load_photo_engine

NETWORK = ["dr2.tau=2", "dr2.omega=8", "dr2.factor=2", "dr2.num_evaluations=2"]


class Given:
    """A detector that knows where the faces are."""

    def __init__(self, *places):
        self.points = [landmarks_at(*place) for place in places]

    def detect(self, image, path=""):
        return [
            Face((*points.min(axis=0), *np.ptp(points, axis=0)), points, 1.0)
            for points in self.points
        ]


def engine_for(model_folder, *places, **settings):
    overrides = [f"{name}={value}" for name, value in settings.items()]
    given = [f"dr2.model={model_folder}", *NETWORK, "faces.name=none", "identity.measure=false"]
    config = load_config(RestorationConfig, None, [*given, "faces.skip_good=false", *overrides])
    engine, _ = load_photo_engine(config, "cpu")
    engine.placer.detector = Given(*places)
    return engine


def decoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return images.decode_image(buffer.getvalue(), keep_own=True, whole_photo=True)


def restored(engine, *pictures, seeds=None):
    photos = [engine.prepare(picture) for picture in pictures]
    return engine.restore(photos, seeds or list(range(len(photos))))


def inside(shape, *places):
    """Where a photo may change."""
    mask = np.zeros(shape[:2], bool)
    for place in places:
        mask |= photo_weights(align(landmarks_at(*place)), shape[:2]) > 0
    return mask


FACES = ((100, 120, 90), (280, 150, 110, 25))


@pytest.mark.parametrize("kind", ["8 bits", "grey", "alpha"])
def test_only_the_ovals_change(model_folder, kind):
    pixels = smooth_photo()
    if kind == "grey":
        pixels = pixels[..., 0]
    elif kind == "alpha":
        pixels = np.dstack([pixels, smooth_photo(seed=1)[..., 0]])
    picture = decoded(pixels)
    (result,) = restored(engine_for(model_folder, *FACES), picture)
    mask = inside(pixels.shape, *FACES)
    before = pixels[..., :3] if kind == "alpha" else pixels
    assert result.levels.shape == before.shape
    assert result.levels.dtype == np.uint8
    assert (result.levels == before)[~mask].all()
    assert (result.levels != before)[mask].mean() > 0.5


def test_16_bits_stay_16_bits(model_folder):
    rng = np.random.default_rng(0)
    deep = smooth_photo().astype(np.uint16) * 257 ^ rng.integers(0, 64, (300, 400, 3), np.uint16)
    data = images.encode_png(deep)
    picture = images.decode_image(data, keep_own=True, whole_photo=True)
    (result,) = restored(engine_for(model_folder, *FACES), picture)
    mask = inside(deep.shape, *FACES)
    assert result.levels.dtype == np.uint16
    assert (result.levels == deep)[~mask].all()
    assert (result.levels != deep)[mask].mean() > 0.9


def test_a_face_does_not_depend_on_its_batch(model_folder):
    one, two = smooth_photo(seed=1), smooth_photo(seed=2)
    together = restored(engine_for(model_folder, *FACES), decoded(one), decoded(two), seeds=[5, 6])
    (alone,) = restored(engine_for(model_folder, *FACES, batch_size=1), decoded(two), seeds=[6])
    assert np.abs(together[1].levels.astype(int) - alone.levels).max() <= 1
    # Nor on the other faces of its photo.
    (first,) = restored(engine_for(model_folder, FACES[0]), decoded(two), seeds=[6])
    mask = inside(two.shape, FACES[0]) & ~inside(two.shape, FACES[1])
    assert np.abs(alone.levels.astype(int) - first.levels)[mask].max() <= 1


def test_seeds_come_from_photo_and_place(model_folder):
    pixels = smooth_photo()
    engine = engine_for(model_folder, *FACES)
    seeds = [
        [face.record["seed"] for face in result.faces]
        for result in restored(engine, decoded(pixels), decoded(pixels), seeds=[1, 2])
    ]
    assert len({*seeds[0], *seeds[1]}) == 4


def test_no_face_and_nothing_pasted_leave_the_photo_alone(model_folder):
    pixels = smooth_photo()
    (result,) = restored(engine_for(model_folder), decoded(pixels))
    assert result.levels is None
    assert result.warnings == ["no face was found"]
    blended = engine_for(model_folder, *FACES, **{"faces.blend": 0})
    (result,) = restored(blended, decoded(pixels))
    assert result.levels is None
    assert len(result.faces) == 2


def test_blend_is_a_share_of_the_result(model_folder):
    pixels = smooth_photo()
    full, half = (
        restored(engine_for(model_folder, *FACES, **{"faces.blend": share}), decoded(pixels))[0]
        for share in (1, 0.5)
    )
    expected = (full.levels.astype(float) + pixels) / 2
    assert np.abs(half.levels - expected).max() <= 1


def test_slow_colours_are_those_of_the_photo(model_folder):
    pixels = smooth_photo(cells=3)
    place = (200, 150, 200)
    (kept,), (free,) = (
        restored(engine_for(model_folder, place, **{"paste.match_colours": match}), decoded(pixels))
        for match in ("true", "false")
    )
    mask = inside(pixels.shape, place)

    def shift(result):
        difference = result.levels.astype(float) - pixels
        return np.abs(difference[mask].mean(axis=0)).max()

    assert shift(kept) < 2 < shift(free)


def test_grey_photos_stay_grey_and_sepia_stays_sepia(model_folder):
    grey = smooth_photo()[..., :1].repeat(3, axis=2)
    sepia = np.clip(grey * np.array([1.0, 0.85, 0.65]), 0, 255).astype(np.uint8)
    for pixels in (grey, sepia):
        picture = decoded(pixels)
        (result,) = restored(engine_for(model_folder, *FACES), picture)
        assert picture.tint is not None
        found, wanted = (p.astype(float) for p in (result.levels, pixels))
        for a, b in ((0, 1), (1, 2)):
            ratio = (found[..., a] + 1) / (found[..., b] + 1)
            expected = (wanted[..., a] + 1) / (wanted[..., b] + 1)
            assert np.median(np.abs(ratio - expected)) < 0.02
        assert (result.levels != pixels).mean() > 0.05


def chroma(pixels):
    blue, red = (pixels[..., i].astype(float) - pixels.astype(float).mean(axis=2) for i in (2, 0))
    return np.hypot(blue, red)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_portrait_is_judged_by_itself_not_by_its_page(model_folder, scale):
    """In colour on a grey page, and grey on a coloured page or between portraits in colour."""
    place = (700, 615, 150)
    around = np.s_[540:690, 610:790]
    size = (1200, 1400)
    grey = smooth_photo(150, 180, seed=1, cells=12)[..., :1].repeat(3, axis=2)
    colours = smooth_photo(150, 180, seed=1, cells=12).astype(float) - 128
    coloured = np.clip(grey + 0.25 * colours, 0, 255).astype(np.uint8)
    lines = smooth_photo(*size, cells=40)[..., :1].repeat(3, axis=2) // 2 + 127
    tan = np.full((*size, 3), (205, 180, 140), np.uint8)
    tan[:400, :600] = smooth_photo(400, 600, seed=2)
    for page, portrait in ((lines, coloured), (tan, grey)):
        pixels = page.copy()
        pixels[around] = portrait
        picture = decoded(pixels)
        assert (images.find_tint(pixels) is None) == (page is tan)
        (result,) = restored(engine_for(model_folder, place, scale=scale), picture)
        after = images.resize_pixels(images.reduced(result.levels), size)[around]
        if portrait is grey:
            assert chroma(after[20:-20, 20:-20]).max() <= 1  # what enlarging mixes in at its edge
        else:
            assert chroma(after).mean() > 0.8 * chroma(portrait).mean()
        changed = np.abs(after.astype(float) - pixels[around]).max(axis=2) > 2
        assert changed.mean() > 0.05


@pytest.mark.parametrize("where", [(565, 256), (256, 575), (-60, 256), (256, -60), (550, 550)])
def test_a_face_at_the_edge_of_a_sepia_photo_has_its_tint(model_folder, where):
    grey = smooth_photo(512, 512)[..., :1].repeat(3, axis=2)
    sepia = np.clip(grey * np.array([1.0, 0.85, 0.65]), 0, 255).astype(np.uint8)
    picture = decoded(sepia)
    photo = engine_for(model_folder, (*where, 155), (256, 256, 200)).prepare(picture)
    assert picture.tint is not None
    assert len(photo.faces) == 2
    for face in photo.faces:
        assert face.tint is not None
        assert (face.look[..., 0] == face.look[..., 2]).all()


def test_an_evenly_coloured_face_is_in_colour(model_folder):
    """Skin in one tone, with blue eyes and a red mouth, is no tinted photograph."""
    pixels = np.full((300, 300, 3), (90, 110, 150), np.uint8)
    cv2.ellipse(pixels, (150, 150), (90, 120), 0, 0, 360, (205, 160, 140), -1)
    for x in (122, 178):
        cv2.circle(pixels, (x, 140), 9, (90, 120, 175), -1)
    cv2.ellipse(pixels, (150, 195), (24, 8), 0, 0, 360, (180, 80, 85), -1)
    light = np.linspace(0.6, 1, 300)[None, :, None]
    noise = np.random.default_rng(0).normal(0, 3, (300, 300, 1))
    picture = decoded(images.round_to_uint8(pixels * light + noise))
    (face,) = engine_for(model_folder, (150, 150, 260)).prepare(picture).faces
    assert face.tint is None


@pytest.mark.parametrize("scale", [2, 4])
def test_scale_enlarges_photo_and_alpha(model_folder, scale):
    pixels = np.dstack([smooth_photo(), smooth_photo(seed=1)[..., 0]])
    picture = decoded(pixels)
    (result,) = restored(engine_for(model_folder, *FACES, scale=scale), picture)
    assert result.levels.shape == (300 * scale, 400 * scale, 3)
    assert picture.alpha.shape == (300 * scale, 400 * scale)
    small = images.resize_pixels(result.levels, (300, 400)).astype(float)
    mask = inside(pixels.shape, *FACES)
    assert np.abs(small - pixels[..., :3])[~mask].mean() < 2
    assert np.abs(small - pixels[..., :3])[mask].mean() > 2


def test_a_good_face_is_left_alone(model_folder):
    settings = {"faces.skip_good": "true", "enhancer.name": "bicubic"}
    settings["enhancer.options"] = "{size: 256}"  # from 16 pixels to 256: 64 is halfway
    engine = engine_for(model_folder, (256, 256, 480), **settings)
    sharp = detailed_photo(512)
    soft = images.resize_pixels(images.resize_pixels(sharp, (32, 32)), (512, 512))
    good, bad = restored(engine, decoded(sharp), decoded(soft))
    assert good.levels is None
    assert "the networks, which give 64, would only reduce it" in good.faces[0].record["skipped"]
    assert bad.levels is not None
    assert "skipped" not in bad.faces[0].record


def test_a_batch_that_is_too_large_becomes_smaller(model_folder, monkeypatch):
    engine = engine_for(model_folder, *FACES, (60, 220, 80), batch_size=3)
    usual, sizes = engine.restorer.restorer._run, []

    def run(degraded, *rest):
        sizes.append(len(degraded))
        if len(degraded) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return usual(degraded, *rest)

    monkeypatch.setattr(engine.restorer.restorer, "_run", run)
    (result,) = restored(engine, decoded(smooth_photo()))
    assert sizes == [3, 1, 1, 1]
    assert len(result.faces) == 3


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("faces.blend", 1.5, "faces.blend=1.5"),
        ("scale", 3, "choose 1, 2, 4"),
        ("background.name", "esrgan", "choose lanczos or spandrel"),
        ("background.weights", "x.pth", "belong to background.name=spandrel"),
        ("faces.only", "smallest", "largest"),
        ("identity.minimum", 2, "identity.minimum=2"),
    ],
)
def test_invalid_settings(model_folder, name, value, says):
    with pytest.raises(ConfigError, match=says):
        engine_for(model_folder, **{name: value})


def test_a_good_neighbour_is_not_pasted_over(model_folder):
    pixels, places = smooth_photo(), ((150, 150, 160), (230, 150, 150))
    engine = engine_for(model_folder, *places)
    photo = engine.prepare(decoded(pixels))
    photo.faces[1].skipped = "good"
    (result,) = engine.restore([photo], [0])
    middle = np.s_[140:160, 197:202]  # where both ovals are, nearer to the second face
    assert inside(pixels.shape, places[0])[middle].any()
    assert (result.levels[middle] == pixels[middle]).all()
    assert (result.levels != pixels).any()


# -- from Python -----------------------------------------------------------------------------


@pytest.fixture
def restorer(model_folder):
    return PhotoRestorer(engine_for(model_folder, *FACES))


def test_every_kind_of_picture_gives_the_same_result(restorer, tmp_path):
    pixels = smooth_photo()
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    expected = restorer(pixels)
    assert isinstance(expected.image, np.ndarray)
    assert len(expected.faces) == 2
    for given in (Image.fromarray(pixels), tmp_path / "photo.png", images.to_tensor(pixels)):
        result = restorer(given)
        assert result.faces == expected.faces
        image = result.image
        if isinstance(given, torch.Tensor):
            assert image.shape == given.shape
            image = images.to_uint8(image)[0]
        assert (np.asarray(image) == expected.image).all()


def test_odd_kinds_of_pictures(restorer):
    grey = Image.fromarray(smooth_photo()[..., 0])
    assert restorer(grey).image.mode == "L"
    transparent = Image.fromarray(smooth_photo()).convert("RGBA")
    transparent.putalpha(grey)
    result = restorer(transparent).image
    assert result.mode == "RGBA"
    assert (np.asarray(result)[..., 3] == np.asarray(grey)).all()
    for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), torch.zeros(2, 3, 8, 8)):
        with pytest.raises(PictureError, match="expected"):
            restorer(wrong)
    for wrong in (
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.full((3, 8, 8), 255.0),
        np.zeros((0, 4, 3), np.uint8),
        [Image.new("RGB", (8, 8))],
        None,
    ):
        with pytest.raises(PictureError, match="expected"):
            restorer(wrong)
    with pytest.raises(PictureError, match="not finite"):
        restorer(torch.full((3, 8, 8), float("nan")))


def test_pillow_results_keep_their_profile_and_resolution(restorer, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    given = tmp_path / "photo.png"
    Image.fromarray(smooth_photo()).save(given, icc_profile=profile, dpi=(240, 240))
    result = restorer(Image.open(given)).image
    assert result.info["icc_profile"] == profile
    assert result.info["dpi"] == pytest.approx((240, 240), abs=0.1)


def test_results_without_a_face_can_be_drawn_on(model_folder, tmp_path):
    restorer = PhotoRestorer(engine_for(model_folder))
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    for photo in (np.zeros((40, 40, 3), np.uint8), tmp_path / "a.png"):
        result = restorer(photo)
        assert result.faces == []
        result.image[0, 0] = 255
    assert photo == tmp_path / "a.png"


def test_errors_name_the_file(restorer, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    for name in ("broken.jpg", "missing.jpg"):
        with pytest.raises(PictureError, match=name):
            restorer(tmp_path / name)


def test_a_list_is_asked_for_the_longest_ending(model_folder, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/a.png"):
        Image.fromarray(smooth_photo()).save(tmp_path / name)
    points = [{"landmarks": landmarks_at(*face).round(2).tolist()} for face in FACES[:2]]
    (tmp_path / "faces.json").write_text(json.dumps({"a.png": points[:1], "sub/a.png": points}))
    engine = engine_for(model_folder)
    engine.placer.detector = load_list(tmp_path / "faces.json")
    restore = PhotoRestorer(engine)
    assert len(restore(tmp_path / "a.png").faces) == 1
    assert len(restore(tmp_path / "sub" / "a.png").faces) == 2


def test_a_section_as_a_mapping_counts_like_single_settings():
    one = PhotoRestorer.from_preset("portrait128", dr2={"tau": 20})
    other = PhotoRestorer.from_preset("portrait128", dr2__tau=20)
    found = [r.engine.restorer.restorer.remover.tau for r in (one, other)]
    assert found == [20, 20]
    assert isinstance(
        PhotoRestorer.from_preset(dr2={"tau": 20}).engine.restorer.restorer.remover, Remover
    )


def test_a_list_needs_the_photos_name(model_folder, tmp_path):
    Image.fromarray(smooth_photo()).save(tmp_path / "photo.png")
    points = landmarks_at(*FACES[0]).round(2).tolist()
    (tmp_path / "faces.json").write_text(json.dumps({"photo.png": [{"landmarks": points}]}))
    engine = engine_for(model_folder)
    engine.placer.detector = load_list(tmp_path / "faces.json")
    engine.faces.name = "file"
    assert len(PhotoRestorer(engine)(tmp_path / "photo.png").faces) == 1
    with pytest.raises(ConfigError, match="give the path"):
        PhotoRestorer(engine)(smooth_photo())


def test_from_preset(model_folder):
    settings = {
        "dr2__model": model_folder,
        "dr2__tau": 2,
        "dr2__omega": 8,
        "enhancer__name": "none",
    }
    found = dr2pipe.PhotoRestorer.from_preset("default", faces__name="none", seed=7, **settings)
    assert found.seed == 7
    assert found.engine.restorer.output_size == 16
    assert isinstance(found.engine.faces, FacesConfig)
    with pytest.raises(ConfigError, match="no preset"):
        dr2pipe.PhotoRestorer.from_preset("best")
    with pytest.raises(ConfigError, match="whole photos"):
        dr2pipe.PhotoRestorer.from_preset("default", faces__mode="aligned", **settings)


def test_grey_pictures_of_16_bits_keep_them():
    levels = np.random.default_rng(0).integers(0, 65536, (40, 50), dtype=np.uint16)
    restorer = PhotoRestorer.from_preset(
        "default",
        **{"dr2.enabled": False, "enhancer.name": "none", "faces.name": "none"},
        **{"identity.measure": False},
    )
    result = restorer(Image.fromarray(levels)).image
    assert result.mode == "I;16"
    assert np.array_equal(np.asarray(result), levels)
