"""A worn print of a face, and what the page's functions are called with."""

from types import SimpleNamespace

import numpy as np
import skimage.data
from PIL import Image


def say(share, stage):
    assert 0 <= share <= 1
    assert stage


def request_of(session):
    return SimpleNamespace(session_hash=session)


def worn_photo(path, seed=0, faces=1):
    """A noisy print with so many faces beside each other."""
    portrait = (
        Image.fromarray(skimage.data.astronaut()).crop((130, 10, 330, 210)).resize((140, 140))
    )
    photo = Image.new("RGB", (40 + 170 * faces, 190), (120, 110, 90))
    for number in range(faces):
        photo.paste(portrait.resize((140 - 10 * number,) * 2), (30 + 170 * number, 25))
    noise = np.random.default_rng(seed).normal(0, 12, (*photo.size[::-1], 3))
    Image.fromarray(np.clip(np.asarray(photo) + noise, 0, 255).astype(np.uint8)).save(path)
    return path
