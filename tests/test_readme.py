"""The pages: every block is of a known kind, links lead somewhere, every snippet runs on a few digits and batches."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import pytest
import sklearn.datasets
import torch
from torch import nn

from cl_diffusion.callbacks import PlasticityMetrics
from cl_diffusion.cli import main
from cl_diffusion.linalg import LowRank
from tests.callbacks.stranger import Regression, loader, trainer
from tests.pages import BLOCKS, PAGES, ROOT
from tests.tiny import configuration

EXAMPLES = [
    "class ImageClassifier(",
    "class PermutedDigits(",
    "class GAN(",
    "class LowRankAdapter(",
    "class Digits(",
    "class Distilled(",
]
SNIPPETS = [
    *EXAMPLES,
    "MixedReplay(",
    "NoiseStatistics.of(",
    "def configure_model(",
    "FisherAudit(",
    "PlasticityMetrics(",
    "hidden = Units(",
    "first_task, second_task",
    "operator.resolvent(",
    "save_operator(",
    "export_pipeline(",
    "ContinualMetric(",
]
"""What tells each snippet from all others."""


def snippet(mark: str) -> str:
    """The one with this mark; a page may repeat one of another."""
    (code,) = {block.text for block in BLOCKS if block.kind == "python" and mark in block.text}
    return code


def run(mark: str, **names: Any) -> dict[str, Any]:
    """The names that a snippet leaves, besides those it is given."""
    exec(compile(snippet(mark), mark, "exec"), names)
    return names


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_block_is_of_a_kind_that_is_run(block: Any) -> None:
    assert block.kind, f"{block.name} is neither Python, YAML, commands nor arguments:\n{block.text}"
    if block.kind == "python":
        assert len([mark for mark in SNIPPETS if mark in block.text]) == 1, f"{block.name}: no test runs this snippet"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", (ROOT / page).read_text()):
        path, _, heading = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if heading:
            heads = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^a-z0-9 _-]", "", head.lower()).replace(" ", "-") for head in heads], target


def test_the_front_page_names_every_method() -> None:
    front = (ROOT / "README.md").read_text()
    for part in ("method", "replay", "plasticity"):
        for path in (ROOT / "configs" / part).glob("*.yaml"):
            assert f"`{path.stem}`" in front, path.name


def test_the_figures_of_the_front_page_are_those_of_the_other_pages() -> None:
    front = (ROOT / "README.md").read_text()
    results = front[front.index("## Results") : front.index("## Beside its peers")]
    rows = [line for line in results.splitlines() if re.match(r"\| .*\d.* \|$", line)]
    measured = "".join((ROOT / page).read_text() for page in PAGES[2:])
    assert len(rows) > 30
    assert [row for row in rows if row not in measured] == []


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
        for mark in EXAMPLES:
            exec(compile(snippet(mark), mark, "exec"), names)
        names["checkpoint"] = torch.load("after_task_3.ckpt", weights_only=True)
    return names


def test_the_replay_in_python_replays_from_the_second_task_on() -> None:
    names = run("MixedReplay(")
    assert (names["data"].num_epochs, names["data"].replay_batch_size) == (300, 64)
    assert names["data"].replay.shares == [0.25, 0.75]


def test_the_samplers_in_python_draw_from_a_checkpoint(folder: Path) -> None:
    main(["fit", "-c", str(configuration(folder, strength=None)), "--run", "runs/joint"])
    names = run("NoiseStatistics.of(")
    assert names["images"].shape == (200, 1, 8, 8)
    assert len(names["lanczos"].reports) == 12
    drawn = names["analytic"].sample(names["model"].denoiser, (1, 8, 8), names["labels"][:2])
    assert drawn.isfinite().all()


def test_the_resets_in_python_find_the_units_that_they_are_given(tmp_path: Path) -> None:
    names = run("PlasticityMetrics(")
    names = run("hidden = Units(", **names)

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


def test_the_five_lines_hold_three_tasks(folder: Path) -> None:
    tasks = {f"{name}_task": loader(seed) for seed, name in enumerate(("first", "second", "third"))}
    (term,) = run("first_task, second_task", model=Regression(), **tasks)["ewc"].terms
    assert [entry["task"] for entry in term.operator.provenance.record] == [1, 2, 3]


def test_the_audit_in_python_writes_its_figures(folder: Path) -> None:
    names = run("FisherAudit(")
    names["trainer"].fit(Regression(), loader(0))
    (written,) = folder.rglob("audit.json")
    assert written.parent.name == "after_task_1"


def test_the_operator_without_a_trainer_is_what_it_says() -> None:
    model, batches = nn.Linear(3, 1), [torch.randn(8, 3), torch.randn(8, 3)]
    anchor = {name: parameter + 1 for name, parameter in model.named_parameters()}
    given = {"model": model, "batches": batches, "anchor": anchor}
    names = run("operator.resolvent(", **given, loss=lambda model, batch: model(batch).square()[:, 0])
    assert float(names["operator"].quadratic(names["delta"]).detach()) > 0


def test_the_fishers_in_python_are_checked_and_read_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("save_operator(")
    assert "diagonal" in capsys.readouterr().out
    assert float(names["true_fisher"].trace()) > 0
    assert Path("old_task.safetensors").is_file()


def test_a_module_of_one_s_own_is_sharded_as_the_page_has_it() -> None:
    """Without a mesh it stays whole; with one, `tests/callbacks/test_sharded.py` has the same method in processes."""
    configure = run("def configure_model(")["configure_model"]
    module = SimpleNamespace(device_mesh=None, net=nn.Linear(2, 2))
    configure(module)
    assert type(module.net) is nn.Linear
    body = snippet("def configure_model(").split("(self):\n", 1)[1]
    tested = (ROOT / "tests/callbacks/test_sharded.py").read_text()
    assert "\n".join(f"    {line}" for line in body.splitlines()) in tested


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


def test_a_model_goes_to_diffusers_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "-c", str(configuration(tmp_path, strength=None)), "--run", "runs/joint"])
    with pytest.warns(UserWarning, match="no labels"):
        names = run("export_pipeline(")
    assert names["again"].noise_schedule.alpha_bar.equal(names["model"].noise_schedule.alpha_bar)


def test_any_torchmetric_is_measured_over_tasks() -> None:
    assert run("ContinualMetric(")["quality"].matrix.entries.keys() == {(1, 1), (2, 1), (2, 2)}
