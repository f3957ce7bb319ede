"""Networks small enough to know what they do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_diffusion.diffusion import Denoiser, NoiseSchedule


class GaussianMean(nn.Module):
    """The exact E[x0 | x_t] for data N(0, std^2 I); predicts x0, in float64."""

    def __init__(self, schedule: NoiseSchedule, std: float) -> None:
        super().__init__()
        abar = schedule.alpha_bar
        self.gain = nn.Parameter(std**2 * abar.sqrt() / (std**2 * abar + 1 - abar))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.gain[t].reshape(-1, 1, 1, 1) * x


class Wave(nn.Module):
    """A nonlinear (x, t, y) network with weights, dropout and a label, float64 unless cast; smooth and bounded by 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, -0.3], dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        phase = 0.01 * t if labels is None else 0.01 * t + labels
        first, second = self.weight.unbind()
        return self.dropout(torch.tanh(first * x) + torch.sin(phase.reshape(-1, 1, 1, 1).to(x) + second * x))


def gaussian_denoiser(schedule: NoiseSchedule, std: float) -> Denoiser:
    return Denoiser(GaussianMean(schedule, std), schedule, prediction="x0")


def tiny_unet(**options: object) -> nn.Module:
    """A diffusers U-Net that halves twice and embeds three classes unless the options say otherwise."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    defaults = {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (4, 4, 8),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "attention_head_dim": 4,
        "num_class_embeds": 3,
    }
    return UNet2DModel(**{**defaults, **options})
