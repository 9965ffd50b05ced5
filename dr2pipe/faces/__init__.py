"""Whole photos: where faces are, how they are cut out, and how they are put back."""

from dr2pipe.faces.align import Alignment, align, cut
from dr2pipe.faces.detect import DetectorConfig, build_detector, check_detector, select_faces
from dr2pipe.faces.face import Face, FaceDetector
from dr2pipe.faces.listed import ListedDetector
from dr2pipe.faces.paste import face_mask, face_patches, photo_weights
from dr2pipe.faces.quality import Quality, estimate_quality
from dr2pipe.faces.tints import FaceTint, find_tint_of_face
from dr2pipe.faces.tracker import SCORE_SLACK, FaceTracker
from dr2pipe.faces.tracks import FaceTrack

__all__ = [
    "Alignment",
    "DetectorConfig",
    "Face",
    "FaceDetector",
    "FaceTint",
    "FaceTrack",
    "FaceTracker",
    "ListedDetector",
    "Quality",
    "SCORE_SLACK",
    "align",
    "build_detector",
    "check_detector",
    "cut",
    "estimate_quality",
    "face_mask",
    "face_patches",
    "find_tint_of_face",
    "photo_weights",
    "select_faces",
]
