"""Avalanche, by its benchmark, its strategies and its ``train``."""

from __future__ import annotations

from typing import Any

import problem
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

# isort: split
# lines: every
from avalanche.benchmarks import nc_benchmark
from torch.nn import CrossEntropyLoss

# end


def train(job: problem.Job, model: nn.Module, stream: list[problem.Task], watch: problem.Watch) -> None:
    """A strategy, and one experience after the other."""
    splits = [Targeted([getattr(task, part) for task in stream]) for part in ("training", "held_out")]
    classes = [label for task in stream for label in task.classes]
    # lines: every
    options = {
        "model": model,
        "optimizer": problem.optimizer(model),
        "criterion": CrossEntropyLoss(),
        "train_mb_size": problem.BATCH_SIZE,
        "train_epochs": job.epochs,
        "evaluator": None,
    }
    # end
    strategy = strategy_of(job, options)
    for plugin in strategy.plugins:
        for name in ("compute_importances", "_get_importance"):
            if hasattr(plugin, name):
                setattr(plugin, name, watch.passes(getattr(plugin, name)))
    # lines: every
    benchmark = nc_benchmark(*splits, len(stream), task_labels=False, fixed_class_order=classes)
    for experience in benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=True)
        # end
        watch.task_learned()


def strategy_of(job: problem.Job, options: dict[str, Any]) -> Any:
    """By its class of the method's name."""
    if job.method == "fine-tuning":
        # lines: fine-tuning
        from avalanche.training.supervised import Naive

        return Naive(**options)
        # end
    if job.method == "ewc":
        # lines: ewc
        from avalanche.training.supervised import EWC

        return EWC(ewc_lambda=job.strength, **options)
        # end
    if job.method == "si":
        # lines: si
        from avalanche.training.supervised import SynapticIntelligence

        return SynapticIntelligence(si_lambda=job.strength, **options)
        # end
    if job.method == "mas":
        # lines: mas
        from avalanche.training.supervised import MAS

        return MAS(lambda_reg=job.strength, **options)
        # end
    if job.method == "lwf":
        # lines: lwf
        from avalanche.training.supervised import LwF

        return LwF(alpha=job.strength, temperature=2, **options)
        # end
    # lines: replay
    from avalanche.training.supervised import Replay

    return Replay(mem_size=problem.MEMORY, **options)
    # end


class Targeted(ConcatDataset[tuple[Tensor, int]]):
    """With the labels where Avalanche looks for them, and as whole numbers."""

    def __init__(self, parts: list[Any]) -> None:
        super().__init__(parts)
        self.targets = [int(label) for part in parts for label in part.tensors[1]]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return super().__getitem__(index)[0], self.targets[index]


if __name__ == "__main__":
    problem.run("Avalanche", train, "avalanche-lib", "torch")
