"""Per-sample gradients of a layer's parameters from its input and the gradient at its output."""

from cl_diffusion.fisher.layers.affine import AffineGradients
from cl_diffusion.fisher.layers.embedding import EmbeddingGradients
from cl_diffusion.fisher.layers.layer import LayerGradients
from cl_diffusion.fisher.layers.norm import NormGradients

__all__ = ["AffineGradients", "EmbeddingGradients", "LayerGradients", "NormGradients"]
