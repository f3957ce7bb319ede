"""Regularisers, strengths and schedules from a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_diffusion.cli import main
from tests import tiny

DIAGONAL = {"class_path": "cl_diffusion.fisher.DiagonalFisher"}
CALLBACKS: dict[str, dict[str, Any]] = {
    "EWC": {"fisher": DIAGONAL, "strength": "auto", "memory": "online", "gamma": 0.9},
    "EWC, warmed up": {
        "fisher": {"class_path": "cl_diffusion.fisher.MeanGradientFisher"},
        "strength": {"class_path": "cl_diffusion.callbacks.WarmUp", "init_args": {"strength": 10.0, "steps": 2}},
        "mode": "proximal",
        "max_rank": 2,
    },
    "EWC, a multiple": {
        "fisher": DIAGONAL,
        "strength": {
            "class_path": "cl_diffusion.callbacks.TraceMatched",
            "init_args": {
                "multiple": 2.0,
                "reference": {"class_path": "cl_diffusion.fisher.DiagonalFisher", "init_args": {"residual": "model"}},
            },
        },
    },
    "SynapticIntelligence": {"strength": 1.0, "damping": 0.01},
    "MAS": {"strength": 1e-3, "exclude": ["*norm*"]},
    "L2SP": {"strength": 0.1, "first_task": False},
    "L2Init": {"strength": 1e-3},
}


def test_the_first_task_of_a_stream_is_trained_as_without_a_regulariser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for strength, run in ((10.0, "held"), (None, "free")):
        main(["fit", "-c", str(tiny.configuration(tmp_path, strength=strength)), "--run", run])
    first, second = (torch.load(f"{run}/checkpoints/after_task_1.ckpt")["state_dict"] for run in ("held", "free"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_diffusion_model_is_trained_by_every_regulariser(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny.configuration(tmp_path, strength=None)
    configuration = json.loads(path.read_text())
    regularizer = {"class_path": f"cl_diffusion.callbacks.{name.split(',')[0]}", "init_args": CALLBACKS[name]}
    configuration["trainer"]["callbacks"].append(regularizer)
    path.write_text(json.dumps(configuration))
    main(["fit", "-c", str(path), "--run", "run"])
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    (state,) = [s for key, s in checkpoint["callbacks"].items() if key.startswith(name.split(",")[0])]
    (term,) = state["terms"]
    assert all(bool(anchor.isfinite().all()) for anchor in term["anchor"].values())
