"""The parts of a page that are of logs: training, plasticity, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from cl_diffusion.phases import spelled
from cl_diffusion.report.comparison import Comparison
from cl_diffusion.report.figures import by_layer, draw_cost, draw_plasticity, draw_training
from cl_diffusion.report.figures.plasticity import Row
from cl_diffusion.report.run import Run
from cl_diffusion.report.seeds import told
from cl_diffusion.report.svg import Drawings

_QUANTITIES = {
    "gradient_ratio": "penalty's gradient over the task's",
    "cosine": "cosine of penalty's and task's gradient",
    "penalty": "penalty",
    "displacement": "distance from the anchor",
}


def training(comparison: Comparison, drawings: Drawings) -> Markup | None:
    """The training loss, and what each regulariser has logged of its penalty; the first seed of each method."""
    panels: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
    for method in comparison.methods:
        run = method.runs[0]
        for figure in run.figures:
            quantity = _quantity(figure)
            if quantity is not None:
                prefix = figure.rpartition("/")[0]
                title = method.label if _only(run, quantity) else f"{method.label}, {prefix}"
                panels.setdefault(quantity, {})[title] = run.series(figure)
    panels = {name: panels[name] for name in ("training loss", *_QUANTITIES.values()) if name in panels}
    if not panels:
        return None
    said = "; ".join(
        f"{quantity} of {title}: {told(values[0])} at first, {told(values[-1])} in the end"
        for quantity, series in panels.items()
        for title, (_, values) in series.items()
        if values
    )
    return drawings.svg(draw_training(panels, comparison.methods[0].runs[0].boundaries), f"Lines over steps. {said}")


def plasticity(comparison: Comparison, drawings: Drawings) -> Markup | None:
    """The figures of ``plasticity.csv``: of one run by layer, of several the means over layers."""
    rows: dict[str, Sequence[Row]] = {
        method.label: method.runs[0].plasticity for method in comparison.methods if method.runs[0].plasticity
    }
    if not rows:
        return None
    if len(rows) == 1:
        (every,) = rows.values()
        rows = by_layer(every)
    last = {title: max(task for task, *_ in every) for title, every in rows.items()}
    said = "; ".join(
        f"{figure.replace('_', ' ')} of {title} {told(value)}"
        for title, every in rows.items()
        for task, _, figure, value in every
        if task == last[title]
    )
    return drawings.svg(draw_plasticity(rows), f"Lines over tasks. After the last: {said[:1500]}")


def cost(comparison: Comparison, drawings: Drawings) -> Markup | None:
    """Wall time by phase, a bar a run."""
    seconds = {run.name: by_phase(run) for run in comparison.runs if run.timings}
    if not seconds:
        return None
    said = "; ".join(
        f"{name}: " + ", ".join(f"{phase} {spelled(spent)}" for phase, spent in of.items())
        for name, of in seconds.items()
    )
    return drawings.svg(draw_cost(seconds), f"Stacked bars of wall time. {said}")


def by_phase(run: Run) -> Mapping[str, float]:
    """Seconds of each phase, over all tasks."""
    total: dict[str, float] = {}
    for _, phase, seconds in run.timings:
        total[phase] = total.get(phase, 0.0) + seconds
    return total


def _quantity(figure: str) -> str | None:
    """What a logged name is a series of; None of what is no series of training."""
    first, _, last = figure.rpartition("/")
    if figure in ("train_loss", "train_loss_step"):
        return "training loss"
    return _QUANTITIES.get(last) if first and "/" not in first else None


def _only(run: Run, quantity: str) -> bool:
    """Whether one regulariser alone has logged it."""
    return sum(_quantity(figure) == quantity for figure in run.figures) == 1
