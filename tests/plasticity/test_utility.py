"""What units are worth, and what of it is handed on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cl_diffusion.plasticity import find_units, reset_units
from cl_diffusion.plasticity.utility import LeastUseful, dormancy, hand_over, mean_size


def perceptron(units: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, units), nn.ReLU(), nn.Linear(units, 2)).double()


def test_a_dormant_unit_is_one_that_gives_nothing() -> None:
    assert dormancy(torch.tensor([0.0, 1.0, 3.0])).tolist() == pytest.approx([0, 0.75, 2.25])
    assert dormancy(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("utility", ["contribution", "adaptable"])
def test_utilities_are_the_published_recursion(utility: str) -> None:
    model = perceptron()
    (units,) = find_units(model).units
    useful = LeastUseful(units, rate=0.0, maturity=0, decay=0.9, utility=utility)  # type: ignore[arg-type]
    mean, worth = torch.zeros(5).double(), torch.zeros(5).double()
    out = model[2].weight.abs().mean(0)
    into = model[0].weight.abs().mean(1)
    for step in range(1, 8):
        h = torch.rand(11, 5).double() * torch.arange(5)
        before = mean / (1 - 0.9 ** (step - 1)) if step > 1 else torch.zeros(5).double()
        sums = useful.measure(h, [0], 1)
        assert useful.observe(sums, 11, dict(model.named_parameters())).tolist() == []
        mean = 0.9 * mean + 0.1 * h.mean(0)
        size = h.abs().mean(0) * out if utility == "contribution" else (h - before).abs().mean(0) * out / into
        worth = 0.9 * worth + 0.1 * size.detach()
    torch.testing.assert_close(useful.utilities.double(), worth, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(useful.corrected_mean.double(), mean / (1 - 0.9**7), rtol=1e-4, atol=1e-6)


def test_so_many_of_the_mature_are_replaced_and_the_least_useful_first() -> None:
    (units,) = find_units(perceptron(20)).units
    tensors = dict(perceptron(20).named_parameters())
    useful = LeastUseful(units, rate=0.1, maturity=3, decay=0.9, utility="contribution")
    replaced = []
    for _ in range(13):
        chosen = useful.observe(torch.stack([torch.arange(20.0)] * 2), 1, tensors)
        useful.reset(chosen)
        replaced.append(len(chosen))
    assert replaced[:3] == [0, 0, 0]
    assert replaced[3:6] == [2, 1, 2]  # of 20, 18 and 17 that are mature, with what is owed
    assert sum(replaced) == pytest.approx(0.1 * 17 * 10, abs=3)
    useful = LeastUseful(units, rate=0.05, maturity=0, decay=0.9, utility="contribution")
    weights = mean_size(tensors, units.outgoing, 20)
    least = int((torch.arange(20.0).double() * weights).argmin())
    assert useful.observe(torch.stack([torch.arange(20.0)] * 2), 1, tensors).tolist() == [least]


def test_the_next_layer_does_not_miss_a_unit_that_always_gave_the_same() -> None:
    model = perceptron()
    (units,) = find_units(model).units
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = 1.5
    x = torch.randn(9, 3).double()
    before = model(x)
    means = model[1](model[0](x)).mean(0).detach()
    chosen = torch.tensor([2])
    hand_over(model, units, chosen, means)
    reset_units(model, units, chosen, seed=0)
    torch.testing.assert_close(model(x), before)


def test_what_a_flattened_channel_gave_is_summed_over_its_positions() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 9, 3)).double()
    (units,) = find_units(model).units
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 0.7
    x = torch.randn(4, 1, 3, 3).double()
    before = model(x)
    hand_over(model, units, torch.tensor([1]), torch.tensor([0.0, 0.7]))
    reset_units(model, units, torch.tensor([1]), seed=0)
    torch.testing.assert_close(model(x), before)
