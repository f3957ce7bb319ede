from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from cl_diffusion.data import TaskSchedule


@given(epochs=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_each_task_has_its_epochs_one_task_after_the_other(epochs: list[int]) -> None:
    schedule = TaskSchedule.of(len(epochs), epochs)
    tasks = [schedule.task_at(epoch) for epoch in range(schedule.num_epochs)]
    assert tasks == [task for task, count in enumerate(epochs) for _ in range(count)]
    assert schedule.task_at(schedule.num_epochs) == schedule.task_at(schedule.num_epochs + 9) == len(epochs)


def test_joint_epochs_all_belong_to_the_last_task() -> None:
    schedule = TaskSchedule.of(3, [1, 2, 3], joint=True)
    assert schedule.num_epochs == 2  # every sample is seen as often as it would be on average, task by task
    assert [schedule.task_at(epoch) for epoch in range(4)] == [2, 2, 3, 3]


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        ([1, 2], r"epochs_per_task=\[1, 2\]: expected one entry for each of 3 tasks"),
        ([1, 0, 2], r"epochs_per_task=\[1, 0, 2\]: expected at least 1"),
        (0, r"epochs_per_task=\[0, 0, 0\]: expected at least 1"),
    ],
)
def test_epochs_must_be_one_entry_a_task(epochs: int | list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskSchedule.of(3, epochs)


def trainer(**arguments: object) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **arguments)


def test_a_trainer_that_follows_the_schedule_is_accepted() -> None:
    schedule = TaskSchedule.of(3, 2)
    schedule.check(trainer(max_epochs=6, reload_dataloaders_every_n_epochs=1))
    schedule.check(trainer(max_epochs=6, max_steps=4, reload_dataloaders_every_n_epochs=1))
    schedule.check(trainer(max_epochs=-1, max_steps=4, reload_dataloaders_every_n_epochs=1))
    schedule.check(trainer(fast_dev_run=True))
    TaskSchedule.of(1, 2).check(trainer(max_epochs=9))
    TaskSchedule.of(3, 2, joint=True).check(trainer(max_epochs=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epochs": 6}, r"reload_dataloaders_every_n_epochs=0: expected 1.*3 tasks.*Set Trainer"),
        ({"max_epochs": 5}, r"max_epochs=5 of the Trainer, but the stream takes 6.*Set Trainer\(max_epochs=6\)"),
        ({"max_epochs": -1}, r"max_epochs=-1 of the Trainer, but the stream takes 6"),
    ],
)
def test_a_trainer_that_would_leave_the_schedule_is_refused(arguments: dict[str, int], message: str) -> None:
    reload = {} if arguments == {"max_epochs": 6} else {"reload_dataloaders_every_n_epochs": 1}
    with pytest.raises(ValueError, match=message):
        TaskSchedule.of(3, 2).check(trainer(**arguments, **reload))


def test_max_steps_alone_does_not_lead_past_the_end() -> None:
    schedule = TaskSchedule.of(3, 2)
    unlimited = trainer(max_epochs=-1, max_steps=100)
    schedule.check_epoch(5, unlimited)
    with pytest.raises(ValueError, match=r"epoch 6 is past the 6 of the stream.*max_steps=100.*max_epochs=6"):
        schedule.check_epoch(6, unlimited)
    schedule.check_epoch(6, trainer(max_epochs=6))
