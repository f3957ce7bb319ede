from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from torchvision.datasets import FakeData

from cl_diffusion.data import TaskDataModule

FAKE = {"size": 40, "image_size": [3, 4, 4], "num_classes": 4}


@pytest.fixture
def parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TaskDataModule, "data")
    return parser


def test_a_data_set_is_named_in_a_config(parser: ArgumentParser) -> None:
    arguments = {"dataset": "digits", "class_order": "shuffled", "epochs_per_task": [1, 2, 3, 4, 5], "channels": 3}
    data = parser.instantiate_classes(parser.parse_object({"data": arguments})).data
    assert data.scenario.name == "digits"
    assert data.num_epochs == 15
    assert data.image_shape == (3, 8, 8)
    assert data.task_classes(0) != [0, 1]


def test_a_data_set_is_given_by_class_path(parser: ArgumentParser) -> None:
    dataset = {"class_path": "torchvision.datasets.FakeData", "init_args": FAKE}
    arguments = {"dataset": dataset, "tasks": [[3, 1], [0, 2]], "resize": "pad", "image_size": 6}
    data = parser.instantiate_classes(parser.parse_object({"data": arguments})).data
    assert isinstance(data.scenario.dataset, FakeData)
    assert data.task_classes(0) == [3, 1]
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape[1:] == data.image_shape == (3, 6, 6)
    assert set(labels.tolist()) == {1, 3}


def test_an_unknown_name_is_refused(parser: ArgumentParser) -> None:
    with pytest.raises(ArgumentError, match="data.dataset"):
        parser.parse_object({"data": {"dataset": "mnits"}})


def test_every_argument_is_documented(parser: ArgumentParser) -> None:
    import inspect

    documented = {action.dest.removeprefix("data.") for action in parser._actions if action.help}
    assert set(inspect.signature(TaskDataModule).parameters) <= documented


class Child(TaskDataModule):
    def __init__(self, extra: int = 1, **arguments: Any) -> None:
        super().__init__(**arguments)


def checkpoint(data: TaskDataModule, path: Path) -> dict[str, Any]:
    trainer = Trainer(accelerator="cpu", logger=False, max_steps=0, enable_progress_bar=False, default_root_dir=path)
    trainer.strategy.connect(BoringModel())
    trainer._data_connector.attach_datamodule(trainer.lightning_module, data)
    trainer.save_checkpoint(path / "a.ckpt", weights_only=True)
    return torch.load(path / "a.ckpt", weights_only=True)


def test_a_checkpoint_holds_plain_hyper_parameters_and_restores_from_them(tmp_path: Path) -> None:
    saved = checkpoint(Child(extra=3, classes=[0, 1, 2, 3], class_order=[3, 2, 1, 0], seed=4), tmp_path)
    hyper_parameters = saved["datamodule_hyper_parameters"]
    assert (hyper_parameters["extra"], hyper_parameters["seed"], hyper_parameters["dataset"]) == (3, 4, "digits")
    restored = TaskDataModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert restored.task_classes(0) == [3, 2]


def test_a_data_set_object_stays_out_of_checkpoints(numbered: Any, tmp_path: Path) -> None:
    saved = checkpoint(TaskDataModule(numbered(), batch_size=7), tmp_path)
    assert "dataset" not in saved["datamodule_hyper_parameters"]
    assert saved["datamodule_hyper_parameters"]["batch_size"] == 7
    with pytest.raises(ValueError, match=r"dataset='digits', but the checkpoint is of .*Numbered"):
        TaskDataModule.load_from_checkpoint(tmp_path / "a.ckpt")
    restored = TaskDataModule.load_from_checkpoint(tmp_path / "a.ckpt", dataset=numbered())
    assert restored.num_tasks == 3


@pytest.mark.parametrize("dataset", ["digits", {"class_path": "torchvision.datasets.FakeData", "init_args": FAKE}])
def test_the_command_line_records_what_it_was_given(dataset: Any, tmp_path: Path) -> None:
    arguments = {
        "data": {"dataset": dataset, "classes": [0, 1]},
        "trainer": {"logger": False},
        "seed_everything": False,
    }
    cli = LightningCLI(BoringModel, TaskDataModule, run=False, args=arguments, save_config_callback=None)
    saved = checkpoint(cli.datamodule, tmp_path)["datamodule_hyper_parameters"]
    assert saved["classes"] == [0, 1]
    if dataset == "digits":
        assert saved["dataset"] == dataset
    else:
        assert saved["dataset"]["class_path"] == dataset["class_path"]
        assert saved["dataset"]["init_args"].items() >= FAKE.items()
    restored = TaskDataModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert restored.scenario.name == cli.datamodule.scenario.name
