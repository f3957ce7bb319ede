"""What every part would take of a stream that is too large to be run here: memory, GPU-hours, disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scale_networks import Counted
from scale_scenarios import Assumptions, Scenario

HOUR, GB = 3600.0, 1e9
PASSES = ("diagonal", "sketched diagonal", "mean gradient", "leading eigenpairs", "Kronecker", "diagonal in 3 bands")


@dataclass(frozen=True)
class Part:
    """One line of the bill.

    Args:
        name: of the part.
        gpu: bytes on each GPU while it is there, on top of training's weights, gradients and Adam's moments.
        shards: whether a strategy that shards parameters could have ``1 / GPUs`` of that on each.
        hours: of all GPUs together, over the whole stream.
        host: bytes in the memory of each process.
        disk: bytes in the last checkpoint.
        with_step: whether it is there during a training step, beside the activations of that.
        whole: whether ``gpu`` is all of it: the training step itself.
    """

    name: str
    gpu: float = 0.0
    shards: bool = False
    hours: float = 0.0
    host: float = 0.0
    disk: float = 0.0
    with_step: bool = False
    whole: bool = False


class Bill:
    """Of one scenario.

    Args:
        scenario: stream, network and GPUs.
        assumed: of the machines.
        equivalents: what an image costs each part, in forward passes of one image (``scale_passes.equivalents``);
            a Fisher that is not among them is left out.
        unit_bytes: that the statistics of a reset keep for each unit.
        basis: what an eigenbasis costs, in products of two matrices of its size.
    """

    def __init__(
        self,
        scenario: Scenario,
        assumed: Assumptions,
        equivalents: Mapping[str, float],
        unit_bytes: float = 0.0,
        basis: float = 0.0,
        network: Counted | None = None,
    ) -> None:
        self.scenario, self.assumed, self.equivalents = scenario, assumed, equivalents
        self.unit_bytes, self.basis = unit_bytes, basis
        self.network = network or scenario.counted()
        self.weights = 4.0 * self.network.parameters
        self.images = scenario.training / scenario.tasks  # of a task
        self.steps = assumed.epochs * self.images / assumed.batch / scenario.gpus  # of a task
        self.mine = assumed.batch / (1 - assumed.replay_share)  # images of a step on a GPU, replay and all
        self.resident = 4 * self.weights  # weights, gradients, Adam's two moments
        self.activations = 0.5 * self.network.activation_bytes * self.mine

    def parts(self) -> list[Part]:
        """All lines."""
        return [*self._training(), *self._fishers(), *self._penalties(), *self._boundaries()]

    def needed(self, part: Part, sharded: bool = False) -> float:
        """Bytes on a GPU while the part is there, of everything; DDP's buckets are a copy of the gradients."""
        shards = self.scenario.gpus if sharded else 1
        own = part.gpu / (shards if part.shards else 1)
        around = self.resident / shards + (0.0 if sharded else self.weights)
        return around + own + (self.activations if part.with_step and not part.whole else 0.0)

    def fits(self, part: Part, sharded: bool = False) -> bool:
        """Whether a GPU has the memory."""
        return self.needed(part, sharded) <= self.assumed.gpu_gb * GB

    def chunk(self) -> int:
        """Per-sample gradients by ``vmap`` that fit beside the resident parts at once."""
        return max(0, int((self.assumed.gpu_gb * GB - self.resident - self.weights) // self.weights))

    def largest_batch(self) -> int:
        """Images of a step that fit on a GPU, with nothing of continual learning on it."""
        free = self.assumed.gpu_gb * GB - self.resident - self.weights
        return max(0, int(free // (0.5 * self.network.activation_bytes)))

    def _hours(self, evaluations: float, peak: float) -> float:
        """GPU-hours of so many forward passes of an image."""
        return evaluations * self.network.flop / (peak * 1e12 * self.assumed.utilisation) / HOUR

    def _ring(self, size: float) -> float:
        """GPU-hours of an all-reduce: all GPUs wait for it."""
        gpus = self.scenario.gpus
        return 2 * (gpus - 1) / gpus * size / self.assumed.ring_bytes / HOUR * gpus

    def _training(self) -> Iterator[Part]:
        tasks, old = self.scenario.tasks, self.scenario.tasks - 1
        trained = self.assumed.epochs * self.images
        step = self.equivalents["training step"]
        hours = self._hours(step * trained * tasks, self.assumed.bf16_tflops)
        yield Part("training step", self.activations, hours=hours, disk=3 * self.weights, with_step=True, whole=True)
        yield Part(
            "  all-reduce of its gradients, if nothing hides it", hours=self._ring(self.weights) * self.steps * tasks
        )
        yield Part("averaged weights (EMA)", self.weights, disk=self.weights, with_step=True)
        share = self.assumed.replay_share / (1 - self.assumed.replay_share)
        distilled = self.equivalents["distilled step"] * share * trained * old
        teacher = self._hours(distilled, self.assumed.bf16_tflops)
        yield Part("teacher, and its part of each step", self.weights, hours=teacher, disk=self.weights, with_step=True)

    def _fishers(self) -> Iterator[Part]:
        one, entries, lanczos = self.network.parameters, self.network.factor_entries, self.assumed.lanczos_steps
        kronecker = self.network.kronecker_bytes
        # Bytes while passing beside activations, and after the last sample; bytes all-reduced; passes; shards.
        known = {
            "diagonal": (12.0 * one, 20.0 * one, 8.0 * one, 1, False),
            "sketched diagonal": (16.0 * one, 20.0 * one, 8.0 * one, 1, True),
            "mean gradient": (20.0 * one, 48.0 * one, 16.0 * one, 1, True),
            "leading eigenpairs": ((12.0 + 8 * lanczos) * one, 0.0, 8.0 * one * lanczos, lanczos, False),
            "Kronecker": (8.0 * entries, 16.0 * entries + 8.0 * one + kronecker, 8.0 * entries, 1, False),
            "diagonal in 3 bands": (20.0 * one, 28.0 * one, 24.0 * one, 1, False),
        }
        for name in PASSES:
            if name not in self.equivalents:
                continue
            passing, after, sent, passes, shards = known[name]
            pass_ = self._hours(self.equivalents[name] * self.images * passes, self.assumed.fp32_tflops)
            hours = self.scenario.tasks * (pass_ + self._ring(sent))
            passing += self.network.activation_bytes * self.assumed.batch
            yield Part(f"Fisher: {name}", max(passing, after), shards, hours)
        flop = self.basis * 2 * self.network.factor_cubes
        bases = flop / (self.assumed.fp64_tflops * 1e12 * self.assumed.utilisation) / HOUR
        yield Part("  Kronecker's eigenbases, in every process", hours=bases * self.scenario.tasks * self.scenario.gpus)

    def _penalties(self) -> Iterator[Part]:
        tasks, rank, p = self.scenario.tasks, self.assumed.rank, self.weights
        factored = self.network.kronecker_bytes + p
        # Bytes that a step reads; bytes kept exactly, in the host and on disk; columns are read twice.
        yield self._penalty("diagonal, merged", 2 * p, 4 * p, 0)
        yield self._penalty("rank one, merged", (tasks + 2) * p, (tasks + 2) * p, tasks * p, True)
        yield self._penalty("rank one, separate", 2 * tasks * p, 2 * tasks * p, tasks * p, True)
        columns = rank * tasks * p
        yield self._penalty(f"rank {rank}, merged", columns + 2 * p, columns + 2 * p, columns)
        yield self._penalty(f"rank {rank}, max_rank={rank}", (rank + 2) * p, (rank + 2) * p, rank * p)
        yield self._penalty("Kronecker", factored * tasks, factored * tasks, factored * tasks)

    def _penalty(self, name: str, read: float, kept: float, again: float, shards: bool = False) -> Part:
        """After the last task; the hours are of that many bytes at every step, a bound from below."""
        moved = read + again + 3 * self.weights
        hours = moved / (self.assumed.memory_tb * 1e12) * self.steps * (self.scenario.tasks - 1) * self.scenario.gpus
        merged = name.startswith("diagonal")
        grown = 1.0 if merged else 0.5  # the mean over a stream of what grows with each task
        return Part(f"penalty: {name}", read, shards or merged, hours / HOUR * grown, kept, kept, with_step=True)

    def _boundaries(self) -> Iterator[Part]:
        scenario, assumed = self.scenario, self.assumed
        values, tasks = self.network.image_values, scenario.tasks
        each = scenario.classes / tasks
        drawn = assumed.replay_per_class * each  # for one old task
        pool = drawn * (tasks - 1)
        sampled = self.equivalents["sampler"] * assumed.sampler_steps
        hours = self._hours(sampled * drawn * tasks * (tasks - 1) / 2, assumed.fp32_tflops)
        yield Part("replay pool", hours=0.0, host=pool * values, disk=pool * values)
        yield Part("  its drawing, whole on every GPU", 4.0 * pool * values, False, hours, host=4.0 * pool * values)
        seen = tasks * (tasks + 1) / 2
        losses = assumed.loss_draws * scenario.held_out / tasks * seen
        yield Part(
            "metrics: losses", hours=self._hours(losses, assumed.fp32_tflops), gpu=4.0 * values * scenario.held_out
        )
        pictures = assumed.metrics_per_class * each * seen
        images = 4.0 * values * (scenario.held_out + assumed.metrics_per_class * scenario.classes)
        yield Part("metrics: drawn images", images, False, self._hours(sampled * pictures, assumed.fp32_tflops))
        yield Part("metrics: training images for the reference classifier", 8.0 * values * scenario.training)
        watched = self.unit_bytes * self.network.units
        yield Part("reset statistics", watched, host=watched, disk=watched, with_step=True)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        parts = [
            {
                **asdict(part),
                "needed": self.needed(part),
                "fits": self.fits(part),
                "needed_sharded": self.needed(part, True),
            }
            for part in self.parts()
        ]
        return {
            "scenario": asdict(self.scenario),
            "network": asdict(self.network),
            "vmap_chunk": self.chunk(),
            "largest_batch": self.largest_batch(),
            "parts": parts,
        }
