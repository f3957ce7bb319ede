"""gmumcl, by its plugins and its trainer."""

from __future__ import annotations

from typing import Any

import problem

# isort: split
# lines: every
from gmumcl.cl.baselines import build
from gmumcl.cl.plugin import MethodPluginABC
from gmumcl.cl.scenarios import TaskData
from gmumcl.cl.trainer import Trainer, TrainerConfig

# end


def train(job: problem.Job, model: Any, stream: list[problem.Task], watch: problem.Watch) -> None:
    """Its trainer runs the whole stream."""
    plugin = plugin_of(job)
    if job.method in ("ewc", "mas"):
        plugin.on_task_end = watch.passes(plugin.on_task_end)
    plugins = [plugin, Boundaries(watch)]
    # lines: every
    model.expand_head = lambda classes: None
    tasks = []
    for number, task in enumerate(stream):
        loader = task.loader()
        tasks.append(TaskData(number, task.classes, loader, loader, loader))
    config = TrainerConfig(epochs=job.epochs, lr=problem.LEARNING_RATE, optimizer="adam", seed=job.seed)
    Trainer(model, plugins, config).run(tasks)
    # end


def plugin_of(job: problem.Job) -> Any:
    """By its name there; of its two EWCs the one that keeps the importance of every task."""
    if job.method == "fine-tuning":
        # lines: fine-tuning
        return build("naive")
        # end
    if job.method == "ewc":
        # lines: ewc
        return build("online_ewc", {"lambda": job.strength})
        # end
    if job.method == "si":
        # lines: si
        return build("si", {"lambda": job.strength})
        # end
    if job.method == "mas":
        # lines: mas
        return build("mas", {"lambda": job.strength})
        # end
    # lines: lwf
    return build("lwf", {"lambda": job.strength, "temperature": 2.0})
    # end


class Boundaries(MethodPluginABC):
    """Measures between tasks, and leaves the trainer's own evaluations out of the time."""

    def __init__(self, watch: problem.Watch) -> None:
        super().__init__()
        self.watch = watch

    def setup_task(self, task_id: int, task: Any = None) -> None:
        """Its evaluations are over."""
        self.watch.start()

    def on_task_end(self, task_id: int, task: Any) -> None:
        """Its evaluations begin."""
        self.watch.task_learned()


if __name__ == "__main__":
    problem.run("gmumcl", train, "gmumcl", "torch")
