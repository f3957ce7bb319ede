"""Estimators, weightings and bands from a configuration file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_diffusion.cli import main
from tests.tiny import configuration

WEIGHTING = {"class_path": "cl_diffusion.fisher.OutputNormalized", "init_args": {"kappa": 0.01}}
FISHERS: dict[str, dict[str, Any]] = {
    "true diagonal": {"class_path": "cl_diffusion.fisher.DiagonalFisher", "init_args": {"residual": "model"}},
    "sketch": {"class_path": "cl_diffusion.fisher.SketchedDiagonalFisher", "init_args": {"exclude": ["*norm*"]}},
    "rank one on a tenth": {
        "class_path": "cl_diffusion.fisher.MeanGradientFisher",
        "init_args": {"coefficient_fraction": 0.5, "weighting": WEIGHTING},
    },
    "eigenpairs": {
        "class_path": "cl_diffusion.fisher.LeadingEigenpairsFisher",
        "init_args": {"rank": 2, "tolerance": 0.01, "residual": "model"},
    },
    "Kronecker": {"class_path": "cl_diffusion.fisher.KroneckerFisher", "init_args": {"corrected": True}},
    "banded": {
        "class_path": "cl_diffusion.fisher.BandedFisher",
        "init_args": {
            "estimator": {"class_path": "cl_diffusion.fisher.DiagonalFisher", "init_args": {"weighting": WEIGHTING}},
            "bands": {
                "class_path": "cl_diffusion.diffusion.SNRBands",
                "init_args": {"bands": [{"name": "low", "high": 0.0}, {"name": "high", "low": 0.0}]},
            },
        },
    },
}


@pytest.mark.parametrize("name", FISHERS)
def test_a_stream_is_trained_under_any_fisher_that_a_file_names(name: str, folder: Path) -> None:
    path = configuration(folder)
    config = json.loads(path.read_text())
    config["trainer"]["callbacks"][-1]["init_args"]["fisher"] = FISHERS[name]
    path.write_text(json.dumps(config))
    main(["fit", "-c", str(path), "--run", "runs/one"])
    checkpoint = torch.load("runs/one/checkpoints/last.ckpt", weights_only=True)
    (state,) = [s for key, s in checkpoint["callbacks"].items() if key.startswith("EWC")]
    identities = [term["provenance"]["identity"] for term in state["terms"]]
    assert identities
    assert all(identity["loss_reduction"] == "mean over elements" for identity in identities)
    header = Path("runs/one/metrics.csv").read_text().splitlines()[0]
    assert "ewc/trace" in header
