"""Units of blocks whose forward pass is known, though no trace would prove it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn import functional

from cl_diffusion.plasticity.chains import FIRING, Unproven
from cl_diffusion.plasticity.units import Site, Slice, Units

Builder = Callable[[Any], Units]


def residual_block(block: Any) -> Units:
    """The channels between the two convolutions of a diffusers ``ResnetBlock2D``.

    A unit is a row of ``conv1``, what the time embedding adds to it, gamma and beta of ``norm2``, and a column of
    ``conv2``. Skip channels are no units.

    Raises:
        Unproven: the block normalises by the time embedding, or its activation is not known.
    """
    activation = type(block.nonlinearity).__name__
    if activation not in FIRING:
        raise Unproven(f"its activation is {activation}, of which it is not known when it fires")
    if not isinstance(block.norm2, nn.GroupNorm):
        raise Unproven(f"its norm2 is a {type(block.norm2).__name__}, not a GroupNorm")
    incoming, shifts = [Slice("conv1.weight")], []
    if block.conv1.bias is not None:
        shifts.append(Slice("conv1.bias"))
    if block.time_emb_proj is not None:
        if block.time_embedding_norm not in ("default", "scale_shift"):
            raise Unproven(f"time_embedding_norm={block.time_embedding_norm!r} is not known")
        starts = (0, block.out_channels) if block.time_embedding_norm == "scale_shift" else (0,)
        incoming += [Slice("time_emb_proj.weight", start=start) for start in starts]
        if block.time_emb_proj.bias is not None:
            shifts += [Slice("time_emb_proj.bias", start=start) for start in starts]
    affine = block.norm2.affine
    return Units(
        "conv1",
        block.conv1.out_channels,
        incoming=tuple(incoming),
        outgoing=(Slice("conv2.weight", axis=1),),
        activations=Site("dropout", "input", 1),
        shifts=(*shifts, *([Slice("norm2.bias")] if affine else [])),
        scales=(Slice("norm2.weight"),) if affine else (),
        next_bias="conv2.bias" if block.conv2.bias is not None else None,
        activation=activation,
        mixes="norm2",
    )


def feed_forward(block: Any) -> Units:
    """The hidden units of a diffusers ``FeedForward``, gated (``GEGLU``, ``SwiGLU``) or not.

    A gated unit has two rows, of the value and of the gate, and fires where its gate is positive.

    Raises:
        Unproven: its first layer is of another kind.
    """
    into, out = block.net[0], block.net[2]
    kind, count = type(into).__name__, out.in_features
    gates: Site | None
    starts: tuple[int, ...]
    if kind in ("GEGLU", "SwiGLU"):
        starts, gates = (0, count), Site("net.0.proj", "output", -1, start=count)
    elif kind in ("GELU", "ApproximateGELU", "LinearActivation"):
        starts, gates = (0,), Site("net.0.proj", "output", -1)
    else:
        raise Unproven(f"its first layer is a {kind}, which is not known")
    shifts = [Slice("net.0.proj.bias", start=start) for start in starts] if into.proj.bias is not None else []
    return Units(
        "net.0.proj",
        count,
        incoming=tuple(Slice("net.0.proj.weight", start=start) for start in starts),
        outgoing=(Slice("net.2.weight", axis=1),),
        activations=Site("net.0", "output", -1),
        gates=gates,
        shifts=tuple(shifts),
        next_bias="net.2.bias" if out.bias is not None else None,
        activation="SiLU" if kind in ("SwiGLU", "LinearActivation") else "GELU",
    )


def encoder_layer(layer: Any) -> Units:
    """The feed-forward units of torch's ``TransformerEncoderLayer`` and ``TransformerDecoderLayer``.

    Raises:
        Unproven: its activation is not known.
    """
    function = layer.activation
    known = {functional.relu: "ReLU", functional.gelu: "GELU"}
    activation = type(function).__name__ if isinstance(function, nn.Module) else known.get(function, "")
    if activation not in FIRING:
        raise Unproven(f"its activation is {function!r}, of which it is not known when it fires")
    batch = 0 if layer.self_attn.batch_first else 1
    return Units(
        "linear1",
        layer.linear1.out_features,
        incoming=(Slice("linear1.weight"),),
        outgoing=(Slice("linear2.weight", axis=1),),
        activations=Site("dropout", "input", -1, batch=batch),
        gates=Site("linear1", "output", -1, batch=batch),
        shifts=(Slice("linear1.bias"),) if layer.linear1.bias is not None else (),
        next_bias="linear2.bias" if layer.linear2.bias is not None else None,
        activation=activation,
    )


BLOCKS: dict[str, Builder] = {
    "diffusers.models.resnet.ResnetBlock2D": residual_block,
    "diffusers.models.attention.FeedForward": feed_forward,
    "torch.nn.modules.transformer.TransformerEncoderLayer": encoder_layer,
    "torch.nn.modules.transformer.TransformerDecoderLayer": encoder_layer,
}
"""By the full name of the class, subclasses included; another is added by an assignment."""


def builder(module: nn.Module) -> Builder | None:
    """Of a module that is one of ``BLOCKS``."""
    for kind in type(module).__mro__:
        if (found := BLOCKS.get(f"{kind.__module__}.{kind.__qualname__}")) is not None:
            return found
    return None
