"""A fit that can be killed in a part of it that is asked for: it says in a file which part it has begun.

python tools/chaos_fit.py FILE fit --run=FOLDER ...

is what ``tools/chaos.py`` starts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from chaos_stream import words


class Fit:
    """A fit in a process group of its own, which says in a file what it is doing."""

    def __init__(self, run: Path, processes: int) -> None:
        self.said = run.with_suffix(".parts")
        self.said.write_text("start\n")
        command = [sys.executable, __file__, str(self.said), *words(run, processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with run.with_suffix(".log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    @property
    def ended(self) -> bool:
        """Whether it has, by itself."""
        return self.process.poll() is not None

    def entered(self) -> list[str]:
        """The parts that were begun so far, in order."""
        return self.said.read_text().split()

    def end(self, number: int) -> int:
        """Send a signal to all of the group, and wait for the end; the exit code."""
        os.killpg(self.process.pid, number)
        code = self.process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # of several processes, those that the first leaves behind
        return code


def fit(said: Path, arguments: list[str]) -> None:
    """The command line, whose parts are noted as they begin; nothing else about them is changed."""
    from cl_diffusion import cli
    from cl_diffusion.callbacks import EWC, ContinualMetrics, task_checkpoint
    from cl_diffusion.data import GenerativeReplay
    from cl_diffusion.modules.distilled_ddpm import DistilledDDPM

    log = os.open(said, os.O_WRONLY | os.O_APPEND)

    def noted(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def noting(*given: Any, **named: Any) -> Any:
            os.write(log, f"{part}\n".encode())
            return function(*given, **named)

        return noting

    noting: tuple[tuple[Any, str, str], ...] = (
        (DistilledDDPM, "training_step", "step"),
        (EWC, "on_task_end", "pass"),
        (ContinualMetrics, "on_task_end", "pass"),
        (GenerativeReplay, "_draw", "replay"),
        (task_checkpoint, "write_checkpoint", "checkpoint"),
    )
    for owner, name, part in noting:
        setattr(owner, name, noted(part, getattr(owner, name)))
    cli.main(arguments)


if __name__ == "__main__":
    fit(Path(sys.argv[1]), sys.argv[2:])
