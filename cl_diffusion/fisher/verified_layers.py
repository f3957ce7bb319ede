"""Which parameters have gradients that their layers' inputs and output gradients give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cl_diffusion.fisher.batch import batch_size, reseed
from cl_diffusion.fisher.capture import visit_layers
from cl_diffusion.fisher.layers import LayerGradients
from cl_diffusion.linalg import Parameters


class VerifiedLayers:
    """Decides by what an ordinary backward gives: a layer's per-sample gradients must sum to that, to rounding.

    A gradient that is hardly there says nothing, and the next batch is asked; except beside a verified one of the same
    layer, since some are zero for good (a bias before a norm).

    Attributes:
        names: of the parameters that go by their layers.
        undecided: of those that the next batch is asked of.
    """

    def __init__(self, model: nn.Module, asked: Parameters) -> None:
        self._model = model
        self._parameters = asked
        self.names: set[str] = set()
        self.undecided: set[str] = set(asked)

    def decide(self, batch: Any, losses: Callable[[], Tensor], summed: Callable[[Tensor], Parameters]) -> None:
        """Ask a few samples.

        Args:
            batch: the samples.
            losses: theirs, ``(B,)``.
            summed: ``sum_i w_i g_i`` of weights ``(B,)``, by an ordinary backward.
        """
        some = next(iter(self._parameters.values()))
        weights = torch.rand(batch_size(batch), generator=torch.Generator().manual_seed(0)) * 2 - 1
        weights = weights.to(some.device, some.dtype)
        reseed(batch)
        before = _random_state(some.device)
        expected = summed(weights)
        draws_for_itself = not torch.equal(before, _random_state(some.device))
        rounding = torch.finfo(some.dtype).eps ** 0.75  # of what could have been summed: errors are far below it
        seen: set[str] = set()

        def compare(layer: LayerGradients) -> None:
            bounds, found = layer.bounds(), layer.summed_one_by_one(weights)
            sizes = {name: float(torch.linalg.vector_norm(expected[name])) for name in found}
            apart = {name: float(torch.linalg.vector_norm(g - expected[name])) for name, g in found.items()}
            agree = {name for name in found if apart[name] <= rounding * bounds[name]}
            sure = {name for name in agree if apart[name] <= 0.05 * sizes[name] and sizes[name] > 0}
            largest = max((sizes[name] for name in sure), default=0.0)
            settled = sure | {name for name in agree if sizes[name] < 1e-3 * largest}
            self.names |= settled
            seen.update(agree - settled)

        asked = {name: self._parameters[name] for name in self.undecided}
        visit_layers(self._model, losses, asked, len(weights), compare)
        self.undecided = seen
        if draws_for_itself and self.names != set(self._parameters):
            self.names, self.undecided = set(), set()  # both ways at once would see different draws


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
