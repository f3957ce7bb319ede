"""Images of old tasks, drawn by the model that learned them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from cl_diffusion.averaged_weights import averaged_weights
from cl_diffusion.data.images import ImageFormat, Shape
from cl_diffusion.data.labelled import LabelledImages, StoredImages
from cl_diffusion.data.permutation import Purpose, keyed_generator
from cl_diffusion.data.replay_source import OldTasks, Pool, ReplaySource, of_labels
from cl_diffusion.data.selection import Samples
from cl_diffusion.diffusion.samplers import Sampler
from cl_diffusion.shared_work import drawn_by_all


class GenerativeReplay(ReplaySource):
    """A pool of images that the model draws when a task begins, of the classes that it has learned until then.

    At that moment the model is what the last task has left, its teacher, with averaged weights where a
    ``WeightAveraging`` callback keeps some. The pool is kept in the checkpoint: it could
    not be drawn again within a task. Processes share the drawing, each a part of the chunks; what is drawn is the same
    on any number of them.

    Args:
        images_per_class: of each old class.
        sampler: draws them; by default the module's own.
        quantize: keep images as uint8, a quarter of the room, what leaves [-1, 1] clamped; False keeps them as drawn.
        batch_size: images drawn at a time.

    Raises:
        ValueError: ``images_per_class`` or ``batch_size`` is not positive.
    """

    def __init__(
        self,
        images_per_class: int = 100,
        sampler: Sampler | None = None,
        quantize: bool = True,
        batch_size: int = 250,
    ) -> None:
        for name, value in {"images_per_class": images_per_class, "batch_size": batch_size}.items():
            if value < 1:
                raise ValueError(f"{name}={value!r}; expected at least 1")
        self.images_per_class = images_per_class
        self.sampler = sampler
        self.quantize = quantize
        self.batch_size = batch_size
        self._task: int | None = None
        self._images, self._labels = torch.empty(0), torch.empty(0, dtype=torch.int64)

    @override
    def pools(self, old: OldTasks, trainer: Trainer | None) -> list[Pool]:
        if self._task == old.task:
            self._check_restored(old)
        else:
            self._images, self._labels = self._draw(old, trainer)
            self._task = old.task
        return [(1.0, Samples(self._kept(old), of_labels(self._labels)))]

    @override
    def begin(self, last: OldTasks) -> None:
        self._task = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"task": self._task, "images": self._images, "labels": self._labels}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._task, self._images, self._labels = state["task"], state["images"], state["labels"]

    def _check_restored(self, old: OldTasks) -> None:
        """Refuse a checkpoint's pool that is not what would be drawn."""
        wanted = (len(old.all_classes) * self.images_per_class, *old.shape)
        found = tuple(self._images.shape)
        if found != wanted or (self._images.dtype == torch.uint8) != self.quantize:
            raise ValueError(
                f"the pool beside task {old.task + 1} is {self._images.dtype} of shape {found}, from a checkpoint; "
                f"images_per_class={self.images_per_class}, quantize={self.quantize} would draw {wanted}: resume with "
                "the checkpoint's configuration, or from the end of a task"
            )

    def _kept(self, old: OldTasks) -> LabelledImages:
        if self._images.dtype == torch.uint8:
            return StoredImages(self._images, self._labels, old.real.images.num_classes, ImageFormat())
        return DrawnImages(self._images, self._labels, old.real.images.num_classes)

    def _draw(self, old: OldTasks, trainer: Trainer | None) -> tuple[Tensor, Tensor]:
        module: Any = None if trainer is None else trainer.lightning_module
        if not callable(getattr(module, "sample", None)):
            raise TypeError(
                f"GenerativeReplay asks the model for images, and {type(module).__name__} has no `sample`; use DDPM, "
                "or give yours sample(labels, *, sampler, generator) -> images (N, C, H, W) in [-1, 1]"
            )
        assert trainer is not None
        labels = torch.tensor(old.all_classes).repeat_interleave(self.images_per_class)
        chunks = labels.split(self.batch_size)
        rank_zero_info(
            f"replay for task {old.task + 1}: drawing {len(labels)} images of {len(old.all_classes)} classes"
        )

        def draw(number: int) -> Tensor:
            generator = keyed_generator(old.seed, Purpose.GENERATION, old.task * len(chunks) + number)
            images: Tensor = module.sample(chunks[number], sampler=self.sampler, generator=generator)
            return images

        with averaged_weights(trainer):
            sizes = [len(chunk) for chunk in chunks]
            images = drawn_by_all(trainer, draw, sizes, old.shape, f"replay for task {old.task + 1}").cpu()
        if not images.isfinite().all():
            raise ValueError(
                f"the images drawn for the replay beside task {old.task + 1} are not all finite: check the weights, or "
                "draw with another sampler"
            )
        return (_quantized(images) if self.quantize else images), labels


class DrawnImages(LabelledImages):
    """Images as they were drawn.

    Args:
        images: float ``(N, C, H, W)``.
        labels: int64 ``(N,)``.
        num_classes: size of the label space.
    """

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int) -> None:
        self._images = images
        self.labels = labels
        self.num_classes = num_classes

    @property
    def shape(self) -> Shape:  # noqa: D102
        channels, height, width = self._images.shape[1:]
        return channels, height, width

    def images(self, indices: Any) -> Tensor:  # noqa: D102
        return self._images[torch.as_tensor(indices)]


def _quantized(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
