"""Is the Fisher of a denoiser near pure noise of rank one? In the linear model of it, measured beside the formulas.

    python tools/linear_gaussian.py

``y | x ~ N(A x, sigma^2 I)``, ``x ~ N(0, tau^2 I_d)``. The *true* Fisher is ``tau^2 / sigma^2 I``: its spectrum is flat
and the divergence of a displacement depends on its length alone. The *empirical* second moment, of the gradients of an
``A`` that is off by a multiple of the identity, has ``lambda_1 / trace = 1 / d``, eigenvalues of ``2 / (d + 2)`` of the
first behind it, and gradients at a cosine of ``1 / sqrt(d)`` to their mean. (2509.23593, appendix B.2, passes from
``(A x - gamma x) x^T`` to ``|x|^2 (A - gamma I)``, by which that cosine would be 1; it is for a single scalar.) Then a
nonlinear part of growing size, and the bounds on how far it turns the leading direction.
"""

from __future__ import annotations

import argparse
import math

import torch
from tables import table
from torch import Tensor

from cl_diffusion.metrics.gram import Gram
from cl_diffusion.metrics.linear_gaussian import LinearGaussian
from cl_diffusion.metrics.stability import stability

GAMMA, OFFSET = 0.8, 0.3


def off_by_a_multiple(dimension: int, **options: float) -> LinearGaussian:
    """``A = (gamma + a) I``."""
    model = LinearGaussian(dimension, **options)
    with torch.no_grad():
        model.weight.copy_((GAMMA + OFFSET) * torch.eye(dimension))
    return model


def true_fisher(dimension: int, samples: int, sigma: float, tau: float) -> list[str]:
    """Targets drawn from the model: eigenvalues over ``tau^2 / sigma^2``, and the divergence along two directions."""
    model, generator = LinearGaussian(dimension, sigma, tau), torch.Generator().manual_seed(0)
    x = model.inputs(samples, generator)
    with torch.no_grad():
        y = model(x) + sigma * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    g = model.gradients(x, y)
    eigenvalues = torch.linalg.eigvalsh(g.T @ g / samples) * sigma**2 / tau**2
    leading = torch.eye(dimension, dtype=torch.float64) / math.sqrt(dimension)
    other = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    measured = [_divergence(model, x, direction) for direction in (leading, other / other.norm())]
    known = model.divergence(leading)
    spread = f"{float(eigenvalues[0]):.3f} .. {float(eigenvalues[-1]):.3f}"
    return [str(dimension), spread, "1 .. 1", *(f"{value / known:.3f}" for value in measured), "1"]


def empirical_fisher(dimension: int, samples: int) -> list[str]:
    """Measured, and by formula."""
    model = off_by_a_multiple(dimension)
    x = model.inputs(samples, torch.Generator().manual_seed(0))
    g = model.gradients(x, GAMMA * x)
    found = Gram(g @ g.T).spectrum()
    others = found.eigenvalues[1 : dimension * (dimension + 1) // 2]
    behind = f"{float(others.mean() / found.eigenvalues[0]):.3f}" if dimension > 1 else ""
    by_formula = [f"{1 / dimension:.3f}", f"{2 / (dimension + 2):.3f}" if dimension > 1 else ""]
    measured = [f"{found.leading_share:.3f}", behind]
    pairs = [part for pair in zip(measured, by_formula, strict=True) for part in pair]
    return [str(dimension), *pairs, f"{found.cosine_to_mean:.3f}", f"{1 / math.sqrt(dimension):.3f}"]


def with_remainder(dimension: int, remainder: float, samples: int) -> list[str]:
    """The angle that it turns the leading direction by, and the bounds."""
    model, linear = off_by_a_multiple(dimension, remainder=remainder), off_by_a_multiple(dimension)
    x = model.inputs(samples, torch.Generator().manual_seed(0))
    both = torch.cat([model.gradients(x, GAMMA * x), linear.gradients(x, GAMMA * x)])
    found = stability(both @ both.T)
    figures = found.ratio, found.sine, found.residual_bound, found.sharp_bound, found.bound
    return [f"{remainder:g}", *("none" if math.isinf(figure) else f"{figure:.3f}" for figure in figures)]


def _divergence(model: LinearGaussian, x: Tensor, displacement: Tensor) -> float:
    return float((x @ displacement.T).square().sum(1).mean()) / (2 * model.sigma**2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--remainders", nargs="+", type=float, default=[0.01, 0.05, 0.1, 0.2, 0.4, 0.8])
    parser.add_argument("--samples", type=int, default=1500)
    given = parser.parse_args()
    head = ["d", "eigenvalues / (tau^2 / sigma^2)", "exact", "KL along I", "KL along a random direction", "exact"]
    lines = [true_fisher(dimension, 100 * given.samples, sigma=0.5, tau=1.5) for dimension in given.dimensions]
    print(f"True Fisher\n\n{table(head, lines)}\n")
    head = ["d", "lambda_1 / trace", "1 / d", "others / lambda_1", "2 / (d + 2)", "cos(g, mean)", "1 / sqrt(d)"]
    lines = [empirical_fisher(dimension, given.samples) for dimension in given.dimensions]
    print(f"Empirical second moment, A off by a multiple of I\n\n{table(head, lines)}\n")
    head = ["remainder", "|R| / gap", "sin angle", "residual bound", "sharp bound", "2 |R| / gap"]
    lines = [with_remainder(4, remainder, given.samples // 3) for remainder in given.remainders]
    print(f"A nonlinear remainder, d = 4\n\n{table(head, lines)}")


if __name__ == "__main__":
    main()
