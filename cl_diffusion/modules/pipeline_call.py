"""What calling the pipeline of a model does, whatever its scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from cl_diffusion.diffusion.network import declared

if TYPE_CHECKING:
    from cl_diffusion.modules.ddpm import DDPM


def call_differences(module: DDPM, network: nn.Module) -> list[str]:
    """What a call does otherwise than ``module.sample``."""
    found = []
    if module.class_conditional:
        found.append("it gives its network no labels, so that calling it fails; draw with import_pipeline(folder)")
    shape = declared_shape(network)
    if module.image_shape is not None and shape != tuple(module.image_shape):
        found.append(f"it draws images of {shape}, as the network's sample_size says, the module {module.image_shape}")
    dtype = next(network.parameters()).dtype
    if dtype in (torch.bfloat16, torch.float16):
        found.append(f"its weights are {dtype}, so that images agree to the rounding of that type alone")
    return found


def declared_shape(network: nn.Module) -> tuple[int, int, int] | None:
    """``(channels, height, width)`` of the images that a network says it is for; None where it does not say."""
    size, channels = declared(network, "sample_size"), declared(network, "in_channels")
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width
