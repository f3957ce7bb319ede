from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cl_diffusion.diffusion import Denoiser, DenoisingLoss, DrawnBatch, NoiseSchedule, Prediction, SNRBand
from cl_diffusion.keys import derive_keys
from tests.diffusion.networks import Wave, gaussian_denoiser, tiny_unet

SCHEDULE = NoiseSchedule.linear(100)
BAND = SNRBand("mid", -2.0, 2.0)


def keyed_draw(indices: Tensor, loss: DenoisingLoss) -> DrawnBatch:
    images = indices.double().reshape(-1, 1, 1, 1).expand(-1, 1, 3, 3) / 100
    return loss.draw(SCHEDULE, images, indices % 3, keys=derive_keys(7, indices))


@pytest.mark.parametrize("band", [None, BAND])
def test_keyed_draws_know_neither_batch_nor_order_nor_global_state(band: SNRBand | None) -> None:
    loss, indices = DenoisingLoss(band), torch.arange(12)
    whole = keyed_draw(indices, loss)
    torch.manual_seed(99)
    order = torch.randperm(12)
    pieces = [keyed_draw(part, loss) for part in order.split(5)]
    for field, expected in zip(zip(*pieces, strict=True), whole, strict=True):
        assert torch.cat(field).equal(expected[order])


def test_keyed_draws_differ_between_keys_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    drawn = keyed_draw(torch.arange(8), DenoisingLoss())
    assert torch.get_rng_state().equal(state)
    assert len({tuple(row.flatten().tolist()) for row in drawn.noise}) == 8
    assert len(set(drawn.timesteps.tolist())) > 4


def test_unkeyed_draws_follow_the_global_seed() -> None:
    images, loss = torch.zeros(6, 1, 2, 2), DenoisingLoss()
    torch.manual_seed(3)
    first = loss.draw(SCHEDULE, images)
    second = loss.draw(SCHEDULE, images)
    torch.manual_seed(3)
    again = loss.draw(SCHEDULE, images)
    assert first.noise.equal(again.noise)
    assert first.timesteps.equal(again.timesteps)
    assert not first.noise.equal(second.noise)


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("band", [None, BAND])
def test_timesteps_are_uniform_over_the_allowed_ones(band: SNRBand | None, keyed: bool) -> None:
    torch.manual_seed(0)
    allowed = list(range(100)) if band is None else band.timesteps(SCHEDULE).tolist()
    n = 100 * len(allowed)
    keys = derive_keys(0, torch.arange(n)) if keyed else None
    drawn = DenoisingLoss(band).draw(SCHEDULE, torch.zeros(n, 1, 1, 1), keys=keys)
    counts = torch.bincount(drawn.timesteps, minlength=100)
    assert counts.nonzero().flatten().tolist() == allowed
    assert (counts[allowed] - 100).abs().max() < 50  # five standard deviations of Poisson(100)
    assert abs(drawn.noise.mean()) < 5 / n**0.5
    assert abs(drawn.noise.var() - 1) < 5 * (2 / n) ** 0.5


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_the_loss_of_a_sample_is_its_mean_squared_error(prediction: Prediction) -> None:
    """A network that returns 0 has the mean power of the target as loss: d cancels, samples do not mix."""

    class Zero(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            return torch.zeros_like(x)

    images = torch.tensor([0.0, 0.5, -1.0]).reshape(3, 1, 1, 1).expand(3, 2, 4, 4)
    noise = torch.tensor([2.0, 0.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 2, 4, 4)
    t = torch.tensor([5, 50, 99])
    losses = DenoisingLoss()(Denoiser(Zero(), SCHEDULE, prediction), DrawnBatch(images, None, t, noise))
    abar = SCHEDULE.alpha_bar[t].float()
    x0, eps = images[:, 0, 0, 0], noise[:, 0, 0, 0]
    target = {"epsilon": eps, "x0": x0, "v": abar.sqrt() * eps - (1 - abar).sqrt() * x0}[prediction]
    torch.testing.assert_close(losses, target**2)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_the_same_estimate_has_losses_in_the_ratios_of_snr(prediction: Prediction) -> None:
    """|eps error|^2 = snr |x0 error|^2 and |v error|^2 = (1 + snr) |x0 error|^2 (Salimans & Ho 2022, section 4)."""
    from cl_diffusion.diffusion.prediction import training_target

    source = gaussian_denoiser(SCHEDULE, std=0.5)

    class Same(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            return training_target(prediction, *source.x0_and_noise(x, t), SCHEDULE.scales(t, like=x))

    drawn = keyed_draw(torch.arange(10), DenoisingLoss())
    snr = SCHEDULE.log_snr[drawn.timesteps].exp()
    factor = {"epsilon": snr, "x0": torch.ones_like(snr), "v": 1 + snr}[prediction]
    losses = DenoisingLoss()(Denoiser(Same(), SCHEDULE, prediction), drawn)
    torch.testing.assert_close(losses, factor * DenoisingLoss()(source, drawn))


def test_per_sample_gradients_by_vmap_are_those_of_batches_of_one() -> None:
    denoiser, loss = Denoiser(tiny_unet(), SCHEDULE).double().eval(), DenoisingLoss()
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    drawn = loss.draw(SCHEDULE, images, torch.tensor([0, 1, 2]), keys=derive_keys(0, torch.arange(3)))
    parameters = dict(denoiser.named_parameters())

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denoiser = denoiser

        def forward(self, *sample: Tensor) -> Tensor:
            return loss(self.denoiser, DrawnBatch(*(entry[None] for entry in sample))).squeeze(0)

    def one(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
        return torch.func.functional_call(Loss(), {f"denoiser.{k}": v for k, v in parameters.items()}, sample)

    grads = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0, 0, 0, 0))(parameters, *drawn)
    for i in range(3):
        denoiser.zero_grad()
        Loss()(*(field[i] for field in drawn)).backward()
        for name, parameter in denoiser.named_parameters():
            torch.testing.assert_close(grads[name][i], parameter.grad, rtol=1e-9, atol=1e-12)


def test_the_description_separates_laws_and_only_laws() -> None:
    loss = DenoisingLoss()
    assert loss.describe(SCHEDULE) == DenoisingLoss(SNRBand("all")).describe(NoiseSchedule.linear(100))
    assert loss.describe(SCHEDULE)["loss_reduction"] == "mean over elements"
    assert loss.describe(SCHEDULE)["timestep_law"] == "uniform over t = 0..99 of 0..99"
    assert DenoisingLoss(BAND).describe(SCHEDULE)["timestep_law"] != loss.describe(SCHEDULE)["timestep_law"]
    assert loss.describe(NoiseSchedule.cosine(100))["noise_schedule"] != loss.describe(SCHEDULE)["noise_schedule"]


def test_wrong_images_and_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype torch.uint8.*\[-1, 1\]"):
        DenoisingLoss().draw(SCHEDULE, torch.zeros(2, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"keys have shape \(3,\): expected \(2,\)"):
        DenoisingLoss().draw(SCHEDULE, torch.zeros(2, 1, 2, 2), keys=torch.arange(3))


def test_the_label_reaches_the_network() -> None:
    denoiser = Denoiser(Wave(), SCHEDULE).eval()
    drawn = keyed_draw(torch.arange(4), DenoisingLoss())
    assert not torch.equal(DenoisingLoss()(denoiser, drawn), DenoisingLoss()(denoiser, drawn._replace(labels=None)))
