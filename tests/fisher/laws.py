"""Models, and the dense empirical Fisher that estimators are held to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from cl_diffusion.linalg import parameters


class SmallConvNet(nn.Module):
    """Convolution, GroupNorm, embedding, attention: the parts of a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.label = nn.Embedding(3, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = torch.nn.functional.silu(self.norm(self.conv(x)) + self.label(y)[:, :, None, None])
        tokens = h.flatten(2).transpose(1, 2)
        return self.out(nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)).mean(1)


def squared_error(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    *inputs, target = batch
    return (model(*inputs) - target).square().mean(1)


def problem(kind: str, samples: int = 13) -> tuple[nn.Module, tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(3, 2).double(), (normal(samples, 3), normal(samples, 2))
    if kind == "mlp":
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double(), (
            normal(samples, 3),
            normal(samples, 2),
        )
    labels = torch.randint(3, (samples,), generator=generator)
    return SmallConvNet().double(), (normal(samples, 2, 4, 4), labels, normal(samples, 2))


def batches(data: tuple[Tensor, ...], size: int) -> list[Any]:
    return list(zip(*(tensor.split(size) for tensor in data), strict=True))


def dense_gradients(model: nn.Module, data: tuple[Tensor, ...]) -> Tensor:
    """The n x P matrix of per-sample gradients, by jacrev of all losses at once."""

    def losses(weights: dict[str, Tensor]) -> Tensor:
        *inputs, target = data
        return (functional_call(model, weights, tuple(inputs)) - target).square().mean(1)

    jacobian = jacrev(losses)({n: p.detach() for n, p in parameters.trainable_parameters(model).items()})
    return torch.cat([j.flatten(1) for j in jacobian.values()], dim=1)
