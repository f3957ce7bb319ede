"""What a symmetric positive semi-definite operator on parameters is."""

from cl_diffusion.linalg.diagonal import Diagonal
from cl_diffusion.linalg.identity import Identity
from cl_diffusion.linalg.low_rank import LowRank
from cl_diffusion.linalg.operator import Operator
from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.provenance import Provenance
from cl_diffusion.linalg.quadratic import Quadratic, merge

__all__ = ["Diagonal", "Identity", "LowRank", "Operator", "Parameters", "Provenance", "Quadratic", "merge"]
