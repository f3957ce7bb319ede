"""The Lanczos Gaussian sampler: the full covariance of a reverse step, without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from typing_extensions import override

from cl_diffusion.diffusion.samplers.gaussian import GaussianSampler, Reverse, checked_clip_pixel
from cl_diffusion.diffusion.samplers.trajectory import Spacing, Steps
from cl_diffusion.diffusion.schedule import NoiseSchedule
from cl_diffusion.diffusion.tweedie import Product, Tweedie, product_evaluations
from cl_diffusion.linalg.lanczos import square_root


class StepReport(NamedTuple):
    """What a step's covariance was seen to be.

    ``asymmetry``: of the denoiser's Jacobian in the Krylov space, mean over images (see ``square_root``).
    ``smallest``: the least eigenvalue seen of any image, before it is raised to ``beta_tilde``. ``exhausted``: the
    share of images whose Krylov space ended early, so that the root is exact. ``evaluations``: of the network.
    """

    t: int
    s: int
    beta_tilde: float
    evaluations: int
    asymmetry: float
    smallest: float
    exhausted: float


class LanczosGaussianSampler(GaussianSampler):
    """``noise = sqrt(Sigma) z`` with ``Sigma = beta_tilde I + c0^2 Cov[x0 | x_t]``, by Lanczos on products with it.

    The covariance is the denoiser's own (``Tweedie``), so nothing is trained and nothing estimated on data: after
    another task it is the new denoiser's (cf. 2605.22723). A step takes one forward and ``lanczos_steps`` products,
    about a forward each; the last step takes the forward alone. ``Sigma``'s eigenvalues are at least ``beta_tilde``
    where the denoiser is exact, and are raised to it where it is not.

    Args:
        steps: number of steps, or the timesteps themselves; None: every timestep of the schedule.
        lanczos_steps: ``k``; the added path KL falls as ``T^-(2k - 1)``.
        symmetrize: multiply by ``(J + J^T) / 2`` in place of ``J^T``, for Jacobians more than a per cent off symmetry.
        clip: clamp the estimate of the clean image to [-1, 1] in each step; the covariance is not that of a clamp.
        clip_pixel: see ``GaussianSampler``.
        product: how to multiply where not ``symmetrize``; see ``Tweedie``.
        spacing: of the steps, ``"even"`` or ``"quadratic"``.
        report: keep a ``StepReport`` of each step of the last chain, in ``reports``.

    Raises:
        ValueError: ``lanczos_steps`` or ``clip_pixel`` is not positive.
    """

    def __init__(
        self,
        steps: Steps = 25,
        lanczos_steps: int = 3,
        symmetrize: bool = False,
        clip: bool = True,
        clip_pixel: float | None = None,
        product: Product = "vjp",
        spacing: Spacing = "even",
        report: bool = False,
    ) -> None:
        if lanczos_steps < 1:
            raise ValueError(f"lanczos_steps={lanczos_steps!r}; expected at least 1 product a step")
        self.steps = steps
        self.spacing: Spacing = spacing
        self.lanczos_steps = lanczos_steps
        self.product: Product = "symmetric" if symmetrize else product
        self.clip = clip
        self.clip_pixel = checked_clip_pixel(clip_pixel)
        self.report = report
        self.reports: list[StepReport] = []

    @override
    def clean_and_noise(self, reverse: Reverse, normal: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        q, z = reverse.posterior, normal()
        tweedie = Tweedie(reverse.denoiser, reverse.x_t, reverse.step.t, reverse.labels, self.product)

        def product(v: Tensor) -> Tensor:
            return q.beta_tilde * v + q.c0**2 * tweedie.covariance(v.reshape(z.shape)).flatten(1)

        bounds = {"floor": min(q.beta_tilde, reverse.largest**2), "ceiling": reverse.largest**2}
        root = square_root(product, z.flatten(1), self.lanczos_steps, **bounds)
        if self.report:
            if self.reports and self.reports[-1].t <= reverse.step.t:
                self.reports = []  # another chain
            figures = (float(root.asymmetry.mean()), float(root.smallest.min()), float(root.exhausted.double().mean()))
            self.reports.append(StepReport(reverse.step.t, reverse.step.s, q.beta_tilde, tweedie.evaluations, *figures))
        return tweedie.x0, root.product.reshape(z.shape)

    @override
    def evaluations(self, schedule: NoiseSchedule) -> int:
        steps = len(self.timesteps(schedule))
        return steps + (steps - 1) * product_evaluations(self.product, self.lanczos_steps)
