from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.fisher import OutputSensitivity, SquaredOutput, estimate
from tests.fisher.laws import problem


@pytest.mark.parametrize("kind", ["mlp", "conv", "normed"])
@pytest.mark.parametrize("size", [13, 5])
def test_it_is_twice_the_mean_absolute_gradient_of_each_sample(kind: str, size: int) -> None:
    """Layers and ``vmap`` against ordinary backward passes; not the absolute gradient of a batch."""
    model, batch = problem(kind)
    batches = [tuple(part[rows] for part in batch) for rows in torch.arange(13).split(size)]
    operator = estimate(OutputSensitivity(), model, SquaredOutput(), batches)
    weights = dict(model.named_parameters())
    model.eval()
    singles = []
    for i in range(13):
        output: Tensor = model(*(part[i : i + 1] for part in batch[:-1]))
        singles.append(torch.autograd.grad(output.square().sum(), list(weights.values())))
    for position, name in enumerate(weights):
        expected = 2 * torch.stack([single[position].abs() for single in singles]).mean(0)
        torch.testing.assert_close(operator.diagonal()[name], expected)
    batched = sum(float(2 * torch.stack(parts).mean(0).abs().sum()) for parts in zip(*singles, strict=True))
    assert float(operator.trace()) > 1.1 * batched


def test_of_a_linear_model_it_is_known() -> None:
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    operator = estimate(OutputSensitivity(), model, SquaredOutput(), [x])
    expected = 2 * (2 * model(x) * x).abs().mean(0)  # 2 |f| |x|, and the factor of the convention
    torch.testing.assert_close(operator.diagonal()["weight"][0], expected.detach())


def test_a_batch_of_inputs_alone_is_given_as_it_comes() -> None:
    model, x = nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    bare, one, target = (
        estimate(OutputSensitivity(), model, SquaredOutput(), [batch]).diagonal() for batch in (x, [x], (x, x))
    )
    torch.testing.assert_close(one, bare, rtol=0, atol=0)
    torch.testing.assert_close(target, bare, rtol=0, atol=0)


@pytest.mark.parametrize("output", [lambda m, b: {"sample": m(b)}, lambda m, b: m(b).sum()], ids=["dict", "scalar"])
def test_an_output_without_samples_is_refused(output: Any) -> None:
    model, x = nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"output\(model, batch\) is .*; expected a tensor \(B, ...\)"):
        estimate(OutputSensitivity(), model, SquaredOutput(output), [x])


def test_the_output_is_what_one_says_it_is() -> None:
    model, batch = problem("mlp")
    half = SquaredOutput(lambda model, batch: model(batch[0])[:, :1])
    narrow = estimate(OutputSensitivity(), model, half, [batch])
    wide = estimate(OutputSensitivity(exclude=["*bias"]), model, SquaredOutput(), [batch])
    assert float(narrow.trace()) != pytest.approx(float(wide.trace()))
    assert not any("bias" in name for name in wide.names)
    assert wide.provenance.identity["estimator"] == "output sensitivity"
