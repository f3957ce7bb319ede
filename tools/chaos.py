"""Is a fit that is killed and resumed the uninterrupted one?

    python tools/chaos.py --kills 30 --out runs/chaos
    python tools/chaos.py --kills 30 --signals TERM USR1 --out runs/chaos_signals
    python tools/chaos.py --kills 8 --processes 2 --out runs/chaos_two

A stream of the 8x8 digits with everything on (a rank-one EWC, generative distillation, Self-Normalized Resets, all
metrics, checkpoints every few steps) is fitted once without interruption. Then it is fitted again and again, killed at
a random moment of a random part: at a step, in a pass over a task's samples, while replay is drawn, while a checkpoint
is written, while it starts. After each kill the same command goes on (``--ckpt_path last``). What a finished fit comes
to is held against the first, bit for bit: weights, optimizer, callbacks, ``continual.csv``, ``plasticity.csv``.

Prints kills survived (a fit that was resumed and neither failed nor lost anything) by the part they fell in, and every
difference; the exit code is 1 where there is any.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from tables import table

ROOT = Path(__file__).parents[1]
PARTS = ("start", "step", "pass", "replay", "checkpoint")
FILES = ("base.yaml", "data/digits.yaml", "model/unet_8x8.yaml", "replay/distillation.yaml", "hardware/cpu.yaml")
SMALL: dict[str, Any] = {
    "model": {
        "init_args": {
            "network": {"init_args": {"block_out_channels": [8, 16], "norm_num_groups": 4, "dropout": 0.1}},
        }
    },
    "data": {
        "init_args": {
            "tasks": [[0, 1], [2, 3], [4, 5]],
            "classes": [0, 1, 2, 3, 4, 5],
            "classes_per_task": None,
            "epochs_per_task": 3,
            "batch_size": 32,
            "replay": {
                "class_path": "cl_diffusion.data.GenerativeReplay",
                "init_args": {
                    "images_per_class": 40,
                    "sampler": {
                        "class_path": "cl_diffusion.diffusion.samplers.DDIMSampler",
                        "init_args": {"steps": 10},
                    },
                },
            },
        }
    },
    "trainer": {
        "check_val_every_n_epoch": 3,
        "deterministic": True,
        "enable_progress_bar": False,
        "accumulate_grad_batches": 2,
        "callbacks": [
            {
                "class_path": "cl_diffusion.callbacks.ContinualMetrics",
                "init_args": {
                    "bands": "cl_diffusion.diffusion.SNRBands.by_quantile",
                    "images_per_class": 20,
                    "loss_draws": 2,
                    "sampler": {
                        "class_path": "cl_diffusion.diffusion.samplers.DDIMSampler",
                        "init_args": {"steps": 10},
                    },
                },
            },
            {"class_path": "cl_diffusion.callbacks.TaskCheckpoint", "init_args": {"every_n_steps": 2}},
            {"class_path": "cl_diffusion.callbacks.Preemption"},
            {
                "class_path": "cl_diffusion.callbacks.EWC",
                "init_args": {
                    "fisher": {"class_path": "cl_diffusion.fisher.MeanGradientFisher"},
                    "strength": 1500.0,
                },
            },
            {"class_path": "cl_diffusion.callbacks.SynapticIntelligence", "init_args": {"strength": 1.0}},
            {
                "class_path": "cl_diffusion.callbacks.SelfNormalizedResets",
                "init_args": {"variant": "counting", "threshold": 0.5},
            },
            {"class_path": "cl_diffusion.callbacks.PlasticityMetrics"},
            {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}},
        ],
    },
}
"""Small, and everything on."""


def words(run: Path, processes: int) -> list[str]:
    """Of the fit."""
    small = run.parent / "small.json"
    small.write_text(json.dumps(SMALL))
    files = [word for path in (*(ROOT / "configs" / name for name in FILES), small) for word in ("-c", str(path))]
    several = [f"--trainer.devices={processes}", "--trainer.strategy=ddp"] if processes > 1 else []
    return ["fit", *files, *several, f"--run={run}", "--ckpt_path=last"]


class Child:
    """A fit in a process group of its own, which says in a file what it is doing."""

    def __init__(self, run: Path, processes: int) -> None:
        self.said = run.with_suffix(".parts")
        self.said.write_text("start\n")
        command = [sys.executable, str(Path(__file__)), "--child", str(self.said), *words(run, processes)]
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


def child(said: Path, arguments: list[str]) -> None:
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


class Trial:
    """One fit that is killed again and again until it is through.

    Args:
        run: its folder.
        processes: of the fit.
        lasts: seconds that each part takes.
        chance: all draws are from it.
    """

    def __init__(self, run: Path, processes: int, lasts: Mapping[str, float], chance: random.Random) -> None:
        self.run, self.processes, self.lasts, self.chance = run, processes, lasts, chance
        self.kills: collections.Counter[tuple[str, str]] = collections.Counter()

    def go(self, kills: int, signals: Sequence[str]) -> str | None:
        """Until it is through; what went wrong, if anything."""
        while True:
            child = Child(self.run, self.processes)
            aim = self.chance.choice(PARTS) if sum(self.kills.values()) < kills else None
            name = self.chance.choice(signals)
            if aim is not None and self._reached(child, aim):
                number = signal.Signals[f"SIG{name}"]
                part = child.entered()[-1]
                code = child.end(number)
                if code not in (-number, 128 + number, 0):
                    return f"exit code {code} after SIG{name} in {part}"
                self.kills[part, name] += 1
                print(f"{self.run.name}: SIG{name} in {part}", flush=True)
                if code != 0:
                    continue
            elif (code := child.process.wait()) != 0:
                return f"exit code {code}, without being killed"
            return None

    def _reached(self, child: Child, part: str) -> bool:
        """Wait for a random moment of a part, one of the next few times that it is begun; False: it ended before."""
        wanted = self.chance.randint(1, 6 if part in ("step", "checkpoint") else 1)
        while child.entered().count(part) < wanted:
            if child.ended:
                return False
            time.sleep(0.001)
        time.sleep(self.lasts[part] * self.chance.random())
        return not child.ended


def durations(run: Path, processes: int) -> dict[str, float]:
    """Fit without interruption; the seconds of each part, roughly: until the next one begins."""
    child, seen, lasts = Child(run, processes), 0, collections.defaultdict(list)
    began = time.monotonic()
    while not child.ended:
        if len(parts := child.entered()) > seen + 1:
            lasts[parts[seen]].append(time.monotonic() - began)
            seen, began = len(parts) - 1, time.monotonic()
        time.sleep(0.001)
    if child.process.returncode:
        sys.exit(f"chaos.py: the fit without interruption failed: see {run.with_suffix('.log')}")
    return {part: sorted(lasts[part])[len(lasts[part]) // 2] for part in PARTS}


def outcome(run: Path) -> dict[str, Any]:
    """All that a finished fit has come to."""
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    tables = {name: (run / name).read_text() for name in ("continual.csv", "plasticity.csv")}
    return {**tables, **{name: checkpoint[name] for name in ("state_dict", "optimizer_states", "callbacks")}}


def differences(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """Where two outcomes are not the same, bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if (key in one) != (key in other):
                yield f"{name}/{key}: in one alone"
            else:
                yield from differences(one[key], other[key], f"{name}/{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for position, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{name}/{position}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or not torch.equal(one, other):
            yield name
    elif one != other and not (one != one and other != other):  # NaN is itself
        yield f"{name}: {str(one)[:80]!r} and {str(other)[:80]!r}"


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--each", type=int, default=10, help="kills of one fit")
    parser.add_argument("--signals", nargs="+", default=["KILL"], choices=("KILL", "TERM", "USR1"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    given = parser.parse_args()
    if given.out.exists():
        sys.exit(f"chaos.py: error: --out {given.out} exists; name a new folder")
    given.out.mkdir(parents=True)
    lasts = durations(given.out / "whole", given.processes)
    expected, chance = outcome(given.out / "whole"), random.Random(given.seed)
    print("seconds of a part:", {part: round(seconds, 3) for part, seconds in lasts.items()}, flush=True)
    kills: collections.Counter[tuple[str, str]] = collections.Counter()
    wrong: list[str] = []
    survived = 0
    while (left := given.kills - sum(kills.values())) > 0:
        trial = Trial(
            given.out / f"trial_{len(list(given.out.glob('trial_*.log'))) + 1}", given.processes, lasts, chance
        )
        failed = trial.go(min(left, given.each), given.signals)
        found = [failed] if failed else list(differences(expected, outcome(trial.run)))
        kills += trial.kills
        survived += 0 if failed else sum(trial.kills.values())
        wrong += [f"{trial.run.name}: {each}" for each in found]
        print(
            f"{trial.run.name}: through after {sum(trial.kills.values())} kills, {len(found)} differences", flush=True
        )
        if failed:
            break
    rows = [[part, *(str(kills[part, name]) for name in given.signals)] for part in PARTS]
    print(table(["killed in", *(f"SIG{name}" for name in given.signals)], rows))
    print(*wrong, sep="\n")
    print(f"{sum(kills.values())} kills, {survived} survived, {len(wrong)} differences")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
