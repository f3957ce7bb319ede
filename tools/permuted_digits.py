"""How much do EWC, Synaptic Intelligence, MAS and the like keep of a stream of permuted digits?

    python tools/permuted_digits.py --json permuted.json

A stock classifier (two hidden layers of 100, Adam at 1e-3) on scikit-learn's 8x8 digits, five tasks, each with a pixel
permutation of its own (the first has none) and all with the same ten classes; a Trainer called by hand once a task, so
that every ``fit`` is a task. What is said is the accuracy on held-out digits, averaged over the five tasks after the
last, and its difference from fine-tuning on the same seed, with the standard error over seeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from side_by_side import environment
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cl_diffusion.callbacks import EWC, L2SP, MAS, L2Init, Regularizer, SynapticIntelligence
from cl_diffusion.fisher import CrossEntropy, DiagonalFisher, KroneckerFisher, MeanGradientFisher, OutputLoss

TASKS = 5


class Classifier(LightningModule):
    """Anybody's classifier; ``per_sample_loss`` is what it adds for the sake of importances."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.net(x)
        return logits

    def per_sample_loss(self, batch: Any) -> Tensor:
        """Cross-entropy of each sample."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="none")

    @property
    def output_loss(self) -> OutputLoss:
        """The same, saying what its output is."""
        return OutputLoss(CrossEntropy())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The mean."""
        return self.per_sample_loss(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def digits(seed: int) -> list[tuple[TensorDataset, TensorDataset]]:
    """Training and held-out digits of each task."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    permutations = [torch.arange(64)] + [torch.randperm(64, generator=generator) for _ in range(TASKS - 1)]
    split = [order[:1437], order[1437:]]
    return [tuple(TensorDataset(images[rows][:, p], labels[rows]) for rows in split) for p in permutations]  # type: ignore[misc]


# Strengths are the best of a coarse sweep (factors of 3 to 10) on seed 100, which the table does not use.
METHODS: dict[str, Callable[[], Regularizer | None]] = {
    "fine-tuning": lambda: None,
    "EWC, diagonal": lambda: EWC(DiagonalFisher(), strength=100.0),
    "EWC, diagonal of the true Fisher": lambda: EWC(DiagonalFisher(residual="model"), strength=100.0),
    "EWC, diagonal, proximal": lambda: EWC(DiagonalFisher(), strength=1e5, mode="proximal"),
    "EWC, Kronecker": lambda: EWC(KroneckerFisher(), strength=100.0),
    "EWC, rank one": lambda: EWC(MeanGradientFisher(), strength=1e4),
    "Synaptic Intelligence": lambda: SynapticIntelligence(strength=10.0),
    "MAS": lambda: MAS(strength=0.03),
    "L2-SP": lambda: L2SP(strength=0.1, first_task=False),
    "L2-init": lambda: L2Init(strength=1e-3),
}


def accuracy(method: Callable[[], Regularizer | None], seed: int, epochs: int) -> float:
    """Averaged over all tasks, after the last."""
    seed_everything(seed, verbose=False)
    model, regularizer, stream = Classifier(), method(), digits(seed)
    for training, _ in stream:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[] if regularizer is None else [regularizer],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(training, batch_size=64, shuffle=True))
    model.eval()
    with torch.no_grad():
        hits = [(model(x).argmax(1) == y).float().mean() for _, held_out in stream for x, y in [held_out[:]]]
    return float(torch.stack(hits).mean())


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    found = {name: [accuracy(METHODS[name], s, options.epochs) for s in options.seeds] for name in options.methods}
    base = found.get("fine-tuning")
    for name, scores in found.items():
        line = f"{name:<34} {statistics.mean(scores):.3f}  ({', '.join(f'{score:.3f}' for score in scores)})"
        if base is not None and name != "fine-tuning" and len(scores) > 1:
            gains = [score - other for score, other in zip(scores, base, strict=True)]
            error = statistics.stdev(gains) / len(gains) ** 0.5
            line += f"  {statistics.mean(gains):+.3f} +- {error:.3f} over fine-tuning"
        print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "accuracy": found}, indent=2))


if __name__ == "__main__":
    main()
