"""Training a variance head through the command, from a checkpoint of the command, to images of the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader

from cl_diffusion import DDPM, TaskDataModule, VarianceHeadModule
from cl_diffusion.cli import main
from cl_diffusion.diffusion.samplers import LearnedDiagonalSampler
from cl_diffusion.diffusion.variance_head import VarianceHead
from tests.tiny import DATA, configuration, unet


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    main(["fit", "-c", str(configuration(folder, strength=None)), "--run", str(folder / "run")])
    return folder / "run"


def test_a_head_is_trained_on_a_checkpoint_and_draws_images(run: Path, tmp_path: Path) -> None:
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    config = {
        "model": {"class_path": "cl_diffusion.VarianceHeadModule", "init_args": {"model": checkpoint, "width": 8}},
        "data": {"class_path": "cl_diffusion.TaskDataModule", "init_args": {**DATA, "joint": True}},
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
    }
    (tmp_path / "head.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(tmp_path / "head.yaml"), "--run", str(tmp_path / "run")])
    head = tmp_path / "run" / "variance_head.safetensors"
    assert VarianceHead.load(head).target == "ocm"
    assert "val_loss" in (tmp_path / "run" / "metrics.csv").read_text()
    saved = torch.load(next((tmp_path / "run").rglob("*.ckpt")), weights_only=True)["state_dict"]
    assert all(name.startswith("head.") for name in saved)
    words = ["--model.sampler", "LearnedDiagonalSampler", "--model.sampler.head", str(head), "--model.sampler.steps=3"]
    main(["predict", "--ckpt_path", checkpoint, *words])
    assert list(run.rglob("*.png"))


def test_the_denoiser_is_left_as_it_was_and_the_loss_falls(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DDPM(unet(), image_shape=(1, 8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    module = VarianceHeadModule(model, target="npr", width=8)
    data = TaskDataModule(**{**DATA, "joint": True, "epochs_per_task": 25})
    trainer = Trainer(
        max_epochs=25, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    untrained = trainer.validate(module, data, verbose=False)[0]["val_loss"]
    assert trainer.validate(module, data, verbose=False)[0]["val_loss"] == untrained
    trainer.fit(module, data)
    assert trainer.validate(module, data, verbose=False)[0]["val_loss"] < 0.8 * untrained
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    images = model.sample(torch.tensor([1]), sampler=LearnedDiagonalSampler(module.head, 3))
    assert images.isfinite().all()


def test_a_resumed_head_is_the_uninterrupted_one(tmp_path: Path) -> None:
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def head(epochs: int, checkpoint: Path | None = None) -> VarianceHeadModule:
        seed_everything(0)
        module = VarianceHeadModule(DDPM(unet(num_class_embeds=None), image_shape=(1, 8, 8)), width=8)
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, enable_checkpointing=False,
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, DataLoader(images, batch_size=8), ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"after_{epochs}.ckpt")
        return module

    whole = head(4).head.state_dict()
    head(2)
    resumed = head(4, tmp_path / "after_2.ckpt").head.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_is_no_trained_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model='nowhere.ckpt' is not a file"):
        VarianceHeadModule("nowhere.ckpt")
    with pytest.raises(ValueError, match="image_shape is None"):
        VarianceHeadModule(DDPM(unet()))
    with pytest.raises(ValueError, match="layer='body' of UNet2DModel"):
        VarianceHeadModule(DDPM(unet(), image_shape=(1, 8, 8)), layer="body")
