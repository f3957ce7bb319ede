"""Vectors of parameters: ``dict[str, Tensor]`` keyed by parameter names, with fused arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from cl_diffusion.linalg.shards import local, summed

Parameters = dict[str, Tensor]


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """The inner product ``sum_i a_i b_i`` over all entries: a float64 scalar on the vectors' device."""
    left, right = _aligned(a, b)
    products = [_dot(local(x).reshape(-1), local(y).reshape(-1)) for x, y in zip(left, right, strict=True)]
    return summed(torch.stack(products).sum(dtype=torch.float64), left)


def norm(a: Mapping[str, Tensor]) -> Tensor:
    """The Euclidean norm over all entries: a float64 scalar on the vector's device."""
    norms = torch._foreach_norm([local(tensor) for tensor in a.values()])
    return summed(torch.stack(norms).double().square().sum(), a.values()).sqrt()


def subtract(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Parameters:
    """``a - b``, a new vector."""
    left, right = _aligned(a, b)
    return dict(zip(a, torch._foreach_sub(left, right), strict=True))


def multiply(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Parameters:
    """``a * b`` entry by entry, a new vector."""
    left, right = _aligned(a, b)
    return dict(zip(a, torch._foreach_mul(left, right), strict=True))


def scale(a: Mapping[str, Tensor], factor: float) -> Parameters:
    """``factor * a``, a new vector."""
    return dict(zip(a, torch._foreach_mul(list(a.values()), factor), strict=True))


def axpy(factor: float, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> Parameters:
    """``factor * x + y``, a new vector."""
    left, right = _aligned(y, x)
    return dict(zip(y, torch._foreach_add(left, right, alpha=factor), strict=True))


def add_(y: Mapping[str, Tensor], x: Mapping[str, Tensor], factor: float = 1.0) -> None:
    """``y += factor * x`` in place."""
    left, right = _aligned(y, x)
    torch._foreach_add_(left, right, alpha=factor)


def add_mixed_(y: Mapping[str, Tensor], x: Mapping[str, Tensor]) -> None:
    """``y += x`` in place, whatever the type and device of either; names that ``x`` lacks stay."""
    for name, tensor in x.items():
        y[name].add_(tensor.to(y[name].device))


def clone(a: Mapping[str, Tensor]) -> Parameters:
    """A detached copy."""
    return {name: tensor.detach().clone() for name, tensor in a.items()}


def select(a: Mapping[str, Tensor], names: Iterable[str]) -> Parameters:
    """The named entries of ``a``, in the order of ``names``.

    Raises:
        ValueError: a name is missing; the message lists what is.
    """
    names = tuple(names)
    if missing := [name for name in names if name not in a]:
        shown = ", ".join(repr(name) for name in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(f"the vector lacks {len(missing)} of the operator's {len(names)} parameters: {shown}")
    return {name: a[name] for name in names}


def flatten(a: Mapping[str, Tensor]) -> Tensor:
    """All entries in one vector ``(P,)``, parameter after parameter in the order of the names."""
    return torch.cat([tensor.reshape(-1) for tensor in a.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Parameters:
    """The inverse of ``flatten``: views of ``vector`` with the names and shapes of ``like``.

    Raises:
        ValueError: the numbers of entries differ.
    """
    sizes = [tensor.numel() for tensor in like.values()]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"vector has shape {tuple(vector.shape)}; expected ({sum(sizes)},), the entries of `like`")
    parts = torch.split(vector, sizes)
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(like.items(), parts, strict=True)}


def flat_rows(stacked: Tensor) -> Tensor:
    """``(k, *shape)`` as ``(k, entries)``: also where the shape has no axis, or ``k`` is 0."""
    return stacked.reshape(len(stacked), stacked.shape[1:].numel())


def trainable_parameters(module: torch.nn.Module) -> Parameters:
    """The module's parameters that require a gradient, by name; tied parameters once, under their first name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def as_patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """One glob pattern or several, as several."""
    return (given,) if isinstance(given, str) else tuple(given)


def fits(name: str, include: Sequence[str], exclude: Sequence[str] = ()) -> bool:
    """Whether a name fits a glob pattern of ``include`` and none of ``exclude``."""
    return any(fnmatchcase(name, pattern) for pattern in include) and not any(
        fnmatchcase(name, pattern) for pattern in exclude
    )


def described_selection(include: Sequence[str], exclude: Sequence[str]) -> dict[str, str]:
    """A selection as a field of an identity; none where everything is selected."""
    if (tuple(include), tuple(exclude)) == (("*",), ()):
        return {}
    return {"parameters": ", ".join(include) + (f" but not {', '.join(exclude)}" if exclude else "")}


def matching(a: Mapping[str, Tensor], include: Sequence[str], exclude: Sequence[str] = ()) -> Parameters:
    """The entries whose names fit.

    Raises:
        ValueError: none does.
    """
    found = {name: tensor for name, tensor in a.items() if fits(name, include, exclude)}
    if not found:
        raise ValueError(
            f"include={list(include)!r}, exclude={list(exclude)!r} select none of {len(a)} trainable parameters "
            f"({', '.join(list(a)[:3])}, ...); widen include, or narrow exclude"
        )
    return require_real(found)


def require_real(a: Parameters) -> Parameters:
    """The vector, if none of its entries is complex: quadratics here are of real vectors.

    Raises:
        TypeError: one is; names it.
    """
    if odd := [name for name, tensor in a.items() if tensor.is_complex()]:
        raise TypeError(
            f"parameter {odd[0]!r} is complex, and an importance is a quadratic of real numbers; exclude={odd}, or "
            "keep it as torch.view_as_real shows it"
        )
    return a


def _dot(x: Tensor, y: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, y.dtype)
    return torch.dot(x.to(wide), y.to(wide))


def _aligned(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(
            f"vectors hold different parameters; {len(odd)} are in only one of them, the first is {odd[0]!r}"
        )
    return list(a.values()), [b[name] for name in a]
