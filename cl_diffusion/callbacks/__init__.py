"""Callbacks for any Lightning project; adapters over the rooms below."""

from cl_diffusion.callbacks.diagnostics.continual_metrics import ContinualMetrics
from cl_diffusion.callbacks.regularization.ewc import EWC
from cl_diffusion.callbacks.regularization.regularizer import Regularizer
from cl_diffusion.callbacks.task import TaskCallback
from cl_diffusion.callbacks.task_checkpoint import TaskCheckpoint

__all__ = ["EWC", "ContinualMetrics", "Regularizer", "TaskCallback", "TaskCheckpoint"]
