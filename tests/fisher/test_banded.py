from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cl_diffusion import DDPM
from cl_diffusion.diffusion import NoiseSchedule, SNRBand, SNRBands, quantile_bands
from cl_diffusion.fisher import (
    BandedFisher,
    DiagonalFisher,
    KroneckerFisher,
    LeadingEigenpairsFisher,
    MeanGradientFisher,
    OutputLoss,
    OutputNormalized,
    SquaredError,
    estimate,
)
from cl_diffusion.linalg import Diagonal, LowRank, OperatorSum, parameters
from tests.fisher.laws import batches, dense_gradients, dense_operator, problem, second_moment, squared_error
from tests.tiny import unet

NAMES = ("negative", "small", "large")


class BySign:
    """Whether a sample's first target is negative, small, or large."""

    def __call__(self, batch: tuple[Tensor, ...]) -> Tensor:
        y = batch[-1][:, 0]
        return (y > 0).long() + (y > 0.7).long()


def labels(data: tuple[Tensor, ...]) -> Tensor:
    return BySign()(data)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_the_sum_over_bands_is_the_estimate_over_all_samples(kind: str) -> None:
    model, data = problem(kind)
    whole = estimate(DiagonalFisher(), model, squared_error, batches(data, 4))
    banded = estimate(BandedFisher(DiagonalFisher(), BySign(), names=NAMES), model, squared_error, batches(data, 4))
    assert isinstance(banded, Diagonal)
    torch.testing.assert_close(banded.diagonal(), whole.diagonal(), rtol=1e-12, atol=0)
    record = banded.provenance.record[0]
    assert sum(record[f"{name}/samples"] for name in NAMES) == record["samples"] == 13
    assert sum(record[f"{name}/trace_share"] for name in NAMES) == pytest.approx(1.0)


def test_each_band_is_its_own_conditional_estimate() -> None:
    model, data = problem("mlp")
    g = dense_gradients(model, data)
    fisher = BandedFisher(LeadingEigenpairsFisher(), BySign(), names=NAMES, weights={"negative": 2.0, "large": 0.5})
    operator = estimate(fisher, model, squared_error, batches(data, 4))
    assert isinstance(operator, LowRank)
    expected = 0
    for band, weight in ((0, 2.0), (2, 0.5)):
        values, vectors = torch.linalg.eigh(second_moment(g[labels(data) == band]))
        expected = expected + weight * values[-1] * torch.outer(vectors[:, -1], vectors[:, -1])
    torch.testing.assert_close(dense_operator(operator, model), expected, rtol=1e-5, atol=1e-6)


def test_a_weighting_is_fitted_within_each_band() -> None:
    model, data = problem("mlp")
    g = dense_gradients(model, data)
    s = 2 * squared_error(model, data).detach()
    weighting = OutputNormalized(kappa=0.1)
    loss = OutputLoss(SquaredError())
    fisher = BandedFisher(DiagonalFisher(weighting=weighting), BySign(), names=NAMES)
    operator = estimate(fisher, model, loss, batches(data, 4))
    expected = torch.zeros(g.shape[1], dtype=torch.float64)
    for band in range(3):
        inside = labels(data) == band
        median = s[inside].quantile(0.5)
        expected += (g[inside].square() / (s[inside] + 0.1 * median)[:, None]).sum(0) / 13
    torch.testing.assert_close(parameters.flatten(operator.diagonal()), expected)


def test_an_estimator_for_each_band_and_a_sum_without_closed_form() -> None:
    model, data = problem("mlp")
    fishers = {"negative": KroneckerFisher(), "small": DiagonalFisher(), "large": MeanGradientFisher()}
    operator = estimate(BandedFisher(fishers, BySign(), names=NAMES), model, squared_error, batches(data, 4))
    assert isinstance(operator, OperatorSum)
    with pytest.raises(NotImplementedError, match="no closed form"):
        operator.resolvent({n: p.detach() for n, p in model.named_parameters()}, 0.1)
    assert "negative: Kronecker" in operator.provenance.identity["estimator"]


def test_bands_of_a_diffusion_model_partition_its_timesteps() -> None:
    torch.manual_seed(0)
    schedule = NoiseSchedule.linear(50)
    model = DDPM(unet(), schedule=schedule)
    bands = SNRBands(quantile_bands(schedule))
    images, classes = torch.rand(24, 1, 8, 8) * 2 - 1, torch.arange(24) % 4
    data = [(images[:16], classes[:16]), (images[16:], classes[16:])]

    def loss(m: Any, batch: Any) -> Tensor:
        return m.per_sample_loss(batch)

    whole = estimate(DiagonalFisher(), model, loss, data, draw=model.draw)
    banded = estimate(BandedFisher(DiagonalFisher(), bands), model, loss, data, draw=model.draw)
    expected, found = (parameters.flatten(operator.diagonal()) for operator in (whole, banded))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7 * float(expected.max()))
    assert banded.provenance.identity["bands"].startswith("low [-inf, ")
    drawn = model.draw(data[0], torch.arange(16))
    position = bands(drawn)
    for number, band in enumerate(bands.bands):
        assert set(drawn.timesteps[position == number].tolist()) <= set(band.timesteps(schedule).tolist())


def test_a_sample_in_no_band_is_left_out() -> None:
    bands = SNRBands([SNRBand("mid", -1.0, 1.0)])
    drawn = DDPM(unet()).draw((torch.zeros(50, 1, 8, 8), torch.zeros(50, dtype=torch.int64)), torch.arange(50))
    inside = bands(drawn) == 0
    torch.testing.assert_close(inside, (drawn.log_snr >= -1) & (drawn.log_snr < 1))
    assert 0 < int(inside.sum()) < 50


def test_bands_that_overlap_or_are_not_ascending_are_refused() -> None:
    for bad in ([], [SNRBand("a", 0, 2), SNRBand("b", 1, 3)], [SNRBand("a", 0, 1), SNRBand("a", 1, 2)]):
        with pytest.raises(ValueError, match="different names, ascending and not overlapping"):
            SNRBands(bad)
    with pytest.raises(ValueError, match="expected a drawn batch with the `log_snr`"):
        SNRBands([SNRBand("all")])((torch.zeros(3), torch.zeros(3)))


def test_what_makes_no_bands_is_refused() -> None:
    model, data = problem("mlp")
    with pytest.raises(ValueError, match="expected one name a band, all different"):
        BandedFisher(DiagonalFisher(), lambda batch: torch.zeros(len(batch[0])))
    with pytest.raises(ValueError, match="band 'huge' is unknown; expected names among negative, small, large"):
        BandedFisher(DiagonalFisher(), BySign(), names=NAMES, weights={"huge": 1.0})
    for weights in ({"small": -1.0}, {"small": float("inf")}, {"small": 0.0}):
        with pytest.raises(ValueError, match="finite numbers >= 0, at least one of them positive"):
            BandedFisher(DiagonalFisher(), BySign(), names=NAMES, weights=weights)
    with pytest.raises(ValueError, match="none is given for band 'large'"):
        BandedFisher({"negative": DiagonalFisher(), "small": DiagonalFisher()}, BySign(), names=NAMES)
    negative = (data[0], -data[1].abs())
    with pytest.raises(ValueError, match="none of the 13 samples is in band 'large'"):
        estimate(
            BandedFisher(DiagonalFisher(), BySign(), names=NAMES, weights={"large": 1.0}),
            model,
            squared_error,
            [negative],
        )
    alone = estimate(BandedFisher(DiagonalFisher(), BySign(), names=NAMES), model, squared_error, [negative])
    whole = estimate(DiagonalFisher(), model, squared_error, [negative])
    torch.testing.assert_close(alone.diagonal(), whole.diagonal(), rtol=1e-12, atol=0)
