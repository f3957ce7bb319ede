"""A stream of tasks with images of old ones beside each batch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from typing_extensions import override

from cl_diffusion.data.datamodule import TaskDataModule
from cl_diffusion.data.replay_order import replay_order
from cl_diffusion.data.replay_source import OldTasks, ReplaySource
from cl_diffusion.data.sampler import KeyedSampler, ResumableLoader
from cl_diffusion.data.selection import Samples, Selection
from cl_diffusion.phases import phase
from cl_diffusion.stream import ReplayBatch


class ReplayDataModule(TaskDataModule):
    """``TaskDataModule``, where a batch from the second task on is ``ReplayBatch(current, replay)``.

    The current part is what ``TaskDataModule`` would give; the replay part is as large in every batch, a last short one
    too, and holds the old classes of each pool in equal numbers, give or take two. An epoch is one of the current task,
    however large the pool. Held-out and importance batches hold no replay. Where ``joint`` there are no old tasks, and
    so no replay.

    Args:
        replay: where the images of old tasks come from.
        replay_share: of the images in a full batch, in (0, 1): 0.5 replays as many as are current.
        **data: of ``TaskDataModule``.

    Raises:
        ValueError: ``replay_share`` is out of range, or leaves no image to replay.
    """

    def __init__(self, replay: ReplaySource, replay_share: float = 0.5, **data: Any) -> None:
        super().__init__(**data)
        if not 0 < replay_share < 1:
            raise ValueError(f"replay_share={replay_share!r}; expected a share in (0, 1), 0.5 for as many as current")
        self.replay = replay
        self.replay_batch_size = round(self.batch_size * replay_share / (1 - replay_share))
        if self.replay_batch_size < 1:
            raise ValueError(
                f"replay_share={replay_share!r} of a batch_size={self.batch_size} leaves no image to replay; raise one"
            )

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        starts = stage == TrainerFn.FITTING and self.trainer is not None and self.trainer.current_epoch == 0
        if starts and self.num_tasks > 1 and not self.scenario.joint:
            self.replay.begin(self._old_tasks(self.num_tasks - 1))  # a checkpoint's state is loaded after this

    @override
    def training_loader(self, task: int, epoch: int) -> Any:
        current = super().training_loader(task, epoch)
        if task == 0 or self.scenario.joint:
            return current
        share = self._share
        with phase(self.trainer, "replay", task):
            pools = self.replay.pools(self._old_tasks(task), self.trainer)
        turn = epoch * share["num_replicas"] + share["rank"]
        images, order = replay_order(pools, len(current) * self.replay_batch_size, self.seed, turn)
        selection = Selection(images, order, device=self._residence)
        sampler = KeyedSampler(selection, self.seed, epoch, shuffle=False)
        loading = {**self._loading(epoch), "batch_size": self.replay_batch_size}
        return CombinedLoader(ReplayBatch(current, ResumableLoader(selection, sampler=sampler, **loading)), "min_size")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "source": self.replay.name, "replay": self.replay.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses a checkpoint of another stream, or of other replay.

        Raises:
            ValueError: the checkpoint's data set, tasks or source of replay are not this stream's.
        """
        super().load_state_dict(state_dict)
        if (found := state_dict.get("source")) != self.replay.name:
            raise ValueError(
                f"replay={self.replay.name}, but the checkpoint is of a stream that replays {found or 'nothing'}; give "
                "the data module that, or start without this checkpoint"
            )
        self.replay.load_state_dict(state_dict["replay"])

    def _old_tasks(self, task: int) -> OldTasks:
        training = self.scenario.training
        classes = [self.task_classes(old) for old in range(task)]
        seen = {label: training.by_class[label] for labels in classes for label in labels}
        return OldTasks(task, classes, Samples(training.images, seen), self.image_shape, self.seed)
