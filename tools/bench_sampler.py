"""What does the covariance of a reverse step buy, on data whose posterior is known and on a trained model?

    python tools/bench_sampler.py path --json path.json --picture path.png
    python tools/bench_sampler.py images runs/joint/checkpoints/last.ckpt --picture images.png

*path*: the path KL of a mixture of broad Gaussians by the number of steps, for the covariances that its exact posterior
leads to, and what a Krylov space of so many products adds to the full one, on Gaussian data; with the slopes in T. Then
the same by network evaluations: in two dimensions two products have the full covariance exactly, at three evaluations
a step.

*images*: Frechet distance and class agreement of images drawn from a checkpoint, by network evaluations (a product
with the Jacobian counting as one), not by steps, with the seconds that a thousand images took (the median); means over
seeds of the noise, plus or minus the standard error. Statistics of Analytic-DPM are estimated on the training images.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from side_by_side import environment
from tables import table
from trained import Figures, TrainedModel, cells, draw_curves

from cl_diffusion.diffusion import NoiseSchedule
from cl_diffusion.diffusion.mixture import GaussianMixture
from cl_diffusion.diffusion.samplers import (
    AnalyticSampler,
    AncestralSampler,
    DDIMSampler,
    HutchinsonSampler,
    LanczosGaussianSampler,
    LearnedDiagonalSampler,
    LearnedVarianceSampler,
    NoiseStatistics,
    Sampler,
)
from cl_diffusion.metrics.path_kl import COVARIANCES, lanczos_path_kl, path_kl, prior_kl

Curves = dict[str, dict[int, float]]
BROAD = GaussianMixture(
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.tensor([[0.0, 0.0], [1.5, 0.5], [-1.0, 1.2]], dtype=torch.float64),
    torch.tensor([[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.1], [-0.1, 0.6]], [[0.4, 0.1], [0.1, 0.2]]], dtype=torch.float64),
)
SPREAD = torch.diag(torch.tensor([0.1, 0.25, 0.5, 0.8, 1.2, 2.0], dtype=torch.float64))
ADDED = "added by a Krylov space of"
PRODUCTS = 2
"""By which the full covariance of the mixture, in two dimensions, is exact."""


def uniform(steps: int) -> NoiseSchedule:
    """Linear variance-preserving, ``beta(u) = 0.1 .. 20``, at ``u = 1/T .. 1``."""
    u = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return NoiseSchedule(torch.exp(-(0.1 * u + 19.9 * u.square() / 2)))


def steps_within(budget: int, products: int) -> int:
    """As many as so many evaluations allow; the last step takes no product."""
    return (budget + products) // (1 + products)


def path(counts: Sequence[int], samples: int) -> Curves:
    """Path KL in nats, by covariance and number of steps."""
    curves: Curves = {name: {} for name in COVARIANCES}
    for steps in counts:
        for name, value in path_kl(BROAD, uniform(steps), COVARIANCES, samples=samples, nodes=16).items():
            curves[name][steps] = value
    for products in (1, 2, 3):
        added = {steps: lanczos_path_kl(SPREAD, uniform(steps), products, samples=500) for steps in counts}
        curves[f"{ADDED} {products}"] = added
    fewer = {
        count: path_kl(
            BROAD, uniform(steps_within(count, PRODUCTS)), {"full": COVARIANCES["full"]}, samples=samples, nodes=16
        )["full"]
        for count in counts
    }
    curves[f"full, by {PRODUCTS} products, at as many evaluations"] = fewer
    return curves


def slopes(curve: Mapping[int, float]) -> list[float]:
    """Of log KL in log T, between neighbours."""
    return [math.log(curve[b] / curve[a]) / math.log(b / a) for a, b in pairwise(sorted(curve))]


def path_table(curves: Curves) -> str:
    """A row a covariance."""
    counts = sorted(next(iter(curves.values())))
    lines = [
        [name, *(f"{curve[count]:.2g}" for count in counts), ", ".join(f"{slope:.2f}" for slope in slopes(curve))]
        for name, curve in curves.items()
    ]
    return table(["covariance", *map(str, counts), "slopes"], lines)


def path_panels(curves: Curves) -> dict[str, dict[str, dict[float, list[float]]]]:
    """What each covariance leaves, and what a Krylov space adds to the full one."""
    panels: dict[str, dict[str, dict[float, list[float]]]] = {"path KL, nats": {}, "path KL added, nats": {}}
    for name, curve in curves.items():
        up = "path KL added, nats" if name.startswith(ADDED) else "path KL, nats"
        panels[up][name] = {count: [value] for count, value in curve.items()}
    return panels


class Candidates:
    """Every sampler, with as many steps as a budget of network evaluations allows, at least 2.

    Args:
        trained: the model; one with a learned variance is drawn from by that as well.
        heads: files of heads that were trained on it.
        clip_pixel: of the samplers with more variance than the least; see ``GaussianSampler``.
        only: those whose names begin so.
    """

    def __init__(
        self, trained: TrainedModel, heads: Sequence[str], clip_pixel: float | None, only: Sequence[str] = ("",)
    ) -> None:
        self.trained, self.heads, self.clip_pixel, self.only = trained, heads, clip_pixel, tuple(only)

    def within(self, budget: int) -> dict[str, Sampler]:
        """By name."""
        return {name: sampler for name, sampler in self._within(budget) if name.startswith(self.only)}

    def _within(self, budget: int) -> Iterator[tuple[str, Sampler]]:
        clip = self.clip_pixel
        yield "DDIM", DDIMSampler(budget)
        yield "ancestral, small", AncestralSampler(budget, "small")
        yield "ancestral, large", AncestralSampler(budget, "large", clip_pixel=clip)
        yield "Analytic-DPM", AnalyticSampler(self._statistics(budget), budget, clip_pixel=clip)
        if self.trained.denoiser.learned_variance:
            yield "learned variance (iDDPM)", LearnedVarianceSampler(budget, clip_pixel=clip)
        for file in self.heads:
            head = LearnedDiagonalSampler(file, budget, clip_pixel=clip)
            yield f"diagonal by a head, {head.head.target.upper()}", head
        for products in (1, 2, 3):
            if (steps := steps_within(budget, products)) < 2:
                continue
            if products == 1:
                yield "diagonal by 1 probe", HutchinsonSampler(steps, 1, clip_pixel=clip)
            yield f"Lanczos, k = {products}", LanczosGaussianSampler(steps, products, clip_pixel=clip)

    def _statistics(self, steps: int) -> NoiseStatistics:
        visited = DDIMSampler(steps).timesteps(self.trained.denoiser.schedule)
        generator = torch.Generator().manual_seed(1)
        return NoiseStatistics.of(self.trained.denoiser, *self.trained.training, visited, generator)


def images(candidates: Candidates, budgets: Sequence[int], seeds: Sequence[int]) -> dict[int, dict[str, Figures]]:
    """Figures by budget and sampler, printed as a table a budget."""
    found: dict[int, dict[str, Figures]] = {}
    for budget in budgets:
        samplers = candidates.within(budget)
        found[budget] = candidates.trained.measured(samplers, seeds)
        lines = []
        for name, sampler in samplers.items():
            schedule = candidates.trained.denoiser.schedule
            used = f"{len(sampler.timesteps(schedule))} / {sampler.evaluations(schedule)}"
            lines.append([name, used, *cells(found[budget][name])])
        head = ["covariance", "steps / evaluations", "Frechet distance", "class agreement", "s per 1000 images"]
        print(f"{table(head, lines)}\n", flush=True)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("path", "images"))
    parser.add_argument("checkpoint", nargs="?", help="for images: of a class-conditional model")
    parser.add_argument("--steps", nargs="+", type=int, default=[64, 128, 256, 512], help="for path")
    parser.add_argument("--samples", type=int, default=300, help="for path: of x_t")
    parser.add_argument("--budgets", nargs="+", type=int, default=[5, 10, 25, 50], help="for images: evaluations")
    parser.add_argument("--heads", nargs="*", default=[], help="for images: files that VarianceHeadModule has written")
    parser.add_argument("--only", nargs="+", default=[""], help="for images: covariances whose names begin so")
    parser.add_argument("--clip-pixel", type=float, default=2.0, help="for images: grey levels; 0 does not clip")
    parser.add_argument("--images-per-class", type=int, default=100)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", help="for images: a GPU if there is one by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    found: Any
    if given.question == "path":
        found = curves = path(given.steps, given.samples)
        print(f"{path_table(curves)}\n\nThe prior's term, beside: {prior_kl(BROAD, uniform(given.steps[-1])):.2g} nats")
        across, panels = "steps, or network evaluations", path_panels(curves)
    else:
        if given.checkpoint is None:
            parser.error("images needs a checkpoint, such as runs/joint/checkpoints/last.ckpt")
        trained = TrainedModel(given.checkpoint, given.images_per_class, given.device)
        found = images(
            Candidates(trained, given.heads, given.clip_pixel or None, given.only), given.budgets, given.seeds
        )
        across, panels = "network evaluations", {}
        for title, key in {"Frechet distance": "frechet_distance", "class agreement": "class_agreement"}.items():
            panels[title] = {}
            for budget, of in found.items():
                for name, figures in of.items():
                    panels[title].setdefault(name, {})[budget] = figures[key]
    if given.picture:
        draw_curves(panels, across, given.picture)
    if given.json:
        given.json.write_text(json.dumps({"environment": environment(), given.question: found}, indent=1))


if __name__ == "__main__":
    main()
