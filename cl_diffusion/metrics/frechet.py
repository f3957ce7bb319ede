"""The Frechet distance between two sets of images, in the features of a given network."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from cl_diffusion.processes import rank, world_size

INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


class FrechetDistance:
    """``|m_r - m_g|^2 + tr(S_r + S_g - 2 (S_r S_g)^{1/2})`` of real and generated features (1706.08500, eq. 6).

    torchmetrics' computation in float64 on the features of any network; the statistics of the real images are kept
    between calls. Only values in the features of the same network, from equally many images, may be compared.

    Where a default process group is initialised, every process is given all images and takes part: each has features of
    its share, and the statistics are summed.

    Args:
        features: a network from images ``(B, C, H, W)`` in [-1, 1] to ``(B, num_features)``.
        num_features: their width.
    """

    def __init__(self, features: nn.Module, num_features: int) -> None:
        extractor = _Extractor(features, num_features)
        self._metric = FrechetInceptionDistance(extractor, reset_real_features=False, sync_on_compute=False)

    def add_real(self, images: Tensor) -> None:
        """Images of the data set."""
        self._update(images, real=True)

    def __call__(self, generated: Tensor) -> float:
        """The distance of these images from the real ones.

        Raises:
            ValueError: fewer than two images on a side, or features so large or not finite that there is no distance.
        """
        self._metric.reset()
        for images in generated.split(512):
            self._update(images, real=False)
        with self._metric.sync_context():
            counts = self._metric.real_features_num_samples, self._metric.fake_features_num_samples
            real, drawn = (int(count) for count in counts)
            distance = float(self._metric.compute()) if min(real, drawn) >= 2 else math.nan
        if min(real, drawn) < 2:  # out of the context, which sums up anew what an error leaves summed
            raise ValueError(f"{real} real and {drawn} generated images; a covariance needs at least 2 of each")
        if not math.isfinite(distance):
            raise ValueError(
                f"the Frechet distance of {drawn} generated images from {real} real ones is {distance}; expected a "
                "finite number: look for images that are not finite or far out of [-1, 1]"
            )
        return distance

    def _update(self, images: Tensor, real: bool) -> None:
        mine = images[rank() :: world_size()]
        self._metric.to(images.device)
        if len(mine):
            self._metric.update(mine, real=real)


def inception_distance() -> FrechetDistance | None:
    """The Frechet distance in 2048 Inception features (FID), or None where the network is not on this machine.

    It needs the package torch-fidelity and its weights in torch's hub folder; nothing is downloaded.
    """
    weights = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS
    if find_spec("torch_fidelity") is None or not weights.is_file():
        return None
    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    return FrechetDistance(_InceptionInput(network), 2048)


class _Extractor(nn.Module):
    """What torchmetrics wants of a feature network."""

    def __init__(self, network: nn.Module, num_features: int) -> None:
        super().__init__()
        self.network = network
        self.num_features = num_features

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features


class _InceptionInput(nn.Module):
    """Images in [-1, 1] as the three bytes a pixel that Inception takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
        features: Tensor = self.network(pixels)
        return features
