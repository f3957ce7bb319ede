"""What a regulariser must know before a fit, so that it is refused early rather than wrong later."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from cl_diffusion.linalg import Quadratic


def refuse_sharded(trainer: Trainer, regularizer: str) -> None:
    """Refuse a strategy under which a process has only a shard of the parameters.

    Raises:
        ValueError: names the strategy and what to use.
    """
    if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
        raise ValueError(
            f"strategy={type(trainer.strategy).__name__} shards the parameters, and {regularizer} needs them whole: "
            "per-sample gradients cannot be had from shards, and a checkpoint would hold the first process's shard of "
            "the anchors alone; use strategy='ddp'"
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


def require_parameters(terms: Sequence[Quadratic], module: LightningModule, regularizer: str) -> None:
    """Refuse terms on parameters that the module does not have, or has in another shape.

    Raises:
        ValueError: names the parameter, both shapes and what to do.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    for term in terms:
        for name in term.operator.names:
            held, found = tuple(term.anchor[name].shape), shapes.get(name)
            if found != held:
                raise ValueError(
                    f"{regularizer!r} holds {name!r} in shape {held}, and {type(module).__name__} has "
                    f"{'no such parameter' if found is None else f'it in shape {found}'}; keep a parameter that "
                    f"changes out of the importance (exclude=[{name!r}])"
                )
