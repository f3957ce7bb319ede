from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.diffusion import Denoiser, NoiseSchedule
from tests.diffusion.networks import Wave, gaussian_denoiser, tiny_unet

SCHEDULE = NoiseSchedule.linear(100)
X, T, LABELS = torch.randn(3, 1, 8, 8), torch.tensor([0, 50, 99]), torch.tensor([0, 1, 2])


def test_a_diffusers_model_is_called_with_its_class_labels() -> None:
    unet = tiny_unet().eval()
    denoiser = Denoiser(unet, SCHEDULE)
    expected = unet(X, T, class_labels=LABELS).sample
    assert denoiser(X, T, LABELS).equal(expected)
    assert not denoiser(X, T, LABELS.flip(0)).equal(expected)
    assert (denoiser.num_classes, denoiser.takes_labels) == (3, True)


def test_an_unconditional_diffusers_model_is_not_given_labels() -> None:
    unet = tiny_unet(num_class_embeds=None).eval()
    denoiser = Denoiser(unet, SCHEDULE)
    assert denoiser(X, T, LABELS).equal(unet(X, T).sample)
    assert (denoiser.num_classes, denoiser.takes_labels) == (None, False)


def test_a_transformer_of_diffusers_is_called_the_same_way() -> None:
    from diffusers import DiTTransformer2DModel

    dit = DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=4, in_channels=1, out_channels=1, num_layers=1, sample_size=8,
        num_embeds_ada_norm=3, norm_num_groups=1,
    ).eval()  # fmt: skip
    denoiser = Denoiser(dit, SCHEDULE)
    assert denoiser(X, T, LABELS).equal(dit(X, T, class_labels=LABELS).sample)
    denoiser.check((1, 8, 8), 3)
    with pytest.raises(ValueError, match="num_embeds_ada_norm=4"):
        denoiser.check((1, 8, 8), 4)


def test_any_other_module_is_called_with_x_t_y() -> None:
    wave = Wave().eval()
    denoiser = Denoiser(wave, SCHEDULE)
    assert denoiser(X, T, LABELS).equal(wave(X, T, LABELS))
    assert denoiser(X, T).equal(wave(X, T, None))
    assert (denoiser.num_classes, denoiser.takes_labels) == (None, True)
    denoiser.check((1, 5, 7), 10)


def test_compiled_networks_are_recognised() -> None:
    assert Denoiser(torch.compile(tiny_unet()), SCHEDULE).num_classes == 3
    assert not Denoiser(torch.compile(tiny_unet(num_class_embeds=None)), SCHEDULE).takes_labels


def test_a_conditional_model_without_labels_says_what_to_give() -> None:
    with pytest.raises(ValueError, match=r"labels=None.*num_classes=3"):
        Denoiser(tiny_unet(), SCHEDULE)(X, T)


def test_state_dict_holds_the_network_alone() -> None:
    denoiser = Denoiser(tiny_unet(), SCHEDULE)
    assert denoiser.state_dict().keys() == {f"network.{key}" for key in denoiser.network.state_dict()}


def test_estimates_of_the_exact_denoiser() -> None:
    """Data N(0, 1): E[x0|x_t] = sqrt(abar) x_t and E[eps|x_t] = sqrt(1-abar) x_t."""
    x = X.double()
    x0, noise = gaussian_denoiser(SCHEDULE, std=1.0).x0_and_noise(x, T)
    signal, sigma = SCHEDULE.scales(T, like=x)
    torch.testing.assert_close(x0, signal * x)
    torch.testing.assert_close(noise, sigma * x)


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction='eps': expected one of 'epsilon'"):
        Denoiser(Wave(), SCHEDULE, prediction="eps")  # type: ignore[arg-type]


class Picky(nn.Module):
    """Draws random numbers, and takes 4x4 images only."""

    def __init__(self, output: object = None) -> None:
        super().__init__()
        self.inner = nn.Dropout()
        self.inner.eval()
        self.seen: list[tuple[bool, bool, Tensor]] = []
        self.output = output

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> object:
        torch.rand(1)
        self.seen.append((self.training, torch.is_grad_enabled(), labels))
        if x.shape[-1] != 4:
            raise RuntimeError("4x4 only")
        return x if self.output is None else self.output


@pytest.mark.parametrize("size", [4, 5])
def test_check_leaves_flags_and_generator_as_found_also_when_it_fails(size: int) -> None:
    network = Picky()
    denoiser, state = Denoiser(network, SCHEDULE), torch.get_rng_state()
    if size == 4:
        denoiser.check((1, size, size), 7)
    else:
        with pytest.raises(ValueError, match=r"image_shape=\(1, 5, 5\), num_classes=7: Picky failed") as info:
            denoiser.check((1, size, size), 7)
        assert isinstance(info.value.__cause__, RuntimeError)
    assert [(m.training) for m in (denoiser, network, network.inner)] == [True, True, False]
    assert torch.get_rng_state().equal(state)
    training, grad, labels = network.seen[0]
    assert (training, grad, labels.tolist()) == (False, False, [6])


def test_check_passes_what_fits() -> None:
    Denoiser(tiny_unet(), SCHEDULE).check((1, 8, 12), 3)
    Denoiser(tiny_unet(num_class_embeds=None), SCHEDULE).double().check((1, 8, 8), 100)


@pytest.mark.parametrize(
    ("network", "image_shape", "num_classes", "message"),
    [
        (tiny_unet(), (1, 8, 8), 4, "num_classes=4.*embeds only 3.*UNet2DModel with num_class_embeds=4"),
        (tiny_unet(), (1, 8, 8), 0, "num_classes=0: expected at least 1"),
        (tiny_unet(), (1, 9, 8), 3, r"halves its input 2 times.*multiples of 4.*8x8 or 12x8"),
        (tiny_unet(), (1, 3, 3), 3, r"Resize or pad to 4x4, or"),
        (tiny_unet(), (3, 8, 8), 3, r"has 3 channels, but UNet2DModel takes 1.*in_channels=3"),
        (tiny_unet(out_channels=2), (1, 8, 8), 3, r"returned \(1, 2, 8, 8\).*expected.*\(1, 1, 8, 8\).*out_channels=1"),
        (Picky(), (1, 5, 5), 3, r"Picky failed on a batch with one zero image.*label 2"),
        (Picky(output=("tuple",)), (1, 4, 4), 3, r"returned tuple for a batch of one"),
        (Picky(output=torch.zeros(1)), (1, 4, 4), 3, r"returned \(1,\)"),
    ],
)
def test_check_names_what_does_not_fit(
    network: nn.Module, image_shape: tuple[int, int, int], num_classes: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Denoiser(network, SCHEDULE).check(image_shape, num_classes)


def test_the_room_imports_no_diffusers_and_no_lightning() -> None:
    heavy = {"diffusers", "lightning", "torchvision", "sklearn"}
    code = f"import sys, cl_diffusion.diffusion.samplers; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
