"""A small classifier of the real data, trained once and cached, whose opinion and features judge generated images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cl_diffusion.whole_files import written_whole

Track = Callable[[Iterable[Any], str], Iterable[Any]]


class ReferenceClassifier(nn.Module):
    """Three convolutions and a penultimate layer of ``num_features``; images in [-1, 1].

    It is a yardstick for one data set, not a standard: its Frechet distance is comparable between models judged by the
    same classifier, and with nothing else.

    Args:
        channels: of the images.
        num_classes: labels it tells apart.
        num_features: width of the penultimate layer, the features of the Frechet distance.
    """

    def __init__(self, channels: int, num_classes: int, num_features: int = 64) -> None:
        super().__init__()
        self.num_features = num_features
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, stride=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 64, num_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of images ``(B, C, H, W)``."""
        logits: Tensor = self.head(self.features(images))
        return logits


@dataclass(frozen=True)
class TrainedReference:
    """The classifier, in evaluation mode, with what it is worth.

    ``digest`` is of all its data and settings; ``origin`` says where its weights are from, which differ in their last
    digits between machines and numbers of threads.
    """

    classifier: ReferenceClassifier
    held_out_accuracy: float
    origin: Literal["trained now", "from the cache", "from the checkpoint"]
    digest: str

    @property
    def weights(self) -> dict[str, Tensor]:
        """On the CPU."""
        return {name: tensor.detach().cpu() for name, tensor in self.classifier.state_dict().items()}

    @property
    def weights_digest(self) -> str:
        """Equal where classifiers are the same to the bit."""
        every = (tensor.contiguous().numpy().tobytes() for tensor in self.weights.values())
        return hashlib.sha256(b"".join(every)).hexdigest()[:20]


def trained_reference(
    training: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    steps: int = 1500,
    batch_size: int = 64,
    seed: int = 0,
    cache: Path | None = None,
    track: Track | None = None,
    known: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> TrainedReference:
    """The reference classifier of these images: known, else from the cache if they have been seen before, else trained.

    The cache's key is a digest of the training images, their labels and every setting below, so another data set, size
    or split is another classifier. Adam 1e-3 with a cosine decay, all randomness from ``seed``; torch's global random
    state is left as found.

    Args:
        training: images ``(N, C, H, W)`` in [-1, 1] and labels ``(N,)``.
        held_out: likewise, for the accuracy alone.
        steps: of training.
        batch_size: of training.
        seed: of initialisation and order.
        cache: folder; by default ``$CL_DIFFUSION_CACHE``, else ``~/.cache/cl_diffusion``.
        track: progress of the steps.
        known: by ``digest``, the weights of classifiers that have judged before, as a checkpoint has them.

    Raises:
        ValueError: the cached file is not such a classifier.
    """
    images, labels = training
    classes = int(torch.cat([labels, held_out[1]]).max()) + 1
    digest = hashlib.sha256(f"{steps} {batch_size} {seed} {classes} {tuple(images.shape)}".encode())
    digest.update(images.cpu().contiguous().numpy().tobytes())
    digest.update(labels.cpu().contiguous().numpy().tobytes())
    name = digest.hexdigest()[:20]
    path = (cache or default_cache()) / f"reference_classifier_{name}.safetensors"
    judged = digest.copy()
    for part in held_out:
        judged.update(part.cpu().contiguous().numpy().tobytes())
    of = judged.hexdigest()[:20]
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        classifier = ReferenceClassifier(images.shape[1], classes).to(images.device)
        origin: Literal["trained now", "from the cache", "from the checkpoint"]
        if known is not None and of in known:
            origin = "from the checkpoint"
            classifier.load_state_dict(known[of])
        elif path.is_file():
            origin = "from the cache"
            _load(classifier, path, images.device)
        else:
            origin = "trained now"
            _train(classifier, images, labels, steps, batch_size, track)
            _save(classifier, path)
    classifier.eval().requires_grad_(False)
    return TrainedReference(classifier, accuracy(classifier, *held_out), origin, of)


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images, in [0, 1], whose highest logit is their label."""
    hits = [(classifier(x).argmax(1) == y).sum() for x, y in zip(images.split(512), labels.split(512), strict=True)]
    return float(torch.stack(hits).sum()) / len(labels)


def default_cache() -> Path:
    """``$CL_DIFFUSION_CACHE``, else ``~/.cache/cl_diffusion``."""
    return Path(os.environ.get("CL_DIFFUSION_CACHE") or Path.home() / ".cache" / "cl_diffusion")


def _train(
    classifier: ReferenceClassifier, images: Tensor, labels: Tensor, steps: int, batch_size: int, track: Track | None
) -> None:
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.randperm(len(images))
    position = 0
    for _ in track(range(steps), "reference classifier") if track else range(steps):
        if position + batch_size > len(order):
            order, position = torch.randperm(len(images)), 0
        rows = order[position : position + batch_size].to(images.device)
        position += batch_size
        loss = nn.functional.cross_entropy(classifier(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()


def _load(classifier: ReferenceClassifier, path: Path, device: torch.device) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        classifier.load_state_dict(load_file(path, device=str(device)))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"the cached reference classifier {str(path)!r} is none ({type(error).__name__}: {error}); remove the "
            "file, and it is trained anew"
        ) from error


def _save(classifier: ReferenceClassifier, path: Path) -> None:
    """In one move: another run may be writing the same file."""
    from safetensors.torch import save_file

    with written_whole(path) as partial:
        save_file(classifier.state_dict(), partial)
