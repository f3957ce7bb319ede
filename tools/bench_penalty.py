"""What does a penalty cost at each optimizer step, and what does it hold?

    python tools/bench_penalty.py --json penalty.json

In turns, in one process: the closed gradient as a callback adds it, for every operator and memory; *autograd* of the
same sum of quadratics in a Python loop over tasks and parameters, as others put it into the loss; and the *limit*: the
bytes that must be read and written (each tensor once, the columns of a low rank twice) at the rate at which this
machine sums an array that no cache holds. Memory is what is kept: what steps read, and exact sums on the CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from side_by_side import alternating, environment
from torch import Tensor

from cl_diffusion.linalg import Diagonal, Identity, LowRank, Memory, Penalty, Quadratic, add_gradients_

Parameters = dict[str, Tensor]
LARGEST = 2_359_296
"""Entries of the largest tensor, a 3x3 convolution of 512 channels; a ResNet's or a U-Net's other tensors halve."""


def network(size: int, device: torch.device) -> Parameters:
    """Random tensors of about ``size`` entries together, in the proportions of a convolutional network."""
    tensors: Parameters = {}
    left, largest = size, min(LARGEST, max(1, size // 4))
    while left > 0:
        for entries in (largest, largest // 2, largest // 4, largest // 16, 256):
            entries = min(max(1, entries), left)
            if entries > 0:
                tensors[f"p{len(tensors)}"] = torch.randn(entries, device=device)
                left -= entries
    return tensors


def like(theta: Parameters, *leading: int) -> Parameters:
    """Random numbers in the shapes of the network."""
    return {name: torch.rand(*leading, *tensor.shape, device=tensor.device) for name, tensor in theta.items()}


def diagonal(theta: Parameters) -> Quadratic:
    """One task."""
    return Quadratic(Diagonal(like(theta)), like(theta))


def rank_one(theta: Parameters) -> Quadratic:
    """One task."""
    return Quadratic(LowRank(like(theta, 1), torch.ones(1)), like(theta))


def identity(theta: Parameters) -> Quadratic:
    """One task."""
    return Quadratic(Identity(theta), like(theta))


def autograd_diagonal(terms: list[Quadratic], weights: Parameters) -> Tensor:
    """The penalty as others write it."""
    total = torch.zeros((), device=next(iter(weights.values())).device)
    for term in terms:
        importance = term.operator.diagonal()
        for name, weight in weights.items():
            total = total + 0.5 * (importance[name] * (weight - term.anchor[name]).pow(2)).sum()
    return total


def autograd_rank_one(terms: list[Quadratic], weights: Parameters) -> Tensor:
    """The penalty as others would write it."""
    total = torch.zeros((), device=next(iter(weights.values())).device)
    for term in terms:
        assert isinstance(term.operator, LowRank)
        along = [
            (term.operator.vectors[name][0] * (weight - term.anchor[name])).sum() for name, weight in weights.items()
        ]
        total = total + 0.5 * term.operator.values[0].float() * torch.stack(along).sum().pow(2)
    return total


CASES: dict[str, tuple[Callable[[Parameters], Quadratic], Callable[[list[Quadratic], Parameters], Tensor]]] = {
    "diagonal": (diagonal, autograd_diagonal),
    "rank one": (rank_one, autograd_rank_one),
    "identity": (identity, autograd_diagonal),
}


def bytes_moved(terms: list[Quadratic], size: int) -> float:
    """Bytes that a step must read, and the gradients that it writes."""
    moved = 3.0 * 4 * size  # weights and gradients are read, gradients written
    for term in terms:
        anchor = 4 * size
        columns = 8 * size * term.operator.rank if isinstance(term.operator, LowRank) else 0
        entries = 4 * size if isinstance(term.operator, Diagonal) else 0
        moved += anchor + columns + entries + (4 * size if term.slope is not None else 0)
    return moved


def held(terms: list[Quadratic]) -> float:
    """MiB of tensors."""

    def leaves(node: Any) -> list[Tensor]:
        if isinstance(node, Tensor):
            return [node]
        values = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
        return [leaf for value in values for leaf in leaves(value)]

    storages = {
        leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for t in terms for leaf in leaves(t.state())
    }
    return sum(storages.values()) / 2**20


def measured(
    kind: str, size: int, tasks: int, rounds: int, device: torch.device, stream: Callable[[], object], streamed: float
) -> list[dict[str, Any]]:
    """One row a memory; ``streamed`` is the number of bytes that ``stream`` reads."""
    make, autograd = CASES[kind]
    theta = network(size, device)
    gradients = {name: torch.zeros_like(tensor) for name, tensor in theta.items()}
    terms = [make(theta) for _ in range(tasks)]
    weights = {name: tensor.clone().requires_grad_() for name, tensor in theta.items()}

    def by_autograd() -> None:
        for weight in weights.values():
            weight.grad = None
        (1e-9 * autograd(terms, weights)).backward()

    memories: dict[str, Penalty] = {}
    modes: list[Memory] = ["merged", "online"]
    for memory in modes:
        memories[memory] = Penalty(memory)
        for term in terms:
            memories[memory].remember(term)
    stepped = {name: penalty.working(theta) for name, penalty in memories.items()}
    stepped["separate"] = terms  # which a Penalty does for low ranks, and never for diagonals
    alternatives: dict[str, Callable[[], object]] = {
        name: lambda kept=kept: add_gradients_(kept, gradients, theta, 1e-9) for name, kept in stepped.items()
    }
    found = alternating({"stream": stream, "autograd": by_autograd, **alternatives}, rounds, device)
    rate = streamed / found["stream"]["seconds"]
    rows = []
    for name, kept in stepped.items():
        seconds, limit = found[name]["seconds"], bytes_moved(kept, size) / rate
        exact = (
            []
            if name == "separate"
            else [t for t, read in zip(memories[name].terms, kept, strict=True) if t is not read]
        )
        rows.append(
            {
                "operator": kind,
                "parameters": size,
                "tasks": tasks,
                "memory": name,
                "milliseconds": 1e3 * seconds,
                "autograd_milliseconds": 1e3 * found["autograd"]["seconds"],
                "times_faster": found["autograd"]["seconds"] / seconds,
                "times_the_limit": seconds / limit,
                "stream_gb_per_s": rate / 1e9,
                "mib_read_by_steps": held(kept),
                "mib_of_exact_sums": held(exact),
            }
        )
    return rows


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e5, 1e6, 1e7], help="numbers of parameters")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--operators", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    array = torch.rand(80_000_000, device=device)
    rows = []
    print("operator    parameters  tasks  memory          ms   autograd ms  faster   of limit   MiB read + exact")
    for size in map(int, options.sizes):
        for tasks in options.tasks:
            for kind in options.operators:
                for row in measured(kind, size, tasks, options.rounds, device, array.sum, 4.0 * len(array)):
                    rows.append(row)
                    print(
                        f"{kind:<10} {size:>11,} {tasks:>6}  {row['memory']:<13} {row['milliseconds']:>7.2f} "
                        f"{row['autograd_milliseconds']:>11.1f} {row['times_faster']:>8.1f} "
                        f"{row['times_the_limit']:>9.2f} {row['mib_read_by_steps']:>10.1f} + "
                        f"{row['mib_of_exact_sums']:.1f}",
                        flush=True,
                    )
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
