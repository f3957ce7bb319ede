"""The samples that an audit compares, of one module at its current weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cl_diffusion.callbacks.batches import TransferredBatches, training_batches
from cl_diffusion.callbacks.regularization.sample_gradients import sample_loss
from cl_diffusion.callbacks.task import task_stream
from cl_diffusion.diffusion import SNRBand, SNRBands
from cl_diffusion.diffusion.controls import labels_of, pure_noise, relabelled
from cl_diffusion.fisher import DiagonalFisher, OneByOne, OutputLoss
from cl_diffusion.fisher.batch import batch_size
from cl_diffusion.fisher.population import Population, Rows, gathered_objects, rank, select, world_size
from cl_diffusion.fisher.residual import RESIDUALS, Empirical, OfOutput
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.keys import KeyedBatch
from cl_diffusion.metrics.gradient_audit import ALL, KINDS, NOISE, OTHER, OWN, RELABELLED, SURROGATE, TRUE

_OTHERS_SEED = 1_000_003
"""Added to the seed of samples that are compared with the task's own, so that no draw of noise is common to both."""


class AuditSources:
    """A task's samples in each band, and what they are compared with, all of one module.

    Args:
        trainer: that runs the module.
        module: offers what ``EWC`` asks for, and optionally ``draw(batch, keys, band)`` and ``linear_output(drawn,
            second_moment)``.
        task: whose samples are audited, from 0.
        other: with whose they are compared; None where there is no other.
        bands: in which; None is all timesteps alone.
        samples: of each task in each band.
        seed: of the draws.
        kinds: which of ``KINDS`` to look at, where they are to be had; ``own`` always.
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
    ) -> None:
        self.kinds = frozenset(kinds) | {OWN}
        self.task, self.compared, self.samples = task, other, samples
        self.module: Any = module
        self.bands = bands
        self.seed = seed
        self.own = _First(_batches(trainer, task), samples)
        self.other = None if other is None else _First(_batches(trainer, other), samples)
        output_loss = getattr(module, "output_loss", None)
        self.loss: Any = output_loss if isinstance(output_loss, OutputLoss) else sample_loss(module, DiagonalFisher())

    @property
    def names(self) -> list[str]:
        """Of the bands, all timesteps last."""
        return [*(self.bands.names if self.bands else ()), ALL]

    @property
    def one_by_one(self) -> bool:
        """Whether the loss is that of ``training_step`` on batches of one."""
        return isinstance(self.loss, OneByOne)

    def describe(self) -> dict[str, Any]:
        """Whose samples, and how many, for a record; tasks from 1."""
        return {
            "task": self.task + 1,
            "other": None if self.compared is None else self.compared + 1,
            "bands": None if self.bands is None else self.bands.describe(),
            "samples": self.samples,
            "kinds": sorted(self.kinds),
        }

    def sources(self, band: str) -> dict[str, Samples]:
        """The samples of a band, by kind; the task's own first."""
        own = self.population(band)
        found = {OWN: Samples(own, Empirical())}
        found |= {kind: Samples(population, Empirical()) for kind, population in self._compared(band).items()}
        if isinstance(self.loss, OutputLoss):
            if callable(getattr(self.module, "linear_output", None)):
                found[SURROGATE] = Samples(own, OfOutput(self._linear_output()))
            found[TRUE] = Samples(own, RESIDUALS["model"])
        return {kind: samples for kind, samples in found.items() if kind in self.kinds}

    def nonlinearity(self) -> dict[str, float]:
        """By band, ``(E|f - f_lin|^2 / E|f|^2)^(1/2)``; empty where the module has no ``linear_output``."""
        if not isinstance(self.loss, OutputLoss) or not callable(getattr(self.module, "linear_output", None)):
            return {}
        linear, found = self._linear_output(), {}
        for band in self.names:
            sums = torch.zeros(2, dtype=torch.float64)
            population = self.population(band)
            source = Samples(population, Empirical())
            for drawn in source.drawn():
                output = source.terms(drawn).output
                assert output is not None
                apart = output - linear(self.module, drawn.inputs.batch)
                sums += torch.tensor([float(each.double().square().sum()) for each in (apart, output)])
            error, size = torch.stack(gathered_objects(sums)).sum(0).tolist()
            found[band] = (error / size) ** 0.5
        return found

    def population(self, band: str) -> Population:
        """The task's own samples in a band."""
        return self._population(self.own, band, lambda batch, keys: batch, self.seed)

    def law(self, draws: int = 50) -> dict[str, float]:
        """The share of each band in the timesteps that the module draws, from several draws of each sample."""
        if self.bands is None:
            return {}
        population = self.population(ALL)
        positions = torch.cat([self.bands(rows.batch).cpu() for draw in range(draws) for rows in population.rows(draw)])
        every = torch.cat(gathered_objects(positions))
        return {name: float((every == number).double().mean()) for number, name in enumerate(self.bands.names)}

    def _compared(self, band: str) -> dict[str, Population]:
        seed = self.seed + _OTHERS_SEED
        found: dict[str, Population] = {}
        labels = self._labels()
        if self.other is not None:
            found[OTHER] = self._population(self.other, band, lambda batch, keys: batch, seed)
            if labels is not None:
                found[RELABELLED] = self._population(
                    self.other, band, lambda batch, keys: relabelled(batch, keys, labels), seed
                )
        if self.bands is not None:
            found[NOISE] = self._population(self.own, band, pure_noise, seed)
        return found

    def _population(
        self, batches: Iterable[Any], band: str, change: Callable[[Any, Tensor], Any], seed: int
    ) -> Population:
        draw = getattr(self.module, "draw", None)
        if draw is None:
            return Population(self.module, self.loss, batches, seed=seed)
        number = self.names.index(band)
        options = {} if self.bands is None else {"band": [*self.bands.bands, SNRBand(ALL)][number]}
        return Population(
            self.module,
            self.loss,
            batches,
            draw=lambda batch, keys: draw(change(batch, keys), keys, **options),
            seed=seed + number,
        )

    def _labels(self) -> Tensor | None:
        """Those of the task's own samples, of all processes."""
        mine = [labels_of(batch.batch) for batch in self.own]
        if not mine or any(labels is None for labels in mine):
            return None
        return torch.cat(gathered_objects(torch.cat([labels.cpu() for labels in mine if labels is not None])))

    def _linear_output(self) -> Callable[[Any, Any], Tensor]:
        moments = torch.zeros(2, dtype=torch.float64)
        for batch, _ in self.own:
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            moments += torch.tensor([float(images.double().square().mean()) * len(images), float(len(images))])
        total, count = torch.stack(gathered_objects(moments)).sum(0).tolist()
        second_moment = total / count
        return lambda module, drawn: module.linear_output(drawn, second_moment)


def takes_band(module: Any) -> bool:
    """Whether ``draw(batch, keys, band)`` can be asked for a band."""
    draw = getattr(module, "draw", None)
    return draw is not None and "band" in inspect.signature(draw).parameters


class _First(Iterable[KeyedBatch]):
    """The first few samples; this process's share of them."""

    def __init__(self, batches: Iterable[Any], samples: int) -> None:
        self.batches = batches
        self.samples = samples // world_size() + (rank() < samples % world_size())

    def __iter__(self) -> Iterator[KeyedBatch]:
        left, position = self.samples, 0
        for item in self.batches:
            if left == 0:
                return
            batch, indices = item if isinstance(item, KeyedBatch) else (item, None)
            size = batch_size(batch)
            if indices is None:
                indices = rank() + world_size() * torch.arange(position, position + size)
            taken = select(Rows(batch, indices, None), torch.arange(size) < left)
            position, left = position + size, left - len(taken.indices)
            yield KeyedBatch(taken.batch, taken.indices)


def _batches(trainer: Trainer, task: int) -> Iterable[Any]:
    stream = task_stream(trainer)
    batches = training_batches(trainer) if stream is None else stream.importance_dataloader(task)
    return TransferredBatches(trainer, batches)
