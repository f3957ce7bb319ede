"""Can one ReLU that never fires be learned, and by which method?"""

from __future__ import annotations

import logging
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from tables import table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cl_diffusion.callbacks import L2Init, SelfNormalizedResets


def single_relu_table() -> str:
    """One ReLU, x ~ U[-1, 1] and a bias, from where it never fires; and a fresh one, for comparison."""
    lines = []
    for name in _relus():
        found = single_relus(name, range(20))
        print(f"{name}: through", file=sys.stderr, flush=True)
        errors = [error for error, _ in found]
        learns, fires = sum(error < 1e-2 for error in errors), sum(alive for _, alive in found)
        lines.append([name, f"{fires} / 20", f"{learns} / 20", f"{statistics.median(errors):.2g}"])
    return table(["method", "fires in the end", "learns the target (error < 0.01)", "median error"], lines)


def single_relus(method: str, seeds: Sequence[int]) -> list[tuple[float, bool]]:
    """By seed, what a method of ``relu`` has come to: the squared error, and whether the unit fires."""
    return [_one_relu(seed, *_relus()[method]()) for seed in seeds]


def _relus() -> dict[str, Callable[[], tuple[list[Any], float, bool]]]:
    """By method: callbacks, weight decay, and whether the unit is dead at first."""
    return {
        "none": lambda: ([], 0.0, True),
        "L2": lambda: ([], 1e-2, True),
        "L2 towards the initial weights": lambda: ([L2Init(1e-2)], 0.0, True),
        "Self-Normalized Resets": lambda: ([SelfNormalizedResets(initial_age=640)], 0.0, True),
        "none, from a fresh unit": lambda: ([], 0.0, False),
    }


class _Single(LightningModule):
    """A ReLU, where it never fires or fresh, that is to become another: ``relu(slope x + offset)``."""

    def __init__(self, slope: float, offset: float, decay: float, dead: bool) -> None:
        super().__init__()
        self.slope, self.offset, self.decay = slope, offset, decay
        self.unit = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1, bias=False))
        if dead:
            with torch.no_grad():
                self.unit[0].weight.fill_(-1.0)
                self.unit[0].bias.fill_(-2.0)
                self.unit[2].weight.fill_(1.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.error(batch[0])

    def error(self, x: Tensor) -> Tensor:
        """The mean square."""
        loss: Tensor = (self.unit(x) - (self.slope * x + self.offset).relu()).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, weight_decay=self.decay)


def _one_relu(seed: int, callbacks: list[Any], decay: float, dead: bool) -> tuple[float, bool]:
    """The squared error after 32,000 examples, and whether the unit fires for any of them."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    generator = torch.Generator().manual_seed(seed)
    slope, offset = float(torch.randn(1, generator=generator).abs()) + 0.5, float(torch.rand(1, generator=generator))
    torch.manual_seed(seed)
    x = 2 * torch.rand(32_000, 1, generator=generator) - 1
    model = _Single(slope, offset, decay, dead)
    for callback in callbacks:
        callback.seed = seed
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=callbacks, enable_checkpointing=False, **quiet)
    trainer.fit(model, DataLoader(TensorDataset(x), batch_size=16))
    with torch.no_grad():
        return float(model.error(x)), bool((model.unit[:2](x) > 0).any())
