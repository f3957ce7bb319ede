"""The README's examples run one after the other, on fewer digits and batches."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import pytest
import sklearn.datasets
import torch

from cl_diffusion.callbacks import PlasticityMetrics
from cl_diffusion.cli import main
from cl_diffusion.linalg import LowRank
from tests.callbacks.stranger import Regression, loader, trainer
from tests.tiny import configuration

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTION = README[README.index("### Examples") : README.index("### What they keep")]
EXAMPLES = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the examples leave, one after the other in one module."""
    names: dict[str, Any] = {"__name__": "readme"}
    quick = {"limit_train_batches": 2, "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        trainer = partial(lightning.pytorch.Trainer, accelerator="cpu", enable_checkpointing=False, **quick)
        patch.setattr(lightning.pytorch, "Trainer", trainer)
        digits = sklearn.datasets.load_digits()
        few = {"images": digits.images[:120], "target": digits.target[:120]}
        patch.setattr(sklearn.datasets, "load_digits", lambda: SimpleNamespace(**few))
        for example in EXAMPLES:
            exec(compile(example, "README.md", "exec"), names)
        names["checkpoint"] = torch.load("after_task_3.ckpt", weights_only=True)
    return names


def test_the_replay_in_python_replays_from_the_second_task_on() -> None:
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "MixedReplay(" in code]
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert (names["data"].num_epochs, names["data"].replay_batch_size) == (300, 64)
    assert names["data"].replay.shares == [0.25, 0.75]


def test_the_samplers_in_python_draw_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = [
        code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "NoiseStatistics.of(" in code
    ]
    monkeypatch.chdir(tmp_path)
    main(["fit", "-c", str(configuration(tmp_path, strength=None)), "--run", "runs/joint"])
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["images"].shape == (200, 1, 8, 8)
    assert len(names["lanczos"].reports) == 12
    drawn = names["analytic"].sample(names["model"].denoiser, (1, 8, 8), names["labels"][:2])
    assert drawn.isfinite().all()


def test_the_resets_in_python_find_the_units_that_they_are_given(tmp_path: Path) -> None:
    section = README[README.index("## Plasticity") :]
    first, second = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:2]
    names: dict[str, Any] = {}
    for snippet in (first, second):
        exec(compile(dedent(snippet), "README.md", "exec"), names)

    class Named(Regression):
        def __init__(self) -> None:
            super().__init__()
            parts = {"a": torch.nn.Linear(3, 32), "act": torch.nn.ReLU(), "b": torch.nn.Linear(32, 1)}
            self.net = torch.nn.ModuleDict(parts)

        def per_sample_loss(self, batch: Any) -> torch.Tensor:
            return (self.net["b"](self.net["act"](self.net["a"](batch[0]))) - batch[1]).square().mean(1)

    trainer(names["resets"], PlasticityMetrics(units=[names["hidden"]]), default_root_dir=tmp_path).fit(
        Named(), loader(0)
    )
    assert "net.a,dead" in (tmp_path / "plasticity.csv").read_text()


def test_there_are_six() -> None:
    assert len(EXAMPLES) == 6


@pytest.mark.slow
def test_the_stock_classifier_remembers_five_tasks(ran: dict[str, Any]) -> None:
    (term,) = ran["ewc"].terms
    assert [entry["task"] for entry in term.operator.provenance.record] == [1, 2, 3, 4, 5]
    assert set(term.operator.names) == {name for name, _ in ran["classifier"].named_parameters()}
    assert float(term.operator.trace()) > 0


@pytest.mark.slow
def test_one_fit_holds_five_permutations(ran: dict[str, Any]) -> None:
    (term,) = ran["intelligence"].terms
    assert [entry["task"] for entry in term.operator.provenance.record] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_the_generator_is_held_and_the_discriminator_is_free(ran: dict[str, Any]) -> None:
    (term,) = ran["hold_generator"].terms
    assert {name.split(".")[0] for name in term.operator.names} == {"generator"}
    assert [entry["task"] for entry in term.operator.provenance.record] == [1, 2, 3]


@pytest.mark.slow
def test_adapters_are_held_and_the_body_has_not_moved(ran: dict[str, Any]) -> None:
    (term,) = ran["mas"].terms
    assert {name.split(".")[-1] for name in term.operator.names} == {"down", "up"}
    assert all(p.grad is None for name, p in ran["adapted"].named_parameters() if ".layer." in name)


@pytest.mark.slow
def test_the_checkpoint_holds_the_rank_that_was_asked_for(ran: dict[str, Any]) -> None:
    (term,) = ran["rank_one"].terms
    assert isinstance(term.operator, LowRank)
    assert term.operator.rank == 2
    (state,) = [state for key, state in ran["checkpoint"]["callbacks"].items() if key.startswith("EWC")]
    assert [entry["task"] for entry in state["terms"][0]["provenance"]["record"]] == [1, 2, 3]


@pytest.mark.slow
def test_the_classifier_was_held_to_its_earlier_self(ran: dict[str, Any]) -> None:
    distilled = ran["distilled"]
    assert distilled.tasks_before == 3
    for mine, theirs in zip(distilled.net.parameters(), distilled.teacher.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert not theirs.requires_grad
