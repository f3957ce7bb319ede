"""What a denoiser is asked again while it learns another task, and what it should answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.loss import DenoisingLoss, DrawnBatch
from cl_diffusion.diffusion.samplers.sampler import Sampler


class Question(NamedTuple):
    """Noisy inputs, and the outputs that are wanted of them.

    ``x_t``: ``(B, C, H, W)``. ``t``: int64 ``(B,)``. ``labels``: int64 ``(B,)`` or None. ``wanted``: like ``x_t``.
    ``log_snr``: of the timesteps, ``(B,)``, for bands.
    """

    x_t: Tensor
    t: Tensor
    labels: Tensor | None
    wanted: Tensor
    log_snr: Tensor


class Rehearsal(ABC):
    """A term of the loss that keeps what a denoiser has learned: squared errors on questions about old tasks.

    With a teacher, the denoiser as the last task left it, the wanted output is the teacher's at the same input,
    whatever it predicts: noise, clean image or v.
    """

    needs_teacher: bool = True
    needs_replay: bool = True

    @abstractmethod
    def question(
        self, loss: DenoisingLoss, teacher: Denoiser, current: DrawnBatch, replay: DrawnBatch | None
    ) -> Question:
        """Of a step's batch, drawn; ``replay`` is its part of old tasks, where there is one.

        Without gradients. ``teacher`` is the student itself where none is needed.
        """


class NoiseRehearsal(Rehearsal):
    """``|eps' - f(x'_t', t')|^2``: the ordinary loss of replayed images, real or generated; no teacher."""

    needs_teacher = False

    def question(
        self, loss: DenoisingLoss, teacher: Denoiser, current: DrawnBatch, replay: DrawnBatch | None
    ) -> Question:
        """The replayed images, noised, and the noise."""
        assert replay is not None
        x_t, t, labels = _noised(teacher, replay)
        return Question(x_t, t, labels, loss.target(teacher, replay), _log_snr(teacher, t))


class GenerativeDistillation(Rehearsal):
    """``|f_T(x'_t', t') - f(x'_t', t')|^2`` on replayed images (Masip et al. 2023, 2311.14028)."""

    def question(
        self, loss: DenoisingLoss, teacher: Denoiser, current: DrawnBatch, replay: DrawnBatch | None
    ) -> Question:
        """The replayed images, noised, and the teacher's answer."""
        assert replay is not None
        return _answered(teacher, *_noised(teacher, replay))


class LearningWithoutForgetting(Rehearsal):
    """``|f_T(x_t, t) - f(x_t, t)|^2`` on the current task's own inputs (Li & Hoiem 2016, 1606.09282); no replay."""

    needs_replay = False

    def question(
        self, loss: DenoisingLoss, teacher: Denoiser, current: DrawnBatch, replay: DrawnBatch | None
    ) -> Question:
        """The current images, noised, and the teacher's answer."""
        return _answered(teacher, *_noised(teacher, current))


class GaussianDistillation(Rehearsal):
    """``|f_T(z, t') - f(z, t')|^2`` at pure noise ``z``, whatever ``t'`` is, with replayed labels."""

    def question(
        self, loss: DenoisingLoss, teacher: Denoiser, current: DrawnBatch, replay: DrawnBatch | None
    ) -> Question:
        """The replayed images' noise in their place, and the teacher's answer."""
        assert replay is not None
        return _answered(teacher, replay.noise, replay.timesteps, replay.labels)


class PartialDistillation(Rehearsal):
    """``|f_T(x_t', t') - f(x_t', t')|^2`` where the teacher's own reverse chain comes by at ``t'``; replayed labels.

    ``t'`` is uniform over the timesteps that the sampler visits. A batch costs as many of its steps as its last image
    to stop: nearly all.

    Args:
        sampler: of the chain.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def question(
        self, loss: DenoisingLoss, teacher: Denoiser, current: DrawnBatch, replay: DrawnBatch | None
    ) -> Question:
        """States of the chain, and the teacher's answer."""
        assert replay is not None
        visited = self.sampler.timesteps(teacher.schedule)
        stop = torch.randint(len(visited), (len(replay.images),), device=replay.images.device)
        x_t, last = torch.empty_like(replay.images), int(stop.max())
        for position, (_, x) in enumerate(self.sampler.chain(teacher, tuple(replay.images.shape), replay.labels)):
            x_t = torch.where((stop == position).view(-1, 1, 1, 1), x.to(x_t), x_t)
            if position == last:
                break
        return _answered(teacher, x_t, torch.tensor(visited, device=stop.device)[stop], replay.labels)


def _noised(teacher: Denoiser, drawn: DrawnBatch) -> tuple[Tensor, Tensor, Tensor | None]:
    return teacher.schedule.add_noise(drawn.images, drawn.noise, drawn.timesteps), drawn.timesteps, drawn.labels


def _answered(teacher: Denoiser, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Question:
    return Question(x_t, t, labels, teacher(x_t, t, labels), _log_snr(teacher, t))


def _log_snr(teacher: Denoiser, t: Tensor) -> Tensor:
    return teacher.schedule.log_snr.to(t.device)[t]
