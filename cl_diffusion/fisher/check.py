"""An operator held to exact per-sample gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cl_diffusion.fisher.batch import batch_size
from cl_diffusion.fisher.losses import Loss
from cl_diffusion.fisher.population import Draw, Population, Rows, select
from cl_diffusion.fisher.undisturbed import undisturbed
from cl_diffusion.linalg import Operator, Parameters, parameters


@dataclass(frozen=True)
class Check:
    """What a comparison with ``F = (1/k) sum_i g_i g_i^T`` found, each ``g_i`` by an ordinary backward of one sample.

    ``samples``: ``k``. ``diagonal_error``: ``|diag(op) - diag(F)| / |diag(F)|``. ``product_error``: ``|op u - F u| /
    |F u|`` for the mean gradient ``u`` of those samples. ``scale``: the factor by which ``op`` is too large,
    ``<diag(op), diag(F)> / |diag(F)|^2``. ``trace_ratio``: ``tr op / tr F``. ``no_importance``: parameters whose
    diagonal is zero throughout in ``op``. ``no_gradient``: those whose gradient is zero in every sample.
    """

    samples: int
    diagonal_error: float
    product_error: float
    scale: float
    trace_ratio: float
    no_importance: tuple[str, ...]
    no_gradient: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"against exact gradients of {self.samples} samples:",
            f"  relative error of the diagonal      {self.diagonal_error:.2e}",
            f"  relative error of F times mean grad {self.product_error:.2e}",
            f"  scale {self.scale:.4g}, trace ratio {self.trace_ratio:.4g}",
        ]
        if odd := sorted(set(self.no_importance) - set(self.no_gradient)):
            lines.append(f"  no importance although there are gradients: {', '.join(odd)}")
        if self.no_gradient:
            lines.append(f"  no gradient in any sample: {', '.join(self.no_gradient)}")
        return "\n".join(lines)


def check(
    operator: Operator,
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    *,
    samples: int = 32,
    draw: Draw | None = None,
    seed: int = 0,
) -> Check:
    """Compare an operator with the exact empirical second moment of the first ``samples`` samples.

    The gradients come from batches of one and ordinary backward passes, so that nothing of the estimators is used. On
    the samples that an exact estimator has seen, errors are rounding; otherwise they hold its approximation, and the
    difference between those samples and these.

    Args:
        operator: of any estimator, or from elsewhere.
        model: that the loss is of.
        loss: ``loss(model, batch) -> (B,)``.
        batches: as for ``estimate``.
        samples: how many, ``k``; each costs one forward and backward and the room of one gradient.
        draw: as for ``estimate``.
        seed: as for ``estimate``.

    Raises:
        ValueError: there is no sample.
    """
    names = operator.names
    with undisturbed(model):
        gradients = list(_gradients(Population(model, loss, batches, draw, seed), names, samples))
    if not gradients:
        raise ValueError("batches holds no sample; expected at least one to compare with")
    k = len(gradients)
    mean = {name: torch.stack([g[name] for g in gradients]).mean(0) for name in names}
    diagonal = {name: torch.stack([g[name].square() for g in gradients]).mean(0) for name in names}
    product = {name: torch.zeros_like(tensor) for name, tensor in mean.items()}
    for g in gradients:
        parameters.add_(product, g, float(parameters.inner(g, mean)) / k)
    mine = {name: tensor.double() for name, tensor in operator.diagonal().items()}
    dtypes = {name: tensor.dtype for name, tensor in parameters.trainable_parameters(model).items()}
    found = operator @ {name: tensor.to(dtypes[name]) for name, tensor in mean.items()}
    squared = float(parameters.inner(diagonal, diagonal))
    trace = float(sum(tensor.sum() for tensor in diagonal.values()))
    return Check(
        samples=k,
        diagonal_error=_relative(mine, diagonal),
        product_error=_relative({name: tensor.double() for name, tensor in found.items()}, product),
        scale=float(parameters.inner(mine, diagonal)) / squared if squared else float("nan"),
        trace_ratio=float(operator.trace()) / trace if trace else float("nan"),
        no_importance=tuple(name for name, tensor in mine.items() if not bool(tensor.any())),
        no_gradient=tuple(name for name, tensor in diagonal.items() if not bool(tensor.any())),
    )


def _gradients(population: Population, names: tuple[str, ...], samples: int) -> Iterable[Parameters]:
    """The gradient of each of the first samples, float64."""
    weights = parameters.select(parameters.trainable_parameters(population.model), names)
    seen = 0
    for rows in population.rows():
        for position in range(batch_size(rows.batch)):
            if seen == samples:
                return
            seen += 1
            one: Rows = select(rows, torch.arange(len(rows.indices)) == position)
            if rows.reseed is not None:
                torch.manual_seed(rows.reseed)
            with torch.enable_grad():
                value = population.loss(population.model, one.batch).sum()
            gradients = torch.autograd.grad(value, list(weights.values()), materialize_grads=True)
            yield {name: g.double() for name, g in zip(weights, gradients, strict=True)}


def _relative(found: Parameters, expected: Parameters) -> float:
    size = float(parameters.norm(expected))
    return float(parameters.norm(parameters.subtract(found, expected))) / size if size else float("nan")
