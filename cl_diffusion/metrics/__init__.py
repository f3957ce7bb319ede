"""Qualities of a model over a stream of tasks: pure functions and torchmetrics."""

from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.metrics.continual_metric import ContinualMetric
from cl_diffusion.metrics.frechet import FrechetDistance, inception_distance
from cl_diffusion.metrics.reference_classifier import ReferenceClassifier, accuracy, trained_reference

__all__ = [
    "ContinualMatrix",
    "ContinualMetric",
    "FrechetDistance",
    "ReferenceClassifier",
    "accuracy",
    "inception_distance",
    "trained_reference",
]
