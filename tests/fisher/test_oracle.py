"""Against curvlinops, an independent implementation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cl_diffusion.fisher import DiagonalFisher, LeadingEigenpairsFisher, OutputLoss, SquaredError, estimate
from cl_diffusion.linalg import parameters
from tests.tiny import unet

curvlinops = pytest.importorskip("curvlinops")


class Flat(nn.Module):
    """Outputs as one vector a sample, for curvlinops takes rows of an image for samples."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).flatten(1)


class OnItsOwn(nn.Module):
    """A U-Net with attention as a function of the image alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, torch.full((len(x),), 300), class_labels=torch.zeros(len(x), dtype=torch.int64)).sample


def problem() -> tuple[Flat, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = Flat(OnItsOwn(unet())).double().eval()
    return model, (torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.randn(5, 64, dtype=torch.float64))


def probe(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    trainable = parameters.trainable_parameters(model).items()
    return {n: torch.randn(p.shape, dtype=p.dtype, generator=generator) for n, p in trainable}


def of_curvlinops(name: str, model: Flat, data: tuple[Tensor, Tensor], vector: dict[str, Tensor]) -> Tensor:
    operator = getattr(curvlinops, name)
    weights = dict(model.named_parameters())
    with sdpa_kernel(SDPBackend.MATH):
        parts = list(weights.values())
        matrix = operator(model, nn.MSELoss(reduction="mean"), parts, [data], check_deterministic=False)
        product = matrix @ [vector[n] for n in weights]
    return torch.cat([p.flatten() for p in product])


def test_the_gauss_newton_diagonal_of_a_unet_agrees() -> None:
    """At one entry of each of ten parameters: convolutions, norms, attention, embeddings."""
    model, data = problem()
    like = probe(model)
    diagonal = estimate(DiagonalFisher(residual="expectation"), model, OutputLoss(SquaredError()), [data]).diagonal()
    for name in list(like)[:: len(like) // 10]:
        unit = {n: torch.zeros_like(p) for n, p in like.items()}
        unit[name].view(-1)[0] = 1.0
        column = parameters.unflatten(of_curvlinops("GGNLinearOperator", model, data, unit), like)[name]
        torch.testing.assert_close(diagonal[name].view(-1)[0], column.view(-1)[0], rtol=1e-7, atol=1e-14)


def test_empirical_fisher_products_of_a_unet_agree_up_to_the_elements_of_a_sample() -> None:
    """Its second moment is of sums over elements and is divided by their number once: 64 times that of means."""
    model, data = problem()
    vector = probe(model)
    expected = of_curvlinops("EFLinearOperator", model, data, vector)
    operator = estimate(LeadingEigenpairsFisher(rank=5), model, OutputLoss(SquaredError()), [data])
    found = parameters.flatten({n: (operator @ vector)[n] for n in vector})
    torch.testing.assert_close(64 * found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
