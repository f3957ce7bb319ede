"""Does a network go on learning, and what keeps it able to? One question a command.

    python tools/bench_plasticity.py table random_label --out runs/plasticity
    python tools/bench_plasticity.py sweep random_label --out runs/plasticity
    python tools/bench_plasticity.py relu
    python tools/bench_plasticity.py detection --out runs/plasticity
    python tools/bench_plasticity.py overhead

``table``: every method of ``configs/plasticity`` on a problem of the same folder, three seeds, a process each: mean
online accuracy (of a diffusion model, held-out denoising loss) of the first and the last tenth of the tasks, and dead
units at the end; other arguments go to every fit (``--data.root=PATH``); ``permuted_diffusion --methods none
self_normalized_resets`` is a stream of a diffusion model. ``sweep``: the same over each method's threshold, and
``sweep.png``. ``relu``: one ReLU that starts where it never fires, and a fresh one, twenty seeds. ``detection``: errors
of telling dead units from rarely firing ones, by each unit's own threshold and by one for all, on firing that is
simulated. ``overhead``: of Self-Normalized Resets in a training step, beside the same step without. A finished run is
not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from runs import fitted
from tables import interval, table
from torch import Tensor, nn

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


def learned(run: Path) -> dict[str, float]:
    """Of a finished run, what a task is learned to at first and at last, and the share of units dead in the end.

    That is the online accuracy, or of a diffusion model the denoising loss on the task's held-out images.
    """
    online: dict[int, float] = {}
    dead: dict[int, list[float]] = {}
    with (run / "plasticity.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["figure"] == "online_accuracy":
                online[int(row["task"])] = float(row["value"])
            elif row["figure"] == "dead":
                dead.setdefault(int(row["task"]), []).append(float(row["value"]))
    if not online:
        with (run / "metrics.csv").open(newline="") as file:
            losses = [row[name] for row in csv.DictReader(file) for name in row if name.startswith("val_loss")]
        online = dict(enumerate(float(loss) for loss in losses if loss))
    values = [online[task] for task in sorted(online)]
    tenth = max(1, len(values) // 10)
    found = {"first": statistics.mean(values[:tenth]), "last": statistics.mean(values[-tenth:])}
    return {**found, "dead": statistics.mean(dead[max(dead)])} if dead else found


def runs(
    problem: str, methods: dict[str, list[str]], seeds: Sequence[int], out: Path, jobs: int, extra: Sequence[str]
) -> dict[str, list[dict[str, float]]]:
    """By row, what each seed has come to."""

    def one(row: str, seed: int) -> dict[str, float] | None:
        run = out / problem / row / f"seed_{seed}"
        files = [NETWORKS[problem]] if problem in NETWORKS else []
        words = [word for file in (*files, CONFIGS / f"{problem}.yaml") for word in ("-c", str(file))]
        words += [*methods[row], f"--seed_everything={seed}", *extra]
        return learned(run) if fitted(run, words) else None

    cells = [(row, seed) for seed in seeds for row in methods]
    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(lambda cell: one(*cell), cells))
    results: dict[str, list[dict[str, float]]] = {row: [] for row in methods}
    for (row, _), outcome in zip(cells, found, strict=True):
        if outcome is not None:
            results[row].append(outcome)
    return results


def tell(results: dict[str, list[dict[str, float]]], problem: str) -> str:
    """Means, plus or minus the standard error."""
    figures = ("first", "last", "dead")
    lines = [
        [row.replace("_", " "), *(interval([of[name] for of in seeds if name in of]) for name in figures)]
        for row, seeds in results.items()
    ]
    return table(["method", f"{LEARNED[problem]}, first tenth", "last tenth", "dead units"], lines)


def table_command(given: argparse.Namespace, extra: Sequence[str]) -> None:
    """The methods on one problem."""
    methods = {name: ["-c", str(CONFIGS / f"{name}.yaml")] for name in given.methods or METHODS}
    said = tell(runs(given.problem, methods, given.seeds, given.out, given.jobs, extra), given.problem)
    (given.out / given.problem / "table.md").write_text(said + "\n")
    print(said)


def sweep_command(given: argparse.Namespace, extra: Sequence[str]) -> None:
    """Each method over its threshold."""
    rows: dict[str, list[str]] = {}
    for name in given.methods or SWEEPS:
        option, values = SWEEPS[name]
        for value in values:
            config = ["-c", str(CONFIGS / f"{name}.yaml"), f"--trainer.callbacks.{option}={value!r}"]
            rows[f"{name}_{option}_{value:g}"] = config
    results = runs(given.problem, rows, given.seeds, given.out, given.jobs, extra)
    said = tell(results, given.problem)
    (given.out / given.problem / "sweep.md").write_text(said + "\n")
    print(said)
    _draw_sweep(results, given.out / given.problem / "sweep.png")


def _draw_sweep(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, (option, values) in SWEEPS.items():
        means = [[of["last"] for of in results.get(f"{name}_{option}_{value:g}", [])] for value in values]
        known = [(place, of) for place, of in enumerate(means) if of]
        if known:
            places = [place for place, _ in known]
            middle = [statistics.mean(of) for _, of in known]
            spread = [statistics.stdev(of) / len(of) ** 0.5 if len(of) > 1 else 0.0 for _, of in known]
            label = f"{name.replace('_', ' ')}: {option} {values[0]:g} to {values[-1]:g}"
            axes.errorbar(places, middle, spread, marker="o", capsize=2, label=label)
    axes.set(xlabel="the method's threshold, from its first value to its last", ylabel="online accuracy, last tenth")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def relu_command(given: argparse.Namespace, extra: Sequence[str]) -> None:
    """One ReLU, x ~ U[-1, 1] and a bias, from where it never fires; and a fresh one, for comparison."""
    lines = []
    for name in _relus():
        found = single_relus(name, range(20))
        print(f"{name}: through", file=sys.stderr, flush=True)
        errors = [error for error, _ in found]
        learns, fires = sum(error < 1e-2 for error in errors), sum(alive for _, alive in found)
        lines.append([name, f"{fires} / 20", f"{learns} / 20", f"{statistics.median(errors):.2g}"])
    print(table(["method", "fires in the end", "learns the target (error < 0.01)", "median error"], lines))


def single_relus(method: str, seeds: Sequence[int]) -> list[tuple[float, bool]]:
    """By seed, what a method of ``relu`` has come to: the squared error, and whether the unit fires."""
    return [_one_relu(seed, *_relus()[method]()) for seed in seeds]


def _relus() -> dict[str, Callable[[], tuple[list[Any], float, bool]]]:
    """By method: callbacks, weight decay, and whether the unit is dead at first."""
    from cl_diffusion.callbacks import L2Init, SelfNormalizedResets

    return {
        "none": lambda: ([], 0.0, True),
        "L2": lambda: ([], 1e-2, True),
        "L2 towards the initial weights": lambda: ([L2Init(1e-2)], 0.0, True),
        "Self-Normalized Resets": lambda: ([SelfNormalizedResets(initial_age=640)], 0.0, True),
        "none, from a fresh unit": lambda: ([], 0.0, False),
    }


def _one_relu(seed: int, callbacks: list[Any], decay: float, dead: bool) -> tuple[float, bool]:
    """The squared error after 32,000 examples, and whether the unit fires for any of them."""
    import logging
    import warnings

    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    generator = torch.Generator().manual_seed(seed)
    slope, offset = float(torch.randn(1, generator=generator).abs()) + 0.5, float(torch.rand(1, generator=generator))

    class Single(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.unit = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1, bias=False))
            if dead:
                with torch.no_grad():
                    self.unit[0].weight.fill_(-1.0)
                    self.unit[0].bias.fill_(-2.0)
                    self.unit[2].weight.fill_(1.0)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.error(batch[0])

        def error(self, x: Tensor) -> Tensor:
            loss: Tensor = (self.unit(x) - (slope * x + offset).relu()).square().mean()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05, weight_decay=decay)

    torch.manual_seed(seed)
    x = 2 * torch.rand(32_000, 1, generator=generator) - 1
    model = Single()
    for callback in callbacks:
        callback.seed = seed
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=callbacks, enable_checkpointing=False, **quiet)
    trainer.fit(model, DataLoader(TensorDataset(x), batch_size=16))
    with torch.no_grad():
        return float(model.error(x)), bool((model.unit[:2](x) > 0).any())


def detection_command(given: argparse.Namespace, extra: Sequence[str]) -> None:
    """Half of the units die; who is told to be dead, and how late?

    Firing rates are log-uniform over ``[0.005, 0.5]``. A threshold a unit, learned from its own firing, against one for
    all, at the same share of live units that are reset within the time that it takes.
    """
    generator = torch.Generator().manual_seed(0)
    units, steps = 4000, 4000
    rates = torch.exp(torch.empty(units, dtype=torch.float64).uniform_(generator=generator) * 4.605 - 5.298)
    from cl_diffusion.plasticity.firing import InterFiringTimes

    lines, curves = [], {"each unit's own": [], "one for all": []}  # type: ignore[var-annotated]
    detector = InterFiringTimes(units, 0.02, initial_age=10**6)
    for _ in range(steps):
        detector.observe(torch.rand(units, generator=generator, dtype=torch.float64) < rates, 1)
    for eta in (0.3, 0.1, 0.05, 0.02, 0.01, 0.005):
        detector.threshold, detector.limits = eta, torch.full((units,), 10**6)
        detector.update(1)
        own = detector.limits.double().clamp(max=1e6)
        false = ((1 - rates) ** own).mean()
        curves["each unit's own"].append((float(false), float(own.median()), float(own.mean())))
        lines.append(
            [f"own, eta = {eta}", f"{float(false):.3g}", f"{float(own.median()):.3g}", f"{float(own.mean()):.4g}"]
        )
    for age in (10, 30, 100, 300, 600, 1000):
        one = torch.full((units,), float(age), dtype=torch.float64)
        false = ((1 - rates) ** one).mean()
        curves["one for all"].append((float(false), float(age), float(age)))
        lines.append([f"one for all, {age}", f"{float(false):.3g}", f"{age}", f"{age}"])
    head = ["threshold", "live units silent for so long", "steps until a dead one is told, median", "mean"]
    print(table(head, lines))
    _draw_detection(curves, given.out / "detection.png")


def _draw_detection(curves: dict[str, list[tuple[float, float, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(6, 4.2), layout="constrained")
    for name, points in curves.items():
        median = "" if name == "one for all" else ", median unit"
        axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=name + median)
        if median:
            axes.plot([p[0] for p in points], [p[2] for p in points], marker=".", linestyle="--", label=f"{name}, mean")
    axes.set(xscale="log", yscale="log", xlabel="live units that are silent for so long, share")
    axes.set_ylabel("steps until a dead unit is told")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def overhead_command(given: argparse.Namespace, extra: Sequence[str]) -> None:
    """Seconds of a training step with Self-Normalized Resets over those without, of one fit that has both in turn."""
    found = {name: _overhead(*build()) for name, build in {"MLP 100-100, 16": _mlp, "U-Net 8x8, 64": _unet}.items()}
    environment = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    print(json.dumps({"ratios": found, **environment}, indent=1))


def _mlp() -> tuple[Any, int, int]:
    from cl_diffusion.modules import OnlineClassifier
    from cl_diffusion.modules.perceptron import Perceptron

    return OnlineClassifier(Perceptron(64, 10)), 16, 4


def _unet() -> tuple[Any, int, int]:
    import yaml
    from diffusers import UNet2DModel

    from cl_diffusion import DDPM

    config = yaml.safe_load((CONFIGS.parent / "model/unet_8x8.yaml").read_text())["model"]["init_args"]
    return DDPM(UNet2DModel(**config["network"]["init_args"])), 64, 1


def _overhead(model: Any, batch: int, block: int) -> dict[str, float]:
    """On the digits, blocks of so many steps with the callback and without, one after the other in one fit.

    A machine that is shared changes its speed from one second to the next by more than is measured here; two blocks
    that follow one another have it nearly alike. Thresholds are taken anew after each epoch, from the second on they
    are of the units' own firing; steps in which units are reset count as others do.
    """
    import logging
    import warnings

    from lightning.pytorch import Trainer
    from sklearn.datasets import load_digits

    from cl_diffusion.callbacks import SelfNormalizedResets

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    resets = SelfNormalizedResets(initial_age=2000, tasks_per_update=1, epochs_per_task=1)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", max_epochs=5, callbacks=[resets], enable_checkpointing=False, **quiet)
    times: dict[bool, list[float]] = {False: [], True: []}
    reset: list[int] = []  # units, in each block with the callback
    digits = load_digits()
    order = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[order].unsqueeze(1).split(batch)[:-1]
    labels = torch.tensor(digits.target)[order].split(batch)

    class Blocks:
        """The batches again and again; takes the callback out of the Trainer, and puts it back, from block to block."""

        blocks = 102

        def __len__(self) -> int:
            return self.blocks * block

        def __iter__(self) -> Any:
            step = 0
            for number in range(self.blocks):
                own = number % 4 in (0, 1)  # of the pairs 1-2, 3-4, .. each second one begins without
                trainer.callbacks = [resets] if own else []  # type: ignore[attr-defined]
                if number == self.blocks - 1:
                    trainer.callbacks = [resets]  # type: ignore[attr-defined]  # whose epoch ends
                before, started = sum(resets.resets.values()), time.perf_counter()
                for _ in range(block):
                    yield images[step % len(images)], labels[step % len(images)]
                    step += 1
                if trainer.current_epoch and number:
                    times[own].append((time.perf_counter() - started) / block)
                    if own:
                        reset.append(sum(resets.resets.values()) - before)

    trainer.fit(model, Blocks())
    ratios = [own / without for own, without in zip(times[True], times[False], strict=True)]
    quiet_ones = [ratio for ratio, units in zip(ratios, reset, strict=True) if not units]
    return {
        "without_ms": 1e3 * statistics.median(times[False]),
        "ratio": statistics.median(ratios),
        "ratio_error": _median_error(ratios),
        "ratio_where_no_unit_is_reset": statistics.median(quiet_ones),
        "its_error": _median_error(quiet_ones),
        "resets_per_step": sum(reset) / len(reset) / block,
        "shortest_threshold": float(resets.detector.limits.min()),  # type: ignore[union-attr]
    }


def _median_error(values: Sequence[float]) -> float:
    """The standard error of the median, from the quartiles as of a normal law."""
    low, _, high = statistics.quantiles(values)
    return 1.2533 * (high - low) / 1.349 / len(values) ** 0.5


def main() -> None:
    """One of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    named = {
        "table": table_command,
        "sweep": sweep_command,
        "relu": relu_command,
        "detection": detection_command,
        "overhead": overhead_command,
    }
    for name in named:
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, default=Path("runs/plasticity"))
        if name in ("table", "sweep"):
            command.add_argument("problem", choices=LEARNED)
            command.add_argument("--methods", nargs="+", choices=METHODS if name == "table" else SWEEPS)
            command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
            command.add_argument("--jobs", type=int, default=os.cpu_count())
    given, extra = parser.parse_known_args()
    if extra and given.command not in ("table", "sweep"):
        sys.exit(f"bench_plasticity.py: error: {given.command} takes no {extra[0]}")
    named[given.command](given, extra)


if __name__ == "__main__":
    main()
