from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.fisher import KroneckerFisher, estimate
from cl_diffusion.linalg import BlockDiagonal, Kronecker, parameters
from tests.fisher.laws import batches, dense_gradients, dense_operator, problem, second_moment, squared_error
from tests.linalg.laws import check_operator, dense


def tokens(length: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x = torch.randn(1, length, 3, dtype=torch.float64, generator=generator)
    return nn.Linear(3, 2).double(), (x, torch.randn(1, length, 2, dtype=torch.float64, generator=generator))


def loss_of_tokens(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().flatten(1).mean(1)


def relative_error(corrected: bool, length: int) -> float:
    model, data = tokens(length)
    expected = second_moment(dense_gradients(model, data, loss_of_tokens))
    operator = estimate(KroneckerFisher(corrected), model, loss_of_tokens, [data])
    return float((dense_operator(operator, model) - expected).norm() / expected.norm())


def test_one_sample_at_one_position_is_exact_and_five_positions_are_not() -> None:
    for corrected in (False, True):
        assert relative_error(corrected, 1) < 1e-12
    assert relative_error(False, 5) > 0.3


def test_the_correction_makes_trace_and_projection_on_the_eigenbasis_exact() -> None:
    for kind in ("mlp", "conv", "normed"):
        model, data = problem(kind)
        expected = second_moment(dense_gradients(model, data))
        plain, corrected = (estimate(KroneckerFisher(c), model, squared_error, batches(data, 5)) for c in (False, True))
        torch.testing.assert_close(corrected.trace(), expected.trace())
        mine, best = dense_operator(plain, model), dense_operator(corrected, model)
        blocks = best != 0
        assert float((best - expected)[blocks].norm()) <= float((mine - expected)[blocks].norm())
        like = {n: model.get_parameter(n).detach() for n in corrected.names}
        check_operator(corrected, dense(corrected, like), like)


def test_the_factors_are_the_second_moments_of_inputs_and_output_gradients() -> None:
    """Independent inputs and residuals: the expectation of the product is the product of the expectations."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    n = 20_000
    x = (
        torch.randn(n, 3, dtype=torch.float64, generator=generator)
        @ torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 0, 0.5]]).double()
    )
    y = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    operator = estimate(KroneckerFisher(), model, squared_error, [(x, y)])
    inputs = torch.cat([x, torch.ones(n, 1).double()], 1)
    g = torch.cat([(-y[:, :, None] * x[:, None, :]).flatten(1), -y], dim=1)  # dl/df = f - y = -y
    expected = second_moment(g)
    assert float((dense_operator(operator, model) - expected).norm() / expected.norm()) < 0.05
    factor_a, factor_b = inputs.T @ inputs / n, y.T @ y / n
    found = (operator @ {"weight": torch.eye(3, dtype=torch.float64)[:2], "bias": torch.zeros(2).double()})["weight"]
    v = torch.cat([torch.eye(3, dtype=torch.float64)[:2], torch.zeros(2, 1).double()], 1)
    torch.testing.assert_close(found, (factor_b @ v @ factor_a)[:, :3])


def test_convolutions_are_factored_in_the_order_of_their_weight() -> None:
    """One sample, one position: a convolution that covers its image is a linear layer."""
    torch.manual_seed(0)
    for stride in (1, 2):
        model = nn.Conv2d(2, 3, (2, 3), stride=stride).double()
        data = (torch.randn(1, 2, 2, 3).double(), torch.randn(1, 3, 1, 1).double())
        expected = second_moment(dense_gradients(model, data, loss_of_tokens))
        operator = estimate(KroneckerFisher(), model, loss_of_tokens, [data])
        torch.testing.assert_close(dense_operator(operator, model), expected)


def test_other_layers_take_the_exact_diagonal_and_the_record_says_so() -> None:
    model, data = problem("normed")
    operator = estimate(KroneckerFisher(), model, squared_error, batches(data, 5))
    assert isinstance(operator, BlockDiagonal)
    norms = [f"{norm}.{part}" for norm in ("batch_norm", "layer_norm") for part in ("bias", "weight")]
    on_the_diagonal = sorted([*norms, "gain", "position"])
    record = operator.provenance.record[0]
    assert record["on_the_diagonal"] == on_the_diagonal
    assert record["kronecker_layers"] == 2
    assert set(operator.names) == {n for n, _ in model.named_parameters()}
    squares = parameters.unflatten(dense_gradients(model, data).square().mean(0), dict(model.named_parameters()))
    for name in on_the_diagonal:
        torch.testing.assert_close(operator.diagonal()[name], squares[name])


def test_a_weight_without_its_bias_is_factored_alone_and_a_shared_one_is_not() -> None:
    model, data = problem("mlp")
    model[0].bias.requires_grad_(False)
    operator = estimate(KroneckerFisher(), model, squared_error, [data])
    assert operator.provenance.record[0]["on_the_diagonal"] == []
    assert [part.names for part in operator.parts] == [("0.weight",), ("2.weight", "2.bias")]  # type: ignore[attr-defined]
    tied = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    tied[2].weight = tied[0].weight
    operator = estimate(KroneckerFisher(), tied, squared_error, [(data[0], data[0])])
    assert "0.weight" in operator.provenance.record[0]["on_the_diagonal"]
    g = dense_gradients(tied, (data[0], data[0])).square().mean(0)
    torch.testing.assert_close(operator.diagonal()["0.weight"].flatten(), g[:9])


@pytest.mark.parametrize("corrected", [False, True])
def test_the_batch_size_does_not_matter(corrected: bool) -> None:
    model, data = problem("conv")
    one, other = (estimate(KroneckerFisher(corrected), model, squared_error, batches(data, size)) for size in (13, 4))
    assert all(isinstance(part, Kronecker) for part in one.parts[:2])  # type: ignore[attr-defined]
    torch.testing.assert_close(dense_operator(one, model), dense_operator(other, model))


class Sometimes(nn.Module):
    """A layer that takes part in some batches only."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.always(x) + (self.sometimes(x) if len(x) > 3 else 0)


def test_a_layer_that_is_not_called_in_every_batch_is_refused_and_not_forgotten() -> None:
    _, data = problem("linear")
    model = Sometimes().double()
    with pytest.raises(ValueError, match="the layer of sometimes.bias, sometimes.weight takes another part"):
        estimate(KroneckerFisher(), model, squared_error, batches(data, 5))
    operator = estimate(KroneckerFisher(exclude=["sometimes*"]), model, squared_error, batches(data, 5))
    assert set(operator.names) == {"always.weight", "always.bias"}


def test_several_positions_are_averaged_on_one_side_and_summed_on_the_other() -> None:
    model, (x, y) = tokens(5)
    operator = estimate(KroneckerFisher(), model, loss_of_tokens, [(x, y)])
    d = 2 / y[0].numel() * (model(x) - y).detach()[0]
    inputs = torch.cat([x[0], torch.ones(5, 1, dtype=torch.float64)], 1)
    v = torch.arange(8, dtype=torch.float64).view(2, 4)
    expected = (d.T @ d) @ v @ (inputs.T @ inputs / 5)
    found = operator @ {"weight": v[:, :3], "bias": v[:, 3]}
    torch.testing.assert_close(torch.cat([found["weight"], found["bias"][:, None]], 1), expected)
