"""What do the published methods keep of a stream of tasks? Every method on every seed, in one command.

    python tools/reproduce.py digits --out runs/reproduce

Each cell is one ``cl-diffusion fit`` in a folder of its own, as many at a time as there are cores or GPUs. A finished
cell is not run again, and an interrupted one goes on from its newest checkpoint, so the command can be repeated until
it is through. It ends with the table, as ``table.md`` and ``table.csv``, and ``front.png``, retention against
plasticity; means over seeds, plus or minus the standard error, and differences from another method on the same seeds.
Seeds are those of initialisation, training noise and the draws of a Fisher; data and their split stay.

A method is ``finetune``, ``joint``, a replay (``distillation``), a penalty (``rank1``), or one of each
(``rank1+distillation``). Other arguments than those below go to every ``cl-diffusion fit``: ``--data.root=PATH``.

``AFID = 1/T sum_i FID_i(m_T)``; forgetting ``1/T sum_k (FID_k(m_T) - FID_k(m_k))`` (2509.23593, section 4.2). The
distance is in Inception's features only where that network is on the machine, else in the project's classifier's, which
compares with nothing but itself; the table says which. Published figures stand beside those of this run.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import torch
import yaml
from outcomes import Comparison, Outcome, draw_front
from presets import PARTS, PRESETS, Preset, has_penalty

from cl_diffusion.cli.run_folder import newest_checkpoint

CONFIGS = Path(__file__).parents[1] / "configs"
FINISHED = "finished"


@dataclass(frozen=True)
class Cell:
    """One method on one seed. A strength, if any, takes the place of the preset's and of that in the method's file."""

    method: str
    strength: float | None
    seed: int

    @property
    def name(self) -> str:
        """The row of the table."""
        return self.method if self.strength is None else f"{self.method}, strength {self.strength:.12g}"

    def folder(self, out: Path) -> Path:
        """Of the run."""
        return out / re.sub(r"^\.+|[^\w+.]+", "_", self.name) / f"seed_{self.seed}"

    def log(self, out: Path) -> Path:
        """Where the run's output goes."""
        return self.folder(out).with_suffix(".log")

    def words(self, preset: Preset, extra: Sequence[str]) -> list[str]:
        """What is fitted, whatever the machine and folder: names below ``configs/``, and arguments."""
        chosen = preset.strength_of(self.method, self.strength)
        return [*preset.files_of(self.method), *preset.words_for(self.method), *chosen, *extra]

    def identity(self, preset: Preset, extra: Sequence[str]) -> dict[str, str]:
        """What two runs have in common that are one cell: their arguments, and what each of their files says."""
        files = {name: (CONFIGS / f"{name}.yaml").read_text() for name in preset.files_of(self.method)}
        files |= {str(path): path.read_text() for path in _files(extra)}
        digests = {
            name: hashlib.sha256(json.dumps(yaml.safe_load(text)).encode()).hexdigest() for name, text in files.items()
        }
        return {"arguments": " ".join(self.words(preset, extra)), **digests}

    def command(self, preset: Preset, extra: Sequence[str], out: Path) -> list[str]:
        """``cl-diffusion fit``, resumed where there is a checkpoint."""
        folder = self.folder(out)
        files = {name: ["-c", str(CONFIGS / f"{name}.yaml")] for name in preset.files_of(self.method)}
        words = [part for word in self.words(preset, extra) for part in files.get(word, [word])]
        words += [f"--seed_everything={self.seed}", f"--run={folder}", "--trainer.enable_progress_bar=false"]
        if has_penalty(self.method):
            words.append(f"--trainer.callbacks.seed={self.seed}")  # of the draws of its Fisher
        if (newest := newest_checkpoint(folder)) is not None:
            words.append(f"--ckpt_path={newest}")
        return [sys.executable, "-m", "cl_diffusion.cli", "fit", *words]

    def finished(self, preset: Preset, extra: Sequence[str], out: Path) -> bool:
        """Whether it has been run to its end.

        Raises:
            ValueError: it has, by other arguments.
        """
        marker = self.folder(out) / FINISHED
        if not marker.exists():
            return False
        before, now = json.loads(marker.read_text()), self.identity(preset, extra)
        was, is_ = (identity["arguments"].split() for identity in (before, now))
        differing = [f"the content of {name}" for name in now if name != "arguments" and before.get(name) != now[name]]
        differing += [f"{word} (then)" for word in sorted(set(was) - set(is_))]
        differing += [f"{word} (now)" for word in sorted(set(is_) - set(was))]
        if not differing and was != is_:
            differing = [f"another order of {' '.join(is_)}"]
        if differing:
            raise ValueError(
                f"{self.name}, seed {self.seed} was run with another configuration: {', '.join(differing)}; name "
                f"another --out, or remove {self.folder(out)}"
            )
        return True


class Matrix:
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
            done = self._process(cell, {**os.environ, **slot}) == 0
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
        folder = cell.folder(self.out)
        if folder.exists() and newest_checkpoint(folder) is None:
            shutil.rmtree(folder)  # stopped before its first checkpoint: nothing to go on from
        command = cell.command(self.preset, self.extra, self.out)
        with cell.log(self.out).open("a") as log:
            log.write(f"{' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, pass_fds=[lock])
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


def _files(words: Sequence[str]) -> list[Path]:
    """Configurations among further arguments: ``-c FILE`` or ``--config=FILE``."""
    named = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-c", "--config")]
    named += [word.partition("=")[2] for word in words if word.startswith(("-c=", "--config="))]
    return [Path(name) for name in named if not name.lstrip().startswith("{") and Path(name).is_file()]


def _joined(words: Sequence[str]) -> list[str]:
    """``--name value`` as ``--name=value``, so that both are the same argument."""
    joined: list[str] = []
    for word in words:
        option = bool(joined) and joined[-1].startswith("--") and "=" not in joined[-1]
        if option and not word.startswith("-"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def report(outcomes: Mapping[str, Mapping[int, Outcome]], preset: Preset, against: str, out: Path, heading: str) -> str:
    """Write the table and the picture into a folder; returns the table to read."""
    comparison = Comparison(outcomes, preset, against)
    text = f"{heading}\n\n{comparison.markdown()}"
    (out / "table.md").write_text(text)
    records = list(comparison.records())
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    draw_front(comparison, out / "front.png", heading)
    return text


def arguments() -> tuple[argparse.Namespace, list[Cell], list[str]]:
    """Of this script, the cells that they ask for, and the rest, which goes to every fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help=f"the preset's by default; of {', '.join(PARTS)}"
    )
    parser.add_argument("--strengths", nargs="+", type=float, help="of the penalties, each in place of the file's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, help="cells at a time; by default one a GPU, else one a core")
    parser.add_argument("--against", help="the row of the table that differences are from; finetune by default")
    given, extra = parser.parse_known_args()
    if given.jobs is not None and given.jobs < 1:
        parser.error(f"--jobs {given.jobs}; expected at least 1")
    methods = given.methods or PRESETS[given.preset].methods
    try:
        strengths = {method: given.strengths or [None] if has_penalty(method) else [None] for method in methods}
    except ValueError as error:
        parser.error(f"--methods {error}")
    cells = list(
        dict.fromkeys(
            Cell(method, strength, seed) for seed in given.seeds for method in methods for strength in strengths[method]
        )
    )
    rows = {cell.name for cell in cells}
    if given.against is not None and given.against not in rows:
        parser.error(f"--against {given.against!r}; expected a row of the table: {', '.join(sorted(rows))}")
    return given, cells, _joined(extra)


def main() -> None:
    """Run the matrix and write its table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    given, cells, extra = arguments()
    preset, out = PRESETS[given.preset], given.out / given.preset
    try:
        failed = Matrix(preset, extra, out, given.jobs).run(cells)
        outcomes: dict[str, dict[int, Outcome]] = {}
        for cell in cells:
            if cell not in failed:
                outcomes.setdefault(cell.name, {})[cell.seed] = Outcome.of(cell.folder(out))
        if outcomes:
            heading = " ".join([given.preset, *extra])
            print(f"\n{report(outcomes, preset, given.against or 'finetune', out, heading)}")
    except ValueError as error:
        sys.exit(f"reproduce.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
    for cell in failed:
        print(f"failed: {cell.name}, seed {cell.seed}; see {cell.log(out)}", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
