"""The Lanczos Gaussian sampler: the full covariance of a reverse step, without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.arguments import is_whole
from cl_diffusion.diffusion.samplers.gaussian import Covariance, GaussianSampler, Normal, Reverse, most_variance
from cl_diffusion.diffusion.samplers.trajectory import Spacing, Steps
from cl_diffusion.diffusion.schedule import NoiseSchedule
from cl_diffusion.diffusion.tweedie import Product, Tweedie, product_evaluations
from cl_diffusion.linalg.lanczos import square_root

_CHANCE = 9.0


class StepReport(NamedTuple):
    """What a step's covariance was seen to be.

    ``asymmetry``: of ``Cov[x0 | x_t]`` in the Krylov space, mean over images; NaN of a single product, and rounding
    where ``symmetrize``.
    ``smallest``: the least eigenvalue seen of any image, before it is raised to ``floor``. ``exhausted``: the
    share of images whose Krylov space ended early, so that the root is exact. ``evaluations``: of the
    denoiser, a guided one counting once.
    ``factor``: what the covariance was multiplied by to be one of images in [-1, 1], mean over images; 1: it was one.
    """

    t: int
    s: int
    floor: float
    evaluations: int
    asymmetry: float
    smallest: float
    exhausted: float
    factor: float


class LanczosGaussianSampler(GaussianSampler):
    """``noise = sqrt(Sigma) z`` with ``Sigma = variance I + c0^2 Cov[x0 | x_t]``, by Lanczos on products with it.

    The covariance is the denoiser's own (``Tweedie``), so nothing is trained and nothing estimated on data: after
    another task it is the new denoiser's (cf. 2605.22723). A step takes one forward and ``lanczos_steps`` products,
    about a forward each; the last step takes the forward alone.

    Where the denoiser is exact, ``Sigma``'s eigenvalues are at least ``variance``, and ``tr Cov[x0 | x_t]`` at most
    ``sum 1 - x0hat^2`` for images in [-1, 1]. Where it is not, as those that predict noise are not near pure noise,
    whose Jacobian's error is multiplied by ``1 / snr``, eigenvalues are raised to ``variance``, and with ``clip`` a
    trace that the first product finds more than nine times too large is scaled down to that bound.

    Args:
        steps: number of steps, or the timesteps themselves; None: every timestep of the schedule.
        lanczos_steps: ``k``; the added path KL falls as ``T^-(2k - 1)``.
        symmetrize: multiply by ``(J + J^T) / 2`` in place of ``J^T``, for Jacobians more than a per cent off symmetry.
        clip: clamp the estimate of the clean image to [-1, 1] in each step, and bound the covariance as above, which is
            not that of a clamp.
        clip_pixel: see ``GaussianSampler``.
        product: how to multiply where not ``symmetrize``; see ``Tweedie``.
        spacing: of the steps, ``"even"`` or ``"quadratic"``.
        eta: see ``GaussianSampler``.
        report: keep a ``StepReport`` of each step of the last chain, in ``reports``.

    Raises:
        ValueError: ``lanczos_steps`` or ``clip_pixel`` is not positive, or ``eta`` not in [0, 1].
    """

    def __init__(
        self,
        steps: Steps = 25,
        lanczos_steps: int = 3,
        symmetrize: bool = False,
        clip: bool = True,
        clip_pixel: float | None = 2.0,
        product: Product = "vjp",
        spacing: Spacing = "even",
        report: bool = False,
        eta: float = 1.0,
    ) -> None:
        if not is_whole(lanczos_steps, 1):
            raise ValueError(f"lanczos_steps={lanczos_steps!r}; expected at least 1 product a step")
        super().__init__(steps, clip, spacing, clip_pixel, eta)
        self.lanczos_steps = lanczos_steps
        self.product: Product = "symmetric" if symmetrize else product
        self.report = report
        self.reports: list[StepReport] = []

    @override
    def covariance(self, reverse: Reverse, normal: Normal) -> Covariance:
        tweedie = Tweedie(reverse.denoiser, reverse.x_t, reverse.step.t, reverse.labels, self.product)
        keep = self._keep if self.report else None
        return KrylovCovariance(tweedie, reverse, self.lanczos_steps, self.clip, keep)

    @override
    def evaluations(self, schedule: NoiseSchedule) -> int:
        steps = len(self.timesteps(schedule))
        return steps + (steps - 1) * product_evaluations(self.product, self.lanczos_steps)

    def _keep(self, report: StepReport) -> None:
        if self.reports and self.reports[-1].t <= report.t:
            self.reports = []  # another chain
        self.reports.append(report)


class KrylovCovariance(Covariance):
    """``Sigma`` as products, and its root in a Krylov space.

    Args:
        tweedie: of the denoiser at ``x_t``.
        reverse: the step.
        lanczos_steps: dimensions of the space.
        bounded: shrink ``Cov[x0 | x_t]`` to what images in [-1, 1] can have; known from the first product of ``noise``.
        keep: is given the report.
    """

    def __init__(
        self,
        tweedie: Tweedie,
        reverse: Reverse,
        lanczos_steps: int,
        bounded: bool,
        keep: Callable[[StepReport], None] | None,
    ) -> None:
        self.x0 = tweedie.x0
        self._tweedie, self._reverse, self._lanczos_steps, self._keep = tweedie, reverse, lanczos_steps, keep
        self._bounded = bounded
        self._factor: Tensor | None = None

    @override
    def noise(self, normal: Normal) -> Tensor:
        z, variance, largest = normal(), self._reverse.posterior.variance, self._reverse.largest * self._reverse.largest
        root = square_root(
            lambda v: self._product(v.reshape(z.shape)).flatten(1),
            z.flatten(1),
            self._lanczos_steps,
            floor=min(variance, largest),
            ceiling=largest,
        )
        if self._keep is not None:
            assert self._factor is not None
            seen = root.asymmetry.mean(), root.smallest.min(), root.exhausted.double().mean(), self._factor.mean()
            step, evaluations = self._reverse.step, self._tweedie.evaluations
            self._keep(StepReport(step.t, step.s, variance, evaluations, *map(float, seen)))
        return root.product.reshape(z.shape)

    @override
    def product(self, v: Tensor) -> Tensor:
        """``Sigma' v``; where the standard deviation is bounded, no longer than that allows."""
        largest, variance = self._reverse.largest * self._reverse.largest, self._reverse.posterior.variance
        if variance >= largest:  # no eigenvalue is less
            return largest * v
        product = self._product(v)
        return product * (largest * norm(v) / norm(product)).nan_to_num(1.0).clamp(max=1.0)

    def _product(self, v: Tensor) -> Tensor:
        q, clean = self._reverse.posterior, self._tweedie.covariance(v)
        if self._factor is None:
            self._factor = self._within_range(v, clean)
        return q.variance * v + q.c0**2 * self._factor * clean

    def _within_range(self, z: Tensor, product: Tensor) -> Tensor:
        """What brings a trace that is out of range back, one an image.

        For ``z ~ N(0, I)``, ``d z.Cz / |z|^2`` is the trace but for chance. It is at most that of ``C`` of rank one,
        nine times with a probability of .003; what is beyond is no chance.
        """
        mean, largest = (z * product).mean((1, 2, 3), True), most_variance(self.x0).mean((1, 2, 3), True)
        excess = (mean / z.square().mean((1, 2, 3), True) / largest).nan_to_num(1.0)
        return torch.where((excess > _CHANCE) & self._bounded, 1 / excess, torch.ones_like(excess))


def norm(x: Tensor) -> Tensor:
    """Of each image, ``(B, 1, 1, 1)``."""
    return x.square().sum((1, 2, 3), keepdim=True).sqrt()
