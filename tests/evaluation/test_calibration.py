import pytest
import torch
from scipy import stats

from dr2pipe.evaluation.calibration import rank_correlation


def test_rank_correlation_equals_scipys():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(512, 512, generator=generator).double()
    b = a + torch.rand(512, 512, generator=generator)
    a[:256] = 0  # ties: saturated pixels have no spread
    expected = stats.spearmanr(a.flatten(), b.flatten()).statistic
    assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-9)
    assert rank_correlation(torch.arange(9), -(torch.arange(9) ** 3)) == pytest.approx(-1)
    assert rank_correlation(torch.ones(5), torch.arange(5)) == 0
