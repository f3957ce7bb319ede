"""Who is compared, what pip is asked for, and who is not and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent
METHODS = ("fine-tuning", "ewc", "si", "mas", "lwf", "replay")


@dataclass(frozen=True)
class Library:
    """One side of the comparison.

    ``installs``: the arguments of each ``pip install`` into an empty environment; none: the tool's own environment.
    """

    name: str
    script: str
    methods: tuple[str, ...]
    installs: tuple[tuple[str, ...], ...] = ()

    @property
    def path(self) -> Path:
        """Its script."""
        return SCRIPTS / self.script


LIBRARIES = (
    Library("cl_diffusion", "cl_diffusion_run.py", METHODS),
    Library("Avalanche", "avalanche_run.py", METHODS, (("avalanche-lib", "scikit-learn"),)),
    Library(
        "gmumcl",
        "gmumcl_run.py",
        ("fine-tuning", "ewc", "si", "mas", "lwf"),
        (
            ("torch<2.9", "numpy", "PyYAML", "scikit-learn"),
            ("gmumcl", "--no-deps"),  # without activationscope, minutes of C++ that none of these methods calls
        ),
    ),
    Library("clearn", "clearn_run.py", ("ewc", "si", "replay"), (("clearn-ai", "scikit-learn"),)),
)

NOT_RUN = {
    "Renate 0.5.2": "asks for Python < 3.11 and torch < 1.13.2",
    "SequeL 0.0.2 (`sequel-core`)": "pins torch 1.13.1, functorch 1.13.1 and numpy 1.23.4",
    "CL-Gym 1.0.3": "pins the packages of 2021, numpy 1.19.5 among them",
    "CLArena 1.1.0": "its class-incremental heads grow with the tasks, outside of its EWC, and its loader drops each "
    "epoch's last short batch: another network on other data",
    "Continuum 1.2.7": "streams of data, no methods",
    "Mammoth, PyCIL, Sequoia, CLHive": "not on PyPI (other packages have two of the names)",
}

REMARKS = (
    "strengths are each library's own best of powers of ten, by the mean over three other seeds, and no two are of the"
    " same matrix. EWC here: lambda/2 times the mean over samples of squared per-sample gradients; Avalanche: lambda"
    " (no half) times the mean over batches of squared batch gradients; gmumcl (its online_ewc, which keeps all tasks):"
    " lambda (no half) times their sum; clearn: lambda/2 times their mean weighted by size, clamped to [1e-8, 1e4]",
    "MAS here sums absolute per-sample gradients' means over tasks; Avalanche takes absolute batch gradients and "
    "halves the old importance at each task (its alpha of .5); gmumcl sums them over batches and keeps only the "
    "newest task's",
    "on a CPU Avalanche 0.6.0's Synaptic Intelligence stores views of the weights, not copies, so its path and "
    "importance are 0: it trains as fine-tuning does at every strength",
    "clearn's replay is DER++, and its fit evaluates on the task's own data, which is within its time",
    "replay here trains on ten images fewer: its data module holds out at least one of each class",
)
"""What the figures do not say."""
