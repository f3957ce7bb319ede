"""What a regulariser must know before a fit, so that it is refused early rather than wrong later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn

from cl_diffusion.fisher import FisherEstimator
from cl_diffusion.fisher.estimator import NEEDS_WHOLE
from cl_diffusion.linalg import parameters


class Named(Protocol):
    """Something that has a name."""

    name: str


def refuse_sharded(trainer: Trainer, regularizer: str, estimators: Sequence[FisherEstimator] | None = None) -> None:
    """Refuse a strategy under which a process has only a shard of the parameters, where they are needed whole.

    Under ``ModelParallelStrategy`` (FSDP2) a regulariser can do with shards whose ``estimators`` do; None never does.

    Raises:
        ValueError: names the strategy, and what to use.
    """
    strategy = type(trainer.strategy).__name__
    if isinstance(trainer.strategy, ModelParallelStrategy) and estimators is not None:
        if needing := [estimator.name for estimator in estimators if not estimator.takes_sums_alone]:
            raise ValueError(
                f"strategy={strategy} shards the parameters, and {needing[0]} of {regularizer} {NEEDS_WHOLE}; or "
                "strategy='ddp'"
            )
        mesh = trainer.strategy._device_mesh
        if mesh is not None and mesh["tensor_parallel"].size() > 1:
            raise ValueError(
                f"strategy={strategy} has {mesh['tensor_parallel'].size()} processes in tensor_parallel_size, and "
                f"{regularizer} knows parameters that all processes shard; give it data_parallel_size="
                f"{trainer.world_size}, tensor_parallel_size=1 ('auto' is one process a node)"
            )
    elif isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
        raise ValueError(
            f"strategy={strategy} shards the parameters, and {regularizer} needs them whole; use strategy='ddp'"
            + (", or ModelParallelStrategy (FSDP2)" if estimators is not None else "")
        )


def refuse_several_proximal(names: Sequence[str]) -> None:
    """Refuse more than one proximal regulariser in a Trainer.

    Raises:
        ValueError: names them.
    """
    if len(names) > 1:
        raise ValueError(
            f"{len(names)} regularisers ({', '.join(names)}) have mode='proximal'; their penalties would have to be "
            "solved jointly: leave it to one of them"
        )


def require_names_of_their_own(regularizers: Sequence[Named]) -> None:
    """Refuse one name for two regularisers, whatever their classes: their figures would overwrite each other.

    Raises:
        ValueError: names them.
    """
    for regularizer in regularizers:
        if len(alike := [type(other).__name__ for other in regularizers if other.name == regularizer.name]) > 1:
            raise ValueError(
                f"name={regularizer.name!r} is that of {len(alike)} regularisers ({', '.join(alike)}); give each of "
                "them another name=..."
            )


def require_parameters(
    held: Mapping[str, tuple[int, ...]],
    module: LightningModule,
    regularizer: str,
    excluding: Callable[[list[str]], str],
) -> None:
    """Refuse to hold parameters that the module does not have, or has in another shape.

    Raises:
        ValueError: names the parameters, both shapes and what to do.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    if changed := [name for name, shape in held.items() if shapes.get(name) != shape]:
        first, kind = changed[0], type(module).__name__
        found = f"it in shape {shapes[first]}" if first in shapes else "no such parameter"
        others = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ValueError(
            f"{regularizer} holds {first!r} in shape {held[first]}, and {kind} has {found}{others}; leave what "
            f"changes out of the importance from the first task on: {excluding(changed)}"
        )


def warn_of_idle_patterns(patterns: Sequence[str], module: LightningModule, regularizer: str) -> None:
    """Say so where a pattern fits no parameter's name: it is misspelt, or does nothing."""
    names = [name for name, _ in module.named_parameters()]
    given = [pattern for pattern in patterns if pattern != "*"]
    if idle := [pattern for pattern in given if not any(parameters.fits(name, [pattern]) for name in names)]:
        rank_zero_warn(
            f"{regularizer}: include or exclude names {idle}, which fit none of the {len(names)} parameters of "
            f"{type(module).__name__} ({', '.join(names[:3])}, ...)"
        )


def require_same_importance(
    terms: Sequence[Mapping[str, Any]], identity: Mapping[str, str], scale: Mapping[str, str], regularizer: str
) -> None:
    """Refuse the terms of a checkpoint whose importance is not what would be added to them.

    Args:
        terms: as a checkpoint holds them.
        identity: what the regulariser's own importance is, as far as it says.
        scale: what its strength scales importances to.
        regularizer: as it is called.

    Raises:
        ValueError: names what differs, both values and what to do.
    """
    unsaid = {"scale": "its own trace", **({"parameters": "all"} if identity else {})}
    remedies = {"scale": "a strength of that kind ('auto', or a number)", "parameters": "that include and exclude"}
    for term in terms:
        found = {**unsaid, **term["provenance"]["identity"]}
        for field, value in {**unsaid, **identity, **scale}.items():
            if found.get(field) != value:
                raise ValueError(
                    f"{regularizer}: the checkpoint's importance has {field}={found.get(field)!r}, this one's "
                    f"{value!r}; use {remedies.get(field, f'that {field}')}, or start without the checkpoint"
                )
