"""Ranks of features, where they are known."""

from __future__ import annotations

import math

import pytest
import torch

from cl_diffusion.metrics.plasticity import effective_rank, stable_rank


def test_ranks_of_features_that_are_known() -> None:
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert stable_rank(torch.eye(5)) == pytest.approx(5)
    one = torch.randn(20, 1) @ torch.randn(1, 7)
    assert effective_rank(one) == pytest.approx(1, abs=1e-4)
    assert stable_rank(one) == pytest.approx(1, abs=1e-4)
    two = torch.diag(torch.tensor([3.0, 1.0]))
    assert stable_rank(two) == pytest.approx(10 / 9)
    assert effective_rank(two) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert effective_rank(10 * two) == pytest.approx(effective_rank(two))
    assert math.isnan(effective_rank(torch.zeros(3, 2)))
    assert math.isnan(stable_rank(torch.zeros(3, 2)))
