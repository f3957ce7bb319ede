from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from cl_diffusion.callbacks import TaskCallback, TaskCheckpoint
from tests.callbacks.stranger import Regression, loader, trainer


class Diary(TaskCallback):
    def __init__(self, epochs_per_task: int | None = None) -> None:
        super().__init__(epochs_per_task)
        self.entries: list[tuple[str, int, int]] = []

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self.entries.append(("start", task, trainer.current_epoch))

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self.entries.append(("end", task, trainer.current_epoch))


class Stream(LightningDataModule):
    """Two tasks, of 1 and 2 epochs."""

    num_tasks = 2

    def task_at(self, epoch: int) -> int:
        return 0 if epoch < 1 else 1 if epoch < 3 else 2

    def importance_dataloader(self, task: int | None = None) -> Any:
        return loader(task or 0)

    reference_dataloader = evaluation_dataloader = importance_dataloader

    def train_dataloader(self) -> Any:
        return loader(0)


STREAM = [("start", 0, 0), ("end", 0, 0), ("start", 1, 1), ("end", 1, 2)]


def test_a_stream_tells_the_tasks() -> None:
    diary = Diary()
    trainer(diary, max_epochs=3).fit(Regression(), datamodule=Stream())
    assert diary.entries == STREAM


def test_every_fit_is_a_task() -> None:
    diary = Diary()
    model = Regression()
    for seed in range(3):
        trainer(diary).fit(model, loader(seed))
    assert diary.entries == [(hook, task, epoch) for task in range(3) for hook, epoch in (("start", 0), ("end", 1))]


def test_a_fit_that_max_steps_ends_is_a_task() -> None:
    diary = Diary()
    trainer(diary, max_epochs=100, max_steps=4).fit(Regression(), loader(0))
    assert [entry[:2] for entry in diary.entries] == [("start", 0), ("end", 0)]


def test_epochs_per_task_counts_epochs() -> None:
    diary = Diary(epochs_per_task=2)
    trainer(diary, max_epochs=5).fit(Regression(), loader(0))
    assert diary.entries == [("start", 0, 0), ("end", 0, 1), ("start", 1, 2), ("end", 1, 3), ("start", 2, 4)]


def test_end_task_ends_it_now() -> None:
    diary = Diary()

    class Impatient(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 0:
                diary.end_task(trainer)

    trainer(diary, Impatient(), max_epochs=3).fit(Regression(), loader(0))
    assert diary.entries == [("start", 0, 0), ("end", 0, 0), ("start", 1, 1), ("end", 1, 2)]
    with pytest.raises(RuntimeError, match="no task is running"):
        diary.end_task(trainer())


def test_epochs_per_task_counts_on_from_fit_to_fit() -> None:
    diary = Diary(epochs_per_task=3)
    for _ in range(3):
        trainer(diary, max_epochs=2).fit(Regression(), loader(0))
    assert diary.entries == [("start", 0, 0), ("end", 0, 0), ("start", 1, 1), ("end", 1, 1)]


def test_an_epoch_that_was_broken_off_is_not_counted_in_another_fit() -> None:
    diary = Diary(epochs_per_task=2)

    class Fault(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        trainer(diary, Fault(), max_epochs=3).fit(Regression(), loader(0))
    trainer(diary, max_epochs=1).fit(Regression(), loader(0))
    assert diary.entries == [("start", 0, 0), ("end", 0, 0)]


def test_a_task_that_is_ended_within_an_epoch_leaves_the_rest_of_it_to_the_next() -> None:
    diary = Diary()
    batches: list[int | None] = []

    class OwnClock(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            batches.append(diary._running)

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step % 2 == 0:
                diary.end_task(trainer)

    trainer(diary, OwnClock(), max_epochs=2).fit(Regression(), loader(0))
    assert batches == [0, 0, 1, 1, 2, 2]
    assert [entry[:2] for entry in diary.entries] == [(hook, t) for t in range(3) for hook in ("start", "end")]


def test_end_task_where_the_clock_has_just_ended_it_ends_nothing_more() -> None:
    diary = Diary()

    class OwnClock(Regression):
        def on_train_epoch_end(self) -> None:
            diary.end_task(self.trainer)

    trainer(diary, max_epochs=2).fit(OwnClock(), loader(0))
    assert [entry[:2] for entry in diary.entries] == [(hook, task) for task in (0, 1) for hook in ("start", "end")]


@pytest.mark.parametrize("limit", [{"min_epochs": 3}, {"min_steps": 8}])
def test_a_stop_before_the_least_that_is_to_be_trained_ends_no_task(limit: dict[str, int]) -> None:
    diary = Diary()

    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = True

    trainer(diary, Stop(), max_epochs=9, **limit).fit(Regression(), loader(0))
    assert diary.entries == [("start", 0, 0), ("end", 0, 2)]


def test_a_checkpoint_of_the_last_epoch_holds_the_end_also_where_steps_overshoot(tmp_path: Path) -> None:
    """Two optimizers count two steps a batch, past an odd ``max_steps``."""

    class Two(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(layer.parameters(), lr=0.05) for layer in (self.net[0], self.net[2])]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.per_sample_loss(batch).mean())
                optimizer.step()

    last = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer(Remembering(), last, max_epochs=9, max_steps=11, enable_checkpointing=True).fit(Two(), loader(0))
    (state,) = (
        state
        for path in sorted(tmp_path.iterdir())[-1:]
        for key, state in torch.load(path, weights_only=True)["callbacks"].items()
        if "Remembering" in key
    )
    assert state["tasks_ended"] == 1


def test_a_task_that_was_broken_off_goes_on_in_the_next_fit_and_says_so() -> None:
    diary = Diary()

    class Fault(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        trainer(diary, Fault()).fit(Regression(), loader(0))
    with pytest.warns(UserWarning, match="Diary: task 1 was broken off in an earlier fit and goes on in this one"):
        trainer(diary).fit(Regression(), loader(1))
    assert [entry[:2] for entry in diary.entries] == [("start", 0), ("end", 0)]


def test_a_fit_that_resumes_within_a_task_with_nothing_left_to_train_says_so(tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(Remembering(), every, max_steps=4, enable_checkpointing=True).fit(Regression(), loader(0))
    with pytest.warns(UserWarning, match="from within task 1, and nothing is left to train, so that the task does not"):
        trainer(Remembering(), max_steps=4).fit(Regression(), loader(0), ckpt_path=tmp_path / "step=4.ckpt")


def test_an_exception_on_an_epochs_last_batch_loses_no_epoch(tmp_path: Path) -> None:
    class Fault(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("planned")

    saving = OnExceptionCheckpoint(tmp_path, filename="fault")
    with pytest.raises(RuntimeError, match="planned"):
        trainer(Remembering(2), Fault(), saving, max_epochs=4, enable_checkpointing=True).fit(Regression(), loader(0))
    resumed = Remembering(2)
    trainer(resumed, max_epochs=4).fit(Regression(), loader(0), ckpt_path=tmp_path / "fault.ckpt")
    assert [entry[:2] for entry in resumed.entries] == [("start", 0), ("end", 0), ("start", 1), ("end", 1)]


def test_a_stop_that_lightning_does_not_follow_yet_ends_no_task() -> None:
    diary = Diary()

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = True

    trainer(diary, Stop(), max_epochs=9, min_epochs=3).fit(Regression(), loader(0))
    assert [entry[0] for entry in diary.entries] == ["start", "end"]


def test_a_task_of_a_stream_that_was_ended_early_is_not_ended_again() -> None:
    diary = Diary()

    class Impatient(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                diary.end_task(trainer)

    trainer(diary, Impatient(), max_epochs=3).fit(Regression(), datamodule=Stream())
    assert diary.entries == [("start", 0, 0), ("end", 0, 0), ("start", 1, 1), ("end", 1, 1)]


def test_a_task_whose_end_failed_has_not_ended() -> None:
    class Failing(Diary):
        def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
            raise RuntimeError("planned")

    failing = Failing()
    with pytest.raises(RuntimeError, match="planned"):
        trainer(failing).fit(Regression(), loader(0))
    state = failing.state_dict()
    assert (state["running_task"], state["tasks_ended"]) == (0, 0)


def test_an_interrupted_fit_has_not_ended_its_task() -> None:
    diary = Diary()

    class Fault(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        trainer(diary, Fault()).fit(Regression(), loader(0))
    assert diary.entries == [("start", 0, 0)]


class Remembering(Diary):
    """Keeps its diary in the checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "entries": list(self.entries)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.entries = [tuple(entry) for entry in state_dict["entries"]]


@pytest.mark.parametrize("steps", range(1, 10))
def test_a_resumed_fit_has_the_same_boundaries_wherever_it_was_interrupted(steps: int, tmp_path: Path) -> None:
    """Also from a checkpoint on an epoch's last batch, from which Lightning resumes without that epoch's end."""
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(Remembering(), every, max_epochs=3, enable_checkpointing=True).fit(Regression(), datamodule=Stream())
    diary = Remembering()
    trainer(diary, max_epochs=3).fit(Regression(), datamodule=Stream(), ckpt_path=tmp_path / f"step={steps}.ckpt")
    assert [entry[:2] for entry in diary.entries] == [entry[:2] for entry in STREAM]
    assert diary.entries[2] == ("start", 1, 1)


@pytest.mark.parametrize("epochs_per_task", [1, 2])
@pytest.mark.parametrize("steps", [3, 4, 6, 9])
def test_epochs_per_task_makes_up_a_missed_boundary(epochs_per_task: int, steps: int, tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = Remembering(epochs_per_task=epochs_per_task)
    trainer(whole, every, max_epochs=4, enable_checkpointing=True).fit(Regression(), loader(0))
    resumed = Remembering(epochs_per_task=epochs_per_task)
    trainer(resumed, max_epochs=4).fit(Regression(), loader(0), ckpt_path=tmp_path / f"step={steps}.ckpt")
    assert [entry[:2] for entry in resumed.entries] == [entry[:2] for entry in whole.entries]


def test_a_checkpoint_at_the_boundary_holds_what_the_boundary_left(tmp_path: Path) -> None:
    last = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer(Remembering(), last, max_epochs=3, enable_checkpointing=True).fit(Regression(), datamodule=Stream())
    diary = Remembering()
    trainer(diary, max_epochs=3).fit(Regression(), datamodule=Stream(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert diary.entries == STREAM


def test_checkpoints_are_written_at_boundaries_and_every_few_epochs(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            last = tmp_path / "last.ckpt"
            epoch = torch.load(last, weights_only=True)["epoch"] if last.exists() else None
            seen.append((trainer.current_epoch, epoch))

    saving = TaskCheckpoint(str(tmp_path), every_n_epochs=2, epochs_per_task=5)
    trainer(saving, Look(), max_epochs=6, enable_checkpointing=True).fit(Regression(), loader(0))
    assert seen == [(0, None), (1, None), (2, 1), (3, 1), (4, 3), (5, 4)]
    assert {path.name for path in tmp_path.iterdir()} == {"after_task_1.ckpt", "last.ckpt"}


def test_two_clocks_are_refused() -> None:
    with pytest.raises(ValueError, match="epochs_per_task=2 is given to Diary.*Stream already says"):
        trainer(Diary(epochs_per_task=2)).fit(Regression(), datamodule=Stream())
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match=f"epochs_per_task={wrong}"):
            Diary(epochs_per_task=wrong)  # type: ignore[arg-type]
