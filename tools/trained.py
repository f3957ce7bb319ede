"""A trained, class-conditional model to draw images from, and what judges them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tables import interval
from torch import Tensor

from cl_diffusion import TaskDataModule
from cl_diffusion.diffusion.samplers import Sampler
from cl_diffusion.metrics.generation_quality import GenerationQuality
from cl_diffusion.metrics.reference_classifier import trained_reference
from cl_diffusion.modules.variance_head_module import trained_model

Figures = dict[str, list[float]]
"""By name, a value a seed."""


class TrainedModel:
    """Model and data of a checkpoint that ``cl-diffusion fit`` has written, and the judge of all tasks together.

    Args:
        checkpoint: of a class-conditional model.
        images_per_class: drawn at a time, of every class.
        device: that draws; a GPU if there is one by default.
    """

    def __init__(self, checkpoint: str, images_per_class: int, device: str | None = None) -> None:
        model = trained_model(checkpoint).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.denoiser = model.denoiser.eval().requires_grad_(False)
        data = TaskDataModule.load_from_checkpoint(checkpoint, weights_only=True)
        data.setup("test")
        tasks = range(data.num_tasks)
        self.image_shape = data.image_shape
        self.training = _gathered(data.reference_dataloader(task) for task in tasks)
        self.held_out = _gathered(data.evaluation_dataloader(task) for task in tasks)
        self.judge = GenerationQuality(trained_reference(self.training, self.held_out), [self.held_out[0]])
        self.labels = self.held_out[1].unique().repeat_interleave(images_per_class)

    def figures(self, sampler: Sampler, seed: int) -> dict[str, float]:
        """Class agreement, Frechet distance, and the seconds that a thousand images took."""
        images, seconds = self._drawn(sampler, seed, self.labels)
        return {**self.judge(0, images, self.labels), "seconds": seconds * 1000 / len(self.labels)}

    def measured(self, samplers: dict[str, Sampler], seeds: Iterable[int]) -> dict[str, Figures]:
        """``figures`` of each on every seed; in turns, so that what else the machine does meets them all alike."""
        found: dict[str, Figures] = {name: {} for name in samplers}
        for sampler in samplers.values():
            self._drawn(sampler, 0, self.labels[:2])  # warms up
        for seed in seeds:
            for name, sampler in samplers.items():
                for title, value in self.figures(sampler, seed).items():
                    found[name].setdefault(title, []).append(value)
        return found

    def _drawn(self, sampler: Sampler, seed: int, labels: Tensor) -> tuple[Tensor, float]:
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        images = sampler.sample(self.denoiser, self.image_shape, labels, generator=generator).cpu()
        return images, time.perf_counter() - start


def cells(figures: Figures) -> list[str]:
    """Frechet distance, class agreement and seconds, for a row of a table."""
    agreement, distance = figures["class_agreement"], figures["frechet_distance"]
    return [interval(distance), interval(agreement), f"{statistics.median(figures['seconds']):.2g}"]


def draw_curves(
    panels: dict[str, dict[str, dict[float, list[float]]]], across: str, picture: Path, *, from_zero: bool = False
) -> None:
    """A panel for each figure, a curve for each alternative: its mean over seeds, and every seed as a dot.

    Axes are logarithmic but that of shares, the horizontal one linear up to 1 where it starts from zero.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    figure, every = pyplot.subplots(1, len(panels), figsize=(6.5 * len(panels), 5), layout="constrained", squeeze=False)
    for axes, (up, curves) in zip(every[0], panels.items(), strict=True):
        for number, (name, curve) in enumerate(curves.items()):
            style: dict[str, Any] = {"marker": "osD^vPX*"[number % 8], "linestyle": ("-", "--")[number // 10 % 2]}
            (line,) = axes.plot(
                list(curve), [statistics.mean(values) for values in curve.values()], label=name, **style
            )
            for x, values in curve.items():
                axes.plot([x] * len(values), values, ".", markersize=3, color=line.get_color())
        axes.set_xscale("symlog" if from_zero else "log", base=2, **({"linthresh": 1} if from_zero else {}))
        axes.xaxis.set_major_formatter("{x:g}")
        if from_zero:
            axes.set_xlim(left=-0.2)
        if up != "class agreement":
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                formatted("{x:g}")
        axes.set(xlabel=across, ylabel=up)
        axes.grid(alpha=0.3, which="both")
        if axes is every[0][0] or list(curves) != list(next(iter(panels.values()))):
            axes.legend(fontsize=8)
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)


def _gathered(loaders: Any) -> tuple[Tensor, Tensor]:
    """All images and labels."""
    batches = [batch for loader in loaders for batch, _ in loader]
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])
