"""``DDPM(learned_variance=True)``: trained by the hybrid loss, drawn by what it has learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from cl_diffusion import DDPM, DistilledDDPM, TaskDataModule
from cl_diffusion.callbacks import EWC
from cl_diffusion.diffusion.samplers import (
    AnalyticSampler,
    ClassifierFreeGuidance,
    DDIMSampler,
    LearnedVarianceSampler,
    NoiseStatistics,
)
from cl_diffusion.fisher import DiagonalFisher
from tests.tiny import DATA, unet


def fit(callback: Callback, folder: Path) -> DDPM:
    model = DDPM(unet(out_channels=2), sampler=LearnedVarianceSampler(3), learned_variance=True)
    data = TaskDataModule(**DATA)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=data.num_epochs,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        callbacks=callback,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **quiet,
    )
    trainer.fit(model, datamodule=data)
    return model


def test_it_is_fitted_regularised_by_its_own_loss_and_draws(tmp_path: Path) -> None:
    ewc = EWC(DiagonalFisher(), 1.0)
    model = fit(ewc, tmp_path)
    assert model.sample(torch.tensor([0, 1])).shape == (2, 1, 8, 8)
    assert "variational_bound" in model.loss_identity
    (importance,) = [term.operator.values for term in ewc.penalty.terms]  # type: ignore[union-attr]
    of_variance = importance["denoiser.network.conv_out.bias"][1]
    assert of_variance > 0


def test_what_cannot_draw_or_rehearse_a_variance_is_refused_before_training(tmp_path: Path) -> None:
    for sampler, message in (
        (LearnedVarianceSampler(3), "learned no variance"),
        (ClassifierFreeGuidance(DDIMSampler(3), 2.0), "trained with labels dropped"),
        (AnalyticSampler(NoiseStatistics(torch.full((1000,), torch.nan)), 3), "statistics are known at timesteps"),
    ):
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            max_epochs=4,
            reload_dataloaders_every_n_epochs=1,
        )
        model = DDPM(unet(), sampler=sampler)
        before = next(model.parameters()).clone()
        with pytest.raises(ValueError, match=message):
            trainer.fit(model, datamodule=TaskDataModule(**DATA))
        assert torch.equal(next(model.parameters()), before)
    with pytest.raises(ValueError, match="learned_variance=True: a rehearsal is of the prediction"):
        DistilledDDPM(unet(out_channels=2), learned_variance=True)


def test_a_fisher_that_needs_a_squared_error_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="needs the model's output, and DDPM has no"):
        fit(EWC(DiagonalFisher(residual="model"), 1.0), tmp_path)
