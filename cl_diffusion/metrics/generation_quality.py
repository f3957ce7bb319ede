"""How well generated images of a task's classes resemble that task's real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cl_diffusion.metrics.frechet import FrechetDistance, inception_distance
from cl_diffusion.metrics.reference_classifier import TrainedReference, accuracy

HIGHER_IS_BETTER = {
    "denoising_loss": False,
    "class_agreement": True,
    "frechet_distance": False,
    "inception_distance": False,
}


def higher_is_better(metric: str) -> bool:
    """Whether more of it is better; of ``"denoising_loss/low"``, the loss in one band, as of the whole."""
    return HIGHER_IS_BETTER[metric.partition("/")[0]]


class GenerationQuality:
    """Class agreement and Frechet distances of generated images, task by task.

    - ``class_agreement``: the share, in [0, 1], of images asked for as class ``c`` that the reference classifier takes
      for ``c``;
    - ``frechet_distance``: to the task's held-out images, in the reference classifier's features;
    - ``inception_distance``: likewise in Inception features (FID), where that network is on this machine.

    Args:
        reference: the trained reference classifier.
        held_out: each task's held-out images ``(N, C, H, W)``, in [-1, 1].

    Raises:
        ValueError: a task has fewer than two held-out images.
    """

    def __init__(self, reference: TrainedReference, held_out: Sequence[Tensor]) -> None:
        for task, images in enumerate(held_out, 1):
            if len(images) < 2:
                raise ValueError(f"task {task} has {len(images)} held-out image; a Frechet distance needs at least 2")
        self.reference = reference
        features = reference.classifier.features, reference.classifier.num_features
        self._distances = {"frechet_distance": [FrechetDistance(*features) for _ in held_out]}
        inception = [inception_distance() for _ in held_out]
        if all(inception):
            self._distances["inception_distance"] = [distance for distance in inception if distance is not None]
        for distances in self._distances.values():
            for distance, images in zip(distances, held_out, strict=True):
                distance.add_real(images)

    @property
    def yardstick(self) -> dict[str, Any]:
        """What the figures are measured with: those of different yardsticks do not compare."""
        return {
            "reference_classifier": self.reference.digest,
            "weights": self.reference.weights_digest,
            "held_out_accuracy": self.reference.held_out_accuracy,
            "inception": "inception_distance" in self._distances,
        }

    @torch.no_grad()
    def __call__(self, task: int, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Each quality of these images of a task's classes; ``labels`` are what was asked for."""
        figures = {name: distances[task](images) for name, distances in self._distances.items()}
        return {"class_agreement": accuracy(self.reference.classifier, images, labels), **figures}
