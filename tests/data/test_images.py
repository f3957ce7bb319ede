from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cl_diffusion.data import ImageFormat
from cl_diffusion.data.images import unit_image


@pytest.mark.parametrize("native", [(1, 28, 28), (3, 10, 20), (3, 33, 7), (1, 4, 3)])
@pytest.mark.parametrize("image_size", [None, 8, 32])
@pytest.mark.parametrize("resize", ["resize", "pad"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_shape_and_range_are_as_announced(native, image_size, resize, channels) -> None:
    image_format = ImageFormat(image_size, resize, channels)
    images = image_format(torch.rand(2, *native))
    assert images.shape == (2, *image_format.shape(native))
    assert images.min() >= 0
    assert images.max() <= 1 + 1e-6


def test_padding_centres_an_untouched_image_on_black() -> None:
    image = torch.rand(1, 1, 28, 28)
    padded = ImageFormat(32, "pad")(image)
    assert torch.equal(padded[..., 2:-2, 2:-2], image)
    assert padded.sum() == pytest.approx(image.sum().item(), rel=1e-6)


def test_resizing_keeps_the_aspect_and_the_centre() -> None:
    stripes = torch.tensor([0.0, 0.5, 0.5, 0.0]).repeat_interleave(4).expand(1, 1, 8, 16)
    assert torch.equal(ImageFormat(8, "resize")(stripes), torch.full((1, 1, 8, 8), 0.5))
    bands = torch.tensor([0.0, 0.5, 0.5, 0.0])[:, None].expand(4, 4)
    torch.testing.assert_close(ImageFormat(4, "pad")(torch.full((1, 1, 8, 16), 0.5))[0, 0], bands)


def test_shrinking_averages_over_all_pixels() -> None:
    lines = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(8).expand(1, 1, 32, 32)
    shrunk = ImageFormat(8)(lines)[..., 1:-1]
    torch.testing.assert_close(shrunk, torch.full_like(shrunk, 0.25), atol=0.05, rtol=0)


def test_grey_and_colour_convert_into_each_other() -> None:
    grey = torch.rand(2, 1, 3, 3)
    colour = ImageFormat(channels=3)(grey)
    assert torch.equal(colour, grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close(ImageFormat(channels=1)(colour), grey)
    with pytest.raises(ValueError, match=r"channels=3: an image of 4 channels has no such form"):
        ImageFormat(channels=3)(torch.rand(1, 4, 2, 2))


def test_every_kind_of_image_becomes_the_same_tensor() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    channels_first = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = [Image.fromarray(pixels), pixels, channels_first, channels_first / 255, (pixels / 255).astype(np.float32)]
    for kind in kinds:
        torch.testing.assert_close(unit_image(kind), channels_first.float() / 255)
    grey = [Image.fromarray(pixels[..., 0]), pixels[..., 0], channels_first[0], channels_first[:1]]
    for kind in grey:
        torch.testing.assert_close(unit_image(kind), channels_first[:1].float() / 255)
    assert unit_image(Image.new("RGBA", (2, 2))).shape == (3, 2, 2)
    assert unit_image(Image.new("1", (2, 2))).shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.tensor([[-1.0, 1.0]]), r"values in \[-1, 1\]: expected uint8, or floats in \[0, 1\]"),
        (torch.tensor([[3, 4]]), r"torch.int64 values in \[3, 4\]: expected uint8"),
        (torch.rand(2, 3, 4, 4), r"shape \(2, 3, 4, 4\): expected \(C, H, W\)"),
        ("cat.png", r"image is a str: expected a PIL image"),
    ],
)
def test_what_is_no_image_is_refused(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unit_image(image)


@pytest.mark.parametrize("argument", [{"image_size": 0}, {"resize": "crop"}, {"channels": 2}])
def test_a_format_outside_its_range_is_refused(argument: dict) -> None:
    ((name, value),) = argument.items()
    with pytest.raises(ValueError, match=rf"{name}={value!r}: expected"):
        ImageFormat(**argument)
