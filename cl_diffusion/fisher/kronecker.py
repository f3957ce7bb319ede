"""A Kronecker-factored Fisher: one product a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack, override

from cl_diffusion.fisher.drawn import Drawn
from cl_diffusion.fisher.estimator import FisherEstimator, Report, Settings
from cl_diffusion.fisher.layers import AffineGradients, LayerGradients
from cl_diffusion.fisher.layers.layer import in_single
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.repeatable import require_repeatable
from cl_diffusion.fisher.sample_mean import require_samples
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.linalg import BlockDiagonal, Diagonal, Kronecker, Operator, Parameters, parameters
from cl_diffusion.linalg.kronecker import eigenbasis, joined
from cl_diffusion.processes import gathered_objects

_PATCHES = 64 * 2**20
"""Bytes of input patches held at once."""

LayerNames = tuple[str, str | None]


class KroneckerFisher(FisherEstimator):
    """``V -> B V A`` for each linear layer and convolution, ``V = [W | b]``: K-FAC (Martens & Grosse 2015, 1503.05671).

    ``A = (1/(nL)) sum a a^T`` over samples and their ``L`` positions, ``a`` an input patch and a one for the bias;
    ``B = (1/n) sum b b^T``, ``b`` the gradient at an output position, with the sample's weight. Positions are taken
    to be independent (KFC, Grosse & Martens 2016, 1602.01407; KFAC-expand). Exact for a linear layer with one sample
    and one position; with several positions it is not (85% off with 5 tokens).

    ``corrected=True`` keeps the eigenbases and replaces the eigenvalues by the second moments of the per-sample
    gradients in them, which is the best diagonal there: EK-FAC (George et al. 2018, 1806.03884), whose trace is exact.

    Parameters of other layers (norms, embeddings, grouped or transposed convolutions, shared or free parameters) take
    the exact diagonal, and so does a layer that could not be verified; the record names them under ``on_the_diagonal``.
    A weight whose bias is frozen or left out is factored without it.

    Args:
        corrected: one more pass, with per-sample gradients.
        **settings: of ``FisherEstimator``.
    """

    kind = BlockDiagonal.kind

    def __init__(self, corrected: bool = False, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self.corrected = corrected
        self.compares_passes = corrected

    @property
    @override
    def name(self) -> str:
        return "Kronecker, eigenvalues corrected" if self.corrected else "Kronecker"

    @override
    def samples(self, population: Population) -> tuple[Samples, Report]:
        if getattr(population.loss, "singly", False):
            raise ValueError(
                "KroneckerFisher reads the inputs and output gradients of layers in batches, and the loss is taken on "
                "batches of one (OneByOne); give a loss with one entry a sample (`per_sample_loss`), or use "
                "DiagonalFisher or MeanGradientFisher"
            )
        return super().samples(population)

    @override
    def try_on(self, samples: Samples, drawn: Drawn) -> None:
        samples.summed_squares(drawn)

    @override
    def compute(self, population: Population) -> tuple[Operator, Report]:
        samples, fitted = self.samples(population)
        factors, squares, n = _factor_pass(samples)
        bases = {names: factor.bases(n) for names, factor in factors.items()}
        if self.corrected:
            require_repeatable(samples)
            values = _corrected_values(samples, bases, n)
        else:
            values = {names: torch.outer(basis.beta, basis.alpha) for names, basis in bases.items()}
        parts: list[Operator] = []
        for names, basis in bases.items():
            like = samples.gradients.parameters[names[0]]
            inputs, outputs, eigenvalues = (t.to(like) for t in (basis.inputs, basis.outputs, values[names]))
            parts.append(Kronecker(names[0], names[1], like.shape, inputs, outputs, eigenvalues))
        if squares:
            parts.append(Diagonal(samples.to_parameters(parameters.scale(squares, 1 / n))))
        report: Report = {"samples": n, "kronecker_layers": float(len(factors)), "on_the_diagonal": sorted(squares)}
        return BlockDiagonal(parts), {**report, **fitted}


@dataclass
class _Basis:
    inputs: Tensor
    outputs: Tensor
    alpha: Tensor
    beta: Tensor


@dataclass
class _Factors:
    """Sums over samples and positions, in the order of the flattened weight."""

    inputs: Tensor
    outputs: Tensor
    positions: Tensor

    def bases(self, n: float) -> _Basis:
        alpha, inputs = eigenbasis(self.inputs / self.positions)
        beta, outputs = eigenbasis(self.outputs / n)
        return _Basis(inputs, outputs, alpha, beta)


def _factor_pass(samples: Samples) -> tuple[dict[LayerNames, _Factors], Parameters, float]:
    """The factors of each layer, the summed squares of all other parameters, and the number of samples."""
    factored = _agreed_layers(samples)
    weights = samples.gradients.parameters
    factors = {names[0]: _empty_factors(names, weights, samples) for names in factored}
    inside = {name for names in factored for name in names if name is not None}
    squares = {name: total for name, total in samples.zeros().items() if name not in inside}
    count = torch.zeros(1, dtype=torch.float64, device=samples.device)
    for drawn in samples.drawn():

        def add(layer: LayerGradients, drawn: Drawn = drawn) -> None:
            if isinstance(layer, AffineGradients) and (factor := factors.get(layer.names.get("weight", ""))):
                _add_factors(factor, layer, drawn)
            if not inside.issuperset(layer.names.values()):
                parameters.add_mixed_(squares, {n: s for n, s in layer.summed_squares().items() if n in squares})

        rest = samples.visit_layers(drawn, add)
        _require_factored(rest & inside)
        for chunk in samples.per_sample(drawn, rest) if rest else ():
            parameters.add_mixed_(squares, {name: g.square().sum(0) for name, g in chunk.items()})
        traces = {name: torch.stack([f.inputs.trace(), f.outputs.trace()]) for name, f in factors.items()}
        samples.finite({**traces, **squares}, drawn)
        count += drawn.num_samples
    samples.all_reduce({**squares, "count": count})
    for factor in factors.values():
        samples.all_reduce({"inputs": factor.inputs, "outputs": factor.outputs, "positions": factor.positions})
    require_samples(float(count))
    return {names: factors[names[0]] for names in factored}, squares, float(count)


def _require_factored(missing: frozenset[str]) -> None:
    """Refuse a batch in which a factored layer was not called as in the first one.

    Raises:
        ValueError: names the parameters.
    """
    if missing:
        raise ValueError(
            f"the layer of {', '.join(sorted(missing))} takes another part in this batch than in the first one, so its "
            "factors are not known; exclude its parameters (exclude=...), or use DiagonalFisher"
        )


def _agreed_layers(samples: Samples) -> list[LayerNames]:
    """The layers that are factored: those that every process with samples has verified, in the order of the model."""
    first = next(samples.drawn(), None)
    whole: set[LayerNames] = set()

    def add(layer: LayerGradients) -> None:
        if isinstance(layer, AffineGradients) and "weight" in layer.names:
            whole.add((layer.names["weight"], layer.names.get("bias")))

    mine = None
    if first is not None:
        samples.visit_layers(first, add)
        order = list(samples.gradients.parameters)
        mine = sorted(whole, key=lambda names: order.index(names[0]))
    found = [names for names in gathered_objects(mine) if names is not None]
    return [names for names in found[0] if all(names in others for others in found)] if found else []


def _empty_factors(names: LayerNames, weights: Parameters, samples: Samples) -> _Factors:
    weight, bias = weights[names[0]], names[1]
    o, m = len(weight), weight[0].numel() + (bias is not None)
    options: dict[str, Any] = {"dtype": samples.dtype, "device": samples.sums_on}
    return _Factors(torch.zeros(m, m, **options), torch.zeros(o, o, **options), torch.zeros(1, **options))


def _add_factors(factors: _Factors, layer: AffineGradients, drawn: Drawn) -> None:
    """Add a batch; rows that stand for less than a sample (one an outcome) count for less as inputs."""
    share = drawn.num_samples / len(drawn.indices)
    samples = len(layer.inputs)
    m = layer.parameter("weight")[0].numel()
    order = torch.arange(m, device=layer.inputs.device).view(layer.num_taps, -1).T.reshape(-1)  # taps fastest, as in W
    step = max(1, _PATCHES // (m * layer.num_positions * layer.inputs.element_size()))
    for start in range(0, samples, step):
        rows = slice(start, start + step)
        u, d = in_single(layer.patches(rows).flatten(0, 1)), in_single(layer.positions(rows))
        gram = (u.T @ u)[order][:, order].to(factors.inputs.device)
        factors.inputs[:m, :m] += share * gram
        if len(factors.inputs) > m:
            ones = u.sum(0)[order].to(factors.inputs.device)
            factors.inputs[:m, m] += share * ones
            factors.inputs[m, :m] += share * ones
            factors.inputs[m, m] += share * len(u)
        factors.outputs += torch.einsum("bol,bpl->op", d, d).to(factors.outputs.device)
        factors.positions += share * len(u)


def _corrected_values(samples: Samples, bases: dict[LayerNames, _Basis], n: float) -> dict[LayerNames, Tensor]:
    """``(1/n) sum_i (U_B^T G_i U_A)^2`` of each layer."""
    sums = {names: torch.zeros_like(torch.outer(basis.beta, basis.alpha)) for names, basis in bases.items()}
    by_weight = {names[0]: names for names in bases}

    def add(layer: LayerGradients) -> None:
        names = by_weight.get(layer.names.get("weight", ""))
        if names is None:
            return
        basis = bases[names]
        inputs, outputs = basis.inputs.to(layer.inputs), basis.outputs.to(layer.inputs)
        step = max(1, _PATCHES // (outputs.shape[0] * inputs.shape[0] * layer.inputs.element_size()))
        for start in range(0, len(layer.inputs), step):
            of = layer.of(slice(start, start + step))
            matrix = _matrices(of[names[0]], None if names[1] is None else of[names[1]])
            sums[names] += in_single(outputs.T @ matrix @ inputs).square_().sum(0).to(sums[names].device)

    for drawn in samples.drawn():
        samples.visit_layers(drawn, add)
    for total in sums.values():
        samples.all_reduce({"values": total})
    return {names: total / n for names, total in sums.items()}


def _matrices(weights: Tensor, biases: Tensor | None) -> Tensor:
    """``[W | b]`` of each sample: ``(b, o, m)``."""
    return torch.stack([joined(w, None if biases is None else biases[row]) for row, w in enumerate(weights)])
