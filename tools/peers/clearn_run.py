"""clearn, by wrapping the network."""

from __future__ import annotations

from typing import Any

import problem
from torch import nn

# isort: split
# lines: every
import clearn

# end


def train(job: problem.Job, model: nn.Module, stream: list[problem.Task], watch: problem.Watch) -> None:
    """A ``fit`` a task."""
    wrapped = wrapped_for(job, model)
    if job.method == "ewc":
        wrapped.strategy.consolidate = watch.passes(wrapped.strategy.consolidate)
    # lines: every
    for task in stream:
        wrapped.fit(task.loader(), problem.optimizer(model), epochs=job.epochs)
        # end
        watch.task_learned()


def wrapped_for(job: problem.Job, model: nn.Module) -> Any:
    """Its replay is DER++; EWC's importance is of all samples of a task."""
    if job.method == "ewc":
        # lines: ewc
        return clearn.wrap(model, strategy="ewc", lambda_=job.strength, n_fisher_samples=10_000)
        # end
    if job.method == "si":
        # lines: si
        return clearn.wrap(model, strategy="si", c=job.strength)
        # end
    # lines: replay
    return clearn.wrap(model, strategy="der", buffer_size=problem.MEMORY)
    # end


if __name__ == "__main__":
    problem.run("clearn", train, "clearn-ai", "torch")
