"""The stream of tasks, the network and the measurement that every library is given; nothing here knows any of them.

A library's script defines ``train(job, model, stream, watch)``, trains ``model`` on the tasks of ``stream`` in order,
calls ``watch.task_learned()`` after each, and ends in ``run("name", train, "package", ...)``. It is started with a list
of jobs as JSON, and prints one JSON line a job.
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES_PER_TASK = 2
BATCH_SIZE = 32
LEARNING_RATE = 2e-3
"""Of Adam, whose moments begin anew with each task in every library."""
MEMORY = 200
"""Images of old tasks that replay may keep."""


@dataclass(frozen=True)
class Job:
    """One training on the whole stream; ``strength`` is in the library's own units."""

    method: str
    seed: int
    strength: float | None
    epochs: int
    tasks: int = 5


@dataclass(frozen=True)
class Task:
    """The images of two classes, float32 ``(n, 1, 8, 8)`` in [-1, 1]."""

    classes: list[int]
    training: TensorDataset
    held_out: TensorDataset

    def loader(self) -> DataLoader[Any]:
        """Training batches; the last short one is kept."""
        return DataLoader(self.training, batch_size=BATCH_SIZE, shuffle=True)


def network() -> nn.Sequential:
    """Two hidden layers of 100, and all ten classes from the start."""
    layers = [nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The same for all."""
    return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)


def stream_of(job: Job) -> list[Task]:
    """A fifth of scikit-learn's digits is held out, by the seed; tasks are in the order of the labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(y)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(job.seed))
    tasks = []
    for first in range(0, CLASSES_PER_TASK * job.tasks, CLASSES_PER_TASK):
        classes = list(range(first, first + CLASSES_PER_TASK))
        parts = [rows[torch.isin(labels[rows], torch.tensor(classes))] for rows in (order[:1437], order[1437:])]
        tasks.append(Task(classes, *(TensorDataset(images[rows], labels[rows]) for rows in parts)))
    return tasks


@dataclass
class Watch:
    """Seconds of training and of importance passes, and the accuracies between tasks, which are not timed."""

    model: nn.Module
    stream: list[Task]
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    pass_seconds: float | None = None
    accuracy: list[list[float]] = field(default_factory=list)
    _since: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        """Training goes on."""
        self._since = time.perf_counter(), time.process_time()

    def task_learned(self) -> None:
        """Stop, measure every task so far, and go on."""
        self.seconds += time.perf_counter() - self._since[0]
        self.cpu_seconds += time.process_time() - self._since[1]
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            seen = self.stream[: len(self.accuracy) + 1]
            self.accuracy.append([accuracy(self.model, *task.held_out.tensors) for task in seen])
        self.model.train(training)
        self.start()

    def passes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its seconds counted as those of an importance pass."""

        def timed(*arguments: Any, **options: Any) -> Any:
            before = time.perf_counter()
            found = function(*arguments, **options)
            self.pass_seconds = (self.pass_seconds or 0.0) + time.perf_counter() - before
            return found

        return timed


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Among all ten classes."""
    return float((model(images).argmax(1) == labels).float().mean())


Train = Callable[[Job, nn.Module, "list[Task]", Watch], None]


def trained(job: Job, train: Train) -> dict[str, Any]:
    """What one job comes to; ``start`` tells of the first weights and the data whether they are the others'."""
    stream = stream_of(job)
    torch.manual_seed(job.seed)
    model = network()
    random.seed(job.seed)
    start = fingerprint([*model.parameters(), *(t for task in stream for t in task.training.tensors)])
    watch = Watch(model, stream)
    watch.start()
    train(job, model, stream, watch)
    return {
        **asdict(job),
        "accuracy": watch.accuracy,
        "seconds": watch.seconds,
        "cpu_seconds": watch.cpu_seconds,
        "pass_seconds": watch.pass_seconds,
        "peak_mib": peak_mib(),
        "start": start,
    }


def fingerprint(tensors: list[Any]) -> str:
    """Equal where the tensors are equal to the bit."""
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()[:12]


def peak_mib() -> float:
    """The most memory that this process has held; ``ru_maxrss`` begins with that of the process that started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 2**10


def run(library: str, train: Train, *packages: str) -> None:
    """Do the jobs of the command line; one that fails says why, and the next is done.

    Two tasks of the first job, an epoch each, are trained beforehand and thrown away: what a library only loads or
    compiles once is no part of the seconds.
    """
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    jobs = [Job(**job) for job in json.loads(sys.argv[1])]
    known = {"library": library, "versions": versions, "idle_mib": peak_mib()}
    attempted(replace(jobs[0], epochs=1, tasks=2), train)
    for job in jobs:
        print(json.dumps({**known, **attempted(job, train)}), flush=True)


def attempted(job: Job, train: Train) -> dict[str, Any]:
    """What a job comes to, or why it did not."""
    try:
        return trained(job, train)
    except Exception as error:
        return {**asdict(job), "failed": f"{type(error).__name__}: {error}".splitlines()[0]}
