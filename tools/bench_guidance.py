"""Which covariance should a classifier's gradient be multiplied by? Guided images, by the scale of the guidance.

    python tools/bench_guidance.py runs/guided/checkpoints/last.ckpt --json guidance.json --picture guidance.png

The model is one that was trained with labels dropped (``configs/sampler/classifier_free.yaml``), and draws without. A
classifier of noisy images, trained here, moves the mean of each step by ``scale Sigma' grad log p(y | x_s)``, with
``Sigma'`` small, large or Analytic-DPM's multiple of the identity, or the full covariance, at an equal number of
network evaluations; the small one also at as few steps as the full one. Classifier-free guidance beside them; its
scale 0 draws without labels, 1 with them. Frechet distance to the held-out images of all classes, and class agreement,
by another classifier, of clean images; means over seeds, plus or minus the standard error.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from side_by_side import environment
from tables import table
from torch import Tensor, nn
from trained import Figures, TrainedModel, cells, draw_curves

from cl_diffusion.diffusion import NoiseSchedule
from cl_diffusion.diffusion.samplers import (
    AnalyticSampler,
    AncestralSampler,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DDIMSampler,
    GaussianSampler,
    LanczosGaussianSampler,
    NoiseStatistics,
    Sampler,
)
from cl_diffusion.metrics.reference_classifier import ReferenceClassifier

PRODUCTS = 2


class NoisyClassifier(nn.Module):
    """The reference classifier's network, for images at any level of noise; the level is one channel more."""

    def __init__(self, schedule: NoiseSchedule, channels: int, num_classes: int) -> None:
        super().__init__()
        self.schedule = schedule
        self.network = ReferenceClassifier(channels + 1, num_classes)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Logits ``(B, num_classes)``."""
        level = self.schedule.scales(t, like=x_t).signal.expand_as(x_t[:, :1])
        logits: Tensor = self.network(torch.cat([x_t, level], 1))
        return logits


def noisy_classifier(trained: TrainedModel, steps: int, batch_size: int = 128) -> NoisyClassifier:
    """Trained on the training images at uniform timesteps; Adam 1e-3 with a cosine decay, from one seed."""
    torch.manual_seed(0)
    schedule, (images, labels) = trained.denoiser.schedule, trained.training
    device = trained.denoiser.device
    classifier = NoisyClassifier(schedule, images.shape[1], int(labels.max()) + 1).to(device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (batch_size,))
        x0, y = images[rows].to(device), labels[rows].to(device)
        t = torch.randint(schedule.num_steps, (batch_size,), device=device)
        loss = nn.functional.cross_entropy(classifier(schedule.add_noise(x0, torch.randn_like(x0), t), t), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def accuracies(classifier: NoisyClassifier, trained: TrainedModel) -> str:
    """On held-out images, at a few levels of noise."""
    images, labels = (part.to(trained.denoiser.device) for part in trained.held_out)
    said = []
    for t in (0, 200, 400, 600, 800):
        when = torch.full((len(images),), t * classifier.schedule.num_steps // 1000, device=images.device)
        guessed = classifier(classifier.schedule.add_noise(images, torch.randn_like(images), when), when).argmax(1)
        said.append(f"{float((guessed == labels).double().mean()):.3f} at t/T = {t / 1000}")
    return ", ".join(said)


class Guided:
    """Every covariance at one scale, within a number of network evaluations."""

    def __init__(self, trained: TrainedModel, classifier: NoisyClassifier, budget: int) -> None:
        self.classifier, self.budget = classifier, budget
        unlabelled = trained.training[0]
        visited = DDIMSampler(budget).timesteps(trained.denoiser.schedule)
        generator = torch.Generator().manual_seed(1)
        gamma = NoiseStatistics.of(trained.denoiser, unlabelled, None, visited, generator)
        fewer = (budget + 1 + PRODUCTS) // (2 + PRODUCTS)  # one product more a step, of the gradient
        self.covariances: dict[str, GaussianSampler] = {
            "small": AncestralSampler(budget, "small"),
            "large": AncestralSampler(budget, "large", clip_pixel=2.0),
            "Analytic-DPM": AnalyticSampler(gamma, budget),
            f"full (Lanczos, k = {PRODUCTS})": LanczosGaussianSampler(fewer, PRODUCTS, clip_pixel=2.0),
            f"small, {fewer} steps": AncestralSampler(fewer, "small"),
        }

    def at(self, scale: float) -> dict[str, Sampler]:
        """By name."""
        guided: dict[str, Sampler] = {
            name: ClassifierGuidance(sampler, self.classifier, scale) for name, sampler in self.covariances.items()
        }
        return {**guided, "classifier-free (DDIM)": ClassifierFreeGuidance(DDIMSampler(self.budget // 2), scale)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of a model that was trained with label_dropout")
    parser.add_argument("--scales", nargs="+", type=float, default=[0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    parser.add_argument("--budget", type=int, default=50, help="network evaluations an image")
    parser.add_argument("--classifier-steps", type=int, default=1500)
    parser.add_argument("--images-per-class", type=int, default=100)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", help="a GPU if there is one by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    trained = TrainedModel(given.checkpoint, given.images_per_class, given.device)
    if trained.denoiser.null_class is None:
        parser.error(f"{given.checkpoint} was trained with every label; see configs/sampler/classifier_free.yaml")
    classifier = noisy_classifier(trained, given.classifier_steps)
    print(f"Accuracy of the guiding classifier: {accuracies(classifier, trained)}\n", flush=True)
    guided = Guided(trained, classifier, given.budget)
    found: dict[float, dict[str, Figures]] = {}
    for scale in given.scales:
        samplers = guided.at(scale)
        found[scale] = trained.measured(samplers, given.seeds)
        lines = [
            [f"{scale:g}", name, str(sampler.evaluations(trained.denoiser.schedule)), *cells(found[scale][name])]
            for name, sampler in samplers.items()
        ]
        head = ["scale", "covariance", "evaluations", "Frechet distance", "class agreement", "s per 1000 images"]
        print(f"{table(head, lines)}\n", flush=True)
    panels = {
        title: {name: {scale: of[name][key] for scale, of in found.items()} for name in next(iter(found.values()))}
        for title, key in {"class agreement": "class_agreement", "Frechet distance": "frechet_distance"}.items()
    }
    if given.picture:
        draw_curves(panels, "guidance scale", given.picture, from_zero=True)
    if given.json:
        given.json.write_text(json.dumps({"environment": environment(), "guidance": found}, indent=1))


if __name__ == "__main__":
    main()
