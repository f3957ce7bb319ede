"""Beside Lightning's averaged weights: which part sees the average, which the weights that are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor

from cl_diffusion import DistilledDDPM, ReplayDataModule
from cl_diffusion.averaged_weights import averaged_weights
from cl_diffusion.callbacks import EWC, ContinualMetrics, TaskCallback
from cl_diffusion.data import GenerativeReplay
from cl_diffusion.diffusion.samplers import DDIMSampler
from cl_diffusion.fisher import DiagonalFisher, MeanGradientFisher
from tests.callbacks.stranger import Regression, loader, trainer, weights
from tests.tiny import DATA, METRICS, unet

Weights = dict[str, Tensor]


class Noted(DistilledDDPM):
    """Notes the weights by which images are drawn."""

    def __init__(self) -> None:
        super().__init__(unet(), sampler=DDIMSampler(steps=2))
        self.drew: list[Weights] = []

    def sample(self, *args: Any, **options: Any) -> Tensor:
        self.drew.append(copied(self))
        return super().sample(*args, **options)


class Ends(TaskCallback):
    """Notes, at each task's end and after each task's first step, the weights and their average."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[Weights, Weights]] = []
        self.first_steps: list[tuple[Weights, Weights]] = []
        self.begun = False

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self.begun = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.begun:
            self.first_steps.append(both(trainer))
        self.begun = False

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self.ends.append(both(trainer))


def copied(module: torch.nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def both(trainer: Trainer) -> tuple[Weights, Weights]:
    (averaging,) = (c for c in trainer.callbacks if isinstance(c, EMAWeightAveraging))  # type: ignore[attr-defined]
    return copied(trainer.lightning_module), copied(averaging._average_model.module)


def same(mine: Weights, theirs: Weights) -> bool:
    return all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def fit(
    folder: Path, *callbacks: Callback, model: DistilledDDPM | None = None, ckpt_path: Path | None = None
) -> DistilledDDPM:
    data = ReplayDataModule(**{**DATA, "replay": GenerativeReplay(images_per_class=2), "replay_share": 0.5})
    torch.manual_seed(0)
    model = model or Noted()
    Trainer(
        max_epochs=data.num_epochs,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=list(callbacks),
    ).fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model


def test_teacher_replay_and_figures_are_of_the_average_and_anchors_of_the_weights(tmp_path: Path) -> None:
    ewc, ends, model = EWC(MeanGradientFisher(), 1.0, memory="separate"), Ends(), Noted()
    fit(tmp_path, EMAWeightAveraging(decay=0.9), ewc, ContinualMetrics(**METRICS), ends, model=model)
    raw, average = ends.ends[0]
    assert not same(raw, average)
    teacher = {f"denoiser.{name}": tensor for name, tensor in model.teacher.named_parameters()}  # type: ignore[union-attr]
    assert same(teacher, average)
    metrics, replay = model.drew[0], model.drew[1]  # after the first task, for the second
    assert same(metrics, average)
    assert same(replay, average)
    assert len(model.drew) == 4  # and after the second, of both tasks
    assert all(same(drew, ends.ends[1][1]) for drew in model.drew[2:])
    assert [same(dict(term.anchor), end[0]) for term, end in zip(ewc.terms, ends.ends, strict=True)] == [True, True]


def test_each_task_has_an_average_of_its_own(tmp_path: Path) -> None:
    ends = Ends()
    fit(tmp_path, EMAWeightAveraging(decay=0.9), ends)
    assert len(ends.first_steps) == 2
    assert all(same(raw, average) for raw, average in ends.first_steps)


def test_a_fit_goes_on_from_each_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Those of an epoch's last batch too, after which a task's end is made up for: the teacher is of its average."""

    def callbacks() -> list[Callback]:
        return [EMAWeightAveraging(decay=0.9), EWC(MeanGradientFisher(), 1.0)]

    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    whole = fit(tmp_path, *callbacks(), saving)
    checkpoints = sorted((tmp_path / "saved").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert len(checkpoints) == 8
    for checkpoint in checkpoints[:-1]:  # after the last, nothing is left to train
        resumed = fit(tmp_path, *callbacks(), ckpt_path=checkpoint)
        assert same(copied(whole), copied(resumed)), checkpoint.name


def test_without_a_stream_an_average_is_left_alone() -> None:
    """A callback that is switched off leaves a foreign project as it is, its averages too."""
    averages = []
    for callbacks in ([], [EWC(DiagonalFisher(), strength=0.0, epochs_per_task=1)]):
        model = Regression()
        trainer(EMAWeightAveraging(decay=0.9), *callbacks, max_epochs=4).fit(model, loader(0))
        averages.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))


def test_outside_of_averaging_the_weights_are_their_own() -> None:
    with averaged_weights(None):
        pass
    seen: list[bool] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Regression, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            before = weights(pl_module)
            with averaged_weights(trainer):
                seen.append(all(torch.equal(a, b) for a, b in zip(before, weights(pl_module), strict=True)))
            assert all(torch.equal(a, b) for a, b in zip(before, weights(pl_module), strict=True))

    trainer(EMAWeightAveraging(update_starting_at_step=2), Look(), max_epochs=1).fit(Regression(), loader(0))
    assert seen == [True, True, True]
    with pytest.raises(ZeroDivisionError):
        _leave_by_an_error()


def _leave_by_an_error() -> None:
    class Fail(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            before = copied(pl_module)
            try:
                with averaged_weights(trainer):
                    assert not same(before, copied(pl_module))
                    raise ZeroDivisionError
            finally:
                assert same(before, copied(pl_module))

    trainer(EMAWeightAveraging(decay=0.5), Fail(), max_epochs=1).fit(Regression(), loader(0))
