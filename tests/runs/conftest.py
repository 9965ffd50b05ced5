"""Small runs of ``dr2pipe video``."""

import numpy as np
import pytest

from dr2pipe.core.config import load_config
from dr2pipe.runs import video
from dr2pipe.runs.video_config import VideoConfig

NETWORK = ["dr2.tau=2", "dr2.omega=8", "dr2.factor=2", "dr2.num_evaluations=2"]
COMMON = ["faces.skip_good=false", "identity.measure=false", "faces.min_px=8", "batch_size=3"]


@pytest.fixture
def settings(model_folder):
    """A tiny network and small batches."""
    return [f"dr2.model={model_folder}", *NETWORK, *COMMON]


@pytest.fixture
def restore(settings, monkeypatch):
    """Restores a video in which discs are faces."""
    from videos import DiscDetector

    monkeypatch.setattr(video, "build_detector", lambda config: DiscDetector())

    def run(source, output, *overrides, segment_frames=6):
        given = [f"input={source}", f"output={output}", *settings, *overrides]
        config = load_config(VideoConfig, None, given)
        return video.restore_video(config, segment_frames=segment_frames)

    return run


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """16 frames with sound, the times between them uneven."""
    from videos import moving, write_video

    ticks = np.cumsum([0] + [3600, 3600, 5400, 1800] * 4)[:16].tolist()
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", moving(16), ticks=ticks)
