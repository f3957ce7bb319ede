"""What is replayed: which images, how often, and the same after an interruption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from cl_diffusion.data import (
    ClassBalancedBuffer,
    GenerativeReplay,
    MixedReplay,
    ReplayDataModule,
    ReplaySource,
    ReservoirBuffer,
)
from cl_diffusion.data.images import ImageFormat
from cl_diffusion.data.labelled import StoredImages
from cl_diffusion.data.replay_order import replay_order
from cl_diffusion.data.replay_source import OldTasks
from cl_diffusion.data.selection import Samples
from cl_diffusion.stream import ReplayBatch


def old_tasks(task: int, sizes: tuple[int, ...] = (30, 20, 10, 40), seed: int = 0) -> OldTasks:
    """A class a task, of so many images; image ``i`` has the value ``i``."""
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 3)
    images = StoredImages(pixels, labels, len(sizes), ImageFormat())
    real = Samples.of(images, range(task), "training")
    return OldTasks(task, [[label] for label in range(task)], real, (1, 2, 3), seed)


def held(buffer: ReplaySource, old: OldTasks) -> dict[int, set[int]]:
    ((share, samples),) = buffer.pools(old, None)
    assert share == 1.0
    return {label: set(indices.tolist()) for label, indices in samples.by_class.items()}


@pytest.mark.parametrize("kind", [ReservoirBuffer, ClassBalancedBuffer])
def test_a_buffer_keeps_its_budget_and_takes_nothing_back(kind: Any) -> None:
    """Of old tasks a later buffer holds only what an earlier one held: as if nothing else were left."""
    buffer, before = kind(images=12), None
    for task in range(1, 5):
        now = held(buffer, old_tasks(task))
        assert sum(map(len, now.values())) == 12
        if before is not None:
            assert all(now[label] <= before[label] for label in before)
        before = now


def test_a_class_balanced_buffer_is_balanced() -> None:
    for task, counts in ((1, [12]), (2, [6, 6]), (3, [4, 4, 4])):
        assert [len(found) for found in held(ClassBalancedBuffer(images=12), old_tasks(task)).values()] == counts
    assert sorted(map(len, held(ClassBalancedBuffer(images=11), old_tasks(3)).values())) == [3, 4, 4]


def test_a_reservoir_is_a_uniform_sample_of_all_that_was_seen() -> None:
    counts: Counter[int] = Counter()
    for seed in range(400):
        for found in held(ReservoirBuffer(images=30), old_tasks(4, seed=seed)).values():
            counts.update(found)
    expected = 400 * 30 / 100
    chi_squared = sum((counts[index] - expected) ** 2 / (expected * (1 - 0.3)) for index in range(100))
    assert abs(chi_squared - 99) < 4 * (2 * 99) ** 0.5


def test_a_budget_in_bytes_counts_one_for_each_value() -> None:
    assert held(ClassBalancedBuffer(bytes=12 * 6 + 5), old_tasks(3)) == held(ClassBalancedBuffer(12), old_tasks(3))
    with pytest.raises(ValueError, match=r"bytes=5, but one image of shape \(1, 2, 3\) takes 6"):
        held(ReservoirBuffer(bytes=5), old_tasks(1))
    with pytest.raises(ValueError, match="ClassBalancedBuffer of 2 images cannot hold one of each of the 4 classes"):
        held(ClassBalancedBuffer(images=2), old_tasks(4))
    with pytest.warns(UserWarning, match="a ReservoirBuffer of 1 images holds none of the classes \\[.*beside task 5"):
        assert sum(map(len, held(ReservoirBuffer(images=1), old_tasks(4)).values())) == 1
    for wrong in ({}, {"images": 1, "bytes": 1}, {"images": 0}, {"bytes": -1}):
        with pytest.raises(ValueError, match="expected one of them, a positive number"):
            ReservoirBuffer(**wrong)


@pytest.mark.parametrize("length", [1, 7, 60])
def test_every_stretch_of_a_replay_holds_the_classes_as_often(length: int) -> None:
    pools = ClassBalancedBuffer(images=12).pools(old_tasks(3), None)
    images, order = replay_order(pools, 60, seed=0, epoch=1)
    labels = images.labels[order]
    for start in range(0, 60 - length, length):
        counts = torch.bincount(labels[start : start + length], minlength=3)
        assert int(counts.max() - counts.min()) <= 2
    assert torch.equal(torch.bincount(labels), torch.tensor([20, 20, 20]))
    for label in range(3):  # 4 images of a class, 20 times: 5 times each
        assert set(Counter(order[labels == label].tolist()).values()) == {5}


def test_each_epoch_has_an_order_of_its_own() -> None:
    pools = ClassBalancedBuffer(images=12).pools(old_tasks(3), None)
    first, again, other = (replay_order(pools, 30, 0, epoch)[1] for epoch in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_mixture_gives_each_source_its_share() -> None:
    mixture = MixedReplay([ClassBalancedBuffer(6), MixedReplay([ReservoirBuffer(6), ReservoirBuffer(9)])], [1.0, 3.0])
    pools = mixture.pools(old_tasks(2), None)
    assert [share for share, _ in pools] == [0.25, 0.375, 0.375]
    images, order = replay_order(pools, 80, seed=0, epoch=0)
    parts = torch.bucketize(order, images.starts[1:-1], right=True)
    assert torch.bincount(parts).tolist() == [20, 30, 30]
    for _, samples in pools:
        assert set(samples.by_class) == {0, 1}
    with pytest.raises(ValueError, match="0 sources"):
        MixedReplay([])
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"shares=\\[1.0, {wrong}\\]"):
            MixedReplay([ReservoirBuffer(1), ReservoirBuffer(1)], [1.0, wrong])


class Painter(LightningModule):
    """Draws images whose value is their class, and a little of its only weight, which every step moves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: dict[tuple[int, int], Any] = {}

    def sample(self, labels: Tensor, *, sampler: Any = None, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.rand(len(labels), 1, 2, 2, generator=generator)
        return labels[:, None, None, None] / 10 + 0.01 * noise + 0.05 * self.weight.detach()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen[self.trainer.current_epoch, batch_idx] = batch
        return self.weight

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def validation_step(self, *_: Any) -> None:
        """Nothing."""


def trainer(path: Path, **options: Any) -> Trainer:
    return Trainer(
        **{
            "max_epochs": 6,
            "reload_dataloaders_every_n_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": bool(options.get("callbacks")),
            "default_root_dir": path,
            "num_sanity_val_steps": 0,
            **options,
        }
    )


SOURCES: dict[str, Any] = {
    "reservoir": lambda: ReservoirBuffer(images=9),
    "balanced": lambda: ClassBalancedBuffer(images=9),
    "generative": lambda: GenerativeReplay(images_per_class=5, batch_size=4),
    "generative, floats": lambda: GenerativeReplay(images_per_class=5, batch_size=4, quantize=False),
    "mixture": lambda: MixedReplay([GenerativeReplay(images_per_class=5), ClassBalancedBuffer(images=9)]),
}


@pytest.fixture
def make(numbered: Any) -> Any:
    def build(source: ReplaySource, share: float = 0.5, **data: Any) -> ReplayDataModule:
        dataset = numbered(size=60, num_classes=6)
        return ReplayDataModule(
            source, share, **{"dataset": dataset, "epochs_per_task": 2, "batch_size": 4, "holdout": 0.2, **data}
        )

    return build


@pytest.mark.parametrize("kind", SOURCES)
def test_the_current_part_is_the_streams_own_and_the_replay_is_of_the_tasks_before(
    kind: str, make: Any, tmp_path: Path
) -> None:
    model, data = Painter(), make(SOURCES[kind](), 1 / 3)
    trainer(tmp_path).fit(model, datamodule=data)
    assert data.replay_batch_size == 2
    for (epoch, _), batch in model.seen.items():
        task = data.task_at(epoch)
        current = batch
        if task:
            assert isinstance(batch, ReplayBatch)
            current, (images, labels) = batch.current, batch.replay
            assert len(images) == len(labels) == 2
            assert set(labels.tolist()) <= set(range(2 * task))
        assert set(current[1].tolist()) <= {2 * task, 2 * task + 1}
    per_epoch = Counter(epoch for epoch, _ in model.seen)
    assert set(per_epoch.values()) == {4}


@pytest.mark.parametrize("quantize", [True, False])
def test_a_generated_pool_is_what_the_model_drew_as_the_last_task_left_it(
    quantize: bool, make: Any, tmp_path: Path
) -> None:
    model, source = Painter(), GenerativeReplay(images_per_class=5, batch_size=4, quantize=quantize)
    trainer(tmp_path).fit(model, datamodule=make(source))
    for epoch in (4, 5):  # the third task, after 16 steps of -0.1
        for batch in range(4):
            images, labels = model.seen[epoch, batch].replay
            drift = images[:, 0, 0, 0] - labels / 10
            assert bool((drift >= -0.08 - 0.5 / 127).all())
            assert bool((drift <= 0.01 - 0.08 + 0.5 / 127).all())
    state = source.state_dict()
    assert state["task"] == 2
    assert state["images"].shape == (20, 1, 2, 2)
    assert state["images"].dtype == (torch.uint8 if quantize else torch.float32)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("steps", [8, 10, 12, 18])
def test_a_resumed_stream_replays_what_the_uninterrupted_one_does(
    kind: str, steps: int, make: Any, tmp_path: Path
) -> None:
    """From a task's end, within an epoch of the second task and of the third."""
    within = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    at_end = ModelCheckpoint(tmp_path, filename="end-{step}", save_top_k=-1, save_on_train_epoch_end=True)
    whole, resumed = Painter(), Painter()
    trainer(tmp_path, callbacks=[within, at_end]).fit(whole, datamodule=make(SOURCES[kind]()))
    end = tmp_path / f"end-step={steps}.ckpt"
    path = end if end.exists() else tmp_path / f"step={steps}.ckpt"
    torch.load(path, weights_only=True)
    trainer(tmp_path).fit(resumed, datamodule=make(SOURCES[kind]()), ckpt_path=path, weights_only=True)
    assert resumed.seen
    assert resumed.seen.keys() == {key for key in whole.seen if 4 * key[0] + key[1] >= steps}
    for key, (current, replay) in resumed.seen.items():
        for mine, theirs in zip((*current, *replay), (*whole.seen[key].current, *whole.seen[key].replay), strict=True):
            assert torch.equal(mine, theirs)


def test_what_cannot_be_replayed_is_refused(make: Any, tmp_path: Path) -> None:
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match=f"replay_share={share}"):
            make(ReservoirBuffer(images=3), share)
    with pytest.raises(ValueError, match="leaves no image to replay"):
        make(ReservoirBuffer(images=3), 0.01)
    for wrong in ({"images_per_class": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="expected at least 1"):
            GenerativeReplay(**wrong)

    with pytest.raises(ValueError, match="ClassBalancedBuffer of 3 images cannot hold one of each of the 4 classes"):
        trainer(tmp_path).fit(model := Painter(), datamodule=make(ClassBalancedBuffer(images=3)))
    assert not model.seen

    class Blank(Painter):
        sample = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match="GenerativeReplay asks the model for images, and Blank has no `sample`"):
        trainer(tmp_path).fit(Blank(), datamodule=make(GenerativeReplay(2)))

    class Broken(Painter):
        def sample(self, labels: Tensor, **_: Any) -> Tensor:
            return torch.full((len(labels), 1, 2, 2), float("nan"))

    with pytest.raises(ValueError, match="drawn for the replay beside task 2 are not all finite"):
        trainer(tmp_path).fit(Broken(), datamodule=make(GenerativeReplay(2)))


def test_a_joint_stream_has_nothing_to_replay(make: Any, tmp_path: Path) -> None:
    model, data = Painter(), make(ReservoirBuffer(images=3), joint=True)
    trainer(tmp_path, max_epochs=data.num_epochs).fit(model, datamodule=data)
    assert not any(isinstance(batch, ReplayBatch) for batch in model.seen.values())


class Writer(Painter):
    """Learns nothing, so that any number of processes draws with the same weights."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_train_end(self) -> None:
        pool = self.trainer.datamodule.replay.state_dict()["images"]
        replayed = torch.cat([batch.replay[0] for batch in self.seen.values() if isinstance(batch, ReplayBatch)])
        torch.save({"pool": pool, "replayed": replayed}, self.path / f"{self.trainer.world_size}_{self.global_rank}.pt")


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_processes_share_the_drawing_and_have_the_same_pool_as_one(make: Any, tmp_path: Path) -> None:
    if torch.cuda.is_initialized():
        pytest.skip("cannot fork once CUDA is initialised")
    options = {"devices": 2, "strategy": "ddp_fork", "max_epochs": 6}
    for chosen in (options, {}):
        source = GenerativeReplay(images_per_class=5, batch_size=4, quantize=False)
        trainer(tmp_path, **chosen).fit(Writer(tmp_path), datamodule=make(source))
    first, second, alone = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("2_0", "2_1", "1_0"))
    assert torch.equal(first["pool"], second["pool"])
    assert torch.equal(first["pool"], alone["pool"])
    assert first["replayed"].shape == second["replayed"].shape
    assert not torch.equal(first["replayed"], second["replayed"])


def test_a_pool_belongs_to_one_fit(make: Any, tmp_path: Path) -> None:
    """A second model on the same data module draws its own."""
    data = make(GenerativeReplay(images_per_class=5), tasks=[[0, 1], [2, 3]], classes=[0, 1, 2, 3])
    drawn = []
    for start in (0.0, 2.0):
        model = Painter()
        model.weight.data += start
        trainer(tmp_path, max_epochs=4).fit(model, datamodule=data)
        drawn.append(data.replay.state_dict()["images"].float().mean())
    assert drawn[1] - drawn[0] > 0.05 * 2 * 127.5 - 1


def test_two_generators_of_a_mixture_draw_independently(make: Any, tmp_path: Path) -> None:
    sources = [GenerativeReplay(images_per_class=5, quantize=False) for _ in range(2)]
    trainer(tmp_path).fit(Painter(), datamodule=make(MixedReplay(list(sources))))
    first, second = (source.state_dict()["images"] for source in sources)
    assert not torch.equal(first, second)


def test_a_checkpoint_of_other_replay_is_refused(make: Any, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    trainer(tmp_path, callbacks=[saving]).fit(Painter(), datamodule=make(GenerativeReplay(images_per_class=5)))
    path = tmp_path / "step=10.ckpt"
    for source, message in (
        (
            ReservoirBuffer(images=9),
            "replay=ReservoirBuffer, but the checkpoint is of a stream that replays Generative",
        ),
        (MixedReplay([GenerativeReplay(5)]), "replay=MixedReplay\\(GenerativeReplay\\), but the checkpoint is of"),
        (GenerativeReplay(images_per_class=4), "pool beside task 2 is torch.uint8 of shape .*images_per_class=4"),
        (GenerativeReplay(images_per_class=5, quantize=False), "pool beside task 2 .*quantize=False would draw"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path).fit(Painter(), datamodule=make(source), ckpt_path=path, weights_only=True)
