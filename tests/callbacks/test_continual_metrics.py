from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from cl_diffusion import DDPM, TaskDataModule
from cl_diffusion.callbacks import EWC, ContinualMetrics, TaskCheckpoint
from cl_diffusion.callbacks.diagnostics.sample_grid import sample_grid
from cl_diffusion.fisher import DiagonalFisher
from tests.callbacks.stranger import Regression, loader, trainer
from tests.tiny import DATA, METRICS, ddpm


def fit(model: DDPM, folder: Path, *callbacks: Callback, **options: Any) -> DDPM:
    data = TaskDataModule(**{**DATA, **options.pop("data", {})})
    built = Trainer(
        max_epochs=data.num_epochs,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        logger=options.pop("logger", False),
        enable_checkpointing=any(isinstance(callback, TaskCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )
    built.fit(model, datamodule=data, **options)
    return model


def entries(folder: Path) -> dict[tuple[str, int, int], float]:
    with (folder / "continual.csv").open(newline="") as file:
        return {(r["metric"], int(r["after"]), int(r["task"])): float(r["value"]) for r in csv.DictReader(file)}


class Oracle(DDPM):
    """Draws real images of the classes asked for."""

    def sample(self, labels: Tensor | None = None, **_: Any) -> Tensor:
        assert labels is not None
        data = TaskDataModule(**DATA)
        data.setup("fit")
        batches = [batch for task in (0, 1) for batch, _ in data.reference_dataloader(task)]
        images, classes = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
        return torch.stack([images[classes == label][i % 10] for i, label in enumerate(labels)])


def test_real_images_agree_with_their_class_and_constant_ones_do_not(tmp_path: Path) -> None:
    metrics = {**METRICS, "images_per_class": 12, "reference_steps": 150}
    data = {"fraction": 1.0, "epochs_per_task": 1}
    fit(Oracle(ddpm().denoiser.network), tmp_path / "oracle", ContinualMetrics(**metrics), data=data)

    class Constant(DDPM):
        def sample(self, labels: Tensor | None = None, **_: Any) -> Tensor:
            assert labels is not None
            return 0.01 * torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(0))

    fit(Constant(ddpm().denoiser.network), tmp_path / "constant", ContinualMetrics(**metrics), data=data)
    oracle, constant = entries(tmp_path / "oracle"), entries(tmp_path / "constant")
    for after, task in ((1, 1), (2, 1), (2, 2)):
        assert oracle["class_agreement", after, task] > 0.9
        assert constant["class_agreement", after, task] < 0.7
        assert oracle["frechet_distance", after, task] < 0.5 * constant["frechet_distance", after, task]


def test_joint_training_is_measured_once_on_every_task(tmp_path: Path) -> None:
    fit(ddpm(), tmp_path, ContinualMetrics(**METRICS), data={"joint": True, "epochs_per_task": 1})
    assert {key[1:] for key in entries(tmp_path)} == {(2, 1), (2, 2)}


def test_training_is_bit_for_bit_the_same_with_and_without(tmp_path: Path) -> None:
    models = []
    for callbacks in ([], [ContinualMetrics(**METRICS)]):
        torch.manual_seed(0)
        models.append(fit(ddpm(dropout=0.1), tmp_path, *callbacks))
    with_, without = (list(model.parameters()) for model in models)
    assert all(torch.equal(a, b) for a, b in zip(with_, without, strict=True))


def test_a_resumed_run_writes_the_whole_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fit(ddpm(), tmp_path / "whole", ContinualMetrics(**METRICS), TaskCheckpoint(str(tmp_path / "saved")))
    resumed = tmp_path / "resumed"
    fit(ddpm(), resumed, ContinualMetrics(**METRICS), ckpt_path=tmp_path / "saved" / "after_task_1.ckpt")
    old, new = entries(tmp_path / "whole"), entries(resumed)
    assert old.keys() == new.keys()
    assert {k: v for k, v in old.items() if k[1] == 1} == {k: v for k, v in new.items() if k[1] == 1}


def test_a_resumed_run_is_judged_by_the_classifier_of_its_checkpoint_on_any_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CL_DIFFUSION_CACHE", str(tmp_path / "here"))
    fit(ddpm(), tmp_path / "whole", ContinualMetrics(**METRICS), TaskCheckpoint(str(tmp_path / "saved")))
    monkeypatch.setenv("CL_DIFFUSION_CACHE", str(tmp_path / "there"))
    checkpoint = tmp_path / "saved" / "after_task_1.ckpt"
    fit(ddpm(), tmp_path / "resumed", ContinualMetrics(**METRICS), ckpt_path=checkpoint)
    assert not list((tmp_path / "there").glob("*"))
    whole, resumed = (json.loads((tmp_path / name / "yardstick.json").read_text()) for name in ("whole", "resumed"))
    assert whole == resumed
    with pytest.warns(UserWarning, match="judged by the reference classifier of other data or settings"):
        fit(ddpm(), tmp_path / "other", ContinualMetrics(**{**METRICS, "seed": 5}), ckpt_path=checkpoint)


def test_an_unconditional_model_gets_the_loss_alone(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the loss alone"):
        fit(ddpm(num_class_embeds=None), tmp_path, ContinualMetrics(**METRICS))
    assert {metric for metric, _, _ in entries(tmp_path)} == {"denoising_loss"}


def test_a_project_without_tasks_is_told_what_is_missing() -> None:
    with pytest.raises(TypeError, match="not a TaskStream"):
        trainer(ContinualMetrics()).fit(Regression(), loader(0))
    with pytest.raises(ValueError, match="images_per_class=1"):
        ContinualMetrics(images_per_class=1)


def test_a_non_finite_weight_stops_the_fit_at_the_boundary(tmp_path: Path) -> None:
    class Diverge(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                nn.init.constant_(pl_module.denoiser.network.conv_in.bias, float("nan"))

    with pytest.raises(FloatingPointError, match="task 1 ends with weights .* not finite, first .* 'denoiser"):
        fit(ddpm(), tmp_path, Diverge(), EWC(DiagonalFisher()))


def test_a_grid_has_a_row_a_class_in_order() -> None:
    labels = torch.tensor([7, 2, 7, 2, 2])
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 1, 4, 4) / 10
    grid = sample_grid(images, labels, columns=3, least_side=4)
    assert grid.shape == (3, 2 * (4 + 2) + 2, 3 * (4 + 2) + 2)
    rows = [grid[0, 2 + 6 * row, [2, 8, 14]] for row in range(2)]
    torch.testing.assert_close(rows[0], torch.tensor([0.6, 0.6, 0.6]))
    torch.testing.assert_close(rows[1], torch.tensor([0.85, 0.85, 0.0]))  # two of class 7, then blank


def test_samples_and_figures_go_to_the_logger(tmp_path: Path) -> None:
    logger = TensorBoardLike(tmp_path)
    fit(ddpm(), tmp_path, ContinualMetrics(**METRICS), logger=logger)
    images = logger.experiment.images
    assert [image.shape[0] for tag, image in images if tag == "samples"] == [3, 3]
    matrices = [image for tag, image in images if tag == "continual/class_agreement/matrix"]
    assert [image.shape[0] for image in matrices] == [3, 3]
    assert not torch.equal(*matrices)  # the second has three entries
    assert all(0 <= float(image.min()) < 0.5 < float(image.max()) <= 1 for image in matrices)
    assert {"continual/class_agreement/average", "continual/denoising_loss/task_2"} <= logger.metrics.keys()


class TensorBoardLike(CSVLogger):
    """A logger whose experiment takes images."""

    class Experiment:
        def __init__(self) -> None:
            self.images: list[tuple[str, Tensor]] = []

        def add_image(self, tag: str, image: Tensor, step: int) -> None:
            self.images.append((tag, image))

        def save(self) -> None:
            pass

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._pictures = self.Experiment()
        self.metrics: dict[str, float] = {}

    @property
    def experiment(self) -> Any:
        return self._pictures

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.metrics |= metrics
