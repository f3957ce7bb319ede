"""The samples that an audit compares, of one module at its current weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cl_diffusion.callbacks.batches import TransferredBatches
from cl_diffusion.callbacks.diagnostics.chosen_samples import Chosen
from cl_diffusion.callbacks.regularization.sample_gradients import sample_loss
from cl_diffusion.callbacks.regularization.task_samples import OwnSamples
from cl_diffusion.diffusion import SNRBand, SNRBands
from cl_diffusion.diffusion.controls import images_of, labels_of, pure_noise, relabelled
from cl_diffusion.fisher import DiagonalFisher, OutputLoss
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.probe import Probe
from cl_diffusion.fisher.residual import RESIDUALS, Empirical, OfOutput
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.keys import derive_keys
from cl_diffusion.metrics.gradient_audit import ALL, KINDS, NOISE, OTHER, OWN, RELABELLED, SURROGATE, TRUE
from cl_diffusion.processes import gathered, gathered_objects

FEWEST = 8
"""Fewer samples of a task are no set that could be halved and halved again."""


class AuditSources:
    """A task's samples in each band, and what they are compared with, all of one module.

    The same samples in every band, each with draws of its own; no draw of noise is common to two bands, or to the task
    and what it is compared with.

    Args:
        trainer: that runs the module.
        module: offers what ``EWC`` asks for, and optionally ``draw(batch, keys, band)`` and ``linear_output(drawn,
            second_moment)``. The other task's images under this one's labels are looked at where it is
            ``class_conditional``.
        task: whose samples are audited, from 0.
        other: with whose they are compared; None where there is no other.
        bands: in which; None is all timesteps alone.
        samples: of each task, chosen at random.
        seed: of that choice and of the draws.
        kinds: which of ``KINDS`` to look at, where they are to be had; ``own`` always.
        batches: from the number of a task to its batches; its training samples by default.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        task: int,
        other: int | None,
        bands: SNRBands | None,
        samples: int,
        seed: int,
        kinds: Collection[str] = tuple(KINDS),
        batches: Callable[[int], Iterable[Any]] | None = None,
    ) -> None:
        of_task = batches or (lambda number: task_batches(trainer, number))
        self.kinds = frozenset(kinds) | {OWN}
        self.task, self.compared = task, other
        self.module: Any = module
        self.bands = bands
        self.seed = seed
        self.own = Chosen(of_task(task), samples, seed)
        wanted = other is not None and self.kinds & {OTHER, RELABELLED}
        self.other = Chosen(of_task(other), samples, seed) if wanted and other is not None else None
        output_loss = getattr(module, "output_loss", None)
        self.loss: Any = output_loss if isinstance(output_loss, OutputLoss) else sample_loss(module, DiagonalFisher())

    @property
    def names(self) -> list[str]:
        """Of the bands, all timesteps last."""
        return [*(self.bands.names if self.bands else ()), ALL]

    def describe(self) -> dict[str, Any]:
        """Whose samples, and how many, for a record; tasks from 1."""
        return {
            "task": self.task + 1,
            "other": None if self.compared is None else self.compared + 1,
            "bands": None if self.bands is None else self.bands.describe(),
            "law": self.law(),
            "samples": len(self.own),
            "samples_of_other": None if self.other is None else len(self.other),
            "kinds": sorted(self.sources(ALL)),
        }

    def sources(self, band: str) -> dict[str, Samples]:
        """The samples of a band, by kind; the task's own first."""
        own = self.population(band)
        found = {OWN: Samples(own, Empirical())}
        found |= {kind: Samples(population, Empirical()) for kind, population in self._compared(band).items()}
        if isinstance(self.loss, OutputLoss):
            if (linear := self.linear_output()) is not None:
                found[SURROGATE] = Samples(own, OfOutput(linear))
            found[TRUE] = Samples(own, RESIDUALS["model"])
        return {kind: samples for kind, samples in found.items() if kind in self.kinds}

    def try_out(self, steps: bool) -> None:
        """Raise what an audit would raise of a module and batches that it does not fit; by a few samples' gradients.

        Args:
            steps: try a forward-mode derivative too, as steps along directions need.

        Raises:
            ValueError: the module has no forward-mode derivative.
        """
        for band in self.names:
            for samples in self.sources(band).values():
                if (first := next(samples.drawn(), None)) is not None:
                    next(samples.per_sample(first), None)
        if steps and len(self.own):
            two = Chosen(self.own, 2, self.seed)
            probe = Probe(self._population(two, ALL, "own", lambda batch, keys: batch))
            try:
                probe.slopes({})
            except (NotImplementedError, RuntimeError) as error:
                raise ValueError(
                    f"{type(self.module).__name__} has no forward-mode derivative, which steps along directions need "
                    f"({str(error).splitlines()[0]}); give the audit radii=[], which leaves them out"
                ) from error

    def population(self, band: str) -> Population:
        """The task's own samples in a band."""
        return self._population(self.own, band, "own", lambda batch, keys: batch)

    def law(self) -> dict[str, float]:
        """The share of each band in the timesteps; empty where the module does not say its ``noise_schedule``."""
        schedule = getattr(self.module, "noise_schedule", None)
        if self.bands is None or schedule is None:
            return {}
        return {band.name: len(band.timesteps(schedule)) / schedule.num_steps for band in self.bands.bands}

    def linear_output(self) -> Callable[[Any, Any], Tensor] | None:
        """``(module, drawn) -> f_lin`` with the second moment of the task's own images; None where there is none."""
        if not callable(getattr(self.module, "linear_output", None)):
            return None
        moments = torch.zeros(2, dtype=torch.float64)
        for batch, _ in self.own:
            if (images := images_of(batch)) is None:
                return None
            moments += torch.tensor([float(images.double().square().mean()) * len(images), float(len(images))])
        total, count = torch.stack(gathered_objects(moments)).sum(0).tolist()
        second_moment = total / count
        return lambda module, drawn: module.linear_output(drawn, second_moment)

    def _compared(self, band: str) -> dict[str, Population]:
        found: dict[str, Population] = {}
        if self.other is not None and len(self.other) >= FEWEST:
            found[OTHER] = self._population(self.other, band, "compared", lambda batch, keys: batch)
            labels = self._labels() if getattr(self.module, "class_conditional", False) else None
            if labels is not None:
                found[RELABELLED] = self._population(
                    self.other, band, "compared", lambda batch, keys: relabelled(batch, keys, labels)
                )
        if self.bands is not None and all(gathered_objects(self.own.all_have(images_of))):
            found[NOISE] = self._population(self.own, band, "noise", pure_noise)
        return found

    def _population(
        self, batches: Iterable[Any], band: str, purpose: str, change: Callable[[Any, Tensor], Any]
    ) -> Population:
        draw = getattr(self.module, "draw", None)
        number = self.names.index(band)
        seed = int(derive_keys(self.seed, torch.tensor([number]), purpose=purpose))
        if draw is None:
            return Population(self.module, self.loss, batches, seed=seed)
        options = {} if self.bands is None else {"band": [*self.bands.bands, SNRBand(ALL)][number]}

        def drawn(batch: Any, keys: Tensor) -> Any:
            return draw(change(batch, keys), keys, **options)

        return Population(self.module, self.loss, batches, drawn, seed)

    def _labels(self) -> Tensor | None:
        """Those of the task's own samples, of all processes."""
        if not all(gathered_objects(self.own.all_have(labels_of))):
            return None
        mine = [labels_of(batch) for batch, _ in self.own]
        none = torch.empty(0, dtype=torch.int64)
        return gathered(torch.cat([none, *(labels.cpu() for labels in mine if labels is not None)]))


def task_batches(trainer: Trainer, task: int) -> Iterable[Any]:
    """A task's own training batches, as the module gets them."""
    return TransferredBatches(trainer, OwnSamples().batches(trainer, task))
