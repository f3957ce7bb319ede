"""A classifier keeps more of a stream of permuted digits under each regulariser than without."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        spec = importlib.util.spec_from_file_location("permuted_digits", TOOLS / "permuted_digits.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def forgetful(tool: ModuleType) -> float:
    return tool.accuracy(tool.METHODS["fine-tuning"], seed=0, epochs=10)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["EWC, diagonal", "EWC, Kronecker", "Synaptic Intelligence", "MAS"])
def test_more_is_kept(tool: ModuleType, forgetful: float, method: str) -> None:
    assert tool.accuracy(tool.METHODS[method], seed=0, epochs=10) > forgetful + 0.1
