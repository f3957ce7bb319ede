"""The best denoiser that only scales its input, and batches without what a direction is supposed to know."""

from __future__ import annotations

import pytest
import torch

from cl_diffusion import DDPM
from cl_diffusion.diffusion import Denoiser, DenoisingLoss, NoiseSchedule, Prediction, SNRBand, SNRBands
from cl_diffusion.diffusion.controls import labels_of, pure_noise, relabelled
from cl_diffusion.diffusion.linear_surrogate import linear_output, noise_scale
from cl_diffusion.keys import derive_keys
from tests.tiny import unet


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("t", [10, 300, 700])
def test_no_other_multiple_of_the_input_is_nearer_to_the_target(prediction: Prediction, t: int) -> None:
    schedule = NoiseSchedule.linear()
    images = torch.rand(60000, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.4 - 0.3
    denoiser = Denoiser(torch.nn.Identity(), schedule, prediction)
    [band] = SNRBands.at_timesteps([t], schedule).bands
    loss = DenoisingLoss()
    torch.manual_seed(0)
    drawn = loss.draw(schedule, images, band=band)
    assert drawn.timesteps.unique().tolist() == [t]
    x_t, target = schedule.add_noise(images, drawn.noise, drawn.timesteps), loss.target(denoiser, drawn)
    best = float((x_t * target).sum() / x_t.square().sum())
    found = linear_output(denoiser, drawn, float(images.square().mean())) / x_t
    assert float(found.std()) < 1e-9  # one number
    assert float(found.mean()) == pytest.approx(best, abs=0.02)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_the_noise_that_a_linear_output_stands_for_is_the_same_multiple_whatever_is_predicted(
    prediction: Prediction,
) -> None:
    model = DDPM(unet(), prediction=prediction)
    schedule = model.noise_schedule
    drawn = model.draw((torch.rand(30, 1, 8, 8) - 0.3, torch.arange(30) % 10))
    x_t = schedule.add_noise(drawn.images, drawn.noise, drawn.timesteps)
    found = model.predicted_noise(drawn, model.linear_output(drawn, 0.4))
    expected = noise_scale(schedule.scales(drawn.timesteps, like=drawn.images), 0.4) * x_t
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_bands_of_single_timesteps_hold_them_alone() -> None:
    schedule = NoiseSchedule.cosine(50)
    bands = SNRBands.at_timesteps([3, 0, 49], schedule)
    assert bands.names == ("t = 49", "t = 3", "t = 0")
    assert [band.timesteps(schedule).tolist() for band in bands.bands] == [[49], [3], [0]]
    with pytest.raises(ValueError, match="timesteps"):
        SNRBands.at_timesteps([1, 1], schedule)
    assert [b.name for b in SNRBands.by_quantile().bands] == ["low", "mid", "high"]
    assert SNRBand("all").timesteps(schedule).tolist() == list(range(50))


def test_a_batch_of_pure_noise_keeps_its_labels_and_knows_its_keys() -> None:
    images, labels = torch.ones(500, 1, 4, 4), torch.arange(500) % 3
    keys = derive_keys(0, torch.arange(500))
    noise, kept = pure_noise((images, labels), keys)
    assert torch.equal(kept, labels)
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    again, _ = pure_noise((images[3:5], labels[3:5]), keys[3:5])
    assert torch.equal(again, noise[3:5])
    drawn = DenoisingLoss().draw(NoiseSchedule.linear(), noise, keys=keys)
    assert abs(float((drawn.noise * noise).mean())) < 0.03  # not what the loss draws by the same keys
    assert torch.equal(pure_noise(images, keys), noise)


def test_other_labels_are_those_to_choose_from_as_often_as_they_are_there() -> None:
    images, labels = torch.ones(3000, 1, 2, 2), torch.zeros(3000, dtype=torch.int64)
    keys = derive_keys(0, torch.arange(3000))
    same, new = relabelled((images, labels), keys, torch.tensor([5, 7, 7]))
    assert torch.equal(same, images)
    assert set(new.tolist()) == {5, 7}
    assert float((new == 7).double().mean()) == pytest.approx(2 / 3, abs=0.04)
    assert labels_of((images, labels)) is labels
    assert labels_of(images) is None
