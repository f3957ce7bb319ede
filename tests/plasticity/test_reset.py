"""What a reset changes, and that it changes nothing else."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.plasticity import Units, find_units, reset_units
from tests.plasticity.test_find import Convolutional
from tests.tiny import unet


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def entries(units: Units, tensors: dict[str, Tensor], chosen: list[int]) -> dict[str, Tensor]:
    """By tensor, True in the entries of the chosen units."""
    masks: dict[str, Tensor] = {}
    for part in units.slices:
        mask = masks.setdefault(part.tensor, torch.zeros(tensors[part.tensor].shape, dtype=torch.bool))
        part.of(mask, units.count)[chosen] = True
    return masks


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def test_the_reset_of_a_dead_unit_leaves_the_function_as_it_was() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].bias[2] = -100.0
    x = torch.randn(64, 4)
    before = model(x)
    reset_units(model, find_units(model).units[0], torch.tensor([2]), seed=1)
    assert torch.equal(model(x), before)
    assert model[0].bias[2] == 0
    assert bool((model[1](model[0](x))[:, 2] > 0).any())  # it fires


def test_a_flattened_channel_loses_a_column_for_every_position_and_no_other() -> None:
    model = Convolutional()
    before = model.hidden.weight.detach().clone()
    reset_units(model, find_units(model).units[1], torch.tensor([1, 4]), seed=0)
    changed = (model.hidden.weight != before).any(0)
    expected = torch.zeros(96, dtype=torch.bool)
    expected[16:32] = expected[64:80] = True
    assert torch.equal(changed, expected)
    assert bool((model.hidden.weight[:, expected] == 0).all())


def test_no_other_device_s_random_state_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    model = perceptron()
    reset_units(model, find_units(model).units[0], torch.tensor([0]), seed=3)
    assert not seeds


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}, {"amsgrad": True}])
@pytest.mark.parametrize("moments", ["layer_mean", "zero"])
@pytest.mark.parametrize("build", [perceptron, Convolutional, unet])
def test_every_other_entry_and_every_other_moment_keeps_its_bits(
    build: Any, moments: Any, options: dict[str, Any]
) -> None:
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **options)
    for _ in range(3):
        if build is unet:
            loss = model(torch.randn(2, 1, 8, 8), torch.tensor([3, 7]), torch.tensor([0, 1])).sample.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        else:
            step(model, optimizer, torch.randn(8, 4) if build is perceptron else torch.randn(8, 1, 8, 8))
    units = find_units(model).units[-1]
    before = {name: tensor.detach().clone() for name, tensor in all_tensors(model).items()}
    states = copy.deepcopy({name: optimizer.state[p] for name, p in model.named_parameters()})
    chosen = [0, 3]
    random_state = torch.get_rng_state()
    reset_units(model, units, torch.tensor(chosen), seed=3, optimizers=[optimizer], moments=moments)
    assert torch.equal(torch.get_rng_state(), random_state)
    masks = entries(units, before, chosen)
    for name, tensor in all_tensors(model).items():
        mask = masks.get(name, torch.zeros(tensor.shape, dtype=torch.bool))
        assert torch.equal(tensor[~mask], before[name][~mask])
    for part in units.outgoing:
        assert bool((all_tensors(model)[part.tensor][masks[part.tensor]] == 0).all())
    for part in units.incoming:
        assert bool((all_tensors(model)[part.tensor] != before[part.tensor])[masks[part.tensor]].all())
    for name, parameter in model.named_parameters():
        mask = masks.get(name, torch.zeros(parameter.shape, dtype=torch.bool))
        for key, moment in optimizer.state[parameter].items():
            if key == "step":
                assert moment == states[name][key]
                continue
            assert torch.equal(moment[~mask], states[name][key][~mask])
            if not mask.any():
                continue
            if key == "exp_avg" or moments == "zero":
                assert bool((moment[mask] == 0).all())
            else:
                mean = states[name][key][~mask].mean()
                torch.testing.assert_close(moment[mask], mean.expand(int(mask.sum())), rtol=1e-3, atol=1e-12)


def largest_update(moments: Any, size: float) -> float:
    """After a reset, by Adam, in units of the learning rate: the gradient is ``size`` times the layer's."""
    weight = nn.Parameter(torch.zeros(3, 1))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    for _ in range(5000):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    for moment, value in (("exp_avg", 0.0), ("exp_avg_sq", 0.0 if moments == "zero" else 1.0)):
        optimizer.state[weight][moment][0] = value
    largest = 0.0
    for _ in range(200):
        before = weight.detach().clone()
        weight.grad = torch.tensor([[size], [1.0], [1.0]])
        optimizer.step()
        largest = max(largest, float((weight - before)[0].abs()))
    return largest


def test_second_moments_of_the_layer_keep_the_next_updates_small() -> None:
    assert largest_update("zero", 1.0) == pytest.approx(6.6, abs=0.1)
    assert largest_update("layer_mean", 1.0) < 1.05
    assert largest_update("layer_mean", 2.0) < 1.95


def test_momentum_is_forgotten_and_an_average_gets_the_new_weights() -> None:
    model = perceptron()
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer, torch.randn(8, 4))
    reset_units(model, find_units(model).units[0], torch.tensor([1]), seed=0, optimizers=[optimizer], shadows=[average])
    assert bool((optimizer.state[model[0].weight]["momentum_buffer"][1] == 0).all())
    assert torch.equal(average[0].weight[1], model[0].weight[1])
    assert bool((average[2].weight[:, 1] == 0).all())
    assert not torch.equal(average[0].weight[0], model[0].weight[0])


def test_fresh_weights_are_those_of_the_layer_s_own_initialiser_or_of_another() -> None:
    model = nn.Sequential(nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 1))
    (units,) = find_units(model).units
    every = torch.arange(300)
    with torch.no_grad():
        model[0].weight.fill_(9.0)
    reset_units(model, units, every, seed=0)
    assert float(model[0].weight.abs().max()) <= 1 / 20
    assert float(model[0].weight.std()) == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)
    one = model[0].weight.detach().clone()
    reset_units(model, units, every, seed=1)
    assert not torch.equal(one, model[0].weight)
    reset_units(model, units, every, seed=0, initializer=lambda layer: nn.init.constant_(layer.weight, 2.0))
    assert bool((model[0].weight == 2).all())
    with pytest.raises(ValueError, match="moments='none'"):
        reset_units(model, units, every, seed=0, moments="none")  # type: ignore[arg-type]
