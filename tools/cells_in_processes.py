"""Cells of a matrix in processes beside each other, each on a core or GPU of its own."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import torch
from cells import FINISHED, Cell
from presets import Preset
from runs import started, without_remains


class CellsInProcesses:
    """Cells in parallel processes, each on a core or GPU of its own.

    Args:
        preset: what they have in common.
        extra: further arguments of every fit.
        out: folder of all.
        jobs: cells at a time; None: one a GPU, else one a core.
    """

    def __init__(self, preset: Preset, extra: Sequence[str], out: Path, jobs: int | None) -> None:
        self.preset, self.extra, self.out = preset, extra, out
        self.free: Queue[Mapping[str, str]] = Queue()
        for slot in _slots(jobs):
            self.free.put(slot)
        self.running: set[subprocess.Popen[bytes]] = set()

    def run(self, cells: Sequence[Cell]) -> list[Cell]:
        """Every cell that is not finished; returns those that failed. Interrupted, it takes the running ones along."""
        waiting = [cell for cell in cells if not cell.finished(self.preset, self.extra, self.out)]
        pool = ThreadPoolExecutor(self.free.qsize())
        try:
            done = list(pool.map(self._fit, waiting))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            self._stop()
            raise
        return [cell for cell, finished in zip(waiting, done, strict=True) if not finished]

    def _stop(self) -> None:
        """End what is running: politely, then for good; either way its last checkpoint is there to go on from."""
        running = list(self.running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def _fit(self, cell: Cell) -> bool:
        slot = self.free.get()
        try:
            done = self._process(cell, slot) == 0
        finally:
            self.free.put(slot)
        if done:
            identity = json.dumps(cell.identity(self.preset, self.extra), indent=1)
            (cell.folder(self.out) / FINISHED).write_text(identity)
        print(f"{'finished' if done else 'FAILED  '} {cell.name}, seed {cell.seed}", flush=True)
        if not done:
            print(f"         {_last_line(cell.log(self.out))}", flush=True)
        return done

    def _process(self, cell: Cell, environment: Mapping[str, str]) -> int:
        """Fit, from the start or from the newest checkpoint; the exit code."""
        folder = cell.folder(self.out)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{cell.name}, seed {cell.seed} is being run by another process", flush=True)
                return 1
            return self._locked(cell, environment, lock.fileno())

    def _locked(self, cell: Cell, environment: Mapping[str, str], lock: int) -> int:
        """The process inherits the lock, and holds it even where it outlives this one."""
        without_remains(cell.folder(self.out))
        command = cell.command(self.preset, self.extra, self.out)
        process = started(command, cell.log(self.out), environment, pass_fds=[lock])
        self.running.add(process)
        try:
            return process.wait()
        finally:
            self.running.discard(process)


def _slots(jobs: int | None) -> list[dict[str, str]]:
    """The environment of each process that runs at the same time."""
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return [{"CUDA_VISIBLE_DEVICES": visible[number % gpus]} for number in range(jobs or gpus)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // (jobs or cores)))
    return [{"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} for _ in range(jobs or cores)]


def _last_line(log: Path) -> str:
    """What a process said last."""
    lines = [line for line in log.read_text().splitlines() if line.strip()] if log.exists() else []
    return lines[-1][:300] if lines else ""
