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
