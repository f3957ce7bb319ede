"""The laws of an operator, against its dense matrix."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cl_diffusion.linalg import Operator, parameters


def dense(operator: Operator, like: Mapping[str, Tensor]) -> Tensor:
    """The P x P matrix, one product a column, in the order of `flatten`."""
    identity = torch.eye(sum(tensor.numel() for tensor in like.values()), dtype=torch.float64)
    return torch.stack(
        [parameters.flatten(operator @ parameters.unflatten(row, like)).to(torch.float64) for row in identity], dim=1
    )


def check_operator(operator: Operator, expected: Tensor, like: Mapping[str, Tensor]) -> None:
    """Everything an operator offers, held to the dense matrix that it stands for (float64)."""
    close = {"rtol": 1e-9, "atol": 1e-10}
    matrix = dense(operator, like)
    torch.testing.assert_close(matrix, expected, **close)
    torch.testing.assert_close(matrix, matrix.T, **close)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-10 * max(1.0, float(matrix.abs().max()))

    generator = torch.Generator().manual_seed(7)
    flat = torch.randn(len(matrix), dtype=torch.float64, generator=generator)
    vector = parameters.unflatten(flat, like)
    torch.testing.assert_close(parameters.flatten(operator @ vector), matrix @ flat, **close)
    torch.testing.assert_close(operator.quadratic(vector), flat @ matrix @ flat, **close)
    torch.testing.assert_close(parameters.flatten(operator.diagonal()), matrix.diagonal(), **close)
    torch.testing.assert_close(operator.trace(), matrix.trace(), **close)
    torch.testing.assert_close(dense(operator.scaled(2.5), like), 2.5 * matrix, **close)
    for step in (0.0, 0.3, 1e4):
        solved = parameters.flatten(operator.resolvent(vector, step))
        torch.testing.assert_close(solved + step * (matrix @ solved), flat, rtol=1e-7, atol=1e-8)
