"""Gradients in, importance operator out, for any model."""

from cl_diffusion.fisher.banded import BandedFisher
from cl_diffusion.fisher.check import Check, check
from cl_diffusion.fisher.criterion import Criterion, CrossEntropy, OutputLoss, SquaredError
from cl_diffusion.fisher.diagonal import DiagonalFisher
from cl_diffusion.fisher.estimation import estimate, try_out
from cl_diffusion.fisher.estimator import FisherEstimator
from cl_diffusion.fisher.gradient import LossGradients
from cl_diffusion.fisher.isotropic import IsotropicFisher, RandomDirectionFisher
from cl_diffusion.fisher.kronecker import KroneckerFisher
from cl_diffusion.fisher.leading_eigenpairs import LeadingEigenpairsFisher
from cl_diffusion.fisher.mean_gradient import MeanGradientFisher
from cl_diffusion.fisher.one_by_one import OneByOne
from cl_diffusion.fisher.output_sensitivity import OutputSensitivity, SquaredOutput
from cl_diffusion.fisher.path_integral import PathIntegral
from cl_diffusion.fisher.sketched_diagonal import SketchedDiagonalFisher
from cl_diffusion.fisher.weighting import GivenWeights, OutputNormalized, Weighting

__all__ = [
    "BandedFisher",
    "Check",
    "Criterion",
    "CrossEntropy",
    "DiagonalFisher",
    "FisherEstimator",
    "GivenWeights",
    "IsotropicFisher",
    "KroneckerFisher",
    "LeadingEigenpairsFisher",
    "LossGradients",
    "MeanGradientFisher",
    "OneByOne",
    "OutputLoss",
    "OutputNormalized",
    "OutputSensitivity",
    "PathIntegral",
    "RandomDirectionFisher",
    "SketchedDiagonalFisher",
    "SquaredError",
    "SquaredOutput",
    "Weighting",
    "check",
    "estimate",
    "try_out",
]
