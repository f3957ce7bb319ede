"""U-Nets small enough to be measured, and the counts of one too large to be built: nothing of it is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cl_diffusion import DDPM
from cl_diffusion.diffusion import DrawnBatch
from cl_diffusion.keys import derive_keys
from cl_diffusion.linalg.kronecker import joined
from cl_diffusion.plasticity.find import find_units


def unet(size: int, widths: tuple[int, ...], channels: int = 1, **options: Any) -> nn.Module:
    """A ``UNet2DModel`` as in ``configs/model``: attention on its lowest level."""
    from diffusers import UNet2DModel

    levels = len(widths)
    return UNet2DModel(
        **{  # type: ignore[arg-type]
            "sample_size": size,
            "in_channels": channels,
            "out_channels": channels,
            "layers_per_block": 1,
            "block_out_channels": widths,
            "down_block_types": ["DownBlock2D"] * (levels - 1) + ["AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D"] + ["UpBlock2D"] * (levels - 1),
            "norm_num_groups": 8,
            "attention_head_dim": 8,
            "num_class_embeds": 10,
            **options,
        }
    )


def small(size: int, width: int) -> DDPM:
    """Two levels, of ``width`` and twice as many channels."""
    torch.manual_seed(0)
    return DDPM(unet(size, (width, 2 * width)), image_shape=(1, size, size))


def drawn_batches(model: DDPM, samples: int, batch_size: int) -> list[DrawnBatch]:
    """Images of noise: the cost does not depend on what they show."""
    assert model.image_shape is not None
    images = torch.randn(samples, *model.image_shape, generator=torch.Generator().manual_seed(0))
    labels, keys = torch.arange(samples) % 10, derive_keys(0, torch.arange(samples))
    parts = zip(images.split(batch_size), labels.split(batch_size), keys.split(batch_size), strict=True)
    return [model.draw((x, y), k) for x, y, k in parts]


def loss(model: Any, batch: DrawnBatch) -> Tensor:
    """One entry a sample."""
    found: Tensor = model.per_sample_loss(batch)
    return found


def num_parameters(model: nn.Module) -> int:
    """All of them."""
    return sum(parameter.numel() for parameter in model.parameters())


def tensor_bytes(tree: Any) -> int:
    """Of all tensors in a tree of plain values, each storage once."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


@dataclass(frozen=True)
class Counted:
    """What is known of a network exactly, from its shapes alone.

    Args:
        parameters: how many.
        flop: of a forward of one image, two for a multiplication and its addition.
        activation_bytes: that autograd keeps of one image, in single precision.
        kronecker_bytes: of the operator that ``KroneckerFisher`` leaves, in single precision.
        factor_entries: of the factors that it sums, ``sum of in^2 + out^2`` over layers.
        factor_cubes: ``sum of in^3 + out^3``, which its eigenbases take.
        units: that resets can tell.
        image_values: numbers in an image.
    """

    parameters: int
    flop: float
    activation_bytes: float
    kronecker_bytes: float
    factor_entries: float
    factor_cubes: float
    units: int
    image_values: int


def counted(size: int, channels: int, options: Mapping[str, Any]) -> Counted:
    """Of ``UNet2DModel(**options)``, on torch's meta device."""
    with torch.device("meta"):
        network = unet(size, tuple(options["block_out_channels"]), channels, **options)
        flop, kept = _forward(network, torch.zeros(1, channels, size, size))
    sides = [side for layer in _factored(network) for side in layer]
    inside = sum(m * o for m, o in _factored(network))
    entries = sum(side**2 for side in sides)
    parameters = num_parameters(network)
    return Counted(
        parameters=parameters,
        flop=flop,
        activation_bytes=kept,
        kronecker_bytes=4.0 * (entries + inside + parameters - inside),
        factor_entries=entries,
        factor_cubes=float(sum(side**3 for side in sides)),
        units=sum(of.count for of in find_units(network).units),
        image_values=channels * size * size,
    )


def _forward(network: nn.Module, images: Tensor) -> tuple[float, float]:
    """FLOP, and the bytes that autograd keeps where attention is fused: queries, keys, values and its output."""
    zero = torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        network(images, zero, zero)
    kept: dict[int, int] = {}
    held = []  # so that no storage takes the place of another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        held.append(tensor)
        return tensor

    def fused(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        return query * key * value  # of which as many tensors are kept, of the same shape

    with (
        patch.object(nn.functional, "scaled_dot_product_attention", fused),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        network(images, zero, zero)
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    return float(counter.get_total_flops()), float(sum(size for key, size in kept.items() if key not in own))


def _factored(network: nn.Module) -> list[tuple[int, int]]:
    """Sides of the two factors of each linear layer and convolution, the bias among the inputs."""
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    matrices = [joined(layer.weight, layer.bias) for layer in layers]
    return [(matrix.shape[1], matrix.shape[0]) for matrix in matrices]
