"""Bytes and seconds of what is kept of each task and each unit, and of a Kronecker factor's eigenbasis."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench_penalty import Parameters, diagonal, held, network, rank_one
from scale_growth import Growth
from scale_networks import tensor_bytes
from scale_passes import CPU, Sizes
from side_by_side import alternating

from cl_diffusion.linalg import Kronecker, Memory, Penalty, Quadratic, add_gradients_
from cl_diffusion.linalg.kronecker import eigenbasis
from cl_diffusion.metrics.frechet import FrechetDistance
from cl_diffusion.metrics.reference_classifier import ReferenceClassifier
from cl_diffusion.plasticity.firing import InterFiringTimes


def by_tasks(sizes: Sizes) -> list[Growth]:
    """Bytes that a penalty keeps, exactly, and seconds of a step of it, by how it keeps them."""
    weights, layer = (
        network(sizes.penalty, CPU),
        {"layer": torch.zeros(round(sizes.penalty**0.5), round(sizes.penalty**0.5))},
    )
    cases: dict[str, tuple[Callable[[Parameters], Quadratic], Parameters, Memory]] = {
        "diagonal, merged": (diagonal, weights, "merged"),
        "rank one, merged": (rank_one, weights, "merged"),
        "rank one, separate": (rank_one, weights, "separate"),
        "Kronecker, one layer": (kronecker, layer, "merged"),
    }
    growths = []
    for part, (make, theta, memory) in cases.items():
        kept, seconds = [], []
        gradients = {name: torch.zeros_like(tensor) for name, tensor in theta.items()}
        for tasks in sizes.tasks:
            penalty = Penalty(memory)
            for _ in range(tasks):
                penalty.remember(make(theta))
            kept.append((float(tasks), held(penalty.terms) * 2**20))
            terms = penalty.working(theta)
            step = {"": lambda terms=terms, at=theta, to=gradients: add_gradients_(terms, to, at, 1e-9)}
            seconds.append((float(tasks), alternating(step, 2 * sizes.rounds, CPU)[""]["seconds"]))
        growths.append(Growth(f"penalty: {part}", "bytes kept", "tasks", tuple(kept)))
        growths.append(Growth(f"penalty: {part}", f"s, {sizes.penalty:,} parameters", "tasks", tuple(seconds)))
    return growths


def kronecker(theta: Parameters) -> Quadratic:
    """One task, of one layer."""
    outputs, inputs = theta["layer"].shape
    values = torch.rand(outputs, inputs)
    operator = Kronecker("layer", None, (outputs, inputs), torch.eye(inputs), torch.eye(outputs), values)
    return Quadratic(operator, {"layer": torch.zeros(outputs, inputs)})


def by_units(sizes: Sizes) -> list[Growth]:
    """Seconds of a step of what a reset watches, and its state after a hundred steps in which a tenth fire."""
    seconds, kept = [], []
    for units in sizes.units:
        watch, fired = InterFiringTimes(units, 0.02, 640), torch.rand(units) < 0.1
        watch.reset(torch.ones(units, dtype=torch.bool))
        for _ in range(100):
            watch.observe(torch.rand(units) < 0.1, 64)
        kept.append((float(units), float(tensor_bytes(watch.state_dict()))))
        step = {"": lambda watch=watch, fired=fired: [watch.observe(fired, 64) for _ in range(10)]}
        seconds.append((float(units), alternating(step, sizes.rounds, CPU)[""]["seconds"] / 10))
    part = "reset statistics"
    return [Growth(part, "s a step", "units", tuple(seconds)), Growth(part, "bytes kept", "units", tuple(kept))]


def by_side(sizes: Sizes) -> list[Growth]:
    """Seconds of a factor's eigenbasis, in turns with a product of two such matrices in double precision."""
    bases, products = [], []
    for side in sizes.sides:
        matrix = torch.randn(side, side, dtype=torch.float64)
        factor = matrix @ matrix.T
        runs = {"basis": lambda f=factor: eigenbasis(f), "product": lambda m=matrix: m @ m}
        found = alternating(runs, 2 * sizes.rounds, CPU)
        bases.append((float(side), found["basis"]["seconds"]))
        products.append((float(side), found["product"]["seconds"]))
    return [
        Growth("Kronecker: eigenbasis of a factor", "seconds", "side", tuple(bases)),
        Growth("product of two matrices", "seconds", "side", tuple(products)),
    ]


def by_images(sizes: Sizes) -> list[Growth]:
    """Seconds of a Frechet distance in the reference classifier's 64 features, of so many drawn images."""
    classifier = ReferenceClassifier(1, 10).eval()
    distance = FrechetDistance(classifier.features, classifier.num_features)
    distance.add_real(torch.randn(64, 1, sizes.images, sizes.images))
    points = []
    for images in sizes.judged:
        drawn = torch.randn(images, 1, sizes.images, sizes.images)
        judge = {"": lambda drawn=drawn: distance(drawn)}
        points.append((float(images), alternating(judge, sizes.rounds, CPU)[""]["seconds"]))
    return [Growth("Frechet distance, 64 features", "seconds", "images", tuple(points))]
