"""Gradients in, importance operator out, for any model."""

from cl_diffusion.fisher.diagonal import DiagonalFisher
from cl_diffusion.fisher.estimator import FisherEstimator, estimate
from cl_diffusion.fisher.gradient import LossGradients
from cl_diffusion.fisher.mean_gradient import MeanGradientFisher

__all__ = ["DiagonalFisher", "FisherEstimator", "LossGradients", "MeanGradientFisher", "estimate"]
