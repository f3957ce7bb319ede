"""How a network is called, and what it declares of itself."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def is_diffusers_model(network: nn.Module) -> bool:
    """Whether the network is called as diffusers' 2-D models are; told by its signature, so diffusers is not imported.

    The call is ``network(x_t, t, class_labels=labels, return_dict=False)[0]``.
    """
    forward = getattr(network, "_orig_mod", network).forward  # torch.compile hides the signature
    return {"class_labels", "return_dict"} <= set(inspect.signature(forward).parameters)


def declared(network: nn.Module, name: str) -> Any:
    """The entry of the network's ``config``, as diffusers' models carry it; None where there is none."""
    return getattr(getattr(network, "config", None), name, None)


def declared_classes(network: nn.Module) -> tuple[str, int] | None:
    """The option that sets how many classes the network embeds, and its value; None where it declares nothing."""
    for name in ("num_class_embeds", "num_embeds_ada_norm"):  # U-Nets; DiT
        if (value := declared(network, name)) is not None:
            return name, int(value)
    return None


def declared_halvings(network: nn.Module) -> int | None:
    """How often a U-Net halves its input: once between each two of ``block_out_channels``; None where not declared."""
    blocks = declared(network, "block_out_channels")
    return None if blocks is None else len(blocks) - 1


def null_class(network: nn.Module, label_dropout: float) -> int | None:
    """The class that stands for no label: the last one that the network embeds; None where no label is dropped.

    Raises:
        ValueError: ``label_dropout`` is not in [0, 1), or the network does not say how many classes it embeds.
    """
    if not 0 <= label_dropout < 1:
        raise ValueError(f"label_dropout={label_dropout!r}; expected a share of the samples, in [0, 1)")
    if label_dropout == 0:
        return None
    classes = declared_classes(network)
    if classes is None:
        raise ValueError(
            f"label_dropout={label_dropout}, but {type(network).__name__} does not say how many classes it embeds, so "
            "that none can stand for a dropped label; use a network with num_class_embeds, one more than the classes"
        )
    return classes[1] - 1
