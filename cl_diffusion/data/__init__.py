"""Data sets as ordered lists of tasks, and what is replayed of old ones."""

from cl_diffusion.data.buffer import ClassBalancedBuffer, ReservoirBuffer
from cl_diffusion.data.changing import ChangingDataModule, SparseVectors
from cl_diffusion.data.datamodule import TaskDataModule
from cl_diffusion.data.generative_replay import GenerativeReplay
from cl_diffusion.data.images import ImageFormat
from cl_diffusion.data.mixed_replay import MixedReplay
from cl_diffusion.data.replay import ReplayDataModule
from cl_diffusion.data.replay_source import ReplaySource
from cl_diffusion.data.sampler import KeyedSampler, ResumableLoader
from cl_diffusion.data.schedule import TaskSchedule
from cl_diffusion.data.tasks import TaskSplit

__all__ = [
    "ChangingDataModule",
    "ClassBalancedBuffer",
    "GenerativeReplay",
    "ImageFormat",
    "KeyedSampler",
    "MixedReplay",
    "ReplayDataModule",
    "ReplaySource",
    "ReservoirBuffer",
    "ResumableLoader",
    "SparseVectors",
    "TaskDataModule",
    "TaskSchedule",
    "TaskSplit",
]
