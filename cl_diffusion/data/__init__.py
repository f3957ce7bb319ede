"""Data sets as ordered lists of tasks."""

from cl_diffusion.data.datamodule import TaskDataModule
from cl_diffusion.data.images import ImageFormat
from cl_diffusion.data.sampler import KeyedSampler, ResumableLoader
from cl_diffusion.data.schedule import TaskSchedule
from cl_diffusion.data.tasks import TaskSplit

__all__ = ["ImageFormat", "KeyedSampler", "ResumableLoader", "TaskDataModule", "TaskSchedule", "TaskSplit"]
