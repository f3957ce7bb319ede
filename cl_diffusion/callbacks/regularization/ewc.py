"""Elastic weight consolidation over any importance estimator."""

from __future__ import annotations

from typing import Literal

from typing_extensions import override

from cl_diffusion.callbacks.regularization.estimated import EstimatedImportance
from cl_diffusion.callbacks.regularization.regularizer import Mode
from cl_diffusion.callbacks.regularization.strength import Strength
from cl_diffusion.callbacks.regularization.task_samples import TaskSamples
from cl_diffusion.fisher import FisherEstimator
from cl_diffusion.linalg import Memory


class EWC(EstimatedImportance):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, 1612.00796): importance is a Fisher of the old task.

    At the end of each task ``fisher`` is estimated on that task's own training samples, without replay, at the raw
    weights. The module offers ``per_sample_loss(batch) -> (B,)`` (or ``output_loss``, an ``OutputLoss``, where the
    estimator looks at outputs) and, where its loss draws random numbers, ``draw(batch, keys) -> batch``. A module that
    has only a ``training_step`` is asked for its loss on batches of one, which takes long.

    Args:
        fisher: the importance estimator, for example ``DiagonalFisher()`` or ``MeanGradientFisher()``.
        strength: ``lambda`` of ``lambda/2 (theta - theta_k)^T F_k (theta - theta_k)``, a weight on this estimator's
            matrix; ``"auto"`` carries over between estimators. See ``Regularizer``.
        seed: of the draws of timestep and noise.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).
        name: in the log and in checkpoints; two of these in one Trainer need two names.
        mode: ``"gradient"`` or ``"proximal"``; see ``Regularizer``.
        memory: ``"merged"``, ``"separate"`` or ``"online"``; see ``Regularizer``.
        gamma: of the online memory.
        max_rank: low-rank terms keep so many eigenvalues.
        samples: which samples ``fisher`` is estimated on; None is the task's own. ``OtherTask()`` and ``PureNoise()``
            are controls: what holds as well with them does not remember the task.
    """

    boundary_phase = "fisher"

    def __init__(
        self,
        fisher: FisherEstimator,
        strength: float | Literal["auto"] | Strength = 1.0,
        seed: int = 0,
        epochs_per_task: int | None = None,
        name: str = "ewc",
        mode: Mode = "gradient",
        memory: Memory = "merged",
        gamma: float | None = None,
        max_rank: int | None = None,
        samples: TaskSamples | None = None,
    ) -> None:
        if not isinstance(fisher, FisherEstimator):
            raise TypeError(f"fisher={fisher!r}; expected an estimator, such as DiagonalFisher()")
        super().__init__(
            fisher,
            strength,
            name,
            epochs_per_task,
            seed=seed,
            samples=samples,
            mode=mode,
            memory=memory,
            gamma=gamma,
            max_rank=max_rank,
        )
        self.fisher = fisher

    @override
    def excluding(self, names: list[str]) -> str:
        return f"{type(self.fisher).__name__}(exclude={names})"
