"""The examples of docstrings run, and the main public objects have one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from typing import Any

import pytest

import cl_diffusion
from cl_diffusion import diffusion, fisher, linalg, metrics
from cl_diffusion.metrics.gram import Gram

MODULES = [name for _, name, _ in pkgutil.walk_packages(cl_diffusion.__path__, "cl_diffusion.")]
SHOWN = [
    linalg.Diagonal,
    linalg.LowRank,
    linalg.Quadratic,
    linalg.lanczos_sqrt,
    linalg.lanczos_eigenpairs,
    fisher.estimate,
    diffusion.NoiseSchedule,
    diffusion.SNRBand,
    metrics.ContinualMatrix,
    Gram,
]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_the_examples_of_a_module_run(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: shown.__name__)
def test_the_main_objects_have_an_example(shown: Any) -> None:
    assert ">>> " in shown.__doc__
