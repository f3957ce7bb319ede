"""Per-sample gradients of single layers, from input and output gradient alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.fisher.capture import visit_layers
from cl_diffusion.fisher.gradient import LossGradients
from cl_diffusion.fisher.layers import AffineGradients, LayerGradients
from cl_diffusion.linalg import parameters
from tests.fisher.laws import dense_gradients, problem, squared_error

SAMPLES = 5


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def shown(model: nn.Module, losses: Any, weights: dict[str, Tensor]) -> list[LayerGradients]:
    layers: list[LayerGradients] = []
    names = visit_layers(model, losses, weights, SAMPLES, layers.append)
    assert names == {name for layer in layers for name in layer.names.values()}
    return layers


def refuse(layer: LayerGradients) -> None:
    raise AssertionError(f"{layer.names} was shown")


def evaluated_batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return norm


LAYERS: dict[str, tuple[Any, Tensor]] = {
    "linear": (lambda: nn.Linear(3, 4), normal(SAMPLES, 3)),
    "linear without bias": (lambda: nn.Linear(3, 4, bias=False), normal(SAMPLES, 3)),
    "linear on tokens": (lambda: nn.Linear(3, 4), normal(SAMPLES, 6, 3)),
    "linear on a grid": (lambda: nn.Linear(3, 4), normal(SAMPLES, 2, 6, 3)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), normal(SAMPLES, 2, 7)),
    "conv2d, few positions": (lambda: nn.Conv2d(2, 3, 3, padding=1), normal(SAMPLES, 2, 5, 6)),
    "conv2d, many positions": (lambda: nn.Conv2d(2, 3, 3, padding=1), normal(SAMPLES, 2, 9, 11)),
    "conv2d, no padding": (lambda: nn.Conv2d(2, 3, 3), normal(SAMPLES, 2, 12, 11)),
    "conv2d, wide padding, dilated": (
        lambda: nn.Conv2d(2, 3, (3, 2), padding=(3, 1), dilation=2),
        normal(SAMPLES, 2, 9, 11),
    ),
    "conv2d, even kernel": (lambda: nn.Conv2d(2, 3, 4, padding=2, bias=False), normal(SAMPLES, 2, 10, 9)),
    "conv2d, strided": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), normal(SAMPLES, 2, 19, 18)),
    "conv2d, strided, dilated": (lambda: nn.Conv2d(2, 3, 3, stride=(1, 2), dilation=(2, 1)), normal(SAMPLES, 2, 9, 8)),
    "conv2d, one position": (lambda: nn.Conv2d(2, 3, 4), normal(SAMPLES, 2, 4, 4)),
    "conv2d, 1x1": (lambda: nn.Conv2d(2, 3, 1), normal(SAMPLES, 2, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3, padding=1), normal(SAMPLES, 2, 4, 5, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 4), normal(SAMPLES, 4, 3, 3)),
    "group norm on vectors": (lambda: nn.GroupNorm(2, 4), normal(SAMPLES, 4)),
    "layer norm": (lambda: nn.LayerNorm((2, 4)), normal(SAMPLES, 3, 2, 4)),
    "layer norm on vectors": (lambda: nn.LayerNorm(4), normal(SAMPLES, 4)),
    "rms norm": (lambda: nn.RMSNorm(4), normal(SAMPLES, 3, 4)),
    "batch norm": (evaluated_batch_norm, normal(SAMPLES, 3, 2, 2)),
    "embedding": (lambda: nn.Embedding(4, 3), torch.tensor([0, 1, 1, 3, 2])),
    "embedding of words, padded": (
        lambda: nn.Embedding(4, 3, padding_idx=1),
        torch.tensor([[0, 1, 3], [1, 1, 1], [2, 2, 2], [3, 0, 1], [0, 0, 2]]),
    ),
}


def case(name: str) -> tuple[nn.Module, Tensor, Any]:
    torch.manual_seed(0)
    make, inputs = LAYERS[name]
    layer = make().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    model = nn.Sequential(layer).eval()
    return model, inputs, lambda m, x: torch.sin(m(x)).square().flatten(1).sum(1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("cache", [1, 2**22], ids=["one at a time", "together"])
def test_a_layer_gives_the_gradients_of_jacrev(name: str, cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cl_diffusion.fisher.layers.layer.CACHE", cache)
    monkeypatch.setattr("cl_diffusion.fisher.layers.affine.CACHE", cache)
    model, inputs, loss = case(name)
    weights = parameters.trainable_parameters(model)
    expected = dense_gradients(model, inputs, loss)
    (layer,) = shown(model, lambda: loss(model, inputs), weights)

    def flat(vector: dict[str, Tensor]) -> Tensor:
        return parameters.flatten({n: vector[n] for n in weights})

    of = layer.of(slice(1, 4))
    torch.testing.assert_close(torch.cat([of[n].flatten(1) for n in weights], dim=1), expected[1:4])
    torch.testing.assert_close(flat(layer.summed_squares()), expected.square().sum(0))
    v = normal(expected.shape[1])
    torch.testing.assert_close(layer.projections(parameters.unflatten(v, weights)), expected @ v)
    w = normal(SAMPLES)
    torch.testing.assert_close(flat(layer.weighted_sum(w)), w @ expected)
    torch.testing.assert_close(flat(layer.summed_one_by_one(w)), w @ expected)
    bounds = layer.bounds()
    assert all(float(layer.summed_one_by_one(w.sign())[n].norm()) <= bounds[n] * (1 + 1e-9) for n in weights)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_recognised_and_verified(name: str) -> None:
    model, inputs, loss = case(name)
    gradients = LossGradients(model, loss)
    assert gradients.visit_layers(inputs, lambda layer: None) == set()


def test_the_layers_of_a_net_with_attention_cover_all_its_parameters_and_a_free_parameter_is_left() -> None:
    for kind, left in (("conv", set()), ("normed", {"position", "gain"})):
        model, data = problem(kind)
        gradients = LossGradients(model.eval(), squared_error)
        assert gradients.visit_layers(data, lambda layer: None) == left


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class UsedOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.layer.weight.square().sum() * x


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).sin_()


class SamplesOnTheSecondAxis(nn.Module):
    """Sequence first, as many steps as samples: the leading axis has the right length and the wrong meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.stack([x * (step + 1) for step in range(len(x))])
        return torch.tanh(self.layer(steps)).sum(0)


class OverriddenForward(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


class Parametrized(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))


MISLEADING = {
    "parametrized": Parametrized,
    "shared": Shared,
    "used outside": UsedOutside,
    "in place": InPlace,
    "second axis": SamplesOnTheSecondAxis,
    "overridden": lambda: nn.Sequential(OverriddenForward(3, 3)),
}


@pytest.mark.parametrize("kind", MISLEADING)
def test_a_layer_that_would_mislead_is_found_out_and_the_gradients_are_right_all_the_same(kind: str) -> None:
    torch.manual_seed(0)
    model, x = MISLEADING[kind]().double(), normal(SAMPLES, 3)
    weights = parameters.trainable_parameters(model)

    def loss(m: nn.Module, batch: Tensor) -> Tensor:
        return m(batch).square().sum(1)

    gradients = LossGradients(model, loss)
    if kind == "second axis":  # its samples are coupled, so there is nothing to compare with
        assert gradients.visit_layers(x, refuse) == set(gradients.parameters)
        return
    each = [torch.autograd.grad(loss(model, x)[i], list(weights.values())) for i in range(SAMPLES)]
    expected = torch.stack([torch.cat([g.flatten() for g in one]) for one in each])
    torch.testing.assert_close(parameters.flatten(gradients.summed_squares(x)), expected.square().sum(0))
    v = normal(expected.shape[1])
    torch.testing.assert_close(gradients.projections(x, parameters.unflatten(v, weights)), expected @ v)
    products = gradients.products(x, parameters.unflatten(v, weights))
    torch.testing.assert_close(parameters.flatten(products), expected.T @ (expected @ v))


def test_what_a_layer_cannot_describe_is_not_taken_for_one() -> None:
    grouped = nn.Conv2d(4, 4, 3, groups=2)
    circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    same = nn.Conv2d(4, 4, 3, padding="same")
    x = normal(SAMPLES, 4, 5, 5)
    for layer in (grouped, circular, same, nn.ConvTranspose2d(4, 4, 3)):
        model = nn.Sequential(layer).double()
        gradients = LossGradients(model, lambda m, batch: m(batch).square().flatten(1).sum(1))
        assert gradients.visit_layers(x, refuse) == set(gradients.parameters)
        expected = dense_gradients(model, x, lambda m, batch: m(batch).square().flatten(1).sum(1))
        torch.testing.assert_close(parameters.flatten(gradients.summed_squares(x)), expected.square().sum(0))


def test_a_convolution_uses_shifted_products_only_where_they_are_faster() -> None:
    model, inputs, loss = case("conv2d, many positions")
    (layer,) = shown(model, lambda: loss(model, inputs), parameters.trainable_parameters(model))
    assert isinstance(layer, AffineGradients)
    assert layer._products(2)(slice(0, 2)).shape == (9, 2, 3, 2)
    with pytest.MonkeyPatch().context() as patch:
        patch.setattr("cl_diffusion.fisher.layers.affine.FEW_POSITIONS", 1000)
        assert layer._products(2)(slice(0, 2)).shape == (1, 2, 3, 18)


class Tied(nn.Module):
    """A weight that its layer and a free product share."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.tanh(self.encoder(x)), self.encoder.weight.T)


def masked(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, mask = batch
    return mask * (model(x) - x).square().mean(1)


def test_samples_without_a_gradient_decide_nothing() -> None:
    """The first eight say of a misused weight no more than of a good one: zero is zero."""
    torch.manual_seed(0)
    x, mask = normal(32, 4), torch.ones(32, dtype=torch.float64)
    mask[:8] = 0
    for model in (Tied().double(), nn.Sequential(nn.Linear(4, 4)).double()):
        gradients = LossGradients(model, masked)
        expected = dense_gradients(model, (x, mask), masked).square().sum(0)
        for _ in range(2):
            torch.testing.assert_close(parameters.flatten(gradients.summed_squares((x, mask))), expected)
        rest = gradients.visit_layers((x.flip(0), mask.flip(0)), lambda layer: None)
        assert bool(rest) == isinstance(model, Tied)


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x.transpose(0, 1)))).mean(0)


def test_a_first_batch_of_one_sample_does_not_mislead() -> None:
    torch.manual_seed(0)
    model = SequenceFirst().double()
    gradients = LossGradients(model, squared_error)
    gradients.summed_squares((normal(1, 3, 3), normal(1, 2)))
    data = (normal(3, 3, 3), normal(3, 2))
    expected = dense_gradients(model, data).square().sum(0)
    torch.testing.assert_close(parameters.flatten(gradients.summed_squares(data)), expected)


def test_a_weight_that_is_used_twice_is_found_out_in_half_precision_too() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(torch.tanh(self.c(x)), self.c.weight, padding=1)

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(16, 3, 16, 16)

    def loss(m: nn.Module, batch: Tensor) -> Tensor:
        return m(batch).square().flatten(1).mean(1)

    expected = LossGradients(model, loss).summed_squares(x)["c.weight"]
    found = LossGradients(model.bfloat16(), loss).summed_squares(x.bfloat16())["c.weight"].float()
    assert float((found - expected).norm() / expected.norm()) < 0.1


def test_squares_go_by_each_kind_of_layer_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a linear layer with one position, ``(d^2)^T u^2`` without any single gradient."""
    monkeypatch.setattr(AffineGradients, "of", refuse)
    model, x = nn.Linear(3, 2).double(), normal(SAMPLES, 3)
    gradients = LossGradients(model, lambda m, batch: m(batch).square().sum(1))
    gradients._verified.names, gradients._verified.undecided = {"weight", "bias"}, set()
    expected = dense_gradients(model, x, lambda m, batch: m(batch).square().sum(1))
    torch.testing.assert_close(parameters.flatten(gradients.summed_squares(x)), expected.square().sum(0))


def test_many_half_precision_squares_are_summed_in_single_precision() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(300, 300), torch.randn(1024, 2, 300)

    def loss(m: nn.Module, batch: Tensor) -> Tensor:
        return m(batch).square().flatten(1).mean(1)

    exact = LossGradients(model, loss).summed_squares(x)
    half = LossGradients(model.bfloat16(), loss).summed_squares(x.bfloat16())
    ratio = float(half["weight"].sum(dtype=torch.float64) / exact["weight"].sum(dtype=torch.float64))
    assert ratio == pytest.approx(1.0, abs=0.02)


def test_a_layer_before_an_in_place_activation_goes_by_its_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    gradients = LossGradients(model, squared_error)
    assert gradients.visit_layers((normal(6, 3), normal(6, 2)), lambda layer: None) == set()


class ClassToken(nn.Module):
    """A free parameter written into a buffer, which no batched derivative allows."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.out = nn.Parameter(torch.randn(3)), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.zeros(len(x), 2, 3)
        tokens[:, 0] = self.token
        tokens[:, 1] = x
        return self.out(tokens).mean(1)


def test_what_vmap_refuses_is_said_with_the_parameters_and_a_way_out() -> None:
    data = (torch.randn(5, 3), torch.randn(5, 2))
    with pytest.raises(RuntimeError, match="per-sample gradients of 1 parameters .token.*exclude=.*Sketched"):
        LossGradients(ClassToken(), squared_error).summed_squares(data)
    chosen = LossGradients(ClassToken(), squared_error, select=lambda name: name != "token")
    assert set(chosen.summed_squares(data)) == {"out.weight", "out.bias"}
