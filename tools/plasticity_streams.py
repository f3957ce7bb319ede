"""Methods that keep a network able to learn, each on a stream of tasks: what is learned at first, and at last."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runs import fitted
from tables import interval, standard_error, table

from cl_diffusion.report.run import Run

CONFIGS = Path(__file__).parents[1] / "configs" / "plasticity"
METHODS = (
    "none",
    "self_normalized_resets",
    "redo",
    "continual_backprop",
    "l2",
    "l2_init",
    "layer_norm",
    "crelu",
    "shrink_and_perturb",
)
LEARNED = {
    **dict.fromkeys(("random_label", "permuted_digits", "permuted_mnist", "random_label_mnist"), "online accuracy"),
    "permuted_diffusion": "denoising loss",
}
NETWORKS = {"permuted_diffusion": CONFIGS.parent / "model/unet_8x8.yaml"}
"""Where a problem's file builds on another."""
SWEEPS: dict[str, tuple[str, Sequence[float]]] = {
    "self_normalized_resets": ("threshold", (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)),
    "redo": ("threshold", (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)),
    "continual_backprop": ("rate", (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
    "l2_init": ("strength", (2e-5, 2e-4, 2e-3, 2e-2, 2e-1, 2.0)),
    "shrink_and_perturb": ("shrink", (1 - 1e-6, 1 - 1e-5, 1 - 1e-4, 1 - 1e-3, 1 - 1e-2, 1 - 1e-1)),
}
Results = dict[str, list[dict[str, float]]]
"""By row and seed, figures of ``learned``."""


@dataclass(frozen=True)
class Streams:
    """Fits of one problem, a process each.

    Args:
        problem: the name of a file below ``configs/plasticity``.
        seeds: of each method.
        out: folder of all problems.
        jobs: fits at a time.
        extra: further arguments of every fit.
    """

    problem: str
    seeds: Sequence[int]
    out: Path
    jobs: int
    extra: Sequence[str]

    def table(self, methods: Sequence[str]) -> str:
        """Every method; also written, as ``table.md``."""
        return self._told("table.md", self._learned({name: ["-c", str(CONFIGS / f"{name}.yaml")] for name in methods}))

    def sweep(self, methods: Sequence[str]) -> str:
        """Every method over its threshold; also written, as ``sweep.md``, and drawn as ``sweep.png``."""
        rows: dict[str, list[str]] = {}
        for name in methods:
            option, values = SWEEPS[name]
            for value in values:
                words = ["-c", str(CONFIGS / f"{name}.yaml"), f"--trainer.callbacks.{option}={value!r}"]
                rows[_swept(name, value)] = words
        results = self._learned(rows)
        _draw_sweep(results, self.out / self.problem / "sweep.png")
        return self._told("sweep.md", results)

    def _learned(self, rows: Mapping[str, Sequence[str]]) -> Results:
        """By row, what each seed has come to that went through."""

        def one(row: str, seed: int) -> dict[str, float] | None:
            run = self.out / self.problem / row / f"seed_{seed}"
            files = [NETWORKS[self.problem]] if self.problem in NETWORKS else []
            words = [word for file in (*files, CONFIGS / f"{self.problem}.yaml") for word in ("-c", str(file))]
            words += [*rows[row], f"--seed_everything={seed}", *self.extra]
            return learned(run) if fitted(run, words) else None

        cells = [(row, seed) for seed in self.seeds for row in rows]
        with ThreadPoolExecutor(self.jobs) as pool:
            found = list(pool.map(lambda cell: one(*cell), cells))
        results: Results = {row: [] for row in rows}
        for (row, _), outcome in zip(cells, found, strict=True):
            if outcome is not None:
                results[row].append(outcome)
        return results

    def _told(self, name: str, results: Results) -> str:
        """Means, plus or minus the standard error; also written into a file."""
        figures = ("first", "last", "dead")
        lines = [
            [row.replace("_", " "), *(interval([of[figure] for of in seeds if figure in of]) for figure in figures)]
            for row, seeds in results.items()
        ]
        said = table(["method", f"{LEARNED[self.problem]}, first tenth", "last tenth", "dead units"], lines)
        (self.out / self.problem / name).write_text(said + "\n")
        return said


def learned(run: Path) -> dict[str, float]:
    """Of a finished run, what a task is learned to at first and at last, and the share of units dead in the end.

    That is the online accuracy, or of a diffusion model the denoising loss on the task's held-out images.
    """
    found = Run.read(run)
    online = {task: value for task, _, figure, value in found.plasticity if figure == "online_accuracy"}
    values = [online[task] for task in sorted(online)]
    if not values:
        values = [row[name] for row in found.log for name in row if name.startswith("val_loss")]
    tenth = max(1, len(values) // 10)
    ends = {"first": statistics.mean(values[:tenth]), "last": statistics.mean(values[-tenth:])}
    dead = [(task, value) for task, _, figure, value in found.plasticity if figure == "dead"]
    if not dead:
        return ends
    last = max(task for task, _ in dead)
    return {**ends, "dead": statistics.mean(value for task, value in dead if task == last)}


def _swept(name: str, value: float) -> str:
    """The row of a method at a threshold."""
    return f"{name}_{SWEEPS[name][0]}_{value:g}"


def _draw_sweep(results: Results, path: Path) -> None:
    """The last tenth of the tasks over each method's threshold."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, (option, values) in SWEEPS.items():
        means = [[of["last"] for of in results.get(_swept(name, value), [])] for value in values]
        known = [(place, of) for place, of in enumerate(means) if of]
        if known:
            places = [place for place, _ in known]
            middle = [statistics.mean(of) for _, of in known]
            spread = [standard_error(of) or 0.0 for _, of in known]
            label = f"{name.replace('_', ' ')}: {option} {values[0]:g} to {values[-1]:g}"
            axes.errorbar(places, middle, spread, marker="o", capsize=2, label=label)
    axes.set(xlabel="the method's threshold, from its first value to its last", ylabel="online accuracy, last tenth")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
