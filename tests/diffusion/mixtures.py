"""Mixtures whose posteriors the samplers are held to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_diffusion.diffusion import Denoiser, NoiseSchedule, Prediction
from cl_diffusion.diffusion.mixture import GaussianMixture

SCHEDULE = NoiseSchedule.linear(40, 1e-3, 0.3)


def mixture(dimension: int, components: int = 3, seed: int = 0) -> GaussianMixture:
    """Broad, overlapping components of different shapes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    roots = normal(components, dimension, dimension) / dimension**0.5
    covariances = 0.2 * roots @ roots.mT + 0.05 * torch.eye(dimension, dtype=torch.float64)
    return GaussianMixture(
        torch.arange(1.0, components + 1, dtype=torch.float64), normal(components, dimension), covariances
    )


class MixtureMean(nn.Module):
    """The network that predicts ``x0`` exactly: ``E[x0 | x_t]`` of images ``(B, C, H, W)`` whose data are a mixture."""

    def __init__(self, mixture: GaussianMixture, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.mixture = mixture
        self.alpha_bar = schedule.alpha_bar
        self.means = nn.Parameter(mixture.means, requires_grad=False)  # a denoiser computes in its precision

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        clean = self.mixture.clean_given_noisy(x.flatten(1), float(self.alpha_bar[t[0]]))
        return clean.mean.reshape(x.shape)


class Predicting(nn.Module):
    """A network that predicts x0, as one that predicts something else."""

    def __init__(self, mean: nn.Module, schedule: NoiseSchedule, prediction: Prediction) -> None:
        super().__init__()
        self.mean, self.schedule, self.prediction = mean, schedule, prediction

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        x0, scales = self.mean(x, t), self.schedule.scales(t, like=x)
        noise = (x - scales.signal * x0) / scales.noise
        return {"x0": x0, "epsilon": noise, "v": scales.signal * noise - scales.noise * x0}[self.prediction]


def exact(data: GaussianMixture, prediction: Prediction = "x0", schedule: NoiseSchedule = SCHEDULE) -> Denoiser:
    network = Predicting(MixtureMean(data, schedule), schedule, prediction)
    return Denoiser(network, schedule, prediction)
