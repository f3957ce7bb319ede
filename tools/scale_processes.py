"""What several processes send each other for a Fisher, counted, and how long they take, on gloo."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scale_growth import Growth
from torch import Tensor, nn

from cl_diffusion.fisher import DiagonalFisher, FisherEstimator, KroneckerFisher, MeanGradientFisher, estimate

ESTIMATORS: dict[str, Callable[[], FisherEstimator]] = {
    "diagonal": DiagonalFisher,
    "mean gradient": MeanGradientFisher,
    "Kronecker": KroneckerFisher,
}
SAMPLES = 64


def across(processes: Sequence[int], widths: Sequence[int]) -> list[Growth]:
    """Bytes that each process gives to all-reduces, by parameters; seconds of an estimate, by processes.

    Each process has the same number of samples and one thread; the seconds should not grow while there are cores.
    """
    with tempfile.TemporaryDirectory() as folder:
        for world in processes:
            mp.spawn(_process, (world, folder, tuple(widths)), nprocs=world)
        rows = [row for world in processes for row in json.loads((Path(folder) / f"{world}.json").read_text())]
    growths = []
    for name in ESTIMATORS:
        mine = [row for row in rows if row["estimator"] == name]
        sent = {row["parameters"]: row["bytes"] for row in mine if row["processes"] == max(processes)}
        largest = max(row["parameters"] for row in mine)
        taken = [(float(row["processes"]), row["seconds"]) for row in mine if row["parameters"] == largest]
        if max(processes) > 1 and len(sent) > 1:
            points = tuple((float(size), float(count)) for size, count in sent.items())
            growths.append(Growth(f"all-reduce: {name}", "bytes a process", "parameters", points))
        if len(taken) > 1:
            growths.append(Growth(f"estimate: {name}", f"s, {SAMPLES} samples each", "processes", tuple(taken)))
    return growths


def perceptron(width: int) -> nn.Module:
    """Two layers of ``width`` units."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """One entry a sample."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels, reduction="none")


def _process(rank: int, world: int, folder: str, widths: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
    rows = [_measured(name, width, rank, world) for name in ESTIMATORS for width in widths]
    if rank == 0:
        (Path(folder) / f"{world}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def _measured(name: str, width: int, rank: int, world: int) -> dict[str, Any]:
    """The faster of two estimates, after one of warming up, and what the last one sent."""
    torch.manual_seed(0)
    model = perceptron(width)
    torch.manual_seed(rank)
    batches = [(torch.randn(SAMPLES, width), torch.randint(10, (SAMPLES,)))]
    seconds = []
    for _ in range(3):
        dist.barrier()
        start = time.perf_counter()
        sent = _counted_bytes(lambda: estimate(ESTIMATORS[name](), model, loss, batches))
        seconds.append(time.perf_counter() - start)
    size = sum(parameter.numel() for parameter in model.parameters())
    return {"estimator": name, "parameters": size, "processes": world, "bytes": sent, "seconds": min(seconds[1:])}


def _counted_bytes(run: Callable[[], object]) -> int:
    """Of the tensors that ``run`` gives to ``all_reduce``; a ring sends ``2 (N - 1) / N`` times as many."""
    total, original = [0], dist.all_reduce

    def counting(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        total[0] += tensor.numel() * tensor.element_size()
        return original(tensor, *arguments, **options)

    dist.all_reduce = counting
    try:
        run()
    finally:
        dist.all_reduce = original
    return total[0]
