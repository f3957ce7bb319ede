"""How much of a sample's gradient the gradients of others do not span."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_diffusion.fisher.samples import Samples
from cl_diffusion.linalg import Parameters, parameters
from cl_diffusion.processes import gathered


def residual_diversity(samples: Samples, kept: int = 64) -> dict[int, float]:
    """``|g~_i - Q Q^T g~_i|^2`` of each sample of this process, by index, for unit gradients ``g~ = g / |g|``.

    It is 0 where the gradient is zero.

    ``Q`` spans the gradients of at most ``kept`` samples, the same on every process: those whose random order, a
    function of (seed, index), comes first. Each of these is measured against the ones before it, and one that adds
    nothing is not kept. (2611.16039 measures each sample against those before it, at most 64 kept.) Three passes;
    ``kept`` vectors as long as the parameters.
    """
    order = _first(samples, kept)
    gradients = samples.zeros(len(order))
    for drawn, start, chunk in _unit_gradients(samples):
        for row, index in enumerate(drawn[start : start + len(next(iter(chunk.values())))].tolist()):
            if index in order:
                for name, g in chunk.items():
                    gradients[name][order[index]] = g[row].to(gradients[name])
    samples.all_reduce(gradients)
    factor, spanned, own = _triangular(_products(gradients, gradients))
    table: dict[int, float] = {}
    for indices, start, chunk in _unit_gradients(samples):
        overlaps = _products({name: g.to(gradients[name]) for name, g in chunk.items()}, gradients)[:, spanned]
        inside = torch.linalg.solve_triangular(factor, overlaps.T, upper=False).square().sum(0)
        lengths = torch.stack([parameters.flat_rows(g).double().square().sum(1) for g in chunk.values()]).sum(0).cpu()
        rest = (lengths - inside.cpu()).clamp(min=0.0)
        for row, index in enumerate(indices[start : start + len(rest)].tolist()):
            table[index] = float(own[order[index]]) if index in order else float(rest[row])
    return table


def _first(samples: Samples, kept: int) -> dict[int, int]:
    """The indices that come first in a random order that all processes share, and their places in it."""
    mine = torch.cat([drawn.indices for drawn in samples.drawn()] or [torch.zeros(0, dtype=torch.int64)])
    indices = gathered(mine)
    order = samples.keys(indices, purpose="diversity").argsort()
    return {index: place for place, index in enumerate(indices[order[:kept]].tolist())}


def _unit_gradients(samples: Samples):  # type: ignore[no-untyped-def]
    """Indices of a batch, where a chunk of it starts, and the chunk's gradients at unit length."""
    for drawn in samples.drawn():
        start = 0
        for chunk in samples.per_sample(drawn):
            squares = torch.stack([parameters.flat_rows(g).double().square().sum(1) for g in chunk.values()]).sum(0)
            scale = torch.where(squares > 0, squares.rsqrt(), 0.0)
            size = len(scale)
            yield drawn.indices, start, {n: g * scale.to(g).view(-1, *[1] * (g.ndim - 1)) for n, g in chunk.items()}
            start += size


def _products(a: Parameters, b: Parameters) -> Tensor:
    """All inner products, float64."""
    return torch.stack(
        [(parameters.flat_rows(x) @ parameters.flat_rows(b[name]).T).double() for name, x in a.items()]
    ).sum(0)


def _triangular(gram: Tensor) -> tuple[Tensor, list[int], Tensor]:
    """Cholesky of the Gram matrix row by row: the factor, the rows that were kept, and each row's squared residual."""
    kept: list[int] = []
    residuals = torch.zeros(len(gram), dtype=gram.dtype)
    factor = gram.new_zeros((0, 0))
    for row in range(len(gram)):
        part = torch.linalg.solve_triangular(factor, gram[kept, row][:, None], upper=False)[:, 0]
        rest = float((gram[row, row] - part.square().sum()).clamp(min=0.0))
        residuals[row] = rest
        if rest > 1e-6:  # of a unit vector: below that, float32 gradients do not tell it from rounding
            grown = gram.new_zeros((len(kept) + 1, len(kept) + 1))
            grown[: len(kept), : len(kept)] = factor
            grown[-1, : len(kept)] = part
            grown[-1, -1] = rest**0.5
            factor = grown
            kept.append(row)
    return factor, kept, residuals
