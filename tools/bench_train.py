"""How many images a second does training take in, and what does this package cost or gain?

    python tools/bench_train.py --json train.json

Steps of the first task (a U-Net's denoising loss) and of the later ones (as many replayed images beside, and the
answer of a teacher, as ``published/rank1_paper_distillation.yaml`` has it), on images of noise. On a CPU: a fit by this
package beside a bare loop over the same network, batches, optimizer and loss, whose time it may exceed by a twentieth.
On a GPU: the fit eager in fp32, with and without TF32, and as ``hardware/gpu.yaml`` has it; the share it reaches of the
rate of a large matrix product in bfloat16; and the hours of the paper's MNIST run that follow.

A block is one epoch, from a batch's start to that of the next epoch's. Blocks of a fit and of the bare loop take turns
in one thread, within the fit, and the median of their ratios is told: they have the machine alike. Set-up, earlier
tasks, compiling and a first block of each lie before. Alternatives are fits one after the other. The images of a rate
are the current task's; those replayed come on top. The penalty, a reading of the parameters, is left out: see
``tools/bench_penalty.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from blocks_of_steps import BlocksOfSteps, Enough
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.loggers import CSVLogger
from operations import drawing_hours, flops_of_a_step, flops_of_an_image, paper_hours, peak
from side_by_side import environment
from steps_of_training import NETWORKS, BareLoop, Stage, batches, model, stream, unet

from cl_diffusion import TaskDataModule

CONFIGS = Path(__file__).parents[1] / "configs"


def timed(
    module: LightningModule, data: TaskDataModule, blocks: BlocksOfSteps, folder: str, **options: Any
) -> BlocksOfSteps:
    """A fit of the package, until all blocks are timed."""
    trainer = Trainer(
        max_epochs=data.num_epochs,
        reload_dataloaders_every_n_epochs=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=CSVLogger(folder),
        default_root_dir=folder,
        **options,
    )
    trainer.callbacks.append(blocks)  # type: ignore[attr-defined]
    with contextlib.suppress(Enough):
        trainer.fit(module, datamodule=data)
    return blocks


@contextlib.contextmanager
def tf32(matmul: bool, cudnn: bool) -> Iterator[None]:
    """Whether products and convolutions in fp32 may round to TF32; torch's defaults are no and yes."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def hardware(backend: str | None, device: torch.device) -> dict[str, Any]:
    """The Trainer's options of ``hardware/gpu.yaml``, on this device."""
    options: dict[str, Any] = yaml.safe_load((CONFIGS / "hardware" / "gpu.yaml").read_text())["trainer"]
    callbacks = options.pop("callbacks+")
    for callback in callbacks:
        if backend is not None and callback["class_path"].endswith("CompiledNetwork"):
            callback["init_args"] = {**callback.get("init_args", {}), "backend": backend}
    options["callbacks"] = [instantiate_class((), callback) for callback in callbacks]
    return {**options, "accelerator": "gpu" if device.type == "cuda" else "cpu"}


def measure(stage: Stage, given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All alternatives of a stage, each in turns with the bare loop where there is one."""
    size = unet(given.network).config.sample_size
    gpu = device.type == "cuda"
    found: dict[str, Any] = {}
    bare: BareLoop | None = None
    if not gpu or given.bare:
        data = stream(size, given.steps, given.batch_size, stage)
        bare = BareLoop(given.network, batches(data, stage, device), device)

    def add(label: str, flags: tuple[bool, bool], one: bool = False, resident: bool = False, **options: Any) -> None:
        data = stream(size, given.steps, given.batch_size, stage, resident)
        first = 0 if stage == "first task" else given.steps
        blocks = BlocksOfSteps(first, given.steps, given.rounds, None if bare is None else bare.run)
        with tempfile.TemporaryDirectory() as folder, tf32(*flags):
            timed(model(given.network, stage, one), data, blocks, folder, **options)
        if bare is not None and "bare loop" not in found:
            found["bare loop"] = figures(blocks.other, None, given, stage)
        found[label] = {**figures(blocks.fit, blocks.other, given, stage), "round_trips_a_step": blocks.round_trips}

    plain = {"accelerator": "gpu" if gpu else "cpu", "devices": 1}
    add("fit, eager fp32", (False, False), **plain)
    if stage == "later tasks":
        add("fit, one forward", (False, False), one=True, **plain)
    if gpu:
        add("fit, eager fp32, TF32", (True, True), **plain)
    if gpu or given.hardware:
        add("fit, hardware/gpu.yaml", (False, True), one=True, resident=True, **hardware(given.backend, device))
    return found


def figures(
    blocks: list[tuple[float, float]], bare: list[tuple[float, float]] | None, given: argparse.Namespace, stage: Stage
) -> dict[str, Any]:
    """Medians over blocks, and of their ratios to the bare loop's beside them."""
    rate = given.steps * given.batch_size / statistics.median(wall for wall, _ in blocks)
    found = {
        "seconds": statistics.median(wall for wall, _ in blocks),
        "processor_seconds": statistics.median(processor for _, processor in blocks),
        "images_a_second": rate,
        "flops_a_second": rate * flops_of_a_step(given.network, stage),
    }
    for position, clock in enumerate(("seconds", "processor_seconds") if bare else ()):
        ratios = [mine[position] / other[position] for mine, other in zip(blocks, bare or (), strict=True)]
        found[f"ratio_of_{clock}"] = statistics.median(ratios)
        found[f"ratios_of_{clock}"] = ratios
    return found


def tell(stage: Stage, found: dict[str, Any], rate: float) -> None:
    """A line an alternative; the first of them is the unit."""
    print(f"\n{stage}")
    unit = next(iter(found.values()))["seconds"]
    for label, figures in found.items():
        trips = figures.get("round_trips_a_step")
        print(
            f"  {label:24s} {figures['images_a_second']:9.1f} images/s   time {figures['seconds'] / unit:6.3f}"
            f"   {figures['flops_a_second'] / rate:6.1%} of the peak"
            + ("" if trips is None else f"   {trips:.2f} round trips a step")
        )


def report(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Everything that is asked for, told as it comes."""
    start = time.perf_counter()
    rate = peak(device, given.rounds)
    forward, both = flops_of_an_image(given.network)
    print(f"{given.network}, batches of {given.batch_size}, {device}; a matrix product: {rate / 1e12:.3g} TFLOP/s")
    print(f"an image: {forward / 1e9:.4g} GFLOP forward, {both / 1e9:.4g} with backward")
    stages: dict[Stage, Any] = {}
    stage: Stage
    for stage in ("first task", "later tasks"):
        stages[stage] = measure(stage, given, device)
        tell(stage, stages[stage], rate)
    found: dict[str, Any] = {
        "environment": environment(),
        "network": given.network,
        "batch_size": given.batch_size,
        "steps": given.steps,
        "device": str(device),
        "peak": rate,
        "stages": stages,
        "flops_forward": forward,
    }
    if device.type == "cpu":
        print()
        for clock in ("seconds", "processor_seconds"):
            ratios = {s: f["fit, eager fp32"][f"ratio_of_{clock}"] for s, f in stages.items()}
            told = ", ".join(f"{ratio:.3f} ({s})" for s, ratio in ratios.items())
            print(f"a fit to a bare loop, in {clock.replace('_', ' ')}: {told}")
        print("what hardware/gpu.yaml gains is measured on a GPU")
    if given.network == "paper" and device.type == "cuda":
        found["paper"] = {
            label: paper_hours(given.network, {s: f[label]["images_a_second"] for s, f in stages.items()})
            for label in stages["later tasks"]
        }
        found["drawing_hours"] = drawing_hours(given.network, device)
        for label, figures in found["paper"].items():
            share = figures["petaflop"] * 1e15 / (3600 * figures["hours"]) / rate
            print(f"the paper's run, {label}: {figures['hours']:.2f} hours of steps, {share:.1%} of the peak")
        print(
            f"{found['paper'][label]['petaflop']:.0f} PFLOP; and {found['drawing_hours']:.2f} hours to draw the replay"
        )
    found["measured_in"] = time.perf_counter() - start
    return found


def main() -> None:
    """Print a table a stage, and write everything as JSON."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if gpu else "cpu", help="a GPU if there is")
    parser.add_argument("--network", choices=NETWORKS, help="paper on a GPU, 16x16 on a CPU")
    parser.add_argument("--batch-size", type=int, help="of current images: 128 of the paper's network, else 64")
    parser.add_argument("--steps", type=int, help="of an epoch and a block: 94 on a GPU, as the paper has, 20 on a CPU")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, 5 by default; medians are taken over them")
    parser.add_argument("--bare", action="store_true", help="the bare loop on a GPU too")
    parser.add_argument("--hardware", action="store_true", help="hardware/gpu.yaml on a CPU too, to see that it runs")
    parser.add_argument("--backend", help="of torch.compile, in place of inductor")
    given = parser.parse_args()
    if given.device == "cuda" and not gpu:
        parser.error("--device cuda: there is no GPU; leave it out for the bar of a CPU")
    device = torch.device(given.device)
    given.network = given.network or ("paper" if given.device == "cuda" else "16x16")
    given.batch_size = given.batch_size or (128 if given.network == "paper" else 64)
    given.steps = given.steps or (94 if given.device == "cuda" else 20)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    found = report(given, device)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
