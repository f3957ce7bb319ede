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
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from chaos_fit import Fit
from tables import table

PARTS = ("start", "step", "pass", "replay", "checkpoint")


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
            fit = Fit(self.run, self.processes)
            aim = self.chance.choice(PARTS) if sum(self.kills.values()) < kills else None
            name = self.chance.choice(signals)
            if aim is not None and self._reached(fit, aim):
                number = signal.Signals[f"SIG{name}"]
                part = fit.entered()[-1]
                code = fit.end(number)
                if code not in (-number, 128 + number, 0):
                    return f"exit code {code} after SIG{name} in {part}"
                self.kills[part, name] += 1
                print(f"{self.run.name}: SIG{name} in {part}", flush=True)
                if code != 0:
                    continue
            elif (code := fit.process.wait()) != 0:
                return f"exit code {code}, without being killed"
            return None

    def _reached(self, fit: Fit, part: str) -> bool:
        """Wait for a random moment of a part, one of the next few times that it is begun; False: it ended before."""
        wanted = self.chance.randint(1, 6 if part in ("step", "checkpoint") else 1)
        while fit.entered().count(part) < wanted:
            if fit.ended:
                return False
            time.sleep(0.001)
        time.sleep(self.lasts[part] * self.chance.random())
        return not fit.ended


def durations(run: Path, processes: int) -> dict[str, float]:
    """Fit without interruption; the seconds of each part, roughly: until the next one begins."""
    fit, seen, lasts = Fit(run, processes), 0, collections.defaultdict(list)
    began = time.monotonic()
    while not fit.ended:
        if len(parts := fit.entered()) > seen + 1:
            lasts[parts[seen]].append(time.monotonic() - began)
            seen, began = len(parts) - 1, time.monotonic()
        time.sleep(0.001)
    if fit.process.returncode:
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
    main()
