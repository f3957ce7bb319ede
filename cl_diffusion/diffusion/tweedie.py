"""What a denoiser knows of the clean image at one noisy image: its mean, and its covariance as products."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.schedule import NoiseSchedule

Product = Literal["vjp", "jvp", "symmetric", "differences"]

PRODUCTS: tuple[str, ...] = get_args(Product)


class Tweedie:
    """``E[x0 | x_t]`` and ``C = Cov[x0 | x_t]`` of a denoiser, Tweedie's formula to first and second order.

    ``C v = (1 - abar_t) / sqrt(abar_t) J v`` with ``J = d E[x0 | x_t] / d x_t``, whatever the network predicts: for
    predicted noise, ``C = (1 - abar_t) / abar_t (I - sqrt(1 - abar_t) d epshat / d x_t)``. ``C`` is symmetric for an
    exact denoiser; a trained one is a few per cent off, and the products differ by as much:

    - ``"vjp"``: ``J^T v``, one backward through one graph: the cheapest;
    - ``"jvp"``: ``J v``, by a backward through the backward;
    - ``"symmetric"``: ``(J v + J^T v) / 2``, both;
    - ``"differences"``: ``J v`` by central differences, two evaluations of a network that gives no gradient.

    Gradients are taken whatever mode the caller is in (``no_grad``, ``inference_mode``), never for the weights.

    Args:
        denoiser: in the mode it is in; dropout would make it another function each time.
        x_t: ``(B, C, H, W)``.
        t: one timestep for all, or int64 ``(B,)``.
        labels: int64 ``(B,)`` or None.
        product: how ``J`` is multiplied.
        radius: of central differences, relative to a vector of norm one.

    Raises:
        ValueError: ``product`` is unknown, or differences are asked of a network in half precision.
        RuntimeError: in a product: the denoiser's output does not depend on its input differentiably.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        x_t: Tensor,
        t: int | Tensor,
        labels: Tensor | None = None,
        product: Product = "vjp",
        radius: float = 1e-2,
    ) -> None:
        if product not in PRODUCTS:
            raise ValueError(f"product={product!r}; expected one of {', '.join(map(repr, PRODUCTS))}")
        self.denoiser, self.t, self.product, self.radius = denoiser, t, product, radius
        self.evaluations = 0
        """Network evaluations so far: forwards, and each product as the backwards or forwards that it takes."""
        self._factor = _factor(denoiser.schedule, t, x_t)
        if product == "differences" and torch.finfo(denoiser.dtype).bits < 32:
            raise ValueError(
                f"product='differences' of a network in {denoiser.dtype}: differences of that precision are rounding; "
                "use product='vjp', or a network in float32"
            )
        with _differentiable(second_order=product in ("jvp", "symmetric")):
            self._labels = None if labels is None else labels.clone()
            # two leaves, of the network and of what its prediction is mixed with, so that one without gradient shows
            self._leaves = [x_t.detach().clone().requires_grad_(product != "differences") for _ in range(2)]
            self._graph = self._x0(*self._leaves)
            self.x0 = self._graph.detach()
            """``E[x0 | x_t]``, not clamped."""
            if product in ("jvp", "symmetric"):
                self._cotangent = torch.zeros_like(self._graph, requires_grad=True)
                self._pulled = self._pulled_back(self._cotangent, create_graph=True)
                self.evaluations += 1

    def covariance(self, v: Tensor) -> Tensor:
        """``C v``, shape ``(B, C, H, W)``."""
        if self.product == "differences":
            return self._factor * self._by_differences(v)
        with _differentiable(second_order=self.product != "vjp"):
            v = v.clone()
            if self.product == "vjp":
                return self._factor * self._transposed(v)
            if self.product == "jvp":
                return self._factor * self._forward(v)
            return self._factor / 2 * (self._forward(v) + self._transposed(v))

    def _x0(self, x_t: Tensor, mixed_with: Tensor) -> Tensor:
        """The estimate at ``x_t``; twice the same tensor."""
        self.evaluations += 1
        prediction = self.denoiser.output_at(x_t, self.t, self._labels).prediction
        return self.denoiser.estimates_of(prediction, mixed_with, self.t)[0]

    def _transposed(self, v: Tensor) -> Tensor:
        self.evaluations += 1
        return self._pulled_back(v)

    def _pulled_back(self, v: Tensor, create_graph: bool = False) -> Tensor:
        """``J^T v``."""
        options = {"retain_graph": True, "create_graph": create_graph, "allow_unused": True}
        of_network, of_mixing = (
            torch.autograd.grad(self._graph, self._leaves, v, **options) if self._graph.requires_grad else (None, None)
        )
        if of_network is None:
            raise RuntimeError(
                "the denoiser's output does not depend on its input differentiably (no_grad or detach inside?); "
                "use product='differences'"
            )
        return of_network if of_mixing is None else of_network + of_mixing

    def _forward(self, v: Tensor) -> Tensor:
        """``J v = d <J^T u, v> / du``, for ``J^T u`` is linear in ``u``."""
        self.evaluations += 1
        (product,) = torch.autograd.grad(self._pulled, self._cotangent, v, retain_graph=True)
        return product

    def _by_differences(self, v: Tensor) -> Tensor:
        with _differentiable(), torch.no_grad():
            norm = torch.linalg.vector_norm(v.flatten(1), dim=1).reshape(-1, *[1] * (v.ndim - 1))
            move = self.radius * v / norm.clamp(min=torch.finfo(v.dtype).tiny)
            above, below = self._leaves[0] + move, self._leaves[0] - move
            change: Tensor = self._x0(above, above) - self._x0(below, below)
            product: Tensor = change * (norm / (2 * self.radius))
            return product


def _factor(schedule: NoiseSchedule, t: int | Tensor, x_t: Tensor) -> float | Tensor:
    """``(1 - abar_t) / sqrt(abar_t)``."""
    if isinstance(t, int):
        abar = schedule.alpha_bar_at(t)
        return (1 - abar) / math.sqrt(abar)
    scales = schedule.scales(t, like=x_t)
    return scales.noise.square() / scales.signal


def product_evaluations(product: Product, count: int) -> int:
    """What ``count`` products add to the one forward, in network evaluations."""
    if product == "vjp":
        return count
    return {"jvp": 1 + count, "symmetric": 1 + 2 * count, "differences": 2 * count}[product]


@contextmanager
def _differentiable(second_order: bool = False) -> Iterator[None]:
    """Gradients on, out of inference mode; fused attention has no second derivative."""
    with torch.inference_mode(False), torch.enable_grad():
        if second_order:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield
