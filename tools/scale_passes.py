"""Seconds of every pass over images, in turns with a forward of the same, and bytes of what a Fisher leaves."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from scale_growth import Growth, affine
from scale_networks import drawn_batches, loss, num_parameters, small, tensor_bytes
from side_by_side import alternating

from cl_diffusion import DDPM, DistilledDDPM
from cl_diffusion.diffusion import DrawnBatch, SNRBands
from cl_diffusion.diffusion.samplers import DDIMSampler
from cl_diffusion.fisher import (
    BandedFisher,
    DiagonalFisher,
    FisherEstimator,
    KroneckerFisher,
    LeadingEigenpairsFisher,
    MeanGradientFisher,
    SketchedDiagonalFisher,
    estimate,
)
from cl_diffusion.linalg import Operator, save_operator
from cl_diffusion.stream import ReplayBatch

CPU = torch.device("cpu")
LANCZOS_STEPS = 4
"""Of the rank that is timed; what one costs does not depend on how many there are."""
ESTIMATORS: dict[str, Callable[[], FisherEstimator]] = {
    "diagonal": DiagonalFisher,
    "sketched diagonal": SketchedDiagonalFisher,
    "mean gradient": MeanGradientFisher,
    "leading eigenpairs": lambda: LeadingEigenpairsFisher(2, max_steps=LANCZOS_STEPS, tolerance=1e-12),
    "Kronecker": KroneckerFisher,
    "diagonal in 3 bands": lambda: BandedFisher(DiagonalFisher(), SNRBands.by_quantile()),
}
FORWARD, STEP, DISTILLED = "forward", "training step", "distilled step"


@dataclass(frozen=True)
class Sizes:
    """What grows, and how far.

    Args:
        widths: of 8x8 U-Nets, for growth in parameters.
        widest_kronecker: above which Kronecker factors are left out: their eigenbases take minutes.
        images: side of the images on which costs an image are taken.
        width: of the U-Net there.
        samples: for growth in samples, in batches of ``batch``.
        batch: samples in a batch.
        tasks: for what is kept of each.
        penalty: parameters of the penalties that are timed.
        steps: of the sampler.
        units: whose firing is watched.
        judged: images of a Frechet distance.
        sides: of Kronecker factors.
        rounds: timed; medians are taken over them.
        estimators: that are timed.
    """

    widths: Sequence[int] = (8, 16, 32, 64)
    widest_kronecker: int = 32
    images: int = 16
    width: int = 16
    samples: Sequence[int] = (32, 96, 224)
    batch: int = 32
    tasks: Sequence[int] = (2, 5, 10, 20)
    penalty: int = 1_000_000
    steps: Sequence[int] = (5, 10, 20, 40)
    units: Sequence[int] = (1_000, 10_000, 100_000)
    judged: Sequence[int] = (128, 512, 2048)
    sides: Sequence[int] = (128, 256, 512)
    rounds: int = 2
    estimators: Sequence[str] = tuple(ESTIMATORS)


QUICK = Sizes(
    widths=(8, 16),
    images=8,
    width=8,
    samples=(2, 8),
    batch=2,
    tasks=(2, 20),
    penalty=10_000,
    steps=(2, 6),
    units=(100, 1000),
    judged=(8, 16),
    sides=(32, 64),
    rounds=1,
    estimators=("diagonal",),
)


def steps_of(
    model: DDPM, batches: list[DrawnBatch], estimators: Sequence[str], kept: dict[str, Operator]
) -> dict[str, Callable[[], object]]:
    """Everything that is timed on the same samples; what the estimators leave goes into ``kept``."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    distilled = DistilledDDPM(deepcopy(model.denoiser.network), image_shape=model.image_shape)
    distilled.freeze_teacher()

    def trained() -> None:
        for batch in batches:
            optimizer.zero_grad()
            loss(model, batch).mean().backward()
            optimizer.step()

    def taught() -> None:  # the replayed images' part of a step, with the teacher's answer
        for batch in batches:
            distilled.zero_grad()
            replay = ReplayBatch((batch.images, batch.labels), (batch.images, batch.labels))
            losses = distilled.old_losses(replay.current, replay.replay)
            assert losses is not None
            losses.mean().backward()

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            loss(model, batch)

    def fisher(name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so few Lanczos steps leave a residual, and say so
            kept[name] = estimate(ESTIMATORS[name](), model, loss, batches)

    passes = {name: lambda name=name: fisher(name) for name in estimators}
    return {FORWARD: forward, STEP: trained, DISTILLED: taught, **passes}


def by_parameters(sizes: Sizes) -> list[Growth]:
    """Seconds of one batch, extra memory, and bytes that the operators keep, on U-Nets of several widths."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for width in sizes.widths:
        model, kept = small(8, width), dict[str, Operator]()
        alternatives = steps_of(model, drawn_batches(model, sizes.batch, sizes.batch), sizes.estimators, kept)
        if width > sizes.widest_kronecker:
            alternatives.pop("Kronecker", None)
        size = float(num_parameters(model))
        for name, figures in alternating(alternatives, sizes.rounds, CPU).items():
            points.setdefault((name, f"s, {sizes.batch} samples"), []).append((size, figures["seconds"]))
            extra = max(1.0, figures["extra_mib"] * 2**20)
            points.setdefault((name, "bytes at most (sampled)"), []).append((size, extra))
        for name, operator in kept.items():
            points.setdefault((name, "bytes kept"), []).append((size, tensor_bytes(operator.state())))
            points.setdefault((name, "bytes on disk"), []).append((size, file_bytes(operator)))
        points.setdefault(("teacher", "bytes kept"), []).append((size, tensor_bytes(dict(model.state_dict()))))
    return [Growth(part, what, "parameters", tuple(found)) for (part, what), found in points.items()]


def file_bytes(operator: Operator) -> int:
    """Of the file that ``save_operator`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        save_operator(operator, Path(folder) / "operator.safetensors")
        return (Path(folder) / "operator.safetensors").stat().st_size


def by_samples(sizes: Sizes) -> list[Growth]:
    """Seconds of each pass: the slope is what an image costs, the constant what an estimate does.

    The fastest of the rounds, for a slope beside a large constant is soon lost in what else the machine does.
    """
    model = small(sizes.images, sizes.width)
    points: dict[str, list[tuple[float, float]]] = {}
    for samples in sizes.samples:
        alternatives = steps_of(model, drawn_batches(model, samples, sizes.batch), sizes.estimators, {})
        for name, figures in alternating(alternatives, sizes.rounds, CPU).items():
            points.setdefault(name, []).append((samples, figures["fastest"]))
    return [Growth(name, "seconds, fastest", "samples", tuple(found)) for name, found in points.items()]


def by_sampler_steps(sizes: Sizes) -> list[Growth]:
    """Seconds of drawing ``batch`` images."""
    model, labels = small(sizes.images, sizes.width), torch.arange(sizes.batch) % 10
    points = []
    for steps in sizes.steps:
        draw = {"": lambda steps=steps: model.sample(labels, sampler=DDIMSampler(steps))}
        points.append((float(steps), alternating(draw, sizes.rounds, CPU)[""]["fastest"]))
    return [Growth("DDIM sampler", f"s, {sizes.batch} images, fastest", "steps", tuple(points))]


def equivalents(samples: list[Growth], sampler: list[Growth], sizes: Sizes) -> dict[str, float]:
    """What an image costs in forward passes of one image: a ratio of slopes, free of what an estimate costs once.

    Of leading eigenpairs it is a Lanczos step's (the pass that counts samples is cheap); of the sampler a step's.
    """
    slopes = {growth.part: affine(growth.points).slope for growth in samples}
    found = {name: max(slope, 0.0) / slopes[FORWARD] for name, slope in slopes.items()}
    if "leading eigenpairs" in found:
        found["leading eigenpairs"] /= LANCZOS_STEPS
    found["sampler"] = affine(sampler[0].points).slope / sizes.batch / slopes[FORWARD]
    return found
