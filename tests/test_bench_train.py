"""The benchmark of training: it runs here, counts what it says, and times whole steps."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.callbacks.stranger import Regression, loader

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
        assert list(figures) == ["bare loop", "fit, eager fp32", "fit, hardware/gpu.yaml"]
        assert found["ratio_of_seconds"][stage] == pytest.approx(
            figures["fit, eager fp32"]["seconds"] / figures["bare loop"]["seconds"]
        )
        assert figures["bare loop"]["images_a_second"] == pytest.approx(4 / figures["bare loop"]["seconds"])


def test_the_paper_s_run_is_what_its_steps_add_up_to(tool: Any) -> None:
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


def test_a_paused_fit_goes_on_for_as_many_steps_as_it_is_asked_to(tool: Any) -> None:
    from paused_fit import PausedFit  # type: ignore[import-not-found]

    taken = [0]

    class Count(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            taken[0] += 1

    module = Regression()
    module.train_dataloader = lambda: loader(0)  # type: ignore[method-assign]
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=3, callbacks=[Count()], enable_model_summary=False, **options)
    fit = PausedFit(trainer, module, None, first=2)
    assert taken[0] == 2
    fit.run(3)
    assert taken[0] == 5
    with pytest.raises(RuntimeError, match="came to no further step: the fit has ended; give it more epochs"):
        fit.run(10)
