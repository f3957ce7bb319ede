"""Weight gradients of convolutions of stride 1, without copying input patches."""

from __future__ import annotations

import math
from itertools import product
from typing import Protocol

import torch
from torch import Tensor


class ConvolutionInputs(Protocol):
    """What is read of a convolution's input and output gradient."""

    inputs: Tensor
    output_gradients: Tensor

    @property
    def kernel(self) -> tuple[int, ...]:
        """Its sizes."""
        ...

    def each(self, setting: str) -> tuple[int, ...]:
        """A setting for each spatial axis."""
        ...

    def empty_image(self, samples: int, tail: int = 0) -> tuple[Tensor, Tensor]:
        """Zeros ``(b, *size, c)``, and the part of them that is not padding."""
        ...


class ShiftedProducts:
    """``G_i`` of a convolution of stride 1, tap by tap, from views: a tap reads the flattened image at a fixed offset.

    The output gradients are padded to the image's width with zeros, which removes what wraps around.
    """

    def __init__(self, layer: ConvolutionInputs, samples: int) -> None:
        d = layer.output_gradients
        self._layer = layer
        image, self._inner_image = layer.empty_image(samples, tail=1)
        sizes = image.shape[1:-1]
        wide = d.new_zeros((samples, d.shape[1], d.shape[2], *sizes[1:]))
        self._inner_d = wide
        for axis, length in enumerate(d.shape[2:], start=2):
            self._inner_d = self._inner_d.narrow(axis, 0, length)
        self._d, self._pixels = wide.flatten(2), image.flatten(1, -2)
        self._products = d.new_empty((math.prod(layer.kernel), samples, d.shape[1], image.shape[-1]))
        steps = [dil * math.prod(sizes[axis + 1 :]) for axis, dil in enumerate(layer.each("dilation"))]
        taps = product(*(range(size) for size in layer.kernel))
        self._offsets = [sum(t * step for t, step in zip(tap, steps, strict=True)) for tap in taps]

    def __call__(self, rows: slice) -> Tensor:
        """``(K, b, o, c)``, a buffer that the next call overwrites."""
        x, d = self._layer.inputs[rows], self._layer.output_gradients[rows]
        self._inner_image[: len(x)].copy_(x.movedim(1, -1))
        self._inner_d[: len(x)].copy_(d)
        length = self._d.shape[2]
        for products, offset in zip(self._products, self._offsets, strict=True):
            torch.bmm(self._d[: len(x)], self._pixels[: len(x), offset : offset + length], out=products[: len(x)])
        return self._products[:, : len(x)]
