"""What is wrong when a network does not fit the images or classes it is given, and what to do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_diffusion.diffusion.network import declared, declared_classes, declared_halvings


def check_classes(network: nn.Module, num_classes: int, null_class: bool = False) -> None:
    """Raise ValueError where there are no classes, or more (and one that stands for none) than the network embeds."""
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: expected at least 1, the number of classes over all tasks.")
    classes = declared_classes(network)
    needed = num_classes + null_class
    if classes is not None and needed > classes[1]:
        name, embedded = classes
        raise ValueError(
            f"num_classes={num_classes}{', and one for dropped labels' * null_class}, but the network embeds only "
            f"{embedded}: build {type(network).__name__} with {name}={needed} or more."
        )


def forward_error(network: nn.Module, image_shape: tuple[int, int, int], num_classes: int) -> ValueError:
    """The error for a forward that failed on images of this shape: the likeliest cause that the config shows."""
    name, (channels, height, width) = type(network).__name__, image_shape
    expected_channels = declared(network, "in_channels")
    if expected_channels is not None and channels != expected_channels:
        return ValueError(
            f"image_shape={image_shape} has {channels} channels, but {name} takes {expected_channels}: "
            f"build it with in_channels={channels}, or convert the images."
        )
    halvings = declared_halvings(network)
    if halvings is not None and (height % 2**halvings or width % 2**halvings):
        return ValueError(
            f"image_shape={image_shape}: {name} halves its input {halvings} times (block_out_channels has "
            f"{halvings + 1} entries), so height and width must be multiples of {2**halvings}. Resize or pad to "
            f"{_nearest_multiples(height, width, 2**halvings)}, or use fewer block_out_channels."
        )
    return ValueError(
        f"image_shape={image_shape}, num_classes={num_classes}: {name} failed on a batch with one zero image of this "
        f"shape, timestep 0 and label {num_classes - 1}; the error above says how. Give images or a network that fit "
        "each other; a network other than a diffusers model is called as network(x_t, t, labels)."
    )


def batch_error(
    network: nn.Module, x_t: Tensor, labels: Tensor | None, dtype: torch.dtype, error: Exception
) -> RuntimeError:
    """The error for a forward that failed on a batch: what the batch holds, beside what the network says of itself."""
    names = ("in_channels", "sample_size", "num_class_embeds")
    own = [f"{name}={value}" for name in names if (value := declared(network, name)) is not None]
    given = "no labels" if labels is None else f"labels {_kind(labels)}"
    return RuntimeError(
        f"{type(network).__name__} fails on a batch of images {_kind(x_t)} and {given}: {error}; expected what it was "
        f"built for ({', '.join([str(dtype), *own])}): convert the images, or build another network"
    )


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def check_output(
    network: nn.Module, output: object, image_shape: tuple[int, int, int], learned_variance: bool = False
) -> None:
    """Raise ValueError where the output is not shaped as the image, or with a variance, of twice its channels."""
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    channels, *size = image_shape
    expected = (1, channels * (1 + learned_variance), *size)
    if found != expected:
        why = "the prediction and its variance, learned_variance=True," if learned_variance else "a prediction"
        raise ValueError(
            f"image_shape={image_shape}: {type(network).__name__} returned {found} for a batch of one, expected a "
            f"tensor of shape {expected}: {why} has the shape of its image (diffusers models: "
            f"out_channels={expected[1]})."
        )


def _nearest_multiples(height: int, width: int, multiple: int) -> str:
    """The sizes just below and just above, as text: ``'24x24 or 32x32'``."""
    below = (height // multiple * multiple, width // multiple * multiple)
    above = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
    return " or ".join(f"{h}x{w}" for h, w in (below, above) if h and w)
