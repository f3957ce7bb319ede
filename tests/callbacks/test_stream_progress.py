from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rich
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar, TQDMProgressBar
from torch import Tensor, nn

from cl_diffusion import TaskDataModule
from cl_diffusion.callbacks import EWC, ContinualMetrics, StreamProgress, TaskCallback, TaskCheckpoint
from cl_diffusion.data import GenerativeReplay, ReplayDataModule
from cl_diffusion.fisher import DiagonalFisher
from cl_diffusion.phases import PhaseClock, phase
from tests.callbacks.stranger import Regression, loader, trainer, weights
from tests.seconds import Seconds
from tests.tiny import DATA, METRICS, ddpm

TASKS, EPOCHS, BATCHES = 4, 2, 15
STEP, FISHER, EVALUATION = 0.5, 3.0, 2.0
"""Seconds of a step, of a boundary, and of a boundary and each task until then."""


class Stream(LightningDataModule):
    """Four tasks of two epochs."""

    num_tasks = TASKS

    def task_at(self, epoch: int) -> int:
        return epoch // EPOCHS

    def importance_dataloader(self, task: int | None = None) -> Any:
        return loader(task or 0)

    reference_dataloader = evaluation_dataloader = importance_dataloader

    def train_dataloader(self) -> Any:
        return loader(0, samples=8 * BATCHES)


class Waits(Regression):
    """Each step takes as long on the clock as it says."""

    def __init__(self, now: Seconds) -> None:
        super().__init__(torch.optim.Adam)
        self.now = now

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.now.wait(STEP)
        return super().training_step(batch, batch_idx)


class Boundary(TaskCallback):
    """Takes its time at a task's end."""

    boundary_phase = "evaluation"

    def __init__(self, now: Seconds, epochs_per_task: int | None = None) -> None:
        super().__init__(epochs_per_task)
        self.now = now

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self.now.wait(EVALUATION * (task + 1))
        with phase(trainer, "fisher"):
            self.now.wait(FISHER)


class Reader(Callback):
    """What is said after each step, and what time it is then."""

    def __init__(self, progress: StreamProgress, now: Seconds) -> None:
        self.progress, self.now = progress, now
        self.said: list[tuple[int, str, float | None, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        left = self.progress.time_left(trainer)
        self.said.append((trainer.current_epoch, self.progress.status(trainer), left, self.now.passed))


def progress_by(now: Seconds, **options: Any) -> StreamProgress:
    progress = StreamProgress(**options)
    progress.clock = PhaseClock(now)
    return progress


def timings(folder: Path) -> dict[tuple[int, str], float]:
    with (folder / "timings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["task", "phase", "seconds"]
    return {(int(row["task"]), row["phase"]): float(row["seconds"]) for row in rows}


WHOLE = {
    (0, "setup"): 0.0,
    **{(task, "training"): STEP * EPOCHS * BATCHES for task in range(1, TASKS + 1)},
    **{(task, "evaluation"): EVALUATION * task for task in range(1, TASKS + 1)},
    **{(task, "fisher"): FISHER for task in range(1, TASKS + 1)},
}


@pytest.mark.parametrize("first", [True, False], ids=["first of the callbacks", "last of the callbacks"])
def test_what_each_task_took_is_written_by_phase_and_adds_up(first: bool, folder: Path) -> None:
    now = Seconds()
    callbacks = [progress_by(now), Boundary(now)]
    trainer(*callbacks[:: 1 if first else -1], max_epochs=TASKS * EPOCHS).fit(Waits(now), datamodule=Stream())
    assert timings(folder) == WHOLE
    assert sum(WHOLE.values()) == now.passed
    assert not list(folder.glob(".*"))


def test_the_time_left_is_what_the_stream_still_takes(folder: Path) -> None:
    now = Seconds()
    progress = progress_by(now)
    reader = Reader(progress, now)
    trainer(progress, Boundary(now), reader, max_epochs=TASKS * EPOCHS).fit(Waits(now), datamodule=Stream())
    known = [(left, at) for epoch, _, left, at in reader.said if epoch >= 2 * EPOCHS]
    assert [left for left, _ in known] == [pytest.approx(now.passed - at) for _, at in known]
    first = reader.said[EPOCHS * BATCHES - 1]  # nothing is known of boundaries
    assert first[1:3] == ("task 1 of 4 · training · at least 45 s left", STEP * (TASKS - 1) * EPOCHS * BATCHES)
    assert reader.said[0][1] == "task 1 of 4 · training"
    assert reader.said[2 * EPOCHS * BATCHES][1] == "task 3 of 4 · training · about 50 s left"


def test_a_project_without_tasks_is_told_of_no_total(folder: Path) -> None:
    """Nor of the time left, where its epochs have no end."""
    now = Seconds()
    progress = progress_by(now, epochs_per_task=2)
    reader = Reader(progress, now)

    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 3

    trainer(progress, Boundary(now, 2), reader, Stop(), max_epochs=-1).fit(Waits(now), loader(0, samples=120))
    said = [status for _, status, _, _ in reader.said]
    assert said == ["task 1 · training"] * 30 + ["task 2 · training"] * 30


def test_a_project_with_so_many_epochs_is_told_of_the_time_left(folder: Path) -> None:
    now = Seconds()
    progress = progress_by(now, epochs_per_task=2)
    reader = Reader(progress, now)
    trainer(progress, Boundary(now, 2), reader, max_epochs=8).fit(Waits(now), loader(0, samples=8 * BATCHES))
    known = [(left, at) for epoch, _, left, at in reader.said if epoch >= 4]
    assert [left for left, _ in known] == [pytest.approx(now.passed - at) for _, at in known]


@pytest.mark.parametrize("stopped_after", [0, 1, 2, 6], ids=lambda epoch: f"epoch {epoch}")
def test_a_resumed_fit_counts_on(stopped_after: int, folder: Path) -> None:
    def fit(**options: Any) -> None:
        now = Seconds()
        now.wait(1000.0 * len(options))  # another process, whose clock says something else
        saving = ModelCheckpoint("checkpoints", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        trainer(progress_by(now), Boundary(now), saving, max_epochs=TASKS * EPOCHS, enable_checkpointing=True).fit(
            Waits(now), datamodule=Stream(), **options
        )

    fit()
    (folder / "timings.csv").unlink()
    fit(ckpt_path=f"checkpoints/epoch={stopped_after}.ckpt")
    assert timings(folder) == WHOLE


def test_a_fit_that_fails_leaves_its_timings_and_a_clock_that_goes_on(folder: Path) -> None:
    now = Seconds()
    progress, boundary = progress_by(now, epochs_per_task=1), Boundary(now, 1)

    class Fails(Boundary):
        def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
            with phase(trainer, "fisher"):
                self.now.wait(7)
                raise KeyError

    with pytest.raises(KeyError):
        trainer(progress, Fails(now, 1)).fit(Waits(now), loader(0))
    assert timings(folder) == {(0, "setup"): 0, (1, "training"): 1.5, (1, "evaluation"): 0, (1, "fisher"): 7}
    now.wait(1000)  # between fits
    trainer(progress, boundary, max_epochs=1).fit(Waits(now), loader(0))
    assert sum(timings(folder).values()) == now.passed - 1000


def test_other_processes_than_the_first_write_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    trainer(StreamProgress()).fit(Regression(), loader(0))
    assert not (folder / "timings.csv").exists()


def test_a_fast_run_writes_nothing(folder: Path) -> None:
    """Its folder is free for the fit itself."""
    trainer(StreamProgress(), fast_dev_run=True, default_root_dir=str(folder / "run")).fit(Regression(), loader(0))
    assert not list(folder.rglob("*"))


def test_a_file_of_the_users_that_has_the_name_is_kept(folder: Path) -> None:
    (folder / "timings.csv").write_text("lap,seconds\n1,2.5\n")
    with pytest.warns(UserWarning, match="does not begin with task,phase,seconds: it is kept"):
        trainer(StreamProgress()).fit(Regression(), loader(0))
    assert (folder / "timings.csv").read_text() == "lap,seconds\n1,2.5\n"
    trainer(StreamProgress(), default_root_dir=str(folder / "run")).fit(Regression(), loader(0))
    before = timings(folder / "run")
    assert before
    trainer(StreamProgress(), default_root_dir=str(folder / "run"), max_epochs=3).fit(Regression(), loader(0))
    assert timings(folder / "run") != before


@pytest.mark.parametrize(("ended", "says"), [((), ""), ((1, 2), " · less than 1 s left")], ids=["at least", "about"])
def test_of_less_than_a_second_no_zero_is_said(
    ended: tuple[int, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = StreamProgress()
    progress.clock.start(3)
    progress._ended_tasks = list(ended)
    for left in (0.0, 0.3, 0.5):
        monkeypatch.setattr(progress, "time_left", lambda trainer, left=left: left)
        assert progress.status(Trainer(logger=False, accelerator="cpu")) == f"task 3 · training{says}"


def test_training_is_the_same_bit_for_bit(folder: Path) -> None:
    def fit(*callbacks: Callback) -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(5)
        model = Regression(torch.optim.Adam)
        model.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        bar = TQDMProgressBar() if callbacks else Callback()
        options = {"enable_progress_bar": bool(callbacks)}
        Trainer(
            accelerator="cpu",
            max_epochs=8,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[*callbacks, EWC(DiagonalFisher(), 2.0), bar],
            **options,
        ).fit(model, datamodule=Stream())
        return weights(model), torch.get_rng_state()

    (plain, state), (watched, after) = fit(), fit(StreamProgress())
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert torch.equal(state, after)


@pytest.fixture
def console() -> Iterator[io.StringIO]:
    """What rich's bar writes."""
    yield io.StringIO()
    rich.reconfigure()


BARS: dict[str, Callable[[io.StringIO], ProgressBar]] = {
    "rich": lambda file: RichProgressBar(console_kwargs={"file": file, "force_terminal": True, "width": 120}),
    "tqdm": lambda file: TQDMProgressBar(),
}


@pytest.mark.parametrize("kind", BARS)
def test_the_bar_says_the_task_the_phase_and_the_time_left(
    kind: str, folder: Path, console: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    class Visible(Seconds):
        """What takes longer than a step takes long enough to be drawn by rich's own thread, too."""

        def wait(self, seconds: float) -> None:
            super().wait(seconds)
            time.sleep(0.1 if seconds > STEP else 0)

    now = Visible()
    Trainer(
        accelerator="cpu",
        max_epochs=TASKS * EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[progress_by(now), Boundary(now), BARS[kind](console)],
    ).fit(Waits(now), datamodule=Stream())
    printed = capsys.readouterr()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.getvalue() + printed.out + printed.err)
    statuses = re.findall(r"task \d of 4 · \w+(?: · (?:about|at least) [\w ]+ left)?", shown)
    assert "task 1 of 4 · training" in statuses
    assert "task 2 of 4 · evaluation · at least 45 s left" in statuses  # 30 s of steps, 3 boundaries as the first was
    assert "task 3 of 4 · fisher · about 29 s left" in statuses  # 15 s of steps, 3 + 3 of Fisher, 8 of evaluation
    last = re.split(r"[\r\n]", shown[shown.rindex("task 4 of 4") :])[-3:]
    assert not any("task 4" in line for line in last), last


def test_every_part_of_the_package_has_its_phase(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ReplayDataModule(GenerativeReplay(images_per_class=2), **DATA)
    assert isinstance(data, TaskDataModule)
    Trainer(
        accelerator="cpu",
        max_epochs=data.num_epochs,
        reload_dataloaders_every_n_epochs=1,
        check_val_every_n_epoch=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StreamProgress(), ContinualMetrics(**METRICS), TaskCheckpoint(), EWC(DiagonalFisher(), 1.0)],
    ).fit(ddpm(), datamodule=data)
    every = {"training", "validation", "evaluation", "fisher", "checkpoint"}
    assert set(timings(folder)) == {
        *((0, name) for name in ("setup", "reference classifier")),
        *((1, name) for name in every),
        *((2, name) for name in (*every, "replay")),
    }
