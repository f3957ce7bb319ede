"""Where does what an audit finds hold, and where not? Trainings and audits of many kinds, on seeds, in one table.

    python tools/audit_variants.py --out runs/variants

Digits, 0 and 1 before 2 and 3, the checkpoint of the first task: trained for longer and shorter, narrower and wider,
without labels, predicting other things; audited on fewer and more samples than 64, in other bands, at single timesteps;
and each task of a stream of five. A finished fit or audit is not run again, and an interrupted fit goes on from its
newest checkpoint. ``--variants`` takes some of them; further arguments go to every fit, as the one on MNIST at 16x16
asks for ``--data.root=PATH`` (so it is none of those by default). Ends with ``table.md``: means over seeds, plus or
minus the standard error, of one seed that over samples; in brackets what the samples of one of the audits do not
support.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit_table import cell
from runs import command_line, fitted
from tables import table

CONFIGS = Path(__file__).parents[1] / "configs"
DIGITS, MNIST = ("data/digits", "model/unet_8x8"), ("data/mnist16", "model/unet_16x16")
TWO_TASKS = ("--data.classes=[0,1,2,3]",)
COLUMNS = {
    "leading_share_held_out": "`v^T F v`/trace, on other samples",
    "effective_rank_corrected": "effective rank",
    "v_itself": "`v` with itself",
    "v_other_corrected": "other task",
    "v_relabelled_corrected": "same labels",
    "v_noise_corrected": "pure noise",
    "mu_itself": "`mu` with itself",
    "mu_other_corrected": "`mu`, other task",
    "mu_to_v": "cos(`mu`, `v`)",
    "true_leading_share_held_out": "true `v^T F v`/trace",
    "trace_share": "share of the trace",
}


def epochs(first: int, second: int = 1) -> list[str]:
    """Of the two tasks; the second only has to be there."""
    return [f"--data.epochs_per_task=[{first},{second}]", f"--trainer.check_val_every_n_epoch={first}"]


@dataclass(frozen=True)
class Variant:
    """A training and an audit of it.

    Args:
        training: its name; variants of one training share its fit.
        configs: of the fit, data and model.
        words: of the fit.
        audit: of the audit.
        tasks: whose checkpoints are audited.
    """

    training: str = "60_epochs"
    configs: Sequence[str] = DIGITS
    words: Sequence[str] = (*TWO_TASKS, *epochs(60))
    audit: Sequence[str] = ()
    tasks: Sequence[int] = (1,)


def trained(name: str, *words: str, first: int = 60) -> Variant:
    """The two tasks, trained in another way."""
    return Variant(name, words=(*TWO_TASKS, *epochs(first), *words))


def network(name: str, **arguments: Any) -> Variant:
    """The two tasks, learned by another network; as a file's text, for an option cannot take an argument away."""
    text = json.dumps({"model": {"init_args": {"network": {"init_args": arguments}}}})
    return trained(name, "-c", text)


VARIANTS = {
    "60 epochs, 64 samples": Variant(),
    "32 samples": Variant(audit=("--trainer.callbacks.samples=32",)),
    "128 samples": Variant(audit=("--trainer.callbacks.samples=128",)),
    "256 samples": Variant(audit=("--trainer.callbacks.samples=256",)),
    "5 epochs": trained("5_epochs", first=5),
    "20 epochs": trained("20_epochs", first=20),
    "240 epochs": trained("240_epochs", first=240),
    "half the width": network("half_width", block_out_channels=[16, 32]),
    "twice the width": network("twice_width", block_out_channels=[64, 128]),
    "no labels": network("no_labels", num_class_embeds=None),
    "predicts v": trained("predicts_v", "--model.prediction=v"),
    "predicts x0": trained("predicts_x0", "--model.prediction=x0"),
    "edges at t = 150 and 450": Variant(
        audit=(
            "--trainer.callbacks.samples=128",
            "--trainer.callbacks.bands=cl_diffusion.diffusion.SNRBands.by_quantile",
            "--trainer.callbacks.bands.quantiles=[0.55,0.85]",
        )
    ),
    "at timesteps": Variant(audit=("--trainer.callbacks.timesteps=[25,100,200,300,450,600,800,950]",)),
    "five tasks": Variant(
        "five_tasks",
        words=("--data.epochs_per_task=60", "--trainer.check_val_every_n_epoch=300"),
        tasks=(1, 2, 3, 4, 5),
    ),
    "MNIST at 16x16": Variant("mnist16", MNIST, (*TWO_TASKS, *epochs(10))),
}
BY_DEFAULT = [name for name, variant in VARIANTS.items() if variant.configs == DIGITS]


@dataclass(frozen=True)
class Job:
    """One variant on one seed."""

    name: str
    seed: int
    out: Path
    extra: tuple[str, ...] = ()

    @property
    def variant(self) -> Variant:
        """What it is."""
        return VARIANTS[self.name]

    @property
    def run(self) -> Path:
        """The fit's folder."""
        return self.out / self.variant.training / f"seed_{self.seed}"

    @property
    def folder(self) -> str:
        """Of its audits, within the run."""
        return self.name.replace(" ", "_").replace(",", "")

    def audit(self, task: int) -> Path:
        """What the audit of a task's checkpoint writes."""
        return self.run / self.folder / f"after_task_{task}" / "audit.json"

    def fit(self) -> bool:
        """Train, unless that is done; whether it is now."""
        files = ("base", *self.variant.configs, "method/finetune", "hardware/cpu")
        words = [word for name in files for word in ("-c", str(CONFIGS / f"{name}.yaml"))]
        return fitted(self.run, [*words, *self.variant.words, *self.extra, f"--seed_everything={self.seed}"])

    def measure(self) -> bool:
        """Audit, unless that is done or there is no checkpoint; whether it is now. Steps and damage are left out."""
        if not (self.run / "finished").exists():
            return False
        return all(self._measured(task) for task in self.variant.tasks)

    def _measured(self, task: int) -> bool:
        if (file := self.audit(task)).exists():
            return True
        words = ["test", "-c", str(CONFIGS / "diagnostics/audit.yaml"), "--trainer.enable_progress_bar=false"]
        words += [
            f"--ckpt_path={self.run}/checkpoints/after_task_{task}.ckpt",
            f"--trainer.callbacks.name={self.folder}",
        ]
        words += ["--trainer.callbacks.radii=[]", "--trainer.callbacks.samples=64", *self.variant.audit]
        done = command_line(words, self.run.with_suffix(".log"))
        print(f"{'finished' if done else 'FAILED  '} {file}", flush=True)
        return done


def rows(name: str, seeds: Sequence[int], out: Path) -> list[list[str]]:
    """A row a band and task."""
    found = []
    for task in VARIANTS[name].tasks:
        audits = [json.loads(Job(name, seed, out).audit(task).read_text()) for seed in seeds]
        label = f"{name}, task {task}" if len(VARIANTS[name].tasks) > 1 else name
        for band in audits[0]["figures"]:
            of_band = [audit["figures"][band] for audit in audits]
            found.append([label, band, *(cell([figures.get(column) for figures in of_band]) for column in COLUMNS)])
    return found


def main() -> None:
    """Fit, audit, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/variants"))
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=BY_DEFAULT,
        metavar="VARIANT",
        help=f"of {', '.join(VARIANTS)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time; by default one a core")
    given, extra = parser.parse_known_args()
    jobs = [Job(name, seed, given.out, tuple(extra)) for seed in given.seeds for name in given.variants]
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(Job.fit, {job.run: job for job in jobs}.values()))  # once each
        done = dict(zip(jobs, pool.map(Job.measure, jobs), strict=True))
    lines = []
    for name in given.variants:
        seeds = [job.seed for job in jobs if job.name == name and done[job]]
        lines += rows(name, seeds, given.out) if seeds else []
    said = table(["variant", "band", *COLUMNS.values()], lines)
    (given.out / "table.md").write_text(said + "\n")
    print(said)
    sys.exit(not all(done.values()))


if __name__ == "__main__":
    main()
