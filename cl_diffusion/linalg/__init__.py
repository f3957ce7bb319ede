"""What a symmetric positive semi-definite operator on parameters is."""

from cl_diffusion.linalg.block_diagonal import BlockDiagonal
from cl_diffusion.linalg.diagonal import Diagonal
from cl_diffusion.linalg.identity import Identity
from cl_diffusion.linalg.kronecker import Kronecker
from cl_diffusion.linalg.lanczos import lanczos_eigenpairs, lanczos_sqrt
from cl_diffusion.linalg.low_rank import LowRank
from cl_diffusion.linalg.operator import Operator
from cl_diffusion.linalg.operator_sum import OperatorSum, total
from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.penalty import Memory, Penalty
from cl_diffusion.linalg.provenance import Provenance
from cl_diffusion.linalg.quadratic import Quadratic, decayed, merge, truncated
from cl_diffusion.linalg.storage import load_operator, operator_from_state, save_operator
from cl_diffusion.linalg.sweep import add_gradients_

__all__ = [
    "BlockDiagonal",
    "Diagonal",
    "Identity",
    "Kronecker",
    "LowRank",
    "Memory",
    "Operator",
    "OperatorSum",
    "Parameters",
    "Penalty",
    "Provenance",
    "Quadratic",
    "add_gradients_",
    "decayed",
    "lanczos_eigenpairs",
    "lanczos_sqrt",
    "load_operator",
    "merge",
    "operator_from_state",
    "save_operator",
    "total",
    "truncated",
]
