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
import json
import os
import sys
from pathlib import Path

from dead_unit_detection import detection
from plasticity_streams import LEARNED, METHODS, SWEEPS, Streams
from reset_overhead import overhead
from single_relu import single_relu_table


def main() -> None:
    """One of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("table", "sweep", "relu", "detection", "overhead"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, default=Path("runs/plasticity"))
        if name in ("table", "sweep"):
            command.add_argument("problem", choices=LEARNED)
            methods = METHODS if name == "table" else list(SWEEPS)
            command.add_argument("--methods", nargs="+", choices=methods, default=methods)
            command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
            command.add_argument("--jobs", type=int, default=os.cpu_count())
    given, extra = parser.parse_known_args()
    if given.command in ("table", "sweep"):
        streams = Streams(given.problem, given.seeds, given.out, given.jobs, extra)
        print(streams.table(given.methods) if given.command == "table" else streams.sweep(given.methods))
    elif extra:
        sys.exit(f"bench_plasticity.py: error: {given.command} takes no {extra[0]}")
    elif given.command == "relu":
        print(single_relu_table())
    elif given.command == "detection":
        print(detection(given.out / "detection.png"))
    else:
        print(json.dumps(overhead(), indent=1))


if __name__ == "__main__":
    main()
