"""The picture of the README: what three runs draw of the first two classes, after each task.

python tools/forgetting_picture.py runs/finetune runs/rank1 runs/distillation --out tools/pictures/forgetting.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from cl_diffusion.report.figures.canvas import styled

_ROWS, _COLUMNS = 2, 6


def cut(path: Path, side: int = 32, gap: int = 2) -> np.ndarray:
    """The first images of the first two rows of a grid of samples."""
    pixels = np.asarray(Image.open(path).convert("L"))
    return pixels[: _ROWS * (side + gap) + gap, : _COLUMNS * (side + gap) + gap]


@styled
def draw(runs: list[Path], titles: list[str], out: Path) -> None:
    """A row a run, a column a task."""
    from matplotlib.figure import Figure

    tasks = sorted(int(path.stem.rpartition("_")[2]) for path in (runs[0] / "samples").glob("after_task_*.png"))
    figure = Figure(figsize=(2.0 * len(tasks), 0.95 * len(runs)), layout="constrained")
    axes = figure.subplots(len(runs), len(tasks), squeeze=False)
    for row, (run, title) in enumerate(zip(runs, titles, strict=True)):
        for column, task in enumerate(tasks):
            panel = axes[row, column]
            panel.imshow(cut(run / "samples" / f"after_task_{task}.png"), cmap="gray", vmin=0, vmax=255)
            panel.set(xticks=[], yticks=[])
            panel.grid(visible=False)
            panel.spines[:].set_visible(False)
            if row == 0:
                panel.set_title(f"after task {task}")
            if column == 0:
                panel.set_ylabel(title)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--titles", nargs="+", help="of the rows; by default the folders' names")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    draw(given.runs, given.titles or [run.name for run in given.runs], given.out)


if __name__ == "__main__":
    main()
