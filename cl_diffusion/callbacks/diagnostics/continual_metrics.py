"""What is left of each task, measured after every task."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from cl_diffusion.arguments import is_whole
from cl_diffusion.averaged_weights import averaged_weights
from cl_diffusion.bands import Bands
from cl_diffusion.callbacks.batches import TransferredBatches, images_and_labels, joined, keyed
from cl_diffusion.callbacks.diagnostics.continual_log import log_matrices
from cl_diffusion.callbacks.diagnostics.continual_table import print_table, write_yardstick
from cl_diffusion.callbacks.diagnostics.sample_grid import log_grid
from cl_diffusion.callbacks.task import TaskCallback, task_stream
from cl_diffusion.diffusion.samplers import Sampler
from cl_diffusion.evaluation_mode import evaluation_mode
from cl_diffusion.fisher.sharded import resharded
from cl_diffusion.keys import derive_keys
from cl_diffusion.metrics.continual_file import write_matrices
from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.metrics.generation_quality import GenerationQuality, higher_is_better
from cl_diffusion.metrics.reference_classifier import trained_reference
from cl_diffusion.phases import phase
from cl_diffusion.progress import track
from cl_diffusion.shared_work import drawn_by_all, share_of_work
from cl_diffusion.stream import TaskStream


class ContinualMetrics(TaskCallback):
    """After each task, on every task seen so far: denoising loss, class agreement and Frechet distance.

    The loss is over held-out samples on fixed draws of timestep and noise; class agreement and Frechet distance judge
    images that the module draws of the task's classes, always from the same noise (``GenerationQuality``); a module
    without ``sample``, or one whose ``class_conditional`` is not true, gets the loss alone. At each boundary: a table,
    the file ``continual.csv`` (columns ``metric,after,task,value``; tasks counted from 1) and beside it
    ``yardstick.json`` (which classifier judged, its held-out accuracy, whether Inception was there), a grid of samples
    (a row a class) in ``samples/`` and to the logger, and figures to the logger. Training is bit for bit the same with
    and without it.

    The reference classifier goes into the checkpoint, so that a resumed fit is judged by the same one on any machine.
    Images and figures are of averaged weights where a ``WeightAveraging`` callback keeps some, as a checkpoint's are.
    Processes share the work, images by the chunk, and come to the same figures; the first one writes them. (Where
    parameters are sharded each does all of it, as a forward takes all of them.)

    Args:
        images_per_class: how many images of each class are drawn.
        sampler: draws them; by default the module's own.
        loss_draws: draws of timestep and noise for each held-out sample.
        batch_size: images drawn at a time.
        reference_steps: training steps of the reference classifier.
        seed: of the noise of images and losses, and of the reference classifier.
        bands: the loss also in each of these, such as ``SNRBands.by_quantile()``; as ``denoising_loss/low``.

    Raises:
        TypeError: in ``setup``: the data module is not a ``TaskStream``, or the module has no ``per_sample_loss``.
    """

    boundary_phase = "evaluation"

    def __init__(
        self,
        images_per_class: int = 50,
        sampler: Sampler | None = None,
        loss_draws: int = 10,
        batch_size: int = 250,
        reference_steps: int = 1500,
        seed: int = 0,
        bands: Bands | None = None,
    ) -> None:
        super().__init__()
        # A task may hold a single class, and the covariance of its images needs two of them.
        least = {
            "images_per_class": (images_per_class, 2),
            "loss_draws": (loss_draws, 1),
            "batch_size": (batch_size, 1),
        }
        for name, (value, bound) in least.items():
            if not is_whole(value, bound):
                raise ValueError(f"{name}={value!r}; expected at least {bound}")
        self.images_per_class = images_per_class
        self.sampler = sampler
        self.loss_draws = loss_draws
        self.batch_size = batch_size
        self.reference_steps = reference_steps
        self.seed = seed
        self.bands = bands
        self.matrices: dict[str, ContinualMatrix] = {}
        self._quality: GenerationQuality | None = None
        self._judges: dict[str, dict[str, Tensor]] = {}

    @property
    @override
    def needs_finite_weights(self) -> bool:
        return True

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if task_stream(trainer) is None:
            datamodule = type(getattr(trainer, "datamodule", None)).__name__
            raise TypeError(
                f"ContinualMetrics evaluates task by task, but datamodule={datamodule} is not a TaskStream; use "
                "TaskDataModule, or give yours the attributes of cl_diffusion.stream.TaskStream"
            )
        if not callable(getattr(pl_module, "per_sample_loss", None)):
            raise TypeError(f"ContinualMetrics needs `per_sample_loss`, which {type(pl_module).__name__} does not have")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._quality is not None:
            return
        if not callable(getattr(pl_module, "sample", None)) or not getattr(pl_module, "class_conditional", False):
            rank_zero_warn(
                f"{type(pl_module).__name__} draws no images of a given class: ContinualMetrics reports the loss alone"
            )
            return
        with phase(trainer, "reference classifier"):
            self._quality = self._prepare_quality(trainer, pl_module)

    @override
    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        stream = _stream(trainer)
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        drawn: list[tuple[Tensor, Tensor]] = []
        with (
            averaged_weights(trainer),
            resharded(pl_module),
            evaluation_mode(pl_module),
            torch.no_grad(),
            torch.random.fork_rng(devices),
        ):
            if self._quality is not None:
                drawn = self._draw_images(trainer, pl_module, stream, task + 1)
            for old in range(task + 1):
                figures = self._losses(trainer, pl_module, stream, old)
                if self._quality is not None:
                    figures |= self._quality(old, *drawn[old])
                for name, value in figures.items():
                    matrix = self.matrices.setdefault(name, ContinualMatrix(name, higher_is_better(name)))
                    matrix.record(task + 1, old + 1, value)
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast: every process takes part
        if trainer.is_global_zero:
            self._publish(trainer, folder, task, stream.num_tasks, drawn)

    @override
    def state_dict(self) -> dict[str, Any]:
        rows = [(name, *entry, value) for name, m in self.matrices.items() for entry, value in m.entries.items()]
        return {**super().state_dict(), "rows": rows, "judges": self._judges}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._judges = state_dict.get("judges", {})
        self.matrices = {}
        for name, after, task, value in state_dict["rows"]:
            self.matrices.setdefault(name, ContinualMatrix(name, higher_is_better(name))).record(after, task, value)

    def _prepare_quality(self, trainer: Trainer, pl_module: LightningModule) -> GenerationQuality:
        stream = _stream(trainer)
        tasks = range(stream.num_tasks)
        held_out = [images_and_labels(stream.evaluation_dataloader(task), pl_module.device) for task in tasks]
        training = (batch for task in tasks for batch in stream.reference_dataloader(task))
        reference = trained_reference(
            images_and_labels(training, pl_module.device),
            joined(held_out),
            steps=self.reference_steps,
            seed=self.seed,
            track=lambda items, description: track(trainer, items, description),
            known=self._judges,
        )
        if self._judges and reference.digest not in self._judges:
            rank_zero_warn(
                "the checkpoint's figures were judged by the reference classifier of other data or settings: those of "
                "the tasks before do not compare with what follows"
            )
        self._judges = {reference.digest: reference.weights}
        accuracy = f"held-out accuracy {reference.held_out_accuracy:.3f}"
        rank_zero_info(f"reference classifier ({reference.origin}): {accuracy}")
        return GenerationQuality(reference, [images for images, _ in held_out])

    def _losses(self, trainer: Trainer, pl_module: Any, stream: TaskStream, task: int) -> dict[str, float]:
        """The mean over held-out samples and draws, of all of them and of those in each band that holds any."""
        names = [] if self.bands is None else [f"denoising_loss/{band}" for band in self.bands.names]
        total = torch.zeros(2, 1 + len(names), dtype=torch.float64)  # of the losses, and how many
        passes = track(trainer, range(self.loss_draws), f"loss of task {task + 1}")
        every = ((draw, item) for draw in passes for item in keyed(stream.evaluation_dataloader(task)))
        mine, shares = share_of_work(trainer)
        for draw, item in islice(every, mine, None, shares):
            ((batch, indices),) = TransferredBatches(trainer, [item])
            if callable(getattr(pl_module, "draw", None)):
                batch = pl_module.draw(batch, derive_keys(self.seed, indices, draw))
            losses = pl_module.per_sample_loss(batch).double().cpu()
            inside = [torch.ones(len(losses), dtype=torch.bool)]
            if self.bands is not None:
                position = self.bands(batch).cpu()
                inside += [position == number for number in range(len(names))]
            total[0] += torch.stack([losses[members].sum() for members in inside])
            total[1] += torch.stack([members.sum() for members in inside])
        if shares > 1:
            total = trainer.strategy.reduce(total.to(pl_module.device), reduce_op="sum").cpu()
        figures = zip(["denoising_loss", *names], *total.tolist(), strict=True)
        return {name: loss / number for name, loss, number in figures if number}

    def _draw_images(
        self, trainer: Trainer, pl_module: Any, stream: TaskStream, tasks: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Of each task: ``images_per_class`` images of each of its classes, and the classes asked for."""
        held_out = [images_and_labels(stream.evaluation_dataloader(task), pl_module.device) for task in range(tasks)]
        labels = [real.unique().repeat_interleave(self.images_per_class) for _, real in held_out]
        chunks = [
            (task, number, chunk)
            for task in range(tasks)
            for number, chunk in enumerate(labels[task].split(self.batch_size))
        ]

        def draw(position: int) -> Tensor:
            task, number, chunk = chunks[position]
            generator = torch.Generator().manual_seed(int(derive_keys(self.seed, torch.tensor([task]), draw=number)))
            images: Tensor = pl_module.sample(
                chunk,
                sampler=self.sampler,
                generator=generator,
                progress=lambda steps: track(trainer, steps, f"samples of task {task + 1}"),
            )
            return images

        shape = held_out[0][0].shape[1:]
        images = drawn_by_all(trainer, draw, [len(chunk) for _, _, chunk in chunks], shape, "samples")
        return list(zip(images.split([len(each) for each in labels]), labels, strict=True))

    def _publish(
        self, trainer: Trainer, folder: Path, task: int, num_tasks: int, drawn: list[tuple[Tensor, Tensor]]
    ) -> None:
        write_matrices(folder / "continual.csv", self.matrices.values())
        if self._quality is not None:
            write_yardstick(folder / "yardstick.json", self._quality.yardstick)
        if drawn:
            log_grid(trainer, *joined(drawn), folder / "samples" / f"after_task_{task + 1}.png")
        log_matrices(trainer, self.matrices, task + 1, num_tasks)
        print_table(self.matrices.values(), f"What is remembered after task {task + 1} of {num_tasks}")


def _stream(trainer: Trainer) -> TaskStream:
    stream = task_stream(trainer)
    assert stream is not None  # refused in setup
    return stream
