"""No file that a user is given can run code, and no name leads out of a folder."""

from __future__ import annotations

import ast
import os
import pickle
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from cl_diffusion import DDPM
from cl_diffusion.callbacks import FisherAudit
from cl_diffusion.callbacks.diagnostics.audited_checkpoint import displacement
from cl_diffusion.cli import main
from cl_diffusion.diffusion.samplers import AnalyticSampler
from cl_diffusion.diffusion.variance_head import VarianceHead
from cl_diffusion.linalg import load_operator
from cl_diffusion.metrics.reference_classifier import trained_reference
from cl_diffusion.modules.variance_head_module import trained_model
from tests.outcome import is_stated
from tests.tiny import configuration, unet

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "cl_diffusion").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


def as_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def as_archive(content: Any, path: Path) -> None:
    torch.save(content, path)


def command(subcommand: str) -> Callable[[Path], object]:
    def run(path: Path) -> None:
        config = [] if subcommand != "fit" else ["-c", str(configuration(path.parent)), "--run", "runs/new"]
        main([subcommand, *config, "--ckpt_path", str(path)])

    return run


def last(path: Path) -> None:
    kept = Path("runs/old/checkpoints/last.ckpt")
    kept.parent.mkdir(parents=True)
    path.rename(kept)
    main(["fit", "-c", str(configuration(path.parent)), "--run", "runs/old", "--ckpt_path", "last"])


def cached_classifier(path: Path) -> None:
    data = torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    os.environ["CL_DIFFUSION_CACHE"] = str(path.parent)  # put back by the fixture that has set it
    trained_reference(data, data, steps=1)
    (cached,) = path.parent.glob("reference_classifier_*")
    path.replace(cached)
    trained_reference(data, data, steps=1)


READERS: dict[str, Callable[[Path], object]] = {
    "fit --ckpt_path": command("fit"),
    "fit --ckpt_path last": last,
    "validate --ckpt_path": command("validate"),
    "test --ckpt_path": command("test"),
    "predict --ckpt_path": command("predict"),
    "FisherAudit(later)": lambda path: displacement(DDPM(unet()), str(path), {}),
    "load_operator": load_operator,
    "VarianceHead.load": VarianceHead.load,
    "VarianceHeadModule(model)": lambda path: trained_model(str(path)),
    "AnalyticSampler(statistics)": lambda path: AnalyticSampler(str(path)),
    "CL_DIFFUSION_CACHE": cached_classifier,
}
OTHERS_READERS: dict[str, Callable[[Path], object]] = {
    "load_from_checkpoint": lambda path: DDPM.load_from_checkpoint(path, network=unet()),
    "Trainer.fit(ckpt_path)": lambda path: Trainer(logger=False, accelerator="cpu", max_epochs=1).fit(
        DDPM(unet()), [(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))], ckpt_path=path
    ),
}


def content(proof: Path) -> dict[str, Any]:
    """Of a checkpoint in which all is right but one entry."""
    return {"state_dict": {}, "epoch": 0, "global_step": 0, "gamma": torch.zeros(3), "callbacks": Payload(proof)}


@pytest.mark.parametrize("write", [as_pickle, as_archive])
def test_the_payload_is_one(write: Callable[[Any, Path], None], folder: Path) -> None:
    write(content(folder / "proof"), folder / "file")
    if write is as_pickle:
        pickle.loads((folder / "file").read_bytes())
    else:
        torch.load(folder / "file", weights_only=False)
    assert (folder / "proof").is_dir()


@pytest.mark.parametrize("write", [as_pickle, as_archive])
@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_would_run_code_is_refused(reader: str, write: Any, folder: Path) -> None:
    write(content(folder / "proof"), folder / "file.ckpt")
    with pytest.raises(ValueError, match=r"file\.ckpt|last|reference_classifier_") as refusal:
        READERS[reader](folder / "file.ckpt")
    assert is_stated(refusal.value)
    assert not (folder / "proof").exists()


@pytest.mark.parametrize("write", [as_pickle, as_archive])
@pytest.mark.parametrize("reader", OTHERS_READERS)
def test_nor_does_lightning_run_it(reader: str, write: Any, folder: Path) -> None:
    write(content(folder / "proof"), folder / "file.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        OTHERS_READERS[reader](folder / "file.ckpt")
    assert not (folder / "proof").exists()


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str | None, str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_tensors_are_read_without_pickle_and_nothing_is_evaluated() -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
    read = 0
    for path in SOURCES:
        for called, words in calls(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}: {called}"
            assert called not in forbidden, where
            assert called.split(".")[0] not in ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"), where
            assert "shell" not in words, where
            assert words.get("allow_pickle", "False") == "False", where
            if called.endswith(("torch.load", "load_from_checkpoint")):
                read += 1
                assert words.get("weights_only") == "True", where
    assert read >= 4


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/tmp/x", ".", ""])
def test_an_audit_stays_within_the_run(name: str) -> None:
    with pytest.raises(ValueError, match="name="):
        FisherAudit(name=name)


@pytest.mark.parametrize("name", ["..", "../../x", "a/b", "/tmp/x", ".", "a\x00b"])
def test_a_cell_of_a_matrix_of_runs_stays_within_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    cell = import_module("reproduce").Cell(name, None, 0)
    for path in (cell.folder(tmp_path), cell.log(tmp_path)):
        assert path.resolve().is_relative_to(tmp_path)
        assert path.resolve().parent.parent == tmp_path
