"""Whether the share of Panini-Net's prior rises with the damage."""

import re
import sys

import measure_prior_share
import numpy as np
import pytest
from conftest import make_pictures
from measure_prior_share import correlate

from dr2pipe.enhancers import build_enhancer


def test_correlation_is_that_of_ranks():
    severities = [1, 2, 3, 4, 5]
    rng = np.random.default_rng(0)
    rising = np.exp(np.array(severities) + rng.uniform(0, 0.1, (30, 5)))
    found = correlate(rising, severities)
    assert found.value > 0.97
    assert max(abs(found.low - found.value), abs(found.high - found.value)) < 0.01
    falling = correlate(-rising, severities)
    assert abs(falling.value + found.value) < 1e-6
    nothing = correlate(rng.uniform(size=(30, 5)), severities)
    assert abs(nothing.value) < 0.3
    assert nothing.high - nothing.low > 0.1


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_family(tmp_path, monkeypatch, capsys):
    network = build_enhancer(
        "panini", input_size=32, size=32, fused_size=8, rrdb_channels=4, rrdb_blocks=1,
        degradation_width=8, style_channels=16, mapping_layers=1, narrow=0.03125,
    )  # fmt: skip
    network.save_pretrained(tmp_path / "model")
    make_pictures(tmp_path / "faces", 4, height=32, width=32)
    command = ["measure_prior_share", tmp_path / "model", tmp_path / "faces", "--size", "32"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    assert measure_prior_share.main() == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(measure_prior_share.FAMILIES) + 2
    assert all(re.search(r"[+-]\d\.\d\d \([+-]\d\.\d\d to [+-]\d\.\d\d\)", row) for row in rows)
