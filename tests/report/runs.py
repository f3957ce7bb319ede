"""Run folders as a fit writes them, with values that are known."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from cl_diffusion.metrics.continual_file import write_matrices
from cl_diffusion.metrics.continual_matrix import ContinualMatrix

HOSTILE = (
    "</svg></style></script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'> & "
    "$\\frac{1}{0}$ \"'"
)


def matrices(shift: float = 0.0, tasks: int = 3) -> list[ContinualMatrix]:
    entries = [(after, task) for after in range(1, tasks + 1) for task in range(1, after + 1)]
    agreement = {(after, task): 0.9 - 0.2 * (after - task) + shift for after, task in entries}
    distance = {(after, task): 10.0 + 40 * (after - task) - 10 * shift for after, task in entries}
    loss = {(after, task): 0.08 + 0.01 * (after - task) for after, task in entries}
    return [
        ContinualMatrix("class_agreement", True, agreement),
        ContinualMatrix("frechet_distance", False, distance),
        ContinualMatrix("denoising_loss", False, loss),
        ContinualMatrix("denoising_loss/low", False, loss),
    ]


def configuration(seed: int = 0, strength: float | None = 10.0) -> dict[str, Any]:
    callbacks: list[dict[str, Any]] = [
        {"class_path": "cl_diffusion.callbacks.ContinualMetrics", "init_args": {"seed": 0}}
    ]
    if strength is not None:
        callbacks.append({"class_path": "cl_diffusion.callbacks.EWC", "init_args": {"strength": strength}})
    return {"run": "elsewhere", "seed_everything": seed, "trainer": {"callbacks": callbacks}}


def rows(path: Path, head: list[str], *every: tuple[Any, ...]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *every])


def picture(path: Path, side: int = 16, shade: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), shade, np.uint8)).save(path)


def audit(folder: Path, text: str = "a verdict") -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "samples": 32, "known": True}
    folder.mkdir(parents=True)
    content = {
        "provenance": {"task": 1, "samples": 32, "note": text},
        "verdict": [text],
        "figures": {"low": {"v_itself": figure, text: {**figure, "value": None, "low": None, "known": False}}},
        "preservation": {},
        "damage": {},
        "nonlinearity": {"low": figure},
    }
    (folder / "audit.json").write_text(json.dumps(content))
    picture(folder / "spectra.png")


def write(
    folder: Path,
    *,
    seed: int = 0,
    strength: float | None = 10.0,
    shift: float = 0.0,
    tasks: int = 3,
    judge: str = "aa",
    text: str = "plain",
) -> Path:
    """Everything that a run may write; ``text`` stands wherever a run may hold words."""
    folder.mkdir(parents=True)
    settings: Mapping[str, Any] = {**configuration(seed, strength), text: {text: [text]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings)))
    write_matrices(folder / "continual.csv", matrices(shift, tasks))
    (folder / "yardstick.json").write_text(json.dumps({"reference_classifier": judge, "held_out_accuracy": 0.98}))
    log = [(step, 0.1 + 1 / (1 + step), 0.3, 0.2, 1.0 if step % 100 == 0 else "") for step in range(0, 300, 10)]
    head = [
        "step",
        "train_loss",
        "ewc/gradient_ratio",
        f"{text.replace('/', '')}/penalty",
        "continual/class_agreement/average",
    ]
    rows(folder / "metrics.csv", head, *log)
    for after in range(1, tasks + 1):
        picture(folder / "samples" / f"after_task_{after}.png", shade=40 * after)
    audit(folder / "audit" / "after_task_1", text)
    plasticity = [(task, layer, "dead", 0.1 * task) for task in range(1, tasks + 1) for layer in ("net.0", text)]
    rows(folder / "plasticity.csv", ["task", "layer", "figure", "value"], *plasticity, (1, "", text, 0.5))
    timings = [(task, phase, 10.0) for task in range(1, tasks + 1) for phase in ("training", text)]
    rows(folder / "timings.csv", ["task", "phase", "seconds"], *timings)
    session = {
        "command": text,
        "started": text,
        "ended": text,
        "outcome": text,
        "device": text,
        "versions": {text: text},
    }
    record = {"sessions": [{**session, "packages": {text: text}, "revisions": {text: text}}]}
    (folder / "run.json").write_text(json.dumps(record))
    return folder
