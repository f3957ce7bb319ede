"""What does the covariance of a reverse step buy, on data whose posterior is known and on a trained model?

    python tools/bench_sampler.py path --json path.json --picture path.png
    python tools/bench_sampler.py quality runs/joint/checkpoints/last.ckpt --json quality.json --picture quality.png

*path*: the path KL of a mixture of broad Gaussians by the number of steps, for the covariances that its exact posterior
leads to, and what a Krylov space of so many products adds to the full one, on Gaussian data; with the slopes in T.

*quality*: Frechet distance and class agreement of images drawn from a checkpoint, by network evaluations (a product
with the Jacobian counting as one), not by steps, with the seconds that a thousand images took; means over seeds of the
noise, plus or minus the standard error. Statistics of Analytic-DPM are estimated on the training images.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from side_by_side import environment
from torch import Tensor

from cl_diffusion import DDPM, TaskDataModule
from cl_diffusion.cli.checkpoint_config import configuration_of
from cl_diffusion.diffusion import NoiseSchedule
from cl_diffusion.diffusion.mixture import GaussianMixture
from cl_diffusion.diffusion.samplers import (
    AnalyticSampler,
    AncestralSampler,
    DDIMSampler,
    HutchinsonSampler,
    LanczosGaussianSampler,
    NoiseStatistics,
    Sampler,
)
from cl_diffusion.metrics.generation_quality import GenerationQuality
from cl_diffusion.metrics.path_kl import COVARIANCES, lanczos_path_kl, path_kl
from cl_diffusion.metrics.reference_classifier import trained_reference

Curves = dict[str, dict[int, float]]
BROAD = GaussianMixture(
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.tensor([[0.0, 0.0], [1.5, 0.5], [-1.0, 1.2]], dtype=torch.float64),
    torch.tensor([[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.1], [-0.1, 0.6]], [[0.4, 0.1], [0.1, 0.2]]], dtype=torch.float64),
)
SPREAD = torch.diag(torch.tensor([0.1, 0.25, 0.5, 0.8, 1.2, 2.0], dtype=torch.float64))


def uniform(steps: int) -> NoiseSchedule:
    """Linear variance-preserving, ``beta(u) = 0.1 .. 20``, at ``u = 1/T .. 1``."""
    u = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return NoiseSchedule(torch.exp(-(0.1 * u + 19.9 * u.square() / 2)))


def path(counts: list[int], samples: int) -> Curves:
    """Path KL in nats, by covariance and number of steps."""
    curves: Curves = {name: {} for name in COVARIANCES}
    for steps in counts:
        for name, value in path_kl(BROAD, uniform(steps), COVARIANCES, samples=samples, nodes=16).items():
            curves[name][steps] = value
    for products in (1, 2, 3):
        added = {steps: lanczos_path_kl(SPREAD, uniform(steps), products, samples=500) for steps in counts}
        curves[f"added by a Krylov space of {products}"] = added
    return curves


def slopes(curve: Mapping[int, float]) -> list[float]:
    """Of log KL in log T, between neighbours."""
    return [math.log(curve[b] / curve[a]) / math.log(b / a) for a, b in pairwise(sorted(curve))]


def restored(checkpoint: str) -> tuple[DDPM, TaskDataModule]:
    """Model and data of a checkpoint that ``cl-diffusion fit`` has written."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(DDPM, "model")
    parser.add_subclass_arguments(TaskDataModule, "data")
    found = parser.instantiate_classes(parser.parse_object(json.loads(configuration_of(checkpoint))))
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    found.model.load_state_dict(state["state_dict"])
    found.data.setup("test")
    return found.model.eval().requires_grad_(False), found.data


def gathered(loaders: Any) -> tuple[Tensor, Tensor]:
    """All images and labels."""
    batches = [batch for loader in loaders for batch, _ in loader]
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def candidates(budget: int, gamma: Callable[[int], NoiseStatistics]) -> Iterator[tuple[str, Sampler]]:
    """Every sampler with as many steps as the budget of network evaluations allows, at least 2."""
    yield "DDIM", DDIMSampler(budget)
    yield "ancestral, small", AncestralSampler(budget, "small")
    yield "ancestral, large", AncestralSampler(budget, "large", clip_pixel=2.0)
    yield "Analytic-DPM", AnalyticSampler(gamma(budget), budget)
    for products in (1, 2, 3):
        if (steps := (budget + products) // (1 + products)) >= 2:
            yield f"Lanczos, {products}", LanczosGaussianSampler(steps, products, clip_pixel=2.0)
            if products == 1:
                yield "Hutchinson, 1", HutchinsonSampler(steps, 1, clip_pixel=2.0)


def quality(checkpoint: str, budgets: list[int], images_per_class: int, seeds: list[int]) -> list[dict[str, Any]]:
    """A record a sampler and budget."""
    model, data = restored(checkpoint)
    tasks = range(data.num_tasks)
    training = gathered(data.reference_dataloader(task) for task in tasks)
    held_out = gathered(data.evaluation_dataloader(task) for task in tasks)
    judge = GenerationQuality(trained_reference(training, held_out), [held_out[0]])
    labels = held_out[1].unique().repeat_interleave(images_per_class)

    def gamma(steps: int) -> NoiseStatistics:
        visited = DDIMSampler(steps).timesteps(model.denoiser.schedule)
        return NoiseStatistics.of(model.denoiser, *training, visited, torch.Generator().manual_seed(1))

    records = []
    for budget in budgets:
        for name, sampler in candidates(budget, gamma):
            figures: dict[str, list[float]] = {}
            for seed in seeds:
                start = time.perf_counter()
                images = sampler.sample(
                    model.denoiser, data.image_shape, labels, generator=torch.Generator().manual_seed(seed)
                )
                seconds = (time.perf_counter() - start) * 1000 / len(labels)
                for title, value in {**judge(0, images, labels), "seconds": seconds}.items():
                    figures.setdefault(title, []).append(value)
            used = sampler.evaluations(model.denoiser.schedule)
            record = {"sampler": name, "budget": budget, "evaluations": used, "seeds": len(seeds)}
            for title, values in figures.items():
                record[title] = statistics.mean(values)
                record[f"{title}_error"] = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
            records.append(record)
            print(json.dumps(record), flush=True)
    return records


def draw(curves: Mapping[str, Mapping[int, float]], across: str, up: str, picture: Path) -> None:
    """Both axes logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(picture, dpi=150)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("path", "quality"))
    parser.add_argument("checkpoint", nargs="?", help="for quality: of a class-conditional model")
    parser.add_argument("--steps", nargs="+", type=int, default=[64, 128, 256, 512], help="for path")
    parser.add_argument("--samples", type=int, default=300, help="for path: of x_t")
    parser.add_argument("--budgets", nargs="+", type=int, default=[5, 10, 25, 50], help="for quality: evaluations")
    parser.add_argument("--images-per-class", type=int, default=100)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    found: Any
    if given.question == "path":
        found = curves = path(given.steps, given.samples)
        for name, curve in curves.items():
            print(name, {steps: f"{value:.3g}" for steps, value in curve.items()}, [f"{s:.2f}" for s in slopes(curve)])
        across, up = "steps", "path KL, nats"
    else:
        if given.checkpoint is None:
            parser.error("quality needs a checkpoint, such as runs/joint/checkpoints/last.ckpt")
        found = quality(given.checkpoint, given.budgets, given.images_per_class, given.seeds)
        curves = {}
        for record in found:
            curves.setdefault(record["sampler"], {})[record["evaluations"]] = record["frechet_distance"]
        across, up = "network evaluations", "Frechet distance"
    if given.picture:
        draw(curves, across, up, given.picture)
    if given.json:
        given.json.write_text(json.dumps({"environment": environment(), given.question: found}, indent=1))


if __name__ == "__main__":
    main()
