"""How do memory and time of each part grow, and what would a large stream cost?

    python tools/bench_scale.py --json scale.json

Measures each part on small networks while one variable grows and all others stand (parameters, samples, tasks, sampler
steps, units, processes), and fits a power law and a line. Then the bill of streams that are too large to be run here.

What is extrapolated: bytes by their law, which is exact, at the scenario's own shapes, counted on torch's meta device;
time as *forward passes of an image*, a ratio of seconds that are measured here, times the network's counted FLOP, at a
rate that is assumed. No second of this machine is in the bill. A fit holds within the range that stands beside it;
beyond, the same law is assumed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import rich.console
import scale_kept
import scale_passes
import scale_processes
import scale_stream
from rich.table import Table
from scale_bill import Bill
from scale_bill_lines import HEAD, lines
from scale_growth import Growth
from scale_passes import QUICK, Sizes
from scale_scenarios import SCENARIOS, Assumptions
from side_by_side import environment

NOTES = """\
"GB on GPU" is the part alone; "all on it" has weights, gradients, Adam's moments and DDP's buckets besides, and, of
what is there in a step, the activations: a bf16 network's, half of what was counted in single precision. Fisher passes
keep single precision's, of as many images as a step has. "If sharded": all on it, the parameters split over all GPUs,
of what needs no per-sample gradients; this is of shapes alone, no sharded run is measured. Penalties are those after
the last task, their hours a bound from below, bytes over the rate of memory. "disk" is of one checkpoint, and adds up
over the parts that a method has. Costs of an image are of small networks on small images; they fall as images grow.
"""


def measured(sizes: Sizes, processes: Sequence[int], widths: Sequence[int]) -> tuple[list[Growth], dict[str, float]]:
    """Everything that grows, and what an image costs each part in forward passes."""
    parts: dict[str, Callable[[], list[Growth]]] = {
        "parameters": lambda: scale_passes.by_parameters(sizes),
        "samples": lambda: scale_passes.by_samples(sizes),
        "sampler steps": lambda: scale_passes.by_sampler_steps(sizes),
        "tasks": lambda: scale_kept.by_tasks(sizes),
        "boundaries of a stream": scale_stream.boundaries,
        "images": lambda: scale_kept.by_images(sizes),
        "units": lambda: scale_kept.by_units(sizes),
        "sides of a factor": lambda: scale_kept.by_side(sizes),
        "processes": lambda: scale_processes.across(processes, widths) if processes else [],
    }
    found: dict[str, list[Growth]] = {}
    for name, measure in parts.items():
        start = time.perf_counter()
        found[name] = measure()
        print(f"by {name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    costs = scale_passes.equivalents(found["samples"], found["sampler steps"], sizes)
    return [growth for growths in found.values() for growth in growths], costs


def bills(growths: Sequence[Growth], equivalents: dict[str, float], assumed: Assumptions) -> list[Bill]:
    """One a scenario."""
    found = {(growth.part, growth.quantity): growth for growth in growths}
    units = found["reset statistics", "bytes kept"].points[-1]
    basis = found["Kronecker: eigenbasis of a factor", "seconds"].points[-1][1]
    product = found["product of two matrices", "seconds"].points[-1][1]
    return [Bill(scenario, assumed, equivalents, units[1] / units[0], basis / product) for scenario in SCENARIOS]


def shown(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, as wide as it needs to be."""
    table = Table(*head, title=title, title_justify="left")
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*row)
    console = rich.console.Console(width=190)
    console.print(table)


def show_bill(bill: Bill) -> None:
    """Of one scenario."""
    network, scenario = bill.network, bill.scenario
    title = (
        f"{scenario.name}: {scenario.gpus} GPUs, {network.parameters / 1e6:,.0f} M parameters, "
        f"{network.flop / 1e9:.0f} GFLOP a forward of an image; {bill.mine:g} images of a step on a GPU, at most "
        f"{bill.largest_batch()}; per-sample gradients that fit at once (vmap): {bill.chunk()}"
    )
    shown(title, HEAD, lines(bill))


def assumptions(parser: argparse.ArgumentParser) -> None:
    """An option for each."""
    for field in fields(Assumptions):
        kind: Any = type(field.default)
        said = f"{field.metadata['says']}; {field.default}"
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=said)


def main() -> None:
    """Measure, fit, extrapolate; print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, for a test: the times mean little")
    parser.add_argument("--processes", nargs="*", type=int, help="numbers of them; 1, 2 and 4, with --quick none")
    assumptions(parser)
    given = parser.parse_args()
    assumed = Assumptions(**{field.name: getattr(given, field.name) for field in fields(Assumptions)})
    processes = given.processes if given.processes is not None else [] if given.quick else [1, 2, 4]
    growths, equivalents = measured(QUICK if given.quick else Sizes(), processes, (64, 256, 512))
    head = ["part", "quantity", "across", "range", "exponent (residual)", "nearer law (residual)"]
    shown("Growth in one variable, all others standing", head, [growth.row() for growth in growths])
    costs = [[name, f"{cost:.2f}"] for name, cost in equivalents.items()]
    shown("An image, in forward passes of one image", ["part", "cost"], costs)
    rows = [[field.name, f"{getattr(assumed, field.name):g}", field.metadata["says"]] for field in fields(Assumptions)]
    shown("Assumed, not measured", ["", "", "what it is"], rows)
    made = bills(growths, equivalents, assumed)
    for bill in made:
        show_bill(bill)
    print(NOTES)
    if given.json:
        report = {
            "environment": environment(),
            "growth": [growth.record() for growth in growths],
            "equivalents": equivalents,
            "assumptions": asdict(assumed),
            "bills": [bill.record() for bill in made],
        }
        given.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
