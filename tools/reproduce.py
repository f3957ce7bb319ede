"""What do the published methods keep of a stream of tasks? Every method on every seed, in one command.

    python tools/reproduce.py digits --out runs/reproduce

Each cell is one ``cl-diffusion fit`` in a folder of its own, as many at a time as there are cores or GPUs. A finished
cell is not run again, and an interrupted one goes on from its newest checkpoint, so the command can be repeated until
it is through. It ends with the table, as ``table.md`` and ``table.csv``, and ``front.png``, retention against
plasticity; means over seeds, plus or minus the standard error, and differences from another method on the same seeds.
Seeds are those of initialisation, training noise and the draws of a Fisher; data and their split stay.

A method is ``finetune``, ``joint``, a replay (``distillation``), a penalty (``rank1``), or one of each
(``rank1+distillation``). Other arguments than those below go to every ``cl-diffusion fit``: ``--data.root=PATH``.

``AFID = 1/T sum_i FID_i(m_T)``; forgetting ``1/T sum_k (FID_k(m_T) - FID_k(m_k))`` (2509.23593, section 4.2). The
distance is in Inception's features only where that network is on the machine, else in the project's classifier's, which
compares with nothing but itself; the table says which. Published figures stand beside those of this run.
"""

from __future__ import annotations

import argparse
import csv
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cells import Cell
from cells_in_processes import CellsInProcesses
from methods_on_seeds import MethodsOnSeeds, Rows, draw
from presets import PARTS, PRESETS, Preset, has_penalty

from cl_diffusion.report.run import Run


def _joined(words: Sequence[str]) -> list[str]:
    """``--name value`` as ``--name=value``, so that both are the same argument."""
    joined: list[str] = []
    for word in words:
        option = bool(joined) and joined[-1].startswith("--") and "=" not in joined[-1]
        if option and not word.startswith("-"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def report(rows: Rows, preset: Preset, against: str, out: Path, heading: str) -> str:
    """Write the table and the picture into a folder; returns the table to read."""
    found = MethodsOnSeeds(rows, preset, against)
    text = f"{heading}\n\n{found.markdown()}"
    (out / "table.md").write_text(text)
    records = list(found.records())
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    draw(found, out / "front.png", heading)
    return text


def arguments() -> tuple[argparse.Namespace, list[Cell], list[str]]:
    """Of this script, the cells that they ask for, and the rest, which goes to every fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help=f"the preset's by default; of {', '.join(PARTS)}"
    )
    parser.add_argument("--strengths", nargs="+", type=float, help="of the penalties, each in place of the file's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, help="cells at a time; by default one a GPU, else one a core")
    parser.add_argument("--against", help="the row of the table that differences are from; finetune by default")
    given, extra = parser.parse_known_args()
    if given.jobs is not None and given.jobs < 1:
        parser.error(f"--jobs {given.jobs}; expected at least 1")
    methods = given.methods or PRESETS[given.preset].methods
    try:
        strengths = {method: given.strengths or [None] if has_penalty(method) else [None] for method in methods}
    except ValueError as error:
        parser.error(f"--methods {error}")
    cells = list(
        dict.fromkeys(
            Cell(method, strength, seed) for seed in given.seeds for method in methods for strength in strengths[method]
        )
    )
    rows = {cell.name for cell in cells}
    if given.against is not None and given.against not in rows:
        parser.error(f"--against {given.against!r}; expected a row of the table: {', '.join(sorted(rows))}")
    return given, cells, _joined(extra)


def main() -> None:
    """Run the matrix and write its table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    given, cells, extra = arguments()
    preset, out = PRESETS[given.preset], given.out / given.preset
    try:
        failed = CellsInProcesses(preset, extra, out, given.jobs).run(cells)
        rows: dict[str, dict[int, Run]] = {}
        for cell in cells:
            if cell not in failed:
                rows.setdefault(cell.name, {})[cell.seed] = Run.read(cell.folder(out))
        if rows:
            heading = " ".join([given.preset, *extra])
            print(f"\n{report(rows, preset, given.against or 'finetune', out, heading)}")
    except ValueError as error:
        sys.exit(f"reproduce.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
    for cell in failed:
        print(f"failed: {cell.name}, seed {cell.seed}; see {cell.log(out)}", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
