"""Runs of ``cl-diffusion`` that a tool starts, each in a process and a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cl_diffusion.cli.run_folder import newest_checkpoint


def command_line(words: Sequence[str], log: Path) -> bool:
    """Run ``cl-diffusion`` on one thread, its output appended to a file; whether it went through."""
    command = [sys.executable, "-m", "cl_diffusion.cli", *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        output.write(" ".join(command) + "\n")
        output.flush()
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=output, stderr=output, env={**os.environ, **one}).returncode == 0
    if not done:
        print(f"FAILED, see {log}: {words[0]}", flush=True)
    return done


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
    newest = newest_checkpoint(run)
    if run.exists() and newest is None:
        shutil.rmtree(run)  # stopped before its first checkpoint: nothing to go on from
    resumed = [] if newest is None else [f"--ckpt_path={newest}"]
    options = [f"--run={run}", "--trainer.enable_progress_bar=false", *resumed]
    if done := command_line(["fit", *words, *options], run.with_suffix(".log")):
        marker.write_text(said)
        print(f"finished {run}", flush=True)
    return done
