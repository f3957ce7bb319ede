"""What does a Fisher cost, in ordinary forward and backward passes over the same samples?

    python tools/bench_fisher.py --json fisher.json

On one U-Net and in one process, in turns: every estimator; (a) an ordinary forward and backward over the same samples;
(b) a loop over batches of one; (c) two such loops, mean gradient and then projections, as in the published code of
2509.23593; (d) the squared gradient of each batch, which is another matrix. Ratios are to (a). Noise and timesteps are
drawn beforehand for all of them; ``draws`` is what keyed draws cost.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from fisher_loops import (
    LOOPED,
    loss,
    ordinary,
    squared_batch_gradient,
    squares_one_by_one,
    two_passes_one_by_one,
)
from side_by_side import alternating, environment

from cl_diffusion import DDPM
from cl_diffusion.diffusion import DrawnBatch, SNRBands, quantile_bands
from cl_diffusion.fisher import (
    BandedFisher,
    DiagonalFisher,
    FisherEstimator,
    KroneckerFisher,
    LossGradients,
    MeanGradientFisher,
    OutputNormalized,
    SketchedDiagonalFisher,
    estimate,
)
from cl_diffusion.keys import derive_keys

NETWORKS: dict[str, tuple[int, tuple[int, ...]]] = {
    "32x32, widths 40-80": (32, (40, 80)),
    "32x32, widths 32-64-64": (32, (32, 64, 64)),
    "32x32, widths 64-128": (32, (64, 128)),
    "8x8, widths 40-80": (8, (40, 80)),
    "8x8, widths 32-64": (8, (32, 64)),
}


def network(name: str) -> DDPM:
    """A ``UNet2DModel`` with attention on its lowest level."""
    from diffusers import UNet2DModel

    size, widths = NETWORKS[name]
    torch.manual_seed(0)
    return DDPM(
        UNet2DModel(
            sample_size=size,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=widths,
            down_block_types=["DownBlock2D"] * (len(widths) - 1) + ["AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (len(widths) - 1),
            norm_num_groups=8,
            attention_head_dim=8,
            num_class_embeds=10,
        )
    )


def drawn_batches(model: DDPM, size: int, samples: int, batch_size: int) -> list[DrawnBatch]:
    """Images of noise: the cost does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, 1, size, size, generator=generator).to(model.device, model.dtype)
    labels = torch.arange(samples, device=model.device) % 10
    keys = derive_keys(0, torch.arange(samples))
    parts = zip(images.split(batch_size), labels.split(batch_size), keys.split(batch_size), strict=True)
    return [model.draw((x, y), k) for x, y, k in parts]


def estimators(model: DDPM) -> dict[str, FisherEstimator]:
    """What is timed through ``estimate``, verification and all."""
    bands = SNRBands(quantile_bands(model.denoiser.schedule))
    size = model.denoiser.network.config.sample_size
    return {
        "diagonal": DiagonalFisher(),
        "diagonal, output-normalised": DiagonalFisher(weighting=OutputNormalized(tau=1e-3, elements=size**2)),
        "diagonal in 3 bands": BandedFisher(DiagonalFisher(), bands),
        "sketched diagonal": SketchedDiagonalFisher(),
        "mean gradient, plain": MeanGradientFisher("plain"),
        "mean gradient, c* on a tenth": MeanGradientFisher(coefficient_fraction=0.1),
        "mean gradient, c* on all": MeanGradientFisher(),
        "Kronecker": KroneckerFisher(),
    }


def measure(name: str, batch_size: int, samples: int, rounds: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """All alternatives on one network and one batch size."""
    model = network(name).to(device, dtype)
    batches = drawn_batches(model, NETWORKS[name][0], samples, batch_size)
    few = batches[: max(1, 64 // batch_size)]
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    gradients = LossGradients(model, loss)
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "(a) ordinary forward and backward": (lambda: ordinary(model, batches), samples),
        "(b) batches of one": (lambda: squares_one_by_one(model, batches), LOOPED),
        "(c) published two-pass loop": (lambda: two_passes_one_by_one(model, batches), LOOPED),
        "(d) squared batch gradient": (lambda: squared_batch_gradient(model, batches), samples),
        "projections g_i^T v": (lambda: [gradients.projections(b, direction) for b in few], _size(few)),
        "products F v, one Lanczos step": (lambda: [gradients.products(b, direction) for b in few], _size(few)),
        "per-sample gradients by vmap": (lambda: [list(gradients.per_sample(b)) for b in few], _size(few)),
        "draws": (lambda: drawn_batches(model, NETWORKS[name][0], samples, batch_size), samples),
    }
    for label, estimator in estimators(model).items():
        runs[label] = (lambda e=estimator: estimate(e, model, loss, batches), samples)  # type: ignore[misc]
    found = alternating({label: run for label, (run, _) in runs.items()}, rounds, torch.device(device))
    for label, (_, count) in runs.items():
        found[label]["seconds_a_sample"] = found[label]["seconds"] / count
    unit = found["(a) ordinary forward and backward"]["seconds_a_sample"]
    for figures in found.values():
        figures["ratio"] = figures["seconds_a_sample"] / unit
    return {
        "network": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch_size": batch_size,
        "samples": samples,
        "device": device,
        "dtype": str(dtype),
        "results": found,
    }


def _size(batches: list[DrawnBatch]) -> int:
    return sum(len(batch.images) for batch in batches)


def _process(rank: int, world: int, folder: str, name: str, batch_size: int, samples: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
    model = network(name)
    batches = drawn_batches(model, NETWORKS[name][0], samples, batch_size)
    seconds = []
    for estimator in (DiagonalFisher(), MeanGradientFisher(coefficient_fraction=0.1)):
        for attempt in range(3):
            torch.distributed.barrier()
            start = time.perf_counter()
            estimate(estimator, model, loss, batches)
            if attempt:
                seconds.append(time.perf_counter() - start)
    if rank == 0:
        (Path(folder) / f"{world}.json").write_text(json.dumps([min(seconds[:2]), min(seconds[2:])]))
    torch.distributed.destroy_process_group()


def processes(name: str, batch_size: int, samples: int, folder: Path, counts: list[int]) -> list[dict[str, Any]]:
    """The same number of samples in each process, one thread a process: the seconds should not grow."""
    rows = []
    for world in counts:
        mp.spawn(_process, (world, str(folder), name, batch_size, samples), nprocs=world)
        diagonal, mean = json.loads((folder / f"{world}.json").read_text())
        rows.append({"processes": world, "samples_each": samples, "diagonal": diagonal, "mean gradient": mean})
    return rows


def main() -> None:
    """Print a table a setting, and write everything as JSON."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument(
        "--networks",
        nargs="*",
        default=list(NETWORKS),
        choices=list(NETWORKS),
        metavar="NAME",
        help=f"any of {', '.join(map(repr, NETWORKS))}; by default all",
    )
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=[16, 64], help="by default 16 and 64")
    parser.add_argument(
        "--samples", type=int, default=256, help="256; an estimate has a fixed cost, so few cost more each"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, 3 by default; medians are taken over them")
    parser.add_argument(
        "--processes",
        nargs="*",
        type=int,
        default=[1, 2],
        help="numbers of processes to compare, 1 and 2 by default; none: no comparison",
    )
    arguments = parser.parse_args()
    settings = [("cpu", torch.float32)]
    if torch.cuda.is_available():
        settings = [("cuda", torch.float32), ("cuda", torch.bfloat16)]
    report: dict[str, Any] = {"environment": environment(), "settings": [], "processes": []}
    for name in arguments.networks:
        for batch_size in arguments.batch_sizes:
            for device, dtype in settings:
                found = measure(name, batch_size, arguments.samples, arguments.rounds, device, dtype)
                report["settings"].append(found)
                print(f"\n{name}, {found['parameters']:,} parameters, batches of {batch_size}, {device}, {dtype}")
                for label, figures in found["results"].items():
                    print(
                        f"  {label:34s} {figures['ratio']:6.2f}   {1e3 * figures['seconds_a_sample']:8.3f} ms a sample"
                        f"   {figures['extra_mib']:7.0f} MiB"
                    )
                if arguments.json:
                    arguments.json.write_text(json.dumps(report, indent=2))
    if arguments.processes and settings[0][0] == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            name = arguments.networks[-1]
            report["processes"] = processes(name, 64, arguments.samples, Path(folder), arguments.processes)
        print(f"\n{name}, one thread a process")
        for row in report["processes"]:
            print("  " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
