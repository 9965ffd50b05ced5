"""Pictures and grey spaces for tests of colour; see scripts/research/colour_files.py."""

import numpy as np
from colour_files import GREY_SPACES
from conftest import make_pixels

GREY = {**GREY_SPACES, "grey_linear": 1.0}


def photo(height=48, width=64):
    """A picture of muted colours, which lie inside sRGB."""
    return (make_pixels(5, height, width) * 0.6 + 50).astype(np.uint8)
