"""How far did training on the last task move the weights, and how far along what a penalty held?

    python tools/moved.py runs/reproduce/directions runs/reproduce/directions_proximal

Of each row of matrices that ``tools/reproduce.py`` has run, means over seeds, plus or minus the standard error:
``|D|``, the length of the displacement ``D`` of all parameters from the checkpoint after the last task but one to that
after the last; ``|P D|``, the length of its part in the span of the directions that the penalty held then, for
penalties of low rank; the same of fine-tuning (the row ``finetune`` beside it), along the same directions on the same
seed; of a single direction ``u``, the ratio of ``|D|`` to that of fine-tuning in three tenths of the coordinates, those
where ``|u|`` is least, the fifth, and those where it is most; and the retention, as in the table of ``reproduce.py``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from tables import interval, table

from cl_diffusion.linalg import LowRank, Parameters, Quadratic, parameters
from cl_diffusion.report.run import Run

TENTHS = ("ratio where |u| is least", "where it is middling", "where it is most")
HEAD = ("|D|", "|P D|", "|P D| of fine-tuning", *TENTHS, "retention")


def checkpoints(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those after the last task but one, and after the last.

    Raises:
        SystemExit: there are fewer than two.
    """
    numbers = sorted(int(path.stem.rpartition("_")[2]) for path in (run / "checkpoints").glob("after_task_*.ckpt"))
    if len(numbers) < 2:
        raise SystemExit(f"{run} has {len(numbers)} checkpoints after tasks; expected two or more, to be compared")
    paths = [run / "checkpoints" / f"after_task_{number}.ckpt" for number in numbers[-2:]]
    before, after = (torch.load(path, map_location="cpu", weights_only=True, mmap=True) for path in paths)
    return before, after


def displacement(run: Path) -> Parameters:
    """``D``, in float64."""
    before, after = (checkpoint["state_dict"] for checkpoint in checkpoints(run))
    return {name: after[name].double() - w.double() for name, w in before.items() if w.is_floating_point()}


def held(run: Path) -> list[Parameters]:
    """Orthonormal directions that the penalty held while the last task was learned; none unless it is of low rank."""
    before, _ = checkpoints(run)
    terms = [term for state in before["callbacks"].values() for term in state.get("terms", ())]
    operators = [Quadratic.from_state(term).operator for term in terms]
    if len(operators) != 1 or not isinstance(operators[0], LowRank):
        return []
    vectors = operators[0].vectors
    return [{name: of[k].double() for name, of in vectors.items()} for k in range(len(operators[0].values))]


def within(moved: Parameters, directions: list[Parameters]) -> float:
    """``|P D|`` of orthonormal directions."""
    return math.hypot(*(float(parameters.inner(u, parameters.select(moved, u))) for u in directions))


def by_size(moved: Parameters, beside: Parameters, u: Parameters) -> list[float]:
    """``|D|`` over that of fine-tuning in tenths of the coordinates, by ``|u|``, from the least to the most."""
    sizes, own, other = (torch.cat([of[name].flatten().abs() for name in u]) for of in (u, moved, beside))
    tenths = sizes.argsort().chunk(10)
    return [float(torch.linalg.vector_norm(own[at]) / torch.linalg.vector_norm(other[at])) for at in tenths]


def row(name: str, runs: list[Path], beside: Path) -> list[str]:
    """Of one method on its seeds."""
    found: dict[str, list[float]] = {title: [] for title in HEAD}
    for run in runs:
        moved, directions = displacement(run), held(run)
        found["|D|"].append(float(parameters.norm(moved)))
        found["retention"].append(Run.read(run).matrices["class_agreement"].retention())
        if directions:
            found["|P D|"].append(within(moved, directions))
        if directions and (beside / run.name / "finished").exists():
            fine_tuning = displacement(beside / run.name)
            found["|P D| of fine-tuning"].append(within(fine_tuning, directions))
            if len(directions) == 1:
                tenths = by_size(moved, fine_tuning, directions[0])
                for title, tenth in zip(TENTHS, (tenths[0], tenths[4], tenths[-1]), strict=True):
                    found[title].append(tenth)
    return [name, str(len(runs)), *(interval(values) for values in found.values())]


def main() -> None:
    """Print a table a matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrices", type=Path, nargs="+", metavar="FOLDER")
    for matrix in parser.parse_args().matrices:
        found: dict[str, list[Path]] = {}
        for finished in sorted(matrix.glob("*/seed_*/finished")):
            found.setdefault(finished.parents[1].name, []).append(finished.parent)
        if not found:
            raise SystemExit(f"{matrix} has no finished runs; expected the folder of a matrix of tools/reproduce.py")
        lines = [row(name, runs, matrix / "finetune") for name, runs in found.items()]
        print(f"{matrix.name}\n\n{table(['method', 'seeds', *HEAD], lines)}\n")


if __name__ == "__main__":
    main()
