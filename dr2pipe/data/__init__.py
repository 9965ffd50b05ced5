"""Data sets for training: folders of aligned faces, and pairs, masks and landmarks for them."""

from dr2pipe.data.coarse import CoarseCache
from dr2pipe.data.degradation_grid import DegradationGrid
from dr2pipe.data.degradation_pairs import DegradationPairs
from dr2pipe.data.folders import FaceDataset, write_pictures
from dr2pipe.data.landmarks import read_parts
from dr2pipe.data.masked import MaskedFaces
from dr2pipe.data.pairs import PairDataset
from dr2pipe.data.showings import ShowingDataset, ShuffledBatches
from dr2pipe.data.tones import TonedFaces

__all__ = [
    "CoarseCache",
    "DegradationGrid",
    "DegradationPairs",
    "FaceDataset",
    "MaskedFaces",
    "PairDataset",
    "ShowingDataset",
    "ShuffledBatches",
    "TonedFaces",
    "read_parts",
    "write_pictures",
]
