from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from cl_diffusion.data import TaskDataModule


class Recorder(LightningModule):
    """Records which samples it is given, epoch by epoch."""

    def __init__(self, read_numbers: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.read = read_numbers
        self.trained: dict[int, list[int]] = {}
        self.validated: dict[int, dict[int, list[int]]] = {}
        self.predicted: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        numbers = self.read(images)
        assert labels.tolist() == [number % 6 for number in numbers]
        self.trained.setdefault(self.current_epoch, []).extend(numbers)
        return self.weight * images.mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not self.trainer.sanity_checking:
            epoch = self.validated.setdefault(self.current_epoch, {})
            assert self.read(batch.batch[0]) == batch.indices.tolist()
            epoch.setdefault(dataloader_idx, []).extend(batch.indices.tolist())

    def predict_step(self, labels: Tensor) -> None:
        self.predicted += labels.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(path: Path, **arguments: Any) -> Trainer:
    defaults = {"max_epochs": 4, "reload_dataloaders_every_n_epochs": 1, "accelerator": "cpu", "devices": 1}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=path, **{**defaults, **quiet, **arguments})


@pytest.fixture
def make(numbered: Any) -> Any:
    return lambda **arguments: TaskDataModule(
        numbered(), **{"epochs_per_task": [1, 2, 1], "batch_size": 5, **arguments}
    )


def test_one_fit_goes_through_all_tasks(make: Any, read_numbers: Any, tmp_path: Path) -> None:
    data, model = make(), Recorder(read_numbers)
    trainer(tmp_path, enable_checkpointing=False).fit(model, datamodule=data)
    assert sorted(model.trained) == [0, 1, 2, 3]
    for epoch, numbers in model.trained.items():
        assert sorted(numbers) == data.scenario.training_indices(data.task_at(epoch)).tolist()
    assert model.trained[1] != model.trained[2]
    for epoch, loaders in model.validated.items():
        held_out = [data.scenario.held_out_indices(task).tolist() for task in range(data.task_at(epoch) + 1)]
        assert list(loaders.values()) == held_out


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 5, 8, 10])
def test_a_resumed_fit_sees_the_batches_that_remain(
    make: Any, read_numbers: Any, tmp_path: Path, steps: int, joint: bool
) -> None:
    """From an epoch's end (every fourth step, with one task at a time) and from within an epoch."""
    arguments = {"reload_dataloaders_every_n_epochs": 0} if joint else {}
    stream = {"joint": True, "epochs_per_task": 4} if joint else {}
    whole, resumed = Recorder(read_numbers), Recorder(read_numbers)
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    at_end = ModelCheckpoint(tmp_path, filename="end-{step}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer(tmp_path, callbacks=[saving, at_end], **arguments).fit(whole, datamodule=make(**stream))
    end = tmp_path / f"end-step={steps}.ckpt"
    path = end if end.exists() else tmp_path / f"step={steps}.ckpt"
    trainer(tmp_path, enable_checkpointing=False, **arguments).fit(
        resumed, datamodule=make(**stream), ckpt_path=str(path)
    )
    seen = 48 if joint else 16
    everything = [number for epoch in sorted(whole.trained) for number in whole.trained[epoch]]
    remaining = [number for epoch in sorted(resumed.trained) for number in resumed.trained[epoch]]
    epochs, batches = divmod(steps, -(-seen // 5))
    assert remaining == everything[epochs * seen + batches * 5 :]


def test_limited_epochs_resume_at_the_start_of_the_next(make: Any, read_numbers: Any, tmp_path: Path) -> None:
    whole, resumed = Recorder(read_numbers), Recorder(read_numbers)
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer(tmp_path, callbacks=[saving], limit_train_batches=2).fit(whole, datamodule=make())
    trainer(tmp_path, limit_train_batches=2, enable_checkpointing=False).fit(
        resumed, datamodule=make(), ckpt_path=str(tmp_path / "epoch=1.ckpt")
    )
    assert resumed.trained == {epoch: whole.trained[epoch] for epoch in (2, 3)}


def test_a_fit_of_another_stream_is_not_resumed(make: Any, read_numbers: Any, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(tmp_path, callbacks=[saving]).fit(Recorder(read_numbers), datamodule=make())
    other = make(class_order=[5, 4, 3, 2, 1, 0])
    with pytest.raises(ValueError, match=r"tasks=\[\[5, 4\].*but the checkpoint is of a stream with tasks=\[\[0, 1\]"):
        trainer(tmp_path).fit(Recorder(read_numbers), datamodule=other, ckpt_path=str(tmp_path / "epoch=0.ckpt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reload_dataloaders_every_n_epochs": 0}, "reload_dataloaders_every_n_epochs=0: expected 1"),
        ({"max_epochs": 3}, "max_epochs=3 of the Trainer, but the stream takes 4"),
        ({"max_epochs": None}, "max_epochs=1000 of the Trainer, but the stream takes 4"),
        ({"max_epochs": -1, "max_steps": 99}, "epoch 4 is past the 4 of the stream"),
    ],
)
def test_a_trainer_that_would_leave_the_stream_is_refused(
    make: Any, read_numbers: Any, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, enable_checkpointing=False, **arguments).fit(Recorder(read_numbers), datamodule=make())


def test_a_trial_run_and_a_finished_run_are_let_through(make: Any, read_numbers: Any, tmp_path: Path) -> None:
    trial, again = Recorder(read_numbers), Recorder(read_numbers)
    trainer(tmp_path, fast_dev_run=True).fit(trial, datamodule=make())
    assert len(trial.trained[0]) == 5
    trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path, save_last=True)]).fit(trial, datamodule=make())
    trainer(tmp_path).fit(again, datamodule=make(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert again.trained == {}


def test_evaluation_and_prediction_need_no_fit(make: Any, read_numbers: Any, tmp_path: Path) -> None:
    data, model = make(images_per_class=2), Recorder(read_numbers)
    trainer(tmp_path).validate(model, datamodule=data, verbose=False)
    held_out = [data.scenario.held_out_indices(task).tolist() for task in range(3)]
    assert list(model.validated[0].values()) == held_out
    trainer(tmp_path).predict(model, datamodule=data)
    assert model.predicted == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


class RankRecorder(Recorder):
    """Writes what each process has seen."""

    def __init__(self, read_numbers: Any, path: Path) -> None:
        super().__init__(read_numbers)
        self.path = path

    def on_train_end(self) -> None:
        importance = [
            [i for batch in self.trainer.datamodule.importance_dataloader(task) for i in batch.indices.tolist()]
            for task in range(3)
        ]
        state = {"trained": self.trained, "validated": self.validated, "importance": importance}
        torch.save(state, self.path / f"{self.global_rank}.pt")


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_share_the_samples(make: Any, read_numbers: Any, tmp_path: Path) -> None:
    if torch.cuda.is_initialized():
        pytest.skip("cannot fork once CUDA is initialised")
    data = make(holdout=0.1)
    arguments = {"devices": 2, "strategy": "ddp_fork", "enable_checkpointing": False, "num_sanity_val_steps": 0}
    trainer(tmp_path, **arguments).fit(RankRecorder(read_numbers, tmp_path), datamodule=data)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for epoch in range(4):
        first, second = (rank["trained"][epoch] for rank in ranks)
        expected = data.scenario.training_indices(data.task_at(epoch)).tolist()
        assert len(first) == len(second) == 9
        assert sorted(first + second) == expected
    for task in range(3):
        shares = [rank["importance"][task] for rank in ranks]
        assert sorted(shares[0] + shares[1]) == data.scenario.training_indices(task).tolist()
        validated = {i for rank in ranks for i in rank["validated"][3][task]}
        assert validated == set(data.scenario.held_out_indices(task).tolist())
