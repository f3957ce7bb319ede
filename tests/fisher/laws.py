"""Models, and the dense matrices that estimators are held to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from cl_diffusion.linalg import Operator, parameters


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


class NormedNet(nn.Module):
    """BatchNorm in evaluation mode, LayerNorm, a strided convolution, and two parameters that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, stride=2)
        self.batch_norm = nn.BatchNorm2d(3)
        self.batch_norm.running_mean.uniform_(-1, 1)
        self.batch_norm.running_var.uniform_(0.5, 2)
        self.position = nn.Parameter(torch.randn(12))
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.layer_norm = nn.LayerNorm(12)
        self.out = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.tanh(self.batch_norm(self.conv(x))).flatten(1) + self.position
        return self.out(self.gain * torch.tanh(self.layer_norm(features)))


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
    if kind == "normed":
        return NormedNet().double(), (normal(samples, 2, 4, 4), normal(samples, 2))
    labels = torch.randint(3, (samples,), generator=generator)
    return SmallConvNet().double(), (normal(samples, 2, 4, 4), labels, normal(samples, 2))


def batches(data: tuple[Tensor, ...], size: int) -> list[Any]:
    return list(zip(*(tensor.split(size) for tensor in data), strict=True))


def dense_gradients(model: nn.Module, data: tuple[Tensor, ...], loss: Any = squared_error) -> Tensor:
    """The n x P matrix of per-sample gradients, by jacrev of all losses at once, in evaluation mode."""

    class Losses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return loss(self.model, data)

    model.eval()
    weights = {f"model.{n}": p.detach() for n, p in parameters.trainable_parameters(model).items()}
    jacobian = jacrev(lambda w: functional_call(Losses(), w, ()))(weights)
    return torch.cat([parameters.flat_rows(j) for j in jacobian.values()], dim=1)


def dense_jacobians(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """``J_i = df_i / d theta`` of each sample: n x d x P."""
    weights = {n: p.detach() for n, p in parameters.trainable_parameters(model).items()}

    def output(w: dict[str, Tensor], *sample: Tensor) -> Tensor:
        return functional_call(model, w, tuple(s[None] for s in sample))[0]

    jacobian = vmap(jacrev(output), (None, *(0 for _ in inputs)))(weights, *inputs)
    return torch.cat([j.flatten(2) for j in jacobian.values()], dim=2)


def second_moment(gradients: Tensor) -> Tensor:
    return gradients.T @ gradients / len(gradients)


def dense_operator(operator: Operator, model: nn.Module) -> Tensor:
    """The P x P matrix in the order of the model's parameters."""
    like = {n: p.detach() for n, p in parameters.trainable_parameters(model).items()}
    identity = torch.eye(sum(p.numel() for p in like.values()), dtype=torch.float64)
    rows = []
    for unit in identity:
        product = operator @ parameters.unflatten(unit, like)
        rows.append(torch.cat([product.get(n, torch.zeros_like(p)).flatten() for n, p in like.items()]))
    return torch.stack(rows, dim=1)
