"""A small network on a frozen denoiser's features, that learns the diagonal of ``Cov[x0 | x_t]``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.loss import DrawnBatch
from cl_diffusion.diffusion.tweedie import Tweedie

Target = Literal["npr", "sn", "ocm"]


class Estimate(NamedTuple):
    """The denoiser's estimates, ``(B, C, H, W)``, and ``diag Cov[x0 | x_t] abar / (1 - abar)``, likewise, >= 0."""

    x0: Tensor
    noise: Tensor
    ratio: Tensor


class VarianceHead(nn.Module):
    """``h(x_t, t)``: three convolutions of the features that the denoiser's last layer reads.

    What it regresses, and ``r = diag Cov[x0 | x_t] abar / (1 - abar)`` by it, with ``eps`` the noise and ``epshat`` the
    denoiser's estimate of it:

    - ``"npr"``: ``(eps - epshat)^2``; ``r = h``, right also where ``epshat`` is not the mean (Bao et al. 2022,
      2206.07309);
    - ``"sn"``: ``eps^2``; ``r = h - epshat^2`` (likewise);
    - ``"ocm"``: ``(1 - abar) v * (H v)`` with random signs ``v`` and ``H`` the Hessian of ``log q_t`` as the denoiser
      has it; ``r = 1 + h`` (Ou et al. 2024, 2406.10808).

    All three have the same minimiser where the denoiser is exact. The head belongs to its denoiser and the data: after
    another task it is trained anew.

    Args:
        features: channels of the features.
        channels: of the images.
        target: what is regressed.
        layer: of the denoiser's network, by name; the head reads its first input, ``(B, features, H, W)``.
        width: channels of the hidden layers.

    Raises:
        ValueError: the target is unknown.
    """

    def __init__(
        self, features: int, channels: int, target: Target = "ocm", layer: str = "conv_out", width: int = 64
    ) -> None:
        super().__init__()
        if target not in get_args(Target):
            raise ValueError(f"target={target!r}; expected one of {', '.join(map(repr, get_args(Target)))}")
        self.target: Target = target
        self.layer = layer
        self.options = {
            "features": features,
            "channels": channels,
            "target": target,
            "layer": layer,
            "width": width,
        }
        self.body = nn.Sequential(
            nn.Conv2d(features, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )
        last = self.body[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)

    @classmethod
    def on(
        cls, network: nn.Module, channels: int, target: Target = "ocm", layer: str = "conv_out", width: int = 64
    ) -> VarianceHead:
        """A new head that reads what ``layer`` reads, a convolution of the network.

        Raises:
            ValueError: the network has no such layer, or it is not a convolution.
        """
        found = dict(network.named_modules()).get(layer)
        if not isinstance(found, nn.Conv2d):
            convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
            raise ValueError(
                f"layer={layer!r} of {type(network).__name__} is {type(found).__name__}; expected the name of a Conv2d "
                f"at the images' resolution, such as the last of {convolutions[-3:]}"
            )
        return cls(found.in_channels, channels, target, layer, width)

    def forward(self, features: Tensor) -> Tensor:
        """``h``, ``(B, C, H, W)``."""
        h: Tensor = self.body(features)
        return h

    def estimate(self, denoiser: Denoiser, x_t: Tensor, t: int, labels: Tensor | None) -> Estimate:
        """One evaluation of the denoiser, and the head's."""
        with captured(denoiser, self.layer) as features:
            x0, noise = denoiser.estimates_at(x_t, t, labels)
        with_labels = features[0][: len(x_t)]  # a guided denoiser has those without labels behind
        h = self(with_labels.to(next(self.parameters()).dtype)).to(x0)
        ratio = {"npr": h, "sn": h - noise.square(), "ocm": 1 + h}[self.target]
        return Estimate(x0, noise, ratio.clamp(min=0))

    def losses(self, denoiser: Denoiser, drawn: DrawnBatch, signs: Tensor) -> Tensor:
        """The squared error of each sample, ``(B,)``, mean over elements; ``signs`` are those of ``"ocm"``."""
        features, wanted = self.question(denoiser, drawn, signs)
        losses: Tensor = (self(features.to(wanted)) - wanted).square().flatten(1).mean(1)
        return losses

    def question(self, denoiser: Denoiser, drawn: DrawnBatch, signs: Tensor) -> tuple[Tensor, Tensor]:
        """The features at the noisy images, and what ``h`` of them should be, ``(B, C, H, W)``."""
        t, scales = drawn.timesteps, denoiser.schedule.scales(drawn.timesteps, like=drawn.images)
        x_t = denoiser.schedule.add_noise(drawn.images, drawn.noise, t)
        with captured(denoiser, self.layer) as features:
            if self.target == "ocm":
                tweedie = Tweedie(denoiser, x_t, t, drawn.labels)
                wanted = signs * tweedie.covariance(signs) * (scales.signal / scales.noise).square() - 1
            else:
                with torch.no_grad():
                    _, noise = denoiser.estimates_at(x_t, t, drawn.labels)
                wanted = drawn.noise.square() if self.target == "sn" else (drawn.noise - noise).square()
        return features[0].detach(), wanted.detach()

    def save(self, path: str | Path) -> None:
        """As safetensors, with what the head is."""
        from safetensors.torch import save_file

        save_file(self.state_dict(), path, metadata={"variance_head": json.dumps(self.options)})

    @classmethod
    def load(cls, path: str | Path) -> VarianceHead:
        """What ``save`` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                head = cls(**json.loads((file.metadata() or {})["variance_head"]))
                head.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{str(path)!r} holds no variance head ({type(error).__name__}: {error}); expected a file that "
                "VarianceHead.save wrote"
            ) from error
        return head


@contextmanager
def captured(denoiser: Denoiser, layer: str) -> Iterator[list[Tensor]]:
    """The first input of a layer of the denoiser's network, of each forward within."""
    seen: list[Tensor] = []
    module = denoiser.network.get_submodule(layer)
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()
