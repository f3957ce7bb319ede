"""The shipped configurations and data sets, cut until a run takes a second or two."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
SMALL_DDIM = {"class_path": "cl_diffusion.diffusion.samplers.DDIMSampler", "init_args": {"steps": 2}}
DATA = {"batch_size": 8, "epochs_per_task": 1, "num_workers": 0}
TRAINER = {"limit_train_batches": 1, "check_val_every_n_epoch": 1, "accelerator": "cpu", "precision": 32}
TWO_TASKS = ["--data.classes", "[0,1,2,3]"]
FIT = [
    *("--data.epochs_per_task", "1", "--trainer.check_val_every_n_epoch", "1"),
    *("--trainer.limit_train_batches", "1", "--trainer.enable_progress_bar", "false"),
]
"""What a command's own numbers are cut by."""


def words(command: list[str]) -> list[str]:
    """What makes a command of ``cl-diffusion`` short. A stream has two tasks, unless joint or told its classes."""
    if command[0] == "report":
        return []
    if command[0] != "fit":
        return ["--trainer.enable_progress_bar", "false"]
    said = " ".join(command)
    streamed = "data/" in said and not any(own in said for own in ("joint", "--data.classes", "image_folder"))
    return [*FIT, *(TWO_TASKS if streamed else [])]


def _network(arguments: dict[str, Any]) -> dict[str, Any]:
    if "block_out_channels" not in arguments:
        return {}
    widths = [8] * len(arguments["block_out_channels"])
    return {"block_out_channels": widths, "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}


def _ddpm(arguments: dict[str, Any]) -> dict[str, Any]:
    whole = "block_out_channels" in arguments.get("network", {}).get("init_args", {})
    return {"sampler": SMALL_DDIM} if whole else {}


def _data(arguments: dict[str, Any]) -> dict[str, Any]:
    few = {"fraction": 0.06} if arguments.get("dataset") == "digits" else {}
    many = {"importance_samples": 16, "training_samples": 16, "fraction": 1.0}
    return {**DATA, "images_per_class": 2, **few, **{name: many[name] for name in many if name in arguments}}


def _changing(arguments: dict[str, Any]) -> dict[str, Any]:
    few = {"images_per_task": 16} if "images_per_task" in arguments else {}
    return {"batch_size": 8, "epochs_per_task": 1, "num_tasks": 3, **few}


def _audit(arguments: dict[str, Any]) -> dict[str, Any]:
    few = {"timesteps": [100, 900]} if "timesteps" in arguments else {}
    return {"samples": 16, "random": 1, "repeats": 4, "radii": arguments.get("radii", [0.001]), **few}


CUTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "UNet2DModel": _network,
    "DDPM": _ddpm,
    "TaskDataModule": _data,
    "ChangingDataModule": _changing,
    "ContinualMetrics": lambda _: {"images_per_class": 2, "reference_steps": 2, "loss_draws": 4},
    "GenerativeReplay": lambda _: {"images_per_class": 2},
    "ClassBalancedBuffer": lambda _: {"images": 20},
    "LeadingEigenpairsFisher": lambda arguments: {"rank": 2, "tolerance": 0.5} if "rank" in arguments else {},
    "FisherAudit": _audit,
    "CompiledNetwork": lambda _: {"backend": "eager"},
    "ModelParallelStrategy": lambda _: {"data_parallel_size": 1},
}


def cut(node: Any) -> Any:
    """A configuration with smaller numbers, and the same classes."""
    if isinstance(node, list):
        return [cut(each) for each in node]
    if not isinstance(node, dict):
        return node
    node = {name: cut(value) for name, value in node.items()}
    if isinstance(node.get("class_path"), str):
        name, arguments = node["class_path"].rpartition(".")[2], node.get("init_args", {})
        changes = CUTS[name](arguments) if name in CUTS else {}
        if name.endswith("Sampler") and "steps" in arguments:
            changes = {"steps": 2}
        if arguments or changes:
            node["init_args"] = {**arguments, **changes}
    if isinstance(node.get("trainer"), dict):
        trainer = node["trainer"]
        node["trainer"] = {**trainer, **{name: TRAINER[name] for name in TRAINER if name in trainer}}
        if "devices" in trainer:
            node["trainer"]["devices"] = 1
    return node


def write(folder: Path) -> None:
    """Lay out a clone: ``configs`` cut, ``tools`` as they are, and images in ``PATH`` and ``FOLDERS``."""
    for path in (ROOT / "configs").rglob("*.yaml"):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        config = cut(yaml.safe_load(path.read_text()))
        if path.name == "base.yaml":
            config["trainer"] |= {"limit_train_batches": 1, "accelerator": "cpu", "devices": 1}
        copy.write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "tools").symlink_to(ROOT / "tools")
    _write_mnist(folder / "PATH")
    _write_folders(folder / "FOLDERS")


def _write_mnist(root: Path, each: int = 12) -> None:
    """MNIST and Fashion-MNIST in their own format: so many training images a class, a third of that to hold out."""
    generator = np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST"):
        raw = root / name / "raw"
        raw.mkdir(parents=True)
        for part, count in (("train", 10 * each), ("t10k", 10 * each // 3)):
            pixels = generator.integers(0, 256, (count, 28, 28), np.uint8)
            (raw / f"{part}-images-idx3-ubyte").write_bytes(
                struct.pack(">iiii", 2051, *pixels.shape) + pixels.tobytes()
            )
            labels = (np.arange(count) % 10).astype(np.uint8)
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + labels.tobytes())


def _write_folders(root: Path, each: int = 10) -> None:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog", "eel", "fox"):
        (root / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(root / name / f"{number}.png")
