"""The multilayer perceptrons of the literature on plasticity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class CReLU(nn.Module):
    """``(relu(x), relu(-x))`` along the last axis (Shang et al. 2016, 1603.05201): no unit of it is ever dead."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice as many features as ``x`` has."""
        return torch.cat([x.relu(), (-x).relu()], -1)


class Perceptron(nn.Sequential):
    """Images flattened, then linear layers with an activation after each but the last.

    Args:
        in_features: elements of an image.
        out_features: classes.
        hidden: units of the hidden layers.
        activation: ``"relu"``, or ``"crelu"``, which doubles what the next layer reads.
        layer_norm: between each hidden layer and its activation.

    Raises:
        ValueError: ``activation`` is unknown.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (100, 100),
        activation: Literal["relu", "crelu"] = "relu",
        layer_norm: bool = False,
    ) -> None:
        if activation not in ("relu", "crelu"):
            raise ValueError(f"activation={activation!r}; expected 'relu' or 'crelu'")
        layers: list[nn.Module] = [nn.Flatten()]
        width = in_features
        for units in hidden:
            layers.append(nn.Linear(width, units))
            if layer_norm:
                layers.append(nn.LayerNorm(units))
            layers.append(CReLU() if activation == "crelu" else nn.ReLU())
            width = 2 * units if activation == "crelu" else units
        super().__init__(*layers, nn.Linear(width, out_features))
