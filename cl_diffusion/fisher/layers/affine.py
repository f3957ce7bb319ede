"""Per-sample gradients of linear layers and convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import grad
from typing_extensions import override

from cl_diffusion.fisher.layers.layer import CACHE, LayerGradients, in_single
from cl_diffusion.fisher.layers.shifted import ShiftedProducts
from cl_diffusion.linalg import Parameters

FEW_POSITIONS = 64
"""Up to so many, copying the patches costs less than one product a tap."""


class AffineGradients(LayerGradients):
    """Linear layers and convolutions (one group, zero padding): ``G_i = D_i U_i`` summed over positions.

    ``D_i`` holds sample i's output gradients, ``(o, L)``, and ``U_i`` its input patches, ``(L, K c)``: ``L`` positions,
    ``K`` kernel taps, ``c`` input channels.
    """

    @override
    def of(self, rows: slice) -> Parameters:
        result: Parameters = {}
        if "weight" in self.names:
            result[self.names["weight"]] = self._as_weight(self._products(len(self.inputs[rows]))(rows))
        if "bias" in self.names:
            result[self.names["bias"]] = self.positions(rows).sum(2)
        return result

    @override
    def summed_squares(self) -> Parameters:
        result: Parameters = {}
        if "weight" in self.names:
            result[self.names["weight"]] = self._summed_squares_of_weights()
        if "bias" in self.names:
            result[self.names["bias"]] = in_single(self.positions(slice(None)).sum(2)).square().sum(0)
        return result

    @override
    def weighted_sum(self, weights: Tensor) -> Parameters:
        result: Parameters = {}
        d = self.output_gradients * weights.view(-1, *[1] * (self.output_gradients.ndim - 1))
        if "weight" in self.names:
            result[self.names["weight"]] = self._summed_weights(d)
        if "bias" in self.names:
            axis = d.ndim - 1 if isinstance(self.module, nn.Linear) else 1
            result[self.names["bias"]] = d.sum([a for a in range(d.ndim) if a != axis])
        return result

    @override
    def bounds(self) -> dict[str, float]:
        size = float(torch.linalg.vector_norm(self.output_gradients))
        patches = float(torch.linalg.vector_norm(self.inputs)) * self.num_taps**0.5  # an entry is in K patches at most
        ones = (self.output_gradients.numel() / len(self.parameter("weight"))) ** 0.5
        return {name: size * (patches if local == "weight" else ones) for local, name in self.names.items()}

    @property
    def kernel(self) -> tuple[int, ...]:
        """The convolution's kernel; empty for a linear layer."""
        return tuple(self.parameter("weight").shape[2:])

    @property
    def num_taps(self) -> int:
        """``K``; 1 for a linear layer."""
        return math.prod(self.kernel)

    @property
    def num_positions(self) -> int:
        """``L``, outputs a sample and channel."""
        return self.output_gradients[0].numel() // len(self.parameter("weight"))

    def positions(self, rows: slice) -> Tensor:
        """``D``: ``(b, o, L)``."""
        d = self.output_gradients[rows]
        return d.reshape(len(d), -1, d.shape[-1]).mT if isinstance(self.module, nn.Linear) else d.flatten(2)

    def patches(self, rows: slice) -> Tensor:
        """``U``: ``(b, L, K c)``, channels fastest."""
        if isinstance(self.module, nn.Linear):
            x = self.inputs[rows]
            return x.reshape(len(x), -1, x.shape[-1])
        image, inner = self.empty_image(len(self.inputs[rows]))
        inner.copy_(self.inputs[rows].movedim(1, -1))
        if self.num_taps == 1 and set(self.each("stride")) == {1}:
            return image.flatten(1, -2)
        out, strides = self.output_gradients.shape[2:], image.stride()
        steps = [s * stride for s, stride in zip(self.each("stride"), strides[1:-1], strict=True)]
        taps = [s * stride for s, stride in zip(self.each("dilation"), strides[1:-1], strict=True)]
        size = (len(image), *out, *self.kernel, image.shape[-1])
        view = image.as_strided(size, (strides[0], *steps, *taps, strides[-1]))
        return view.reshape(len(image), math.prod(out), -1)

    def _summed_weights(self, d: Tensor) -> Tensor:
        """``sum_i D_i U_i``: the weight's part of an ordinary backward."""
        if isinstance(self.module, nn.Linear):
            return d.flatten(0, -2).T @ self.inputs.flatten(0, -2)
        of_weight = (grad.conv1d_weight, grad.conv2d_weight, grad.conv3d_weight)[len(self.kernel) - 1]
        shape, settings = self.parameter("weight").shape, [self.each(s) for s in ("stride", "padding", "dilation")]
        total: Tensor = of_weight(self.inputs, shape, d, *settings)  # type: ignore[no-untyped-call]
        return total

    def _summed_squares_of_weights(self) -> Tensor:
        weight, samples = self.parameter("weight"), len(self.inputs)
        if self.num_positions == 1:  # (d u^T)^2 = d^2 (u^2)^T
            d, u = in_single(self.positions(slice(None))[:, :, 0]), in_single(self.patches(slice(None))[:, 0])
            total = (d.square().T @ u.square())[None]
        else:
            step = min(samples, max(1, CACHE // (weight.numel() * weight.element_size())))
            products_of = self._products(step)
            total = torch.zeros((), device=weight.device, dtype=weight.dtype)
            for start in range(0, samples, step):
                squares = in_single(products_of(slice(start, start + step))).square_()
                ones = squares.new_ones(1, squares.shape[1])
                total = total + (ones @ squares.flatten(2)).view(len(squares), len(weight), -1)  # faster than a sum
        return self._as_weight(total[:, None])[0]

    def _products(self, samples: int) -> Callable[[slice], Tensor]:
        """``G_i`` of up to so many samples: ``(1, b, o, K c)`` or, where it is faster, taps first ``(K, b, o, c)``."""
        unit_stride = all(stride == 1 for stride in self.each("stride"))
        if self.num_taps > 1 and unit_stride and self.num_positions > FEW_POSITIONS:
            return ShiftedProducts(self, samples)
        return lambda rows: torch.bmm(self.positions(rows), self.patches(rows))[None]

    def _as_weight(self, products: Tensor) -> Tensor:
        """Either form of ``_products`` in the layout of the weight: ``(b, o, c, *kernel)``."""
        taps: Tensor = products.unflatten(3, (self.num_taps // len(products), -1)).movedim((0, 3), (3, 4))
        return taps.reshape(products.shape[1], *self.parameter("weight").shape)

    def empty_image(self, samples: int, tail: int = 0) -> tuple[Tensor, Tensor]:
        """Zeros ``(b, *size, c)``, and the part of them that is not padding.

        ``tail`` is so many more rows at the end of the first spatial axis.
        """
        padding, size = self.each("padding"), self.inputs.shape[2:]
        sizes = [length + 2 * width for length, width in zip(size, padding, strict=True)]
        sizes[0] += tail
        image = self.inputs.new_zeros((samples, *sizes, self.inputs.shape[1]))
        inner = image
        for axis, (width, length) in enumerate(zip(padding, size, strict=True)):
            inner = inner.narrow(axis + 1, width, length)
        return image, inner

    def each(self, setting: str) -> tuple[int, ...]:
        """A convolution's setting for each spatial axis; empty for a linear layer."""
        return getattr(self.module, setting, ())
