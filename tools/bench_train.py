"""How many images a second does training take in, and what does this package cost or gain?

    python tools/bench_train.py --json train.json

Steps of the first task (a U-Net's denoising loss) and of the later ones (as many replayed images beside, and the
answer of a teacher, as ``published/rank1_paper_distillation.yaml`` has it), on images of noise. On a CPU: a fit by this
package beside a bare loop over the same network, batches, optimizer and loss, whose time it may exceed by a twentieth.
On a GPU: the fit eager in fp32, with and without TF32, and as ``hardware/gpu.yaml`` has it; the share it reaches of the
rate of a large matrix product in bfloat16; and the hours of the paper's MNIST run that follow.

A block is one epoch, from a batch's start to that of the next epoch's; blocks take turns, and medians are told. Set-up,
earlier tasks and compiling lie before the first timed block. The bare loop runs in a thread of its own, as a fit here
has to: the same step takes 9 percent longer there than in the main thread, which allocates memory otherwise. The images
of a rate are the current task's; those replayed come on top. The penalty, a reading of the parameters, is left out: see
``tools/bench_penalty.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.loggers import CSVLogger
from paused_fit import PausedFit
from side_by_side import alternating, environment
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cl_diffusion import DDPM, DistilledDDPM, ReplayDataModule, TaskDataModule
from cl_diffusion.data import ClassBalancedBuffer
from cl_diffusion.data.images import ImageFormat
from cl_diffusion.data.labelled import LabelledImages, StoredImages
from cl_diffusion.data.sources import SOURCES, Source
from cl_diffusion.diffusion import NoiseSchedule
from cl_diffusion.diffusion.samplers import DDIMSampler

CONFIGS = Path(__file__).parents[1] / "configs"
NETWORKS = {"paper": "unet_32x32", "16x16": "unet_16x16", "8x8": "unet_8x8"}
PAPER = {"tasks": 5, "epochs": 200, "images": 12_000, "drawn": 5000 * (2 + 4 + 6 + 8), "sampler_steps": 50}
"""2509.23593 on MNIST; ``drawn`` before tasks 2 to 5, of each old class."""
LR = 2e-4
Stage = Literal["first task", "later tasks"]


def unet(name: str) -> nn.Module:
    """The network of a file in ``configs/model``."""
    from diffusers import UNet2DModel

    config = yaml.safe_load((CONFIGS / "model" / f"{NETWORKS[name]}.yaml").read_text())
    torch.manual_seed(0)
    network: nn.Module = UNet2DModel(**config["model"]["init_args"]["network"]["init_args"])
    return network


def model(name: str, stage: Stage) -> DDPM:
    """As the package trains it; the two terms of the later tasks are added."""
    adam = lambda parameters: torch.optim.Adam(parameters, lr=LR)  # noqa: E731
    if stage == "first task":
        return DDPM(unet(name), optimizer=adam)
    return DistilledDDPM(unet(name), balance="sum", optimizer=adam)


def stream(size: int, steps: int, batch_size: int, stage: Stage, resident: bool = False) -> TaskDataModule:
    """Two tasks of noise images, ``steps`` full batches an epoch; the stage's task never ends."""

    def load(root: str, download: bool, image_format: ImageFormat) -> list[LabelledImages]:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (2 * steps * batch_size, 1, size, size), generator=generator, dtype=torch.uint8)
        images = StoredImages(pixels, torch.arange(len(pixels)) % 2, 2, image_format)
        return [images, images]

    SOURCES["noise"] = Source(load, (1, size, size), 2)
    options: dict[str, Any] = {
        "dataset": "noise",
        "classes_per_task": 1,
        "epochs_per_task": [10**6, 1] if stage == "first task" else [1, 10**6],
        "batch_size": batch_size,
        "resident": resident,
    }
    if stage == "first task":
        return TaskDataModule(**options)
    return ReplayDataModule(ClassBalancedBuffer(images=steps * batch_size), 0.5, **options)


def fit(
    name: str, data: TaskDataModule, stage: Stage, steps: int, folder: str, **options: Any
) -> tuple[PausedFit, LightningModule]:
    """A fit of the package that waits at its first step of the stage."""
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
    module = model(name, stage)
    return PausedFit(trainer, module, data, first=0 if stage == "first task" else steps), module


class BareLoop:
    """The same step, written out: a network, two tables, Adam, and batches that lie ready.

    Args:
        name: of the network.
        batches: images and labels; in later tasks two pairs.
        device: of all of it.
    """

    def __init__(self, name: str, batches: list[Any], device: torch.device) -> None:
        schedule = NoiseSchedule.linear()
        self.signal, self.noise = schedule.signal.float().to(device), schedule.noise.float().to(device)
        self.network = unet(name).to(device)
        self.teacher = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LR)
        self.batches = batches

    def noised(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The noisy images, their timesteps, and the noise."""
        t = torch.randint(len(self.signal), images.shape[:1], device=images.device)
        noise = torch.randn_like(images)
        return self.signal[t].view(-1, 1, 1, 1) * images + self.noise[t].view(-1, 1, 1, 1) * noise, t, noise

    def loss(self, current: Any, replay: Any | None) -> Tensor:
        """Of the current images, and of the teacher's answer on the replayed ones."""
        x_t, t, wanted = self.noised(current[0])
        loss = (self.network(x_t, t, class_labels=current[1], return_dict=False)[0] - wanted).square().mean()
        if replay is None:
            return loss
        x_t, t, _ = self.noised(replay[0])
        with torch.no_grad():
            wanted = self.teacher(x_t, t, class_labels=replay[1], return_dict=False)[0]
        return loss + (self.network(x_t, t, class_labels=replay[1], return_dict=False)[0] - wanted).square().mean()

    def run(self) -> None:
        """An epoch."""
        for current, replay in self.batches:
            self.optimizer.zero_grad()
            self.loss(current, replay).backward()
            self.optimizer.step()


def batches(data: TaskDataModule, stage: Stage, device: torch.device) -> list[Any]:
    """An epoch's, as pairs of the current and the replayed part."""
    task = 0 if stage == "first task" else 1
    found = iter(data.training_loader(task, task))
    pairs = [(batch, None) if task == 0 else tuple(batch[0]) for batch in found]
    move = lambda part: None if part is None else tuple(tensor.to(device) for tensor in part)  # noqa: E731
    return [(move(current), move(replay)) for current, replay in pairs]


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


def flops_of_an_image(name: str) -> tuple[float, float]:
    """Of a forward, and of a forward and backward, counted as two a multiplication and addition."""
    network = unet(name).to("meta")
    config: Any = network.config
    image = torch.empty(1, config.in_channels, config.sample_size, config.sample_size, device="meta")
    label = torch.zeros(1, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as forward:
        output = network(image, label, class_labels=label, return_dict=False)[0]
    with FlopCounterMode(display=False) as backward:
        output.square().mean().backward()
    return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()


def flops_of_a_step(name: str, stage: Stage) -> float:
    """For each current image: in later tasks the replayed one's, and its teacher's, besides."""
    forward, both = flops_of_an_image(name)
    return both if stage == "first task" else 2 * both + forward


def peak(device: torch.device, rounds: int) -> float:
    """Operations a second of a large matrix product, in bfloat16 on a GPU and fp32 on a CPU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = 20 if device.type == "cuda" else 1
    found = alternating({"product": lambda: [a @ b for _ in range(times)]}, rounds, device)
    return times * 2 * size**3 / found["product"]["fastest"]


def round_trips(run: Callable[[], object], steps: int) -> float:
    """How often in a step the host waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught) / steps


def measure(stage: Stage, given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All alternatives of a stage, in turns."""
    size = unet(given.network).config.sample_size
    gpu = device.type == "cuda"
    runs: dict[str, Callable[[], object]] = {}
    fits: list[PausedFit] = []
    processor: dict[str, list[float]] = {}

    def add(label: str, flags: tuple[bool, bool], resident: bool = False, **options: Any) -> None:
        data = stream(size, given.steps, given.batch_size, stage, resident)
        paused, _ = fit(given.network, data, stage, given.steps, f"{folder}/{stage}/{label}", **options)
        fits.append(paused)

        def run() -> None:
            with tf32(*flags):
                paused.run(given.steps)

        runs[label] = run

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
        plain = {"accelerator": "gpu" if gpu else "cpu", "devices": 1}
        if not gpu or given.bare:
            data = stream(size, given.steps, given.batch_size, stage)
            bare = BareLoop(given.network, batches(data, stage, device), device)
            runs["bare loop"] = lambda: thread.submit(bare.run).result()
        add("fit, eager fp32", (False, False), **plain)
        if gpu:
            add("fit, eager fp32, TF32", (True, True), **plain)
        if gpu or given.hardware:
            add("fit, hardware/gpu.yaml", (False, True), resident=True, **hardware(given.backend, device))
        timed = {label: _noting(run, processor.setdefault(label, [])) for label, run in runs.items()}
        found: dict[str, Any] = alternating(timed, given.rounds, device)
        if gpu:
            found["fit, hardware/gpu.yaml"]["round_trips_a_step"] = round_trips(
                runs["fit, hardware/gpu.yaml"], given.steps
            )
        for paused in fits:
            paused.close()
    for label, figures in found.items():
        figures["processor_seconds"] = statistics.median(processor[label][1:])
        figures["images_a_second"] = given.steps * given.batch_size / figures["seconds"]
        figures["flops_a_second"] = figures["images_a_second"] * flops_of_a_step(given.network, stage)
    return found


def _noting(run: Callable[[], object], taken: list[float]) -> Callable[[], None]:
    """The same, and the processor's seconds of it, which others on the machine hardly change."""

    def noted() -> None:
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)

    return noted


def paper_hours(name: str, rates: dict[Stage, float]) -> dict[str, float]:
    """The steps of the paper's MNIST run at these rates of current images a second, and the operations of them."""
    images = PAPER["epochs"] * PAPER["images"]
    counts: dict[Stage, int] = {"first task": images, "later tasks": (PAPER["tasks"] - 1) * images}
    return {
        "hours": sum(count / rates[stage] for stage, count in counts.items()) / 3600,
        "petaflop": sum(count * flops_of_a_step(name, stage) for stage, count in counts.items()) / 1e15,
    }


def drawing_hours(name: str, device: torch.device) -> float:
    """Of the replayed images of the paper's run: DDIM in fp32, as ``GenerativeReplay`` calls it."""
    size = unet(name).config.sample_size
    drawn = DDPM(unet(name), image_shape=(1, size, size), sampler=DDIMSampler(steps=PAPER["sampler_steps"])).to(device)
    labels = torch.arange(250, device=device) % 10
    with torch.no_grad():
        found = alternating({"draw": lambda: drawn.sample(labels)}, 1, device)
    return found["draw"]["seconds"] / len(labels) * PAPER["drawn"] / 3600


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
            ratios = {s: f["fit, eager fp32"][clock] / f["bare loop"][clock] for s, f in stages.items()}
            found[f"ratio_of_{clock}"] = ratios
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
