"""What a step along a direction does to each sample's loss and output, by derivative and by taking it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from cl_diffusion.fisher.criterion import OutputLoss
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.undisturbed import undisturbed
from cl_diffusion.keys import derive_keys
from cl_diffusion.linalg import Parameters, parameters
from cl_diffusion.processes import gathered


@dataclass(frozen=True)
class Slopes:
    """Derivatives along a direction ``u``, float64, one entry a sample.

    ``loss``: ``g_i^T u``. ``curvature``: ``u^T J_i^T (d^2 l / df^2) J_i u``, the sample's share of the generalised
    Gauss-Newton matrix. ``output``: ``|J_i u|^2 / d``. The last two are None where the loss does not say its output.
    """

    loss: Tensor
    curvature: Tensor | None
    output: Tensor | None


@dataclass(frozen=True)
class Changes:
    """What a displacement ``D`` does, float64, one entry a sample.

    ``loss``: ``l_i(theta + D) - l_i(theta)``. ``output``: ``|f_i(theta + D) - f_i(theta)|^2 / d``. ``along_residual``:
    ``(r_i^T (f_i(theta + D) - f_i(theta)))^2 / |r_i|^2`` with ``r_i = dl_i / df``, what output normalisation holds. The
    last two are None where the loss does not say its output.
    """

    loss: Tensor
    output: Tensor | None
    along_residual: Tensor | None


class Probe:
    """Losses and outputs of a population's samples, at the weights that the model has and nearby.

    Figures are of the samples of all processes, in ascending order of their indices.

    Args:
        population: keyed, or a loss that draws nothing.
        draw: which of its independent draws.

    Raises:
        ValueError: there are no samples.
    """

    def __init__(self, population: Population, draw: int = 0) -> None:
        self.population = population
        self.model = population.model
        self.loss: Any = population.loss
        self.draw = draw
        with self._passes() as rows:
            at = [self._values(batch) for batch in rows]
        none = torch.empty(0, dtype=torch.float64)
        self._losses = torch.cat([none, *(losses for losses, _ in at)])
        self._outputs = [output for _, output in at]
        with undisturbed(self.model):
            mine = [rows.indices for rows in population.rows(draw)]
        indices = gathered(torch.cat([torch.empty(0, dtype=torch.int64), *mine]))
        if not len(indices):
            raise ValueError("batches hold no samples; expected at least one")
        self._order = indices.argsort()
        self._outputs_known = isinstance(self.loss, OutputLoss)

    @property
    def losses(self) -> Tensor:
        """``l_i`` where the model is, float64 ``(n,)``."""
        return self._ordered([self._losses])

    def slopes(self, direction: Mapping[str, Tensor]) -> Slopes:
        """By one forward-mode derivative a batch."""
        wrapped = _Values(self.model, self.loss)
        weights = parameters.trainable_parameters(self.model)
        primal = {f"model.{name}": p.detach() for name, p in weights.items()}
        tangent = {f"model.{name}": direction[name].to(p) for name, p in weights.items() if name in direction}
        tangent = {name: tangent.get(name, torch.zeros_like(p)) for name, p in primal.items()}
        losses, curvatures, outputs = [], [], []
        with self._passes() as rows, sdpa_kernel(SDPBackend.MATH):
            for batch in rows:

                def values(w: dict[str, Tensor], batch: Any = batch) -> tuple[Tensor, ...]:
                    return tuple(functional_call(wrapped, w, (batch,)))

                at, along = jvp(values, (primal,), (tangent,))[:2]
                losses.append(along[0].double())
                if len(at) > 1:
                    curvatures.append(_curvature(self.loss, self.model, batch, at[1], along[1]).double())
                    outputs.append(along[1].double().square().flatten(1).mean(1))
        return Slopes(self._ordered(losses), self._if_known(curvatures), self._if_known(outputs))

    def changes(self, displacement: Mapping[str, Tensor]) -> Changes:
        """By putting the model there, and back again bit for bit."""
        losses, outputs, along = [], [], []
        with displaced(self.model, displacement), self._passes() as rows:
            for batch, before in zip(rows, self._outputs, strict=True):
                loss, output = self._values(batch)
                losses.append(loss)
                if output is None or before is None:
                    continue
                moved = (output - before).flatten(1)
                outputs.append(moved.square().mean(1))
                residual = self._residual(batch, before).flatten(1)
                size = torch.linalg.vector_norm(residual, dim=1).clamp(min=torch.finfo(torch.float64).tiny)
                along.append(((moved * residual).sum(1) / size).square())
        after = self._ordered(losses) - self.losses
        return Changes(after, self._if_known(outputs), self._if_known(along))

    def _ordered(self, parts: Sequence[Tensor]) -> Tensor:
        """Of all processes; one of them may have none."""
        mine = torch.cat([torch.empty(0, dtype=torch.float64), *(part.double().cpu() for part in parts)])
        return gathered(mine)[self._order]

    def _if_known(self, parts: Sequence[Tensor]) -> Tensor | None:
        return self._ordered(parts) if self._outputs_known else None

    @contextmanager
    def _passes(self) -> Iterator[Iterator[Any]]:
        """The batches, with the model as an estimator has it and nothing recorded."""
        with undisturbed(self.model), torch.no_grad():
            yield (rows.batch for rows in self.population.rows(self.draw))

    def _values(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        losses, *output = _Values(self.model, self.loss)(batch)
        return losses.double().cpu(), output[0].double().cpu() if output else None

    def _residual(self, batch: Any, output: Tensor) -> Tensor:
        target = self.loss.target(self.model, batch)
        like = output.to(target) if target.is_floating_point() else output
        with torch.enable_grad():
            gradient: Tensor = torch.func.grad(lambda f: self.loss.criterion(f, target).sum())(like)
        return gradient.double().cpu()


@contextmanager
def displaced(model: nn.Module, displacement: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with its weights moved; as it was, bit for bit, on leaving."""
    weights = parameters.select(dict(model.named_parameters()), displacement)
    with placed(model, {name: w.detach() + displacement[name].to(w) for name, w in weights.items()}):
        yield


@contextmanager
def placed(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other weights, of parameters or buffers; as it was, bit for bit, on leaving."""
    current = parameters.select({**dict(model.named_parameters()), **dict(model.named_buffers())}, weights)
    before = parameters.clone(current)
    try:
        with torch.no_grad():
            for name, weight in current.items():
                weight.copy_(weights[name])
        yield
    finally:
        with torch.no_grad():
            for name, weight in current.items():
                weight.copy_(before[name])


class _Values(nn.Module):
    """Losses, and the output where the loss says what it is, as the output of a module."""

    def __init__(self, model: nn.Module, loss: Any) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> tuple[Tensor, ...]:
        if not isinstance(self.loss, OutputLoss):
            return (self.loss(self.model, batch),)
        output = self.loss.output(self.model, batch)
        losses = self.loss.criterion(output, self.loss.target(self.model, batch))
        if self.loss.weight is not None:
            losses = losses * self.loss.weight(self.model, batch)
        return losses, output


def _curvature(loss: OutputLoss, model: Any, batch: Any, output: Tensor, moved: Tensor) -> Tensor:
    """``d^2 / ds^2 l(f + s J u)`` at 0, one entry a sample."""
    target = loss.target(model, batch)

    def along(s: Tensor) -> Tensor:
        return loss.criterion(output + s * moved, target)

    def slope(s: Tensor) -> Tensor:
        derivative: Tensor = jvp(along, (s,), (torch.ones_like(s),))[1]
        return derivative

    zero = output.new_zeros(())
    curvature: Tensor = jvp(slope, (zero,), (torch.ones_like(zero),))[1]
    return curvature if loss.weight is None else curvature * loss.weight(model, batch)


def random_directions(like: Parameters, count: int, seed: int) -> dict[str, Parameters]:
    """Unit directions that know of nothing: uniform on the sphere, and as many single coordinates."""
    generator = torch.Generator().manual_seed(int(derive_keys(seed, torch.zeros(1, dtype=torch.int64))))
    size = sum(p.numel() for p in like.values())
    found: dict[str, Parameters] = {}
    for number in range(count):
        uniform = torch.randn(size, generator=generator)
        single = torch.zeros(size)
        single[int(torch.randint(size, (1,), generator=generator))] = 1.0
        for name, flat in (("random", uniform / torch.linalg.vector_norm(uniform)), ("coordinate", single)):
            vector = parameters.unflatten(flat, like)
            found[f"{name} {number + 1}"] = {key: part.to(like[key]) for key, part in vector.items()}
    return found
