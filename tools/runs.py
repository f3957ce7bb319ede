"""Runs of ``cl-diffusion`` that a tool starts, each in a process and a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cl_diffusion.cli.run_folder import newest_checkpoint

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def started(
    words: Sequence[str], log: Path, environment: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """The process of ``cl-diffusion`` with more in its environment; the command and its output end up in a file."""
    command = [sys.executable, "-m", "cl_diffusion.cli", *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        output.write(" ".join(command) + "\n")
        output.flush()
        whole = {**os.environ, **environment}
        return subprocess.Popen(command, stdout=output, stderr=output, env=whole, pass_fds=pass_fds)


def command_line(words: Sequence[str], log: Path) -> bool:
    """Run ``cl-diffusion`` on one thread, its output appended to a file; whether it went through."""
    with started(words, log, ONE_THREAD) as process:
        done = process.wait() == 0
    if not done:
        print(f"FAILED, see {log}: {words[0]}", flush=True)
    return done


def fit_words(run: Path, words: Sequence[str]) -> list[str]:
    """Of a ``fit`` into a folder, from its newest checkpoint where there is one."""
    newest = newest_checkpoint(run)
    resumed = [] if newest is None else [f"--ckpt_path={newest}"]
    return ["fit", *words, f"--run={run}", "--trainer.enable_progress_bar=false", *resumed]


def without_remains(run: Path) -> None:
    """Remove the folder of a fit that was stopped before its first checkpoint: nothing to go on from."""
    if run.exists() and newest_checkpoint(run) is None:
        shutil.rmtree(run)


def fitted(run: Path, words: Sequence[str]) -> bool:
    """A ``fit`` into a folder, unless it is done; from its newest checkpoint where it was interrupted.

    Raises:
        ValueError: the folder holds a run of other words.
    """
    marker, said = run / "finished", "\n".join(words)
    if marker.exists():
        if marker.read_text() != said:
            raise ValueError(f"{run} holds a run with other arguments; name another --out, or remove it")
        return True
    without_remains(run)
    if done := command_line(fit_words(run, words), run.with_suffix(".log")):
        marker.write_text(said)
        print(f"finished {run}", flush=True)
    return done
