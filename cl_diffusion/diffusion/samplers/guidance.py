"""Samplers of a class more strongly than the denoiser has it: by itself without labels, or by a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import override

from cl_diffusion.diffusion.denoiser import Denoiser, Output
from cl_diffusion.diffusion.samplers.gaussian import GaussianSampler
from cl_diffusion.diffusion.samplers.lanczos import LanczosGaussianSampler
from cl_diffusion.diffusion.samplers.sampler import Sampler, Step
from cl_diffusion.diffusion.schedule import NoiseSchedule
from cl_diffusion.diffusion.tweedie import product_evaluations
from cl_diffusion.evaluation_mode import evaluation_mode


class GuidedDenoiser(Denoiser):
    """``f(x_t, t) + scale (f(x_t, t, labels) - f(x_t, t))``, both in one call of the network.

    A learned variance is that with labels.

    Args:
        denoiser: trained with labels dropped.
        scale: 1 is the denoiser with labels, 0 the one without.

    Raises:
        ValueError: the denoiser was not trained without labels; in the forward: no labels.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        if denoiser.null_class is None:
            raise ValueError(
                "classifier-free guidance needs a model that was trained with labels dropped: "
                "DDPM(label_dropout=0.1), and a network with one more class"
            )
        options = denoiser.prediction, denoiser.null_class, denoiser.learned_variance
        super().__init__(denoiser.network, denoiser.schedule, *options)
        self.scale = scale

    @override
    def output(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Output:
        if labels is None:
            raise ValueError("labels=None: classifier-free guidance needs the label of each image")
        assert self.null_class is not None
        either = torch.cat([labels, torch.full_like(labels, self.null_class)])
        prediction, variance = super().output(x_t.repeat(2, 1, 1, 1), t.repeat(2), either)
        with_labels, without = prediction.chunk(2)
        guided = without + self.scale * (with_labels - without)
        return Output(guided, None if variance is None else variance[: len(x_t)])


class ClassifierFreeGuidance(Sampler):
    """Any sampler, on ``f(x_t, t) + scale (f(x_t, t, labels) - f(x_t, t))`` (Ho & Salimans 2022, 2207.12598, eq. 6).

    ``scale`` is 1 + w of the paper. Every evaluation of the network becomes two. Where the sampler takes products with
    the Jacobian, they are with that of the guided estimate.

    Args:
        sampler: whose steps, spacing and clip are taken.
        scale: 1 leaves the class as the denoiser has it.

    Raises:
        ValueError: in sampling: no labels, or a denoiser that was not trained with labels dropped.
    """

    def __init__(self, sampler: Sampler, scale: float) -> None:
        _require_finite(scale)
        self.sampler = sampler
        self.scale = scale
        self.steps, self.spacing, self.clip = sampler.steps, sampler.spacing, sampler.clip

    @override
    def step(
        self, denoiser: Denoiser, x_t: Tensor, labels: Tensor | None, step: Step, normal: Callable[[], Tensor]
    ) -> Tensor:
        return self.sampler.step(GuidedDenoiser(denoiser, self.scale), x_t, labels, step, normal)

    @override
    def check(self, denoiser: Denoiser) -> None:
        super().check(denoiser)
        self.sampler.check(GuidedDenoiser(denoiser, self.scale))

    @override
    def evaluations(self, schedule: NoiseSchedule) -> int:
        return 2 * self.sampler.evaluations(schedule)


class ClassifierGuidance(Sampler):
    """A sampler with covariance, its mean moved by ``scale Sigma' grad log p(y | x_s)`` at the mean of ``x_s``.

    ``q(x_s | x_t) p(y | x_s)^scale``, to first order in the logarithm (Dhariwal & Nichol 2021, 2105.05233, eq. 10, for
    any covariance). The full covariance takes one more product a step, a diagonal none.

    Args:
        sampler: whose covariance, steps, spacing and clip are taken.
        classifier: called ``classifier(x_s, s)``, with ``s`` int64 ``(N,)``; returns logits ``(N, classes)``. It should
            know noisy images.
        scale: exponent of ``p(y | x_s)``.
        conditional: whether the denoiser is given the labels too; otherwise it draws without, as it must be able to.

    Raises:
        ValueError: the sampler adds no noise (DDIM with ``eta = 0``); in sampling: no labels.
    """

    def __init__(
        self, sampler: GaussianSampler, classifier: nn.Module, scale: float = 1.0, conditional: bool = False
    ) -> None:
        _require_finite(scale)
        if sampler.eta == 0:
            raise ValueError(
                f"{type(sampler).__name__} with eta=0 adds no noise, so that there is no covariance to move the mean "
                "by; use eta > 0, or another sampler"
            )
        self.sampler = sampler
        self.classifier = classifier.eval()
        self.scale = scale
        self.conditional = conditional
        self.steps, self.spacing, self.clip = sampler.steps, sampler.spacing, sampler.clip

    @override
    def step(
        self, denoiser: Denoiser, x_t: Tensor, labels: Tensor | None, step: Step, normal: Callable[[], Tensor]
    ) -> Tensor:
        if labels is None:
            raise ValueError("labels=None: classifier guidance needs the label of each image")
        target = labels

        def gradient(mean: Tensor, s: int) -> Tensor:
            with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(self.classifier.to(mean.device)):
                x = mean.detach().clone().requires_grad_()
                logits = self.classifier(x, torch.full((len(x),), s, device=x.device))
                chosen = logits.log_softmax(1).gather(1, target.clone()[:, None]).sum()
                return self.scale * torch.autograd.grad(chosen, x)[0]

        if not self.conditional and denoiser.takes_labels and denoiser.null_class is None and denoiser.num_classes:
            raise ValueError(
                "the denoiser draws with labels alone: give ClassifierGuidance(conditional=True), by which it is given "
                "them beside the guidance, or a model that was trained with DDPM(label_dropout=...)"
            )
        own = labels if self.conditional else None
        return self.sampler.tilted_step(denoiser, x_t, own, step, normal, gradient)

    @override
    def evaluations(self, schedule: NoiseSchedule) -> int:
        """Of the denoiser, at most: a step whose noise is bounded needs no product of the gradient.

        The classifier's are a forward and a backward a step besides.
        """
        inner = self.sampler
        one_more = isinstance(inner, LanczosGaussianSampler)
        per_step = product_evaluations(inner.product, 1) - product_evaluations(inner.product, 0) if one_more else 0  # type: ignore[attr-defined]
        return inner.evaluations(schedule) + per_step * (len(self.timesteps(schedule)) - 1)


def _require_finite(scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale!r}; expected a finite number, 1 for no more guidance than the model has")
