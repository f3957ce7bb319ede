"""Operators on disk and in checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_diffusion.linalg.block_diagonal import BlockDiagonal
from cl_diffusion.linalg.diagonal import Diagonal
from cl_diffusion.linalg.identity import Identity
from cl_diffusion.linalg.kronecker import Kronecker
from cl_diffusion.linalg.low_rank import LowRank
from cl_diffusion.linalg.masked import Masked
from cl_diffusion.linalg.operator import Operator
from cl_diffusion.linalg.operator_sum import OperatorSum
from cl_diffusion.linalg.provenance import Provenance

_KINDS: dict[str, type[Any]] = {
    operator.kind: operator for operator in (Identity, Diagonal, LowRank, Kronecker, BlockDiagonal, OperatorSum, Masked)
}
_HEADER = "cl_diffusion.operator"
_REFERENCE = "$tensor"


def operator_from_state(state: Mapping[str, Any]) -> Operator:
    """The inverse of ``Operator.state``.

    Raises:
        ValueError: the kind of the operator is unknown.
    """
    if state["kind"] not in _KINDS:
        raise ValueError(f"kind={state['kind']!r}; expected one of {sorted(_KINDS)}")
    arguments = dict(state["tensors"])
    if "parts" in arguments:
        arguments["parts"] = [operator_from_state(part) for part in arguments["parts"]]
    operator: Operator = _KINDS[state["kind"]](**arguments, provenance=Provenance.from_state(state["provenance"]))
    return operator


def save_operator(operator: Operator, path: str | os.PathLike[str]) -> None:
    """Write the operator as safetensors: one entry a tensor, named by its place in the operator, and a JSON header.

    A diagonal's entries are ``values/PARAMETER``, those of a part are ``parts/0/values/PARAMETER``. The header,
    ``cl_diffusion.operator`` in the file's metadata, holds kind, plain values and provenance. The file is written
    beside its place and moved there, so that it is whole or absent.
    """
    from safetensors.torch import save_file  # here, so that importing a callback imports no more than lightning does

    tensors: dict[str, Tensor] = {}
    header = _described(operator.state(), "", tensors)
    scratch = Path(f"{os.fspath(path)}.partial")
    try:
        save_file(tensors, scratch, metadata={_HEADER: json.dumps(header)})
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def load_operator(
    path: str | os.PathLike[str],
    identity: Mapping[str, str] | None = None,
    device: torch.device | str = "cpu",
    like: Mapping[str, Tensor] | None = None,
) -> Operator:
    """Read what ``save_operator`` wrote.

    Args:
        path: the file.
        identity: what the operator must be an estimate of, field by field, for example
            ``{**estimator.identity(), **model.loss_identity}``; fields that are not named here may be anything.
        device: where the tensors go.
        like: parameters that the operator must act on, by name and shape; None does not look.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no operator, a field of its identity differs, or a parameter; the message names it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        operator = operator_from_state(_restored(header, tensors))
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"path={os.fspath(path)!r} holds no operator ({type(error).__name__}: {error}); expected a file that "
            "save_operator has written"
        ) from error
    operator.provenance.require(identity or {})
    if like is not None:
        _require_parameters(operator, like)
    return operator


def _require_parameters(operator: Operator, like: Mapping[str, Tensor]) -> None:
    for name, value in operator.diagonal().items():
        expected = tuple(like[name].shape) if name in like else "absent"
        if expected != tuple(value.shape):
            raise ValueError(
                f"the operator acts on other parameters: {name!r} has shape {tuple(value.shape)} in it and is "
                f"{expected} in `like`; load it for the model that it was estimated on"
            )


def _described(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """``node`` with its tensors moved into ``tensors``, each leaving the name under which it is found there."""
    if isinstance(node, Tensor):
        tensors[path] = node.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_REFERENCE: path}
    if isinstance(node, Mapping):
        return {key: _described(value, _below(path, key), tensors) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_described(value, _below(path, index), tensors) for index, value in enumerate(node)]
    return node


def _below(path: str, key: Any) -> str:
    if key == "tensors":  # the level of an operator's arguments, which says nothing to a reader
        return path
    return f"{path}/{key}" if path else str(key)


def _restored(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if node.keys() == {_REFERENCE}:
            return tensors[node[_REFERENCE]]
        return {key: _restored(value, tensors) for key, value in node.items()}
    if isinstance(node, list):
        return [_restored(value, tensors) for value in node]
    return node
