"""A Kronecker product on the weight of one layer, in its eigenbasis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.linalg import parameters
from cl_diffusion.linalg.operator import Operator, Step, check_factor, steps_by_name
from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.provenance import Provenance


class Kronecker(Operator):
    """``F V = U_B (S * (U_B^T V U_A)) U_A^T`` on the matrix ``V = [W | b]`` of one layer, ``o x m``.

    With ``S_ij = beta_i alpha_j`` it is the Kronecker product ``V -> B V A`` of ``A = U_A diag(alpha) U_A^T`` (layer
    inputs) and ``B = U_B diag(beta) U_B^T`` (output gradients): K-FAC (Martens & Grosse 2015, 1503.05671). With ``S``
    the second moments in that basis it is EK-FAC (George et al. 2018, 1806.03884). PyTorch flattens rows first, so the
    dense matrix on ``V.flatten()`` is ``B (x) A``.

    Args:
        weight: name of the layer's weight; a tensor whose leading axis has ``o`` entries and the others
            ``m`` together (less one where there is a bias).
        bias: name of the bias, the last column of ``V``; None where the layer has none.
        shape: of the weight.
        inputs: ``U_A``, ``(m, m)``, orthonormal columns.
        outputs: ``U_B``, ``(o, o)``, orthonormal columns.
        values: ``S``, ``(o, m)``, finite and >= 0.
        provenance: what the operator is an estimate of.

    Raises:
        ValueError: a value is negative or not finite, or shapes do not fit.
    """

    kind: ClassVar[str] = "kronecker"

    def __init__(
        self,
        weight: str,
        bias: str | None,
        shape: Sequence[int],
        inputs: Tensor,
        outputs: Tensor,
        values: Tensor,
        provenance: Provenance | None = None,
    ) -> None:
        o, m = shape[0], torch.Size(shape[1:]).numel() + (bias is not None)
        if (inputs.shape, outputs.shape, values.shape) != ((m, m), (o, o), (o, m)):
            raise ValueError(
                f"inputs, outputs and values have shapes {tuple(inputs.shape)}, {tuple(outputs.shape)} and "
                f"{tuple(values.shape)}; a weight of shape {tuple(shape)}{'' if bias is None else ' with a bias'} "
                f"takes ({m}, {m}), ({o}, {o}) and ({o}, {m})"
            )
        if weight == bias:
            raise ValueError(f"weight={weight!r}, bias={bias!r}; expected two parameters, or bias=None")
        if not bool(((values >= 0) & values.isfinite()).all()):
            low, high = (float(end) for end in values.aminmax())
            raise ValueError(f"values of {weight!r} range over [{low:g}, {high:g}]; expected finite and >= 0")
        self.weight = weight
        self.bias = bias
        self.shape = tuple(shape)
        self.inputs = inputs
        self.outputs = outputs
        self.values = values
        self.provenance = provenance or Provenance()

    @classmethod
    def from_factors(
        cls,
        weight: str,
        bias: str | None,
        shape: Sequence[int],
        input_factor: Tensor,
        output_factor: Tensor,
        provenance: Provenance | None = None,
    ) -> Kronecker:
        """``V -> B V A`` from the symmetric factors ``A`` ``(m, m)`` and ``B`` ``(o, o)``; decomposed in float64."""
        (alpha, inputs), (beta, outputs) = eigenbasis(input_factor), eigenbasis(output_factor)
        dtype = input_factor.dtype
        return cls(
            weight, bias, shape, inputs.to(dtype), outputs.to(dtype), torch.outer(beta, alpha).to(dtype), provenance
        )

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @override
    def __matmul__(self, vector: Mapping[str, Tensor]) -> Parameters:
        return self._expand(self.values * self._coordinates(vector))

    @override
    def quadratic(self, vector: Mapping[str, Tensor]) -> Tensor:
        return (self.values * self._coordinates(vector).square()).sum(dtype=torch.float64)

    @override
    def resolvent(self, vector: Mapping[str, Tensor], step: Step) -> Parameters:
        steps = set(steps_by_name(step, self.names).values())
        if len(steps) > 1:
            raise NotImplementedError(
                f"(I + D F)^-1 has no closed form where {self.weight!r} and {self.bias!r} have different steps "
                f"({sorted(steps)}); give the layer one learning rate, or use the penalty's gradient"
            )
        (rate,) = steps
        shrinkage = rate * self.values / (1.0 + rate * self.values)
        removed = self._expand(shrinkage * self._coordinates(vector))
        return parameters.subtract(parameters.select(vector, self.names), removed)

    @override
    def diagonal(self) -> Parameters:
        return self._split(self.outputs.square() @ self.values @ self.inputs.square().T)

    @override
    def trace(self) -> Tensor:
        return self.values.sum(dtype=torch.float64)

    @override
    def largest_eigenvalue(self) -> float:
        return float(self.values.max())

    @override
    def scaled(self, factor: float) -> Kronecker:
        check_factor(factor)
        return Kronecker(**{**self.tensors(), "values": factor * self.values}, provenance=self.provenance)

    @override
    def tensors(self) -> dict[str, Any]:
        return {
            "weight": self.weight,
            "bias": self.bias,
            "shape": list(self.shape),
            "inputs": self.inputs,
            "outputs": self.outputs,
            "values": self.values,
        }

    def _coordinates(self, vector: Mapping[str, Tensor]) -> Tensor:
        """``U_B^T V U_A``."""
        selected = parameters.select(vector, self.names)
        bias = None if self.bias is None else selected[self.bias]
        return self.outputs.T @ joined(selected[self.weight], bias) @ self.inputs

    def _expand(self, coordinates: Tensor) -> Parameters:
        """``U_B C U_A^T``."""
        return self._split(self.outputs @ coordinates @ self.inputs.T)

    def _split(self, matrix: Tensor) -> Parameters:
        if self.bias is None:
            return {self.weight: matrix.reshape(self.shape)}
        return {self.weight: matrix[:, :-1].reshape(self.shape), self.bias: matrix[:, -1]}


def joined(weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[W | b]``: the trailing axes of the weight in one, the bias as the last column."""
    matrix = weight.flatten(1)
    return matrix if bias is None else torch.cat([matrix, bias[:, None]], dim=1)


def eigenbasis(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (rounding below 0 clipped) and orthonormal eigenvectors of a symmetric factor, in float64.

    Raises:
        ValueError: the factor has an eigenvalue that is negative beyond rounding.
    """
    values, vectors = torch.linalg.eigh(factor.double())
    rounding = max(1e-5, 16 * torch.finfo(factor.dtype).eps) * max(float(values[-1]), 0.0) if len(values) else 0.0
    if len(values) and float(values[0]) < -rounding - torch.finfo(torch.float64).tiny:
        raise ValueError(f"factor has eigenvalues in [{values[0]:g}, {values[-1]:g}]; expected none below 0")
    return values.clamp(min=0.0), vectors
