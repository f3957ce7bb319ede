from __future__ import annotations

import copy
import functools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from cl_diffusion import DDPM, TaskDataModule
from cl_diffusion.diffusion import NoiseSchedule
from cl_diffusion.diffusion.samplers import DDIMSampler
from cl_diffusion.fisher import DiagonalFisher, MeanGradientFisher, estimate
from cl_diffusion.keys import derive_keys
from cl_diffusion.linalg import parameters
from tests.tiny import DATA, ddpm, unet


def fit(model: DDPM, folder: Path, **data: Any) -> Trainer:
    datamodule = TaskDataModule(**{**DATA, **data})
    trainer = Trainer(
        max_epochs=datamodule.num_epochs,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=datamodule)
    return trainer


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 1, 8, 8, generator=generator) * 2 - 1, torch.arange(size) % 10


def test_the_loss_of_a_drawn_batch_is_deterministic_and_one_entry_a_sample() -> None:
    model = ddpm().eval()
    drawn = model.draw(batch(), derive_keys(0, torch.arange(6)))
    losses = model.per_sample_loss(drawn)
    assert losses.shape == (6,)
    assert torch.equal(losses, model.per_sample_loss(drawn))
    assert not torch.equal(losses, model.per_sample_loss(batch()))


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_per_sample_gradients_of_a_u_net_with_attention_are_those_of_batches_of_one(prediction: Any) -> None:
    model = DDPM(unet(), prediction=prediction)
    images, labels = batch(3)
    keys = derive_keys(0, torch.arange(3))
    operator = estimate(DiagonalFisher(), model, lambda m, b: m.per_sample_loss(b), [(images, labels)], draw=model.draw)
    model.eval()
    squares = None
    for i in range(3):
        drawn = model.draw((images[i : i + 1], labels[i : i + 1]), keys[i : i + 1])
        weights = parameters.trainable_parameters(model)
        g = torch.autograd.grad(model.per_sample_loss(drawn).sum(), list(weights.values()), materialize_grads=True)
        squares = [s + x.square() / 3 for s, x in zip(squares or [0] * len(g), g, strict=True)]
    assert squares is not None
    for got, want in zip(operator.diagonal().values(), squares, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-7)


def test_an_operator_says_which_loss_it_is_of() -> None:
    model = ddpm()
    operator = estimate(
        MeanGradientFisher(),
        model,
        lambda m, b: m.per_sample_loss(b),
        [batch()],
        draw=model.draw,
        identity=model.loss_identity,
    )
    identity = operator.provenance.identity
    assert identity["prediction"] == "epsilon"
    assert identity["loss_reduction"] == "mean over elements"
    assert "timestep_law" in identity


def test_validation_uses_the_same_draws_every_time(tmp_path: Path) -> None:
    model = ddpm()
    trainer = fit(model, tmp_path)
    first = trainer.validate(model, trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    torch.manual_seed(99)
    second = trainer.validate(model, trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    assert first == second
    assert first[0].keys() == {"val_loss/task_1", "val_loss/task_2"}


def test_a_checkpoint_loads_without_pickle_and_draws_the_same_images(tmp_path: Path) -> None:
    model = ddpm()
    trainer = fit(model, tmp_path)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = DDPM.load_from_checkpoint(
        tmp_path / "model.ckpt", network=unet(), sampler=DDIMSampler(steps=2), weights_only=True
    )
    assert loaded.image_shape == (1, 8, 8)
    labels = torch.tensor([0, 3])
    images = [m.sample(labels, generator=torch.Generator().manual_seed(0)) for m in (model, loaded)]
    assert torch.equal(*images)
    assert images[0].abs().max() <= 1


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    trainer = fit(ddpm(), tmp_path)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="another architecture: 'denoiser.network.conv_in.weight' is \\(8, 1, 3, 3\\)"):
        DDPM.load_from_checkpoint(tmp_path / "model.ckpt", network=unet(block_out_channels=(16, 16)))


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"num_class_embeds": 2}, {}, "num_class_embeds"),
        ({}, {"image_size": 9}, r"image_shape=\(1, 9, 9\)"),
        ({}, {"channels": 3}, "channels"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused_before_training(
    changes: dict[str, Any], data: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(ddpm(**changes), tmp_path, **data)


def test_an_unconditional_model_trains_and_samples(tmp_path: Path) -> None:
    model = ddpm(num_class_embeds=None)
    fit(model, tmp_path)
    assert model.sample(num_images=3).shape == (3, 1, 8, 8)


def test_images_of_unknown_shape_are_not_drawn() -> None:
    with pytest.raises(ValueError, match="image_shape=None"):
        DDPM(unet(), NoiseSchedule.linear(10)).sample(torch.tensor([0]))


def test_more_sampling_steps_than_timesteps_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps=50: expected 1..10"):
        fit(DDPM(unet(), NoiseSchedule.linear(10)), tmp_path)


class Painter(torch.nn.Module):
    """A network of one's own, called (x, t, y), that paints its label."""

    def __init__(self) -> None:
        super().__init__()
        self.shade = torch.nn.Embedding(10, 1)
        torch.nn.init.zeros_(self.shade.weight)
        self.shade.weight.data[3] = 1.0

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.shade(y)[:, :, None, None].expand_as(x)


def test_a_network_of_ones_own_gets_the_labels_also_when_it_predicts(tmp_path: Path) -> None:
    model = DDPM(Painter(), prediction="x0", sampler=DDIMSampler(steps=3), optimizer=still)
    trainer = fit(model, tmp_path)
    trainer.datamodule.predict_classes = [3, 1]  # type: ignore[attr-defined]
    ((images, labels),) = trainer.predict(model, trainer.datamodule)  # type: ignore[attr-defined,misc]
    assert labels.tolist() == [3, 3, 1, 1]
    assert images.mean((1, 2, 3)).round().tolist() == [1, 1, 0, 0]


def still(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_the_output_loss_is_the_per_sample_loss_taken_apart(prediction: Any) -> None:
    model = DDPM(unet(), prediction=prediction).eval()
    drawn = model.draw(batch(), derive_keys(0, torch.arange(6)))
    torch.testing.assert_close(model.output_loss(model, drawn), model.per_sample_loss(drawn))
    expected = model.output_loss.output(model, drawn) - model.output_loss.target(model, drawn)
    torch.testing.assert_close(expected.square().flatten(1).mean(1), model.per_sample_loss(drawn))


def test_the_true_fisher_of_a_denoiser_does_not_depend_on_how_well_it_fits() -> None:
    """Its targets are the model's own: the images do not enter but through the network's input."""
    model = DDPM(unet()).eval()
    images, labels = batch(6)
    true, empirical = (
        estimate(DiagonalFisher(residual=residual), model, model.output_loss, [(images, labels)], draw=model.draw)
        for residual in ("model", "empirical")
    )
    with torch.no_grad():
        model.denoiser.network.conv_out.bias += 3.0  # a bias at the output: the Jacobian is the same, the residual not
    again, worse = (
        estimate(DiagonalFisher(residual=residual), model, model.output_loss, [(images, labels)], draw=model.draw)
        for residual in ("model", "empirical")
    )
    torch.testing.assert_close(again.trace(), true.trace(), rtol=1e-4, atol=0)
    assert float(worse.trace()) > 5 * float(empirical.trace())


class Recording(DDPM):
    """Writes down the timesteps and noise of each step."""

    folder: Path

    def on_train_start(self) -> None:
        self.drawn: list[Any] = []

    def draw(self, batch: Any, keys: torch.Tensor | None = None) -> Any:
        found = super().draw(batch, keys)
        if self.training:
            self.drawn.append((found.timesteps, found.noise))
        return found

    def on_train_end(self) -> None:
        torch.save(self.drawn, self.folder / f"{self.global_rank}.pt")


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_no_two_processes_and_no_two_steps_draw_the_same(tmp_path: Path) -> None:
    if torch.cuda.is_initialized():
        pytest.skip("cannot fork once CUDA is initialised")
    torch.manual_seed(0)
    model = Recording(unet(), sampler=DDIMSampler(steps=2))
    model.folder = tmp_path
    data = TaskDataModule(**{**DATA, "batch_size": 4})
    Trainer(
        max_epochs=data.num_epochs,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    ).fit(model, datamodule=data)
    noises = [noise for rank in range(2) for _, noise in torch.load(tmp_path / f"{rank}.pt", weights_only=True)]
    assert len(noises) > 8
    for i, mine in enumerate(noises):
        assert not any(torch.equal(mine[:1], other[:1]) for other in noises[:i])


def test_copies_share_what_makes_their_optimizer() -> None:
    """Under LightningCLI it holds on to the Trainer, of which there is no copy once it has started processes."""
    make = functools.partial(made, threading.Lock())
    model = DDPM(unet(), optimizer=make, lr_scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1))
    ((optimizer,), _) = copy.deepcopy(model).configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)


def made(lock: Any, parameters: Any) -> torch.optim.Optimizer:
    with lock:
        return torch.optim.Adam(parameters)
