"""What a penalty is at a boundary, and what it does at one step, in figures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from cl_diffusion.callbacks.regularization.optimizer_step import OptimizerStep
from cl_diffusion.linalg import Operator, Penalty, parameters


@torch.no_grad()
def step_figures(penalty: Penalty, step: OptimizerStep, strength: float) -> dict[str, Tensor]:
    """Penalty, displacements, and how the penalty's gradient compares with the task's over this optimizer's parameters.

    ``penalty``: ``lambda`` times the sum of the terms. ``gradient_ratio``: norm of the penalty's gradient over norm of
    the task's. ``cosine`` between the two. ``displacement``: ``|theta - anchor|``, one for each anchor that is kept.
    The task's gradient is the accumulated one, unscaled and not clipped. The cosine is 0 where the penalty's gradient
    is, as at an anchor.
    """
    weights, task = step.weights, step.gradients
    terms = penalty.working(weights)
    value = torch.stack([term.value(weights) for term in terms]).sum()
    figures = {"strength": torch.tensor(strength), "penalty": strength * value}
    for position, term in enumerate(terms):
        suffix = f"_{position + 1}" if len(terms) > 1 else ""
        figures[f"displacement{suffix}"] = parameters.norm(term.displacement(weights))
    own = {name: torch.zeros_like(weights[name]) for name in step.trained if name in penalty.names}
    if not own:
        return figures
    penalty.add_gradient_(own, weights, strength)
    both = [name for name in own if name in task and not task[name].is_sparse]
    dense = {name: g.coalesce().values() if g.is_sparse else g for name, g in task.items()}
    task_norm, own_norm = parameters.norm(dense) / step.scale, parameters.norm(own)
    along = parameters.inner(parameters.select(task, both), parameters.select(own, both)) / step.scale if both else 0.0
    cosine = along / (own_norm * task_norm)
    suffix = f"/optimizer_{step.position + 1}" if step.several else ""
    figures[f"gradient_ratio{suffix}"] = own_norm / task_norm
    figures[f"cosine{suffix}"] = torch.where(own_norm > 0, cosine, 0.0)
    return figures


def log_boundary(trainer: Trainer, name: str, operator: Operator, task: int, figures: Mapping[str, float]) -> None:
    """Log a task's importance: its own trace, what its estimator says of itself, and further figures, as ``name/...``.

    Straight to the loggers, for ``log`` is refused where a fit ends.
    """
    record = operator.provenance.record[-1] if operator.provenance.record else {}
    own = {key: value for key, value in record.items() if isinstance(value, float)}
    report = {"trace": float(operator.trace()), **own, **figures}
    for logger in trainer.loggers:
        named = {f"{name}/{key}": value for key, value in {"task": task + 1.0, **report}.items()}
        logger.log_metrics(named, step=trainer.global_step)
    described = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in report.items())
    estimator = operator.provenance.identity.get("estimator", operator.kind)
    rank_zero_info(f"{name}: importance of task {task + 1} ({estimator}): {described}")
