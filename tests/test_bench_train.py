"""The benchmark of training: it runs here, counts what it says, and times whole steps."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callbacks.stranger import Regression, loader, trainer

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("bench_train")


def test_a_fit_and_a_bare_loop_and_the_hardware_file_are_timed(
    tool: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", "cpu", "--network", "8x8", "--batch-size", "2", "--steps", "2", "--rounds", "1", "--hardware"]
    monkeypatch.setattr(sys, "argv", ["bench_train.py", *words, "--backend", "eager", "--json", "train.json"])
    tool.main()
    told = capsys.readouterr().out
    assert "a fit to a bare loop, in processor seconds: " in told
    assert "what hardware/gpu.yaml gains is measured on a GPU" in told
    found = json.loads(Path("train.json").read_text())
    for stage in ("first task", "later tasks"):
        figures = found["stages"][stage]
        one_forward = ["fit, one forward"] if stage == "later tasks" else []
        assert list(figures) == ["bare loop", "fit, eager fp32", *one_forward, "fit, hardware/gpu.yaml"]
        assert figures["fit, eager fp32"]["ratio_of_seconds"] == pytest.approx(  # of one block each
            figures["fit, eager fp32"]["seconds"] / figures["bare loop"]["seconds"]
        )
        assert figures["bare loop"]["images_a_second"] == pytest.approx(4 / figures["bare loop"]["seconds"])


def test_the_paper_s_run_is_what_its_steps_add_up_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = importlib.import_module("operations")
    forward, both = tool.flops_of_an_image("8x8")
    assert both == pytest.approx(3 * forward, rel=0.01)
    assert tool.flops_of_a_step("8x8", "first task") == both
    assert tool.flops_of_a_step("8x8", "later tasks") == 2 * both + forward
    found = tool.paper_hours("8x8", {"first task": 1000.0, "later tasks": 500.0})
    images = 200 * 12_000
    assert found["hours"] == pytest.approx((images / 1000 + 4 * images / 500) / 3600)
    assert found["petaflop"] == pytest.approx(images * (both + 4 * (2 * both + forward)) / 1e15)


def test_the_bare_loop_and_the_package_take_the_same_steps(tool: Any) -> None:
    """On the same draws, of the first task: the loop of the comparison is not another training."""
    data = tool.stream(8, 1, 4, "first task")
    bare = tool.BareLoop("8x8", tool.batches(data, "first task", torch.device("cpu")), torch.device("cpu"))
    packaged = tool.model("8x8", "first task")
    (current, _) = bare.batches[0]
    torch.manual_seed(1)
    mine = bare.loss(current, None)
    torch.manual_seed(1)
    torch.testing.assert_close(mine, packaged.per_sample_loss(current).mean())


def test_blocks_of_a_fit_take_turns_with_something_else(tool: Any) -> None:
    from blocks_of_steps import BlocksOfSteps, Enough  # type: ignore[import-not-found]

    seen: list[int] = []
    module = Regression()
    module.train_dataloader = lambda: loader(0)  # type: ignore[method-assign]
    blocks = BlocksOfSteps(2, 3, 2, lambda: seen.append(fitting.global_step))
    fitting = trainer(blocks, max_epochs=9)
    with pytest.raises(Enough):
        fitting.fit(module)
    assert seen == [2, 5, 8]
    assert fitting.global_step == 11
    assert len(blocks.fit) == len(blocks.other) == 2
    assert all(wall > 0 for wall, _ in [*blocks.fit, *blocks.other])
