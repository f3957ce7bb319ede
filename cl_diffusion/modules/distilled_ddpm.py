"""The denoising diffusion model that rehearses old tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from cl_diffusion.diffusion import Denoiser, SNRBands
from cl_diffusion.diffusion.rehearsal import GenerativeDistillation, Question, Rehearsal
from cl_diffusion.modules.ddpm import DDPM
from cl_diffusion.modules.distillation import Balance, DistillationMixin
from cl_diffusion.stream import ReplayBatch, ReplayStream, TaskStream


class DistilledDDPM(DistillationMixin, DDPM):
    """``DDPM``, with a term of the loss on old tasks: by a frozen teacher, or by replay alone.

    Args:
        network: of ``DDPM``.
        rehearsal: what is asked about old tasks; by default ``GenerativeDistillation()``.
        balance: of the two terms: ``"balanced"`` or ``"sum"``; see ``DistillationMixin``.
        old_strength: ``lambda`` of the old tasks' term.
        noise_of_replay: whether the current task's term is one mean over current and replayed images.
        bands: of the signal-to-noise ratio, for ``band_weights``.
        band_weights: a factor on the old tasks' term for each of ``bands``, by name; 1 where a band is left out.
        one_forward: run the student once a step, on the current images and the rehearsal's together: the same loss, to
            rounding, of networks without dropout, in less time.
        **options: of ``DDPM``.

    Raises:
        ValueError: an argument is out of range; before a fit: the data module gives no replay, which is needed.
    """

    _weights: Tensor

    def __init__(
        self,
        network: nn.Module,
        rehearsal: Rehearsal | None = None,
        balance: Balance = "balanced",
        old_strength: float = 1.0,
        noise_of_replay: bool = False,
        bands: SNRBands | None = None,
        band_weights: dict[str, float] | None = None,
        one_forward: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        if one_forward and any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules()):
            raise ValueError(
                "one_forward=True, and the network has batch norms, which would see both tasks' images as one batch; "
                "leave it out"
            )
        if self.denoiser.learned_variance:
            raise ValueError(
                "learned_variance=True: a rehearsal is of the prediction, and the variance would be learned of the "
                "current task alone; use DDPM, whose loss of replayed images trains both"
            )
        self.rehearsal = rehearsal or GenerativeDistillation()
        self.noise_of_replay = noise_of_replay
        self.one_forward = one_forward
        self.bands = bands
        self.register_buffer("_weights", _by_band(bands, band_weights), persistent=False)
        self.set_up_distillation(balance, old_strength, teacher=self.rehearsal.needs_teacher)

    @property
    @override
    def student(self) -> Denoiser:
        return self.denoiser

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        stream = getattr(self.trainer, "datamodule", None)
        several = isinstance(stream, TaskStream) and stream.task_at(0) == 0 and stream.num_tasks > 1
        if stage == "fit" and several and self.rehearsal.needs_replay and not isinstance(stream, ReplayStream):
            raise _without_replay(self.rehearsal, f"{type(stream).__name__} replays nothing")

    @override
    def both_losses(self, current: Any, replay: Any | None) -> tuple[Tensor, Tensor | None]:
        if not self.one_forward or self.tasks_before == 0:
            return super().both_losses(current, replay)
        drawn, question = self.draw(self._trained_on(current, replay)), self._question(current, replay)
        if (drawn.labels is None) != (question.labels is None):
            raise ValueError(
                "one_forward=True, and one of the current and the replayed images have labels; leave it out"
            )
        x_t = self.noise_schedule.add_noise(drawn.images, drawn.noise, drawn.timesteps)
        labels = None
        if drawn.labels is not None and question.labels is not None:
            labels = torch.cat([drawn.labels, question.labels])
        output = self.denoiser(torch.cat([x_t, question.x_t]), torch.cat([drawn.timesteps, question.t]), labels)
        mine, again = output.split([len(x_t), len(question.x_t)])
        return self.loss.reduced(mine, self.loss.target(self.denoiser, drawn)), self._answers(question, again)

    @override
    def current_losses(self, current: Any, replay: Any | None) -> Tensor:
        return self.per_sample_loss(self._trained_on(current, replay))

    @override
    def old_losses(self, current: Any, replay: Any | None) -> Tensor | None:
        if self.tasks_before == 0:
            return None
        question = self._question(current, replay)
        return self._answers(question, self.denoiser(question.x_t, question.t, question.labels))

    def _trained_on(self, current: Any, replay: Any | None) -> Any:
        both = self.noise_of_replay and replay is not None
        return ReplayBatch(current, replay).together() if both else current

    def _answers(self, question: Question, output: Tensor) -> Tensor:
        losses = self.loss.reduced(output, question.wanted)
        return losses if self.bands is None else losses * self._weights[self.bands(question)]

    def _question(self, current: Any, replay: Any | None) -> Question:
        if self.rehearsal.needs_replay and replay is None:
            raise _without_replay(self.rehearsal, "the batch holds none")
        teacher = self.teacher if self.rehearsal.needs_teacher else self.denoiser
        assert isinstance(teacher, Denoiser)
        with torch.no_grad():
            drawn = [None if part is None else self.draw(part) for part in (current, replay)]
            assert drawn[0] is not None
            return self.rehearsal.question(self.loss, teacher, drawn[0], drawn[1])

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.combined_loss(batch)
        self.log("train_loss", loss, prog_bar=True, batch_size=1)
        return loss


def _without_replay(rehearsal: Rehearsal, fact: str) -> ValueError:
    return ValueError(
        f"{type(rehearsal).__name__} asks about replayed images, and {fact}; use ReplayDataModule, or "
        "LearningWithoutForgetting"
    )


def _by_band(bands: SNRBands | None, weights: Mapping[str, float] | None) -> Tensor:
    """The factor of each band, and 1 for what is in none (position -1)."""
    names = () if bands is None else bands.names
    if bad := {n: w for n, w in (weights or {}).items() if n not in names or not 0 <= w < float("inf")}:
        raise ValueError(f"band_weights={bad!r}; expected finite numbers >= 0 for names among {list(names)} (bands)")
    return torch.tensor([*((weights or {}).get(name, 1.0) for name in names), 1.0])
