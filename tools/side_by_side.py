"""Alternatives timed in turns on one machine: medians, ratios, peak memory, and what it was measured on."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Versions, processor, threads and accelerator."""
    processor = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": processor[0].split(":")[1].strip() if processor else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "lightning", "diffusers")},
    }


def alternating(
    alternatives: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Median seconds and peak memory of each alternative, all of them run once a round after one round of warming up.

    ``extra_mib`` is the most memory held above what was held before, in the first round, which is not timed: of the
    process on a CPU, as sampled every few milliseconds; of torch's allocator on a GPU.
    """
    extra = {name: _peak_bytes(run, device) / 2**20 for name, run in alternatives.items()}
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(rounds):
        for name, run in alternatives.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "seconds": statistics.median(taken),
            "fastest": min(taken),
            "slowest": max(taken),
            "extra_mib": extra[name],
        }
        for name, taken in seconds.items()
    }


def _peak_bytes(run: Callable[[], object], device: torch.device) -> float:
    """The most memory held while ``run`` runs, above what was held before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(OSError, AttributeError):  # without glibc, memory freed earlier is counted as held
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, peak, stop = _resident(), [0], threading.Event()

    def sample() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], _resident() - before)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        run()
    finally:
        stop.set()
        sampler.join()
    return peak[0]


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
