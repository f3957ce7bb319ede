"""A process that raises in a pass at a boundary brings all of them down, with its message."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")

SCRIPT = """
import sys
import torch
from cl_diffusion.callbacks import EWC
from cl_diffusion.fisher import DiagonalFisher
from tests.callbacks.stranger import Regression, loader, trainer

class Faulty(Regression):
    def per_sample_loss(self, batch):
        if self.trainer.global_step == 3 and not self.training and self.global_rank == int(sys.argv[1]):
            raise ZeroDivisionError("a sample of the second share")
        return super().per_sample_loss(batch)

if __name__ == "__main__":
    torch.set_num_threads(1)
    callback = EWC(DiagonalFisher(), 1.0, epochs_per_task=1)
    trainer(callback, max_epochs=2, devices=2, strategy="ddp").fit(Faulty(), loader(0, samples=48))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_no_process_waits_for_one_that_raised(rank: int, tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, str(script), str(rank)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode != 0
    assert "ZeroDivisionError: a sample of the second share" in ended.stderr
    assert not [line for line in command_lines() if str(script) in line]


def command_lines() -> list[str]:
    """Of all processes, where the machine has them as files."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # one that has just ended
            lines.append(file.read_text().replace("\0", " "))
    return lines
