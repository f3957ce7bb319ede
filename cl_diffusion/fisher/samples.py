"""One estimator's view of a population: the gradients that it averages, with its residual and its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from cl_diffusion.fisher.drawn import Drawing, Drawn, Importance
from cl_diffusion.fisher.finite import require_finite
from cl_diffusion.fisher.gradient import LossGradients
from cl_diffusion.fisher.layers import LayerGradients
from cl_diffusion.fisher.losses import taken_by
from cl_diffusion.fisher.population import Population, Rows, regrouped
from cl_diffusion.fisher.residual import Residual
from cl_diffusion.fisher.sample_loss import SampleLoss, SampleWeights, Terms
from cl_diffusion.fisher.sharded import in_lockstep, require_finite_everywhere
from cl_diffusion.keys import derive_keys
from cl_diffusion.linalg import Parameters
from cl_diffusion.linalg.shards import dealt_as, local
from cl_diffusion.processes import all_processes, world_size


class Samples:
    """Passes over the weighted gradients ``sqrt(a_i) g_i`` of a population's samples.

    Args:
        population: model, loss, samples and draws.
        residual: which loss of the output is differentiated.
        selects: which parameters, by name.
        dtype: of sums over samples.
        offload: keep sums on the CPU.
        weights: ``a_i``; None is ones.
        importance: a number a sample, by index, for ``weights``; one that is not there counts as average.
    """

    def __init__(
        self,
        population: Population,
        residual: Residual,
        selects: Callable[[str], bool] | None = None,
        dtype: torch.dtype = torch.float64,
        offload: bool = False,
        weights: SampleWeights | None = None,
        importance: Importance | None = None,
    ) -> None:
        self.population = population
        self.dtype = dtype
        self._residual = residual
        self._selects = selects
        self._offload = offload
        self._importance = importance
        self._loss = SampleLoss(population.loss, residual, weights)
        self.gradients = LossGradients(population.model, self._loss, population.chunk_size, select=selects)
        self._drawing = Drawing(population, residual, importance, self.gradients)

    @property
    def device(self) -> torch.device:
        """Where scalars are summed."""
        return self.gradients.device

    @property
    def sums_on(self) -> torch.device:
        """Where sums as long as the parameters are kept."""
        return torch.device("cpu") if self._offload else self.device

    @property
    def own_share(self) -> float:
        """Of a sum over a batch: one where each process has its own, a part where all have one together."""
        return 1 / world_size() if self.gradients.sharded else 1.0

    def weighted(self, weights: SampleWeights, importance: Importance | None = None) -> Samples:
        """The same samples with other weights."""
        return Samples(self.population, self._residual, self._selects, self.dtype, self._offload, weights, importance)

    def drawn(self, draw: int = 0) -> Iterator[Drawn]:
        """One pass; another ``draw`` is another, independent set of random draws."""
        passed = (drawn for rows in self.population.rows(draw) for drawn in self._drawing.of(rows, draw))
        yield from in_lockstep(passed) if self.gradients.sharded else passed

    def by_half(self) -> Iterator[tuple[int, Drawn, Tensor | None]]:
        """One pass, split in two disjoint random halves: a sample's half is a function of (seed, index).

        Of sharded parameters each batch comes for both, with weights for ``summed`` that leave out the other half.
        """

        def half(rows: Rows | Drawn) -> Tensor:
            return self.keys(rows.indices, purpose="half").remainder(2)

        if self.gradients.sharded:
            for drawn in self.drawn():
                for number in (0, 1):
                    inside = (half(drawn) == number).to(self.gradients.dtype)
                    share = drawn.num_samples * float(inside.mean())
                    yield number, drawn._replace(num_samples=share), inside
            return
        for number, rows in regrouped(self.population.rows(), half):
            yield from ((number, drawn, None) for drawn in self._drawing.of(rows, 0))

    def subset(self, fraction: float, draw: int = 0) -> Iterator[Drawn]:
        """One pass over a random subset: whether a sample is in it is a function of (seed, index)."""
        if fraction >= 1:
            yield from self.drawn(draw)
            return

        def inside(rows: Rows) -> Tensor:
            uniform = self.keys(rows.indices, purpose="subset").remainder(2**53).double() / 2**53
            return (uniform < fraction).long()

        for number, rows in regrouped(self.population.rows(draw), inside):
            if number == 1:
                yield from self._drawing.of(rows, draw)

    def summed(self, drawn: Drawn, weights: Tensor | None = None) -> Parameters:
        """``sum_i w_i g_i``; over all processes where parameters are sharded."""
        if self.gradients.sharded and drawn.num_samples == 0:  # takes part, and adds nothing
            weights = torch.zeros(len(drawn.indices))
        return self.finite(self.gradients.summed(drawn.inputs, weights), drawn)

    def summed_squares(self, drawn: Drawn) -> Parameters:
        """``sum_i g_i * g_i``."""
        return self.finite(self.gradients.summed_squares(drawn.inputs), drawn)

    def summed_absolute(self, drawn: Drawn) -> Parameters:
        """``sum_i |g_i|``."""
        return self.finite(self.gradients.summed_absolute(drawn.inputs), drawn)

    def projections(self, drawn: Drawn, direction: Parameters) -> Tensor:
        """``g_i^T v``, float64 ``(B,)``."""
        found = self.gradients.projections(drawn.inputs, direction)
        self.finite({"projection": found}, drawn)
        return found

    def products(self, drawn: Drawn, direction: Parameters) -> Parameters:
        """``sum_i g_i (g_i^T v)``."""
        return self.finite(self.gradients.products(drawn.inputs, direction), drawn)

    def per_sample(self, drawn: Drawn, names: frozenset[str] | None = None) -> Iterator[Parameters]:
        """``g_i``, in chunks."""
        yield from self.gradients.per_sample(drawn.inputs, names)

    def visit_layers(self, drawn: Drawn, visit: Callable[[LayerGradients], None]) -> frozenset[str]:
        """Show the layers whose per-sample gradients are known by input and output gradient; the names of the rest."""

        def show(layer: LayerGradients) -> None:
            self.finite(dict.fromkeys(layer.names.values(), layer.output_gradients), drawn)
            visit(layer)

        return self.gradients.visit_layers(drawn.inputs, show)

    def finite(self, vector: Parameters, drawn: Drawn) -> Parameters:
        """The vector itself.

        Raises:
            FloatingPointError: it is not finite; where gradients of single samples can be had, names the sample.
        """
        if self.gradients.sharded:
            require_finite_everywhere(vector)
        else:
            require_finite(vector, drawn.indices, lambda: self.terms(drawn).losses, self.per_sample(drawn))
        return vector

    @torch.no_grad()
    def terms(self, drawn: Drawn) -> Terms:
        """Losses and outputs, for a weighting."""
        if drawn.inputs.reseed is not None:
            torch.manual_seed(drawn.inputs.reseed)
        with taken_by(self.population.model, drawn.inputs):
            return self._loss.terms(self.population.model, drawn.inputs)

    def keys(self, indices: Tensor, draw: int = 0, purpose: str = "") -> Tensor:
        """A key a sample, a function of (seed, index, draw, purpose)."""
        return derive_keys(self.population.seed, indices, draw, purpose)

    def zeros(self, *leading: int) -> Parameters:
        """A sum over samples that is yet empty, shaped like the parameters behind ``leading`` axes."""
        if self.gradients.sharded:
            empty = {n: torch.zeros_like(local(p), dtype=self.dtype) for n, p in self.gradients.parameters.items()}
            return {
                n: dealt_as(zero.expand(*leading, *zero.shape).clone(), self.gradients.parameters[n])
                for n, zero in empty.items()
            }
        return {
            name: torch.zeros((*leading, *p.shape), dtype=self.dtype, device=self.sums_on)
            for name, p in self.gradients.parameters.items()
        }

    def to_parameters(self, vector: Parameters) -> Parameters:
        """In the parameters' own type and on their device."""
        return {name: tensor.to(self.gradients.parameters[name]) for name, tensor in vector.items()}

    def all_reduce(self, sums: Mapping[str, Tensor]) -> None:
        """Sum each tensor over all processes, in place, one at a time; nothing to do in a single one.

        Sharded sums are over all processes as they come.
        """
        if world_size() == 1:
            return
        for tensor in sums.values():
            if local(tensor) is not tensor:
                continue
            travelling = tensor.to(self.device) if dist.get_backend() == "nccl" else tensor
            total = all_processes(travelling)
            if total is not tensor:
                tensor.copy_(total)
