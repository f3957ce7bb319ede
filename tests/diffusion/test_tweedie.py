"""The posterior covariance of an exact denoiser, by every product, is the one that is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.diffusion import Denoiser
from cl_diffusion.diffusion.posterior import posterior
from cl_diffusion.diffusion.tweedie import PRODUCTS, Tweedie
from tests.diffusion.mixtures import SCHEDULE, exact, mixture
from tests.diffusion.networks import tiny_unet

SHAPE = (1, 2, 3)


def noisy(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(tweedie: Tweedie, count: int) -> Tensor:
    """``(B, d, d)``, column by column."""
    size = math.prod(SHAPE)
    columns = [
        tweedie.covariance(
            torch.eye(size, dtype=torch.float64)[i].reshape(1, *SHAPE).expand(count, -1, -1, -1)
        ).flatten(1)
        for i in range(size)
    ]
    return torch.stack(columns, dim=-1)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("t", [0, 15, 39])
def test_mean_and_covariance_are_those_of_the_data(product: Any, prediction: Any, t: int) -> None:
    data, x_t = mixture(6), noisy()
    tweedie = Tweedie(exact(data, prediction), x_t, t, product=product)
    known = data.clean_given_noisy(x_t.flatten(1), SCHEDULE.alpha_bar_at(t))
    torch.testing.assert_close(tweedie.x0.flatten(1), known.mean, rtol=1e-9, atol=1e-9)
    loose = {"rtol": 1e-3, "atol": 1e-3} if product == "differences" else {"rtol": 1e-7, "atol": 1e-8}
    torch.testing.assert_close(dense(tweedie, 4), known.covariance, **loose)


@pytest.mark.parametrize(("s", "t"), [(-1, 0), (3, 4), (2, 20), (0, 39)])
def test_three_forms_of_the_covariance_of_a_step_agree(s: int, t: int) -> None:
    """By Cov[x0|x_t], by the Jacobian of the noise, and by that of E[x_s|x_t]."""
    data, x_t = mixture(6), noisy(1)
    q, abar, denoiser = posterior(SCHEDULE, s, t), SCHEDULE.alpha_bar_at(t), exact(data, "epsilon")
    eye, alpha = torch.eye(6, dtype=torch.float64), abar / SCHEDULE.alpha_bar_at(s)

    def noise(flat: Tensor) -> Tensor:
        return denoiser(flat.reshape(1, *SHAPE), torch.tensor([t]), None).flatten()

    def mean(flat: Tensor) -> Tensor:
        x0, _ = denoiser.x0_and_noise(flat.reshape(1, *SHAPE), torch.tensor([t]), None)
        return q.mean(x0.flatten(), flat)

    jacobian = torch.autograd.functional.jacobian(noise, x_t.flatten())
    forms = [
        q.variance * eye + q.c0**2 * dense(Tweedie(denoiser, x_t, t), 1)[0],
        q.beta / alpha * (eye - q.beta / (1 - abar) ** 0.5 * jacobian),
        q.beta / alpha**0.5 * torch.autograd.functional.jacobian(mean, x_t.flatten()),
        data.reverse(x_t.flatten(1), SCHEDULE, s, t).covariance[0],
    ]
    for form in forms[1:]:
        torch.testing.assert_close(form, forms[0], rtol=1e-7, atol=1e-9)


class Skew(nn.Module):
    """``x0 = A x`` with an ``A`` that is not symmetric."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return (x.flatten(1) @ self.matrix.T).reshape(x.shape)


def test_each_product_is_of_the_matrix_that_it_names() -> None:
    network = Skew()
    denoiser, abar = Denoiser(network, SCHEDULE, "x0"), SCHEDULE.alpha_bar_at(7)
    matrix = (1 - abar) / abar**0.5 * network.matrix.detach()
    expected = {"vjp": matrix.T, "jvp": matrix, "symmetric": (matrix + matrix.T) / 2, "differences": matrix}
    for product, wanted in expected.items():
        tweedie = Tweedie(denoiser, noisy(2), 7, product=product)  # type: ignore[arg-type]
        found = dense(tweedie, 2)
        torch.testing.assert_close(found, wanted.expand(2, 6, 6), rtol=1e-6, atol=1e-8)
        assert tweedie.evaluations == {"vjp": 7, "jvp": 8, "symmetric": 14, "differences": 13}[product]
    assert network.matrix.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("product", PRODUCTS)
def test_the_caller_s_mode_does_not_matter(product: Any, mode: Any) -> None:
    network = tiny_unet(sample_size=8).eval()
    denoiser = Denoiser(network, SCHEDULE)
    x, v = (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    labels = torch.tensor([0, 2])
    expected = Tweedie(denoiser, x, 20, labels, product).covariance(v)
    with mode():
        found = Tweedie(denoiser, x.clone(), 20, labels.clone(), product).covariance(v.clone())
    torch.testing.assert_close(found, expected)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_products_of_a_trained_shape_of_network_agree_with_the_jacobian() -> None:
    denoiser = Denoiser(tiny_unet(sample_size=8).double().eval(), SCHEDULE)
    x, v = (torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    labels, found = torch.tensor([0, 2]), {}
    for product in PRODUCTS:
        found[product] = Tweedie(denoiser, x, 20, labels, product).covariance(v)  # type: ignore[arg-type]
    torch.testing.assert_close(found["jvp"], found["differences"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["symmetric"], (found["jvp"] + found["vjp"]) / 2)
    assert not torch.allclose(found["jvp"], found["vjp"], rtol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("where", ["input", "output"])
def test_what_gives_no_gradient_is_refused_and_has_differences(prediction: Any, where: str) -> None:
    """Also where the estimate of x0 depends on x_t besides, by what the prediction is mixed with."""

    class Detached(Skew):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            return super().forward(x, t).detach() if where == "output" else super().forward(x.detach(), t)

    denoiser = Denoiser(Detached(), SCHEDULE, prediction)
    for product in ("vjp", "jvp", "symmetric"):
        with pytest.raises(RuntimeError, match="does not depend on its input differentiably.*product='differences'"):
            Tweedie(denoiser, noisy(), 3, product=product).covariance(noisy())
    with pytest.raises(ValueError, match="product='differences' of a network in torch.bfloat16"):
        Tweedie(Denoiser(Skew().bfloat16(), SCHEDULE, prediction), noisy(), 3, product="differences")
    assert Tweedie(denoiser, noisy(), 3, product="differences").covariance(noisy()).isfinite().all()
    with pytest.raises(ValueError, match="product='hvp'; expected one of 'vjp'"):
        Tweedie(denoiser, noisy(), 3, product="hvp")  # type: ignore[arg-type]
