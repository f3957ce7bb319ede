"""The interface of samplers, and the loop that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor

from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.samplers.trajectory import Spacing, Steps, trajectory
from cl_diffusion.diffusion.schedule import NoiseSchedule
from cl_diffusion.evaluation_mode import evaluation_mode


class Step(NamedTuple):
    """One reverse step: from timestep ``t`` down to ``s``, where ``s = -1`` is the clean image."""

    s: int
    t: int


class Sampler(ABC):
    """Turns noise into images by a Markov chain of reverse steps.

    A subclass gives the one step; the loop is the same for all. Noise of the chain comes from one generator, so that
    images depend on it (and on the weights) alone.

    Attributes:
        steps: number of steps, at most the timesteps of the schedule, or the timesteps themselves; None: all of them.
        spacing: of a number of steps; see ``trajectory``.
        clip: clamp the estimate of the clean image to [-1, 1] in each step, and so the images.
    """

    steps: Steps
    spacing: Spacing = "even"
    clip: bool

    @abstractmethod
    def step(
        self, denoiser: Denoiser, x_t: Tensor, labels: Tensor | None, step: Step, normal: Callable[[], Tensor]
    ) -> Tensor:
        """``x_s`` from ``x_t``, both ``(N, C, H, W)``; ``normal()`` is fresh N(0, I) of that shape.

        Gradients are off, but may be switched on inside.
        """

    @final
    def timesteps(self, schedule: NoiseSchedule) -> list[int]:
        """The timesteps that are visited, strictly descending; the clean image, -1, follows the last.

        Raises:
            ValueError: more steps than the schedule has timesteps, fewer than 1, or a timestep out of range.
        """
        return trajectory(schedule.num_steps, self.steps, self.spacing)

    def check(self, denoiser: Denoiser) -> None:
        """Refuse, before anything is trained or drawn, a denoiser that the sampler cannot draw from.

        Raises:
            ValueError: says what the denoiser lacks.
        """
        self.timesteps(denoiser.schedule)

    def evaluations(self, schedule: NoiseSchedule) -> int:
        """Evaluations of the network for a chain, a product with its Jacobian counting as one."""
        return len(self.timesteps(schedule))

    @final
    def sample(
        self,
        denoiser: Denoiser,
        shape: tuple[int, int, int],
        labels: Tensor | None = None,
        *,
        num_images: int | None = None,
        generator: torch.Generator | None = None,
        progress: Callable[[Iterable[Step]], Iterable[Step]] | None = None,
    ) -> Tensor:
        """Draw one image a label, or ``num_images`` images.

        Args:
            denoiser: in eval mode while sampling; its training flags come back afterwards.
            shape: ``(C, H, W)`` of one image.
            labels: int64 ``(N,)``.
            num_images: N, where there are no labels.
            generator: source of all noise, on any device; None is torch's own generator of the denoiser's device.
            progress: wraps the list of steps, as ``tqdm`` does.

        Returns:
            ``(N, C, H, W)`` on the denoiser's device, float32 or wider; within [-1, 1] where ``clip``.

        Raises:
            ValueError: number of images or steps out of range, a label the network does not embed, or a value that is
                not finite.
        """
        self.check(denoiser)
        labels, count = _labels_and_count(denoiser, labels, num_images)
        with evaluation_mode(denoiser), torch.no_grad():
            *_, (_, x) = self.chain(denoiser, (count, *shape), labels, generator=generator, progress=progress)
        return x.clamp(-1, 1) if self.clip else x

    @final
    def chain(
        self,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        labels: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        progress: Callable[[Iterable[Step]], Iterable[Step]] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """``(t, x_t)`` at every timestep that is visited, from noise to ``(-1, x)``; ``shape`` is ``(N, C, H, W)``.

        Raises:
            ValueError: a value is not finite.
        """
        visited = self.timesteps(denoiser.schedule)
        steps = [Step(s, t) for t, s in zip(visited, [*visited[1:], -1], strict=True)]
        normal = _normal(denoiser, shape, generator)
        x = normal()
        yield visited[0], x
        for step in steps if progress is None else progress(steps):
            with evaluation_mode(denoiser), torch.no_grad():
                try:
                    x = self.step(denoiser, x, labels, step, normal)
                except FloatingPointError as error:
                    raise _not_finite(step, denoiser) from error
            if not x.isfinite().all():
                raise _not_finite(step, denoiser)
            yield step.s, x


def _not_finite(step: Step, denoiser: Denoiser) -> ValueError:
    return ValueError(
        f"the step from t={step.t} to {step.s} gave values that are not finite: check the weights, and that "
        f"prediction={denoiser.prediction!r} is what the network was trained for."
    )


def _labels_and_count(denoiser: Denoiser, labels: Tensor | None, num_images: int | None) -> tuple[Tensor | None, int]:
    if labels is None:
        if num_images is None or num_images < 1:
            raise ValueError(f"labels=None, num_images={num_images}: give labels, or the number of images, at least 1.")
        return None, num_images
    if labels.ndim != 1 or len(labels) == 0 or num_images not in (None, len(labels)):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)}, num_images={num_images}: expected labels of shape (N,) with "
            "N >= 1, and num_images left out."
        )
    low, high, classes = int(labels.min()), int(labels.max()), denoiser.num_classes
    if low < 0 or (classes is not None and high >= classes):
        raise ValueError(f"labels run from {low} to {high}, but the network embeds num_classes={classes}, from 0.")
    return labels.to(denoiser.device), len(labels)


def _normal(denoiser: Denoiser, shape: tuple[int, ...], generator: torch.Generator | None) -> Callable[[], Tensor]:
    """A source of N(0, I), drawn where the generator lives; the chain runs in float32 or wider."""
    dtype = torch.promote_types(denoiser.dtype, torch.float32)
    source = denoiser.device if generator is None else generator.device
    return lambda: torch.randn(shape, generator=generator, device=source, dtype=dtype).to(denoiser.device)
