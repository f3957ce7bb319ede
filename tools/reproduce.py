"""What do the published methods keep of a stream of tasks? Every method on every seed, in one command.

    python tools/reproduce.py digits --out runs/reproduce

Each cell is one ``cl-diffusion fit`` in a folder of its own, as many at a time as there are cores or GPUs. A finished
cell is not run again, and an interrupted one goes on from its newest checkpoint, so the command can be repeated until
it is through. It ends with the table, as ``table.md`` and ``table.csv``: average Frechet distance (AFID), forgetting of
it, and class agreement, after the last task; means over seeds, plus or minus the standard error, and the difference
from another method on the same seeds. Seeds are those of initialisation and training noise; data and their split stay.
Other arguments than those below go to every ``cl-diffusion fit``, such as ``--data.root=PATH``.

``AFID = 1/T sum_i FID_i(m_T)``; forgetting ``1/T sum_k (FID_k(m_T) - FID_k(m_k))`` (2509.23593, section 4.2). The
distance is in Inception's features only where that network is on the machine, else in the project's classifier's, which
compares with nothing but itself; the table says which.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue

import torch

from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.metrics.generation_quality import HIGHER_IS_BETTER

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
FINISHED = "finished"


@dataclass(frozen=True)
class Preset:
    """What every cell of a matrix has in common, and what is published of it.

    ``configs``: names below ``configs/``. ``words``: further arguments. ``methods``: by default these.
    ``published``: average FID and forgetting, in 2048 Inception features, three seeds (2509.23593, table 1).
    """

    configs: Sequence[str]
    words: Sequence[str] = ()
    methods: Sequence[str] = (
        "finetune",
        "rank1",
        "distillation",
        "rank1+distillation",
        "diagonal+distillation",
        "joint",
    )
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)


METHODS: dict[str, Sequence[str]] = {
    "finetune": ("method/finetune",),
    "joint": ("method/joint",),
    "diagonal": ("method/ewc_diagonal",),
    "rank1": ("method/ewc_rank1",),
    "buffer": ("replay/buffer",),
    "generative_replay": ("replay/generative_replay",),
    "distillation": ("replay/distillation",),
    "diagonal+distillation": ("replay/distillation", "method/ewc_diagonal"),
    "rank1+distillation": ("replay/distillation", "method/ewc_rank1"),
}
PRESETS = {
    "digits": Preset(
        ("base", "data/digits", "model/unet_8x8", "hardware/cpu"),
        ("--data.epochs_per_task=60", "--trainer.check_val_every_n_epoch=60"),
    ),
    "mnist16": Preset(("base", "data/mnist16", "model/unet_16x16", "hardware/cpu")),
    "mnist": Preset(
        ("base", "data/mnist", "model/unet_32x32", "hardware/gpu"),
        published={
            "joint": (2.6, 0.0),
            "finetune": (102.6, 93.7),
            "diagonal": (62.2, 51.1),
            "rank1": (65.2, 58.3),
            "distillation": (10.1, 2.3),
            "diagonal+distillation": (14.3, 5.2),
            "rank1+distillation": (7.6, 0.6),
        },
    ),
    "fashion_mnist": Preset(
        ("base", "data/fashion_mnist", "model/unet_32x32", "hardware/gpu"),
        published={
            "joint": (5.7, 0.0),
            "finetune": (104.0, 88.0),
            "diagonal": (99.9, 81.7),
            "rank1": (96.9, 82.1),
            "distillation": (19.1, 3.9),
            "diagonal+distillation": (27.7, 9.1),
            "rank1+distillation": (15.4, 0.9),
        },
    ),
    "cifar10": Preset(
        ("base", "data/cifar10", "model/unet_32x32", "hardware/gpu"),
        (
            "--model.network.init_args.in_channels=3",
            "--model.network.init_args.out_channels=3",
        ),
        published={
            "joint": (23.3, 0.0),
            "finetune": (115.4, 72.5),
            "diagonal": (128.6, 74.4),
            "rank1": (120.0, 77.4),
            "distillation": (61.2, 16.6),
            "diagonal+distillation": (72.6, 17.9),
            "rank1+distillation": (50.5, 7.4),
        },
    ),
}


@dataclass(frozen=True)
class Cell:
    """One method on one seed. A strength, if any, takes the place of that in the method's file."""

    method: str
    strength: float | None
    seed: int

    @property
    def name(self) -> str:
        """The row of the table."""
        return self.method if self.strength is None else f"{self.method}, strength {self.strength:g}"

    def folder(self, out: Path) -> Path:
        """Of the run."""
        return out / re.sub(r"[^\w+.]+", "_", self.name) / f"seed_{self.seed}"

    def command(self, preset: Preset, extra: Sequence[str], out: Path) -> list[str]:
        """``cl-diffusion fit``, resumed where there is a checkpoint."""
        folder = self.folder(out)
        files = [CONFIGS / f"{name}.yaml" for name in (*preset.configs, *METHODS[self.method])]
        words = [word for file in files for word in ("-c", str(file))]
        words += [*preset.words, *extra, f"--seed_everything={self.seed}", f"--run={folder}"]
        words.append("--trainer.enable_progress_bar=false")
        if self.strength is not None:
            words.append(f"--trainer.callbacks.strength={self.strength}")
        checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        if checkpoints:
            words.append(f"--ckpt_path={checkpoints[-1]}")
        return [sys.executable, "-m", "cl_diffusion.cli", "fit", *words]

    def run(self, preset: Preset, extra: Sequence[str], out: Path, environment: Mapping[str, str]) -> bool:
        """Fit, unless it is finished; whether it is, afterwards."""
        folder = self.folder(out)
        if (folder / FINISHED).exists():
            return True
        if folder.exists() and not any((folder / "checkpoints").glob("*.ckpt")):
            shutil.rmtree(folder)  # stopped before its first checkpoint: nothing to go on from
        command = self.command(preset, extra, out)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".log").open("a") as log:
            log.write(f"{' '.join(command)}\n")
            log.flush()
            code = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, **environment}).returncode
        if code == 0:
            (folder / FINISHED).touch()
        return code == 0


def slots(jobs: int | None) -> list[dict[str, str]]:
    """The environment of each process that runs at the same time: one a GPU, else one a core."""
    gpus = torch.cuda.device_count()
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": str(number % gpus)} for number in range(jobs or gpus)]
    return [{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} for _ in range(jobs or os.cpu_count() or 1)]


def run_all(cells: Sequence[Cell], preset: Preset, extra: Sequence[str], out: Path, jobs: int | None) -> list[Cell]:
    """Every cell that is not finished; returns those that failed."""
    free: Queue[dict[str, str]] = Queue()
    for slot in slots(jobs):
        free.put(slot)

    def run(cell: Cell) -> bool:
        slot = free.get()
        try:
            done = cell.run(preset, extra, out, slot)
        finally:
            free.put(slot)
        print(f"{'finished' if done else 'FAILED  '} {cell.name}, seed {cell.seed}", flush=True)
        return done

    with ThreadPoolExecutor(free.qsize()) as pool:
        done = list(pool.map(run, cells))
    return [cell for cell, finished in zip(cells, done, strict=True) if not finished]


@dataclass(frozen=True)
class Outcome:
    """A finished cell: its matrices by metric, and the accuracy of the classifier that judged it."""

    matrices: Mapping[str, ContinualMatrix]
    reference_accuracy: float | None

    @classmethod
    def of(cls, folder: Path) -> Outcome:
        """What a run has written."""
        matrices: dict[str, ContinualMatrix] = {}
        with (folder / "continual.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                name = row["metric"]
                matrix = matrices.setdefault(name, ContinualMatrix(name, HIGHER_IS_BETTER[name]))
                matrix.record(int(row["after"]), int(row["task"]), float(row["value"]))
        found = re.search(r"reference classifier .*held-out accuracy (\d\.\d+)", folder.with_suffix(".log").read_text())
        return cls(matrices, float(found[1]) if found else None)


def interval(values: Sequence[float]) -> str:
    """The mean, plus or minus the standard error."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3g}"
    return f"{mean:.3g} +- {statistics.stdev(values) / len(values) ** 0.5:.2g}"


def rows(outcomes: Mapping[str, Mapping[int, Outcome]], preset: Preset, against: str) -> Iterator[dict[str, str]]:
    """A row a method, of the seeds that are finished."""
    everywhere = [outcome for of in outcomes.values() for outcome in of.values()]
    inception = all("inception_distance" in outcome.matrices for outcome in everywhere)
    distance = "inception_distance" if inception else "frechet_distance"
    figures = {
        "AFID": lambda outcome: outcome.matrices[distance].average(),
        "forgetting": lambda outcome: outcome.matrices[distance].forgetting(),
        "class agreement": lambda outcome: outcome.matrices["class_agreement"].average(),
        "when learned": lambda outcome: statistics.mean(
            outcome.matrices["class_agreement"].learned(task)
            for task in range(1, outcome.matrices["class_agreement"].last + 1)
        ),
    }
    for name, of in outcomes.items():
        row = {"method": name, "seeds": str(len(of))}
        for title, figure in figures.items():
            row[title] = interval([figure(outcome) for outcome in of.values()])
        shared = [seed for seed in of if seed in outcomes.get(against, {})]
        for title in ("AFID", "class agreement"):
            differences = [figures[title](of[seed]) - figures[title](outcomes[against][seed]) for seed in shared]
            other = name != against and differences
            row[f"{title}, difference from {against}"] = interval(differences) if other else ""
        if preset.published:
            published = preset.published.get(name)
            row["published AFID / forgetting"] = f"{published[0]} / {published[1]}" if published else ""
        yield row


def markdown(table: Sequence[Mapping[str, str]]) -> str:
    """As a table in Markdown."""
    titles = list(table[0])
    lines = [titles, ["---"] * len(titles), *([row[title] for title in titles] for row in table)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def features(outcomes: Mapping[str, Mapping[int, Outcome]]) -> str:
    """Whose features the distances are in."""
    everywhere = [outcome for of in outcomes.values() for outcome in of.values()]
    if all("inception_distance" in outcome.matrices for outcome in everywhere):
        return "Distances are in 2048 Inception features (FID)."
    accuracies = sorted({outcome.reference_accuracy for outcome in everywhere if outcome.reference_accuracy})
    said = " and ".join(f"{accuracy:.3f}" for accuracy in accuracies)
    return (
        f"Distances are in the features of the project's own classifier (held-out accuracy {said}), not FID: they "
        "compare with each other, and not with published ones."
    )


def main() -> None:
    """Run the matrix and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="the preset's own by default")
    parser.add_argument("--strengths", nargs="+", type=float, help="of the EWC methods, each in place of the file's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, help="cells at a time; by default one a GPU, else one a core")
    parser.add_argument("--against", default="finetune", help="the method that differences are from")
    arguments, extra = parser.parse_known_args()
    preset, out = PRESETS[arguments.preset], arguments.out / arguments.preset
    methods = arguments.methods or preset.methods
    cells = [
        Cell(method, strength, seed)
        for seed in arguments.seeds
        for method in methods
        for strength in (arguments.strengths if arguments.strengths and has_strength(method) else [None])
    ]
    failed = run_all(cells, preset, extra, out, arguments.jobs)
    outcomes: dict[str, dict[int, Outcome]] = {}
    for cell in cells:
        if cell not in failed:
            outcomes.setdefault(cell.name, {})[cell.seed] = Outcome.of(cell.folder(out))
    if outcomes:
        table = list(rows(outcomes, preset, arguments.against))
        text = f"{markdown(table)}\n\n{features(outcomes)}\n"
        (out / "table.md").write_text(text)
        with (out / "table.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        print(f"\n{text}")
    for cell in failed:
        print(f"failed: {cell.name}, seed {cell.seed}; see {cell.folder(out).with_suffix('.log')}", file=sys.stderr)
    sys.exit(bool(failed))


def has_strength(method: str) -> bool:
    """Whether a penalty takes part."""
    return any("ewc" in name for name in METHODS[method])


if __name__ == "__main__":
    main()
