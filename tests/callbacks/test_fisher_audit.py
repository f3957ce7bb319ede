"""The audit as a callback: at every boundary, from a checkpoint, and on somebody else's project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cl_diffusion import DDPM, TaskDataModule
from cl_diffusion.callbacks import FisherAudit, TaskCheckpoint
from cl_diffusion.callbacks.diagnostics.audit_measurements import AuditMeasurements
from cl_diffusion.cli import main
from cl_diffusion.diffusion import SNRBands
from tests.callbacks.stranger import Regression, loader, trainer, weights
from tests.callbacks.test_continual_metrics import fit
from tests.callbacks.test_ewc import shuffled
from tests.tiny import DATA, configuration, ddpm

QUICK: dict[str, Any] = {"samples": 16, "random": 1, "radii": [0.01], "repeats": 4}
SAMPLES = {"images_per_class": 10, "epochs_per_task": 1}


def found(folder: Path, task: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "audit" / f"after_task_{task}" / "audit.json").read_text())
    return content


def test_every_boundary_is_audited_and_training_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    halves = SNRBands.by_quantile((0.5,), ("low", "high"))
    models = []
    for callbacks in ([], [FisherAudit(bands=halves, **QUICK)]):
        torch.manual_seed(0)
        models.append(fit(ddpm(dropout=0.1), tmp_path, *callbacks, data=SAMPLES))
    assert all(torch.equal(a, b) for a, b in zip(*(list(m.parameters()) for m in models), strict=True))

    first, second = found(tmp_path, 1), found(tmp_path, 2)
    assert (first["provenance"]["task"], first["provenance"]["other"]) == (1, 2)
    assert (second["provenance"]["task"], second["provenance"]["other"]) == (2, 1)
    assert list(first["figures"]) == ["low", "high", "all"]
    assert first["provenance"]["law"] == {"low": 0.5, "high": 0.5}
    of = first["figures"]["low"]
    wanted = {"leading_share", "diagonal_error", "v_other_corrected", "v_relabelled", "v_noise", "true_leading_share"}
    assert wanted | {"remainder_sine", "iewc_v_other", "iewc_trace_share", "mu_with high", "held_of_all"} <= of.keys()
    assert of["leading_share"]["low"] <= of["leading_share"]["value"] <= of["leading_share"]["high"]
    assert not of["leading_share"]["known"]  # of 16 samples
    assert len(first["verdict"]) == 6  # of each band, its directions and the steps along them
    assert all("too few samples" in said for said in first["verdict"][:3])
    assert all("cannot be told" in said for said in first["verdict"][3:])
    assert second["verdict"][6].startswith("damage to task 1: ")
    assert first["preservation"]["all"]["output/ratio/" + next(iter(first["predictions"]["all"]))]["value"] > 0
    assert (first["damage"], second["damage"].keys()) == ({}, {"low", "high", "all"})
    assert second["provenance"]["damage"] == {"task": 1, "later": "after task 2"}
    assert second["damage"]["all"]["loss"]["value"] != 0
    pictures = {path.name for path in (tmp_path / "audit" / "after_task_2").glob("*.png")}
    assert pictures == {"directions.png", "spectra.png", "remainder.png", "preservation.png", "damage.png"}


@pytest.mark.slow
def test_a_resumed_fit_lays_the_same_damage_to_the_task_before(tmp_path: Path) -> None:
    audits = []
    options: dict[str, Any] = {}
    settings: dict[str, Any] = {**QUICK, "radii": [], "kinds": ["own"]}
    for name in ("whole", "resumed"):
        torch.manual_seed(0)
        audit = FisherAudit(bands=SNRBands.by_quantile((0.5,), ("low", "high")), **settings)
        saved = TaskCheckpoint(str(tmp_path / name / "saved"))
        fit(ddpm(dropout=0.1), tmp_path / name, audit, saved, data=SAMPLES, **options)
        options = {"ckpt_path": tmp_path / "whole" / "saved" / "after_task_1.ckpt"}
        audits.append(found(tmp_path / name, 2))
    assert audits[0]["damage"]["high"]["loss"]["value"] != 0
    assert audits[0] == audits[1]


def test_a_checkpoint_alone_is_audited_and_what_came_later_is_laid_to_it(
    folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    main(["fit", "--config", str(configuration(folder, strength=None, **SAMPLES)), "--run", "run"])
    audit = Path(__file__).parents[2] / "configs/diagnostics/audit.yaml"
    checkpoints = Path("run/checkpoints")
    words = ["test", "-c", str(audit), "--ckpt_path", str(checkpoints / "after_task_1.ckpt")]
    words += [f"--trainer.callbacks.{name}={value}" for name, value in {**QUICK, "radii": [], "kinds": ["own"]}.items()]
    main([*words, f"--trainer.callbacks.later={checkpoints / 'after_task_2.ckpt'}", "--trainer.accelerator=cpu"])
    of = found(Path("run"), 1)
    assert of["provenance"]["checkpoint"].endswith("after_task_1.ckpt")
    assert (of["provenance"]["epoch"], of["provenance"]["task"]) == (0, 1)
    assert of["damage"]["all"]["loss"]["samples"] == 16
    with pytest.raises(ValueError, match=r"after_task_1.audit.json is there already; give the callback another `name`"):
        main([*words, "--trainer.accelerator=cpu"])
    same = ["--trainer.callbacks.name=same", f"--trainer.callbacks.later={checkpoints / 'after_task_1.ckpt'}"]
    with pytest.raises(ValueError, match="has the very weights of the audited checkpoint"):
        main([*words, *same, "--trainer.accelerator=cpu"])
    assert not Path("run/same").exists()
    assert of["provenance"]["damage"] == {"task": 1, "later": str(checkpoints / "after_task_2.ckpt")}
    words[4] = str(checkpoints / "after_task_2.ckpt")
    earlier = [f"--trainer.callbacks.later={checkpoints / 'after_task_1.ckpt'}", "--trainer.callbacks.samples=64"]
    recwarn.clear()
    main([*words, *earlier, "--trainer.accelerator=cpu"])
    said = "\n".join(str(warning.message) for warning in recwarn)
    assert "it is an earlier one" in said
    assert "task 2 has 29 samples, fewer than samples=64" in said
    other = torch.load(words[4], weights_only=True)
    name = next(iter(other["state_dict"]))
    other["state_dict"][name] = torch.zeros(7)
    torch.save(other, "other.ckpt")
    with pytest.raises(
        ValueError, match=rf"later='other.ckpt': parameter '{name}' is \(7,\), and .* of the same model"
    ):
        main([*words, "--trainer.callbacks.name=shape", "--trainer.callbacks.later=other.ckpt"])
    with pytest.raises(ValueError, match="inference mode"):
        main([*words, "--trainer.inference_mode=true", "--trainer.accelerator=cpu"])
    with pytest.raises(ValueError, match="task=3; expected one of the stream's, 1 to 2"):
        main([*words, "--trainer.callbacks.task=3", "--trainer.accelerator=cpu"])


def test_what_makes_no_sense_in_a_fit_is_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"task": 1}, "task=1 is of a checkpoint that is tested"),
        ({"later": __file__}, "later=.* is of a checkpoint"),
        ({"other": 2}, "other=2: so many tasks further on, round a stream of 2, is the task itself"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(ddpm(), tmp_path, FisherAudit(**QUICK, **options), data=SAMPLES)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_audit_and_another_another(tmp_path: Path) -> None:
    data = TaskDataModule(**{**DATA, **SAMPLES})
    model = ddpm()
    audits = []
    for number, seed in enumerate((0, 0, 1)):
        audit = FisherAudit(**{**QUICK, "radii": []}, kinds=["own"], seed=seed, task=1)
        root = tmp_path / str(number)
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "inference_mode": False}
        Trainer(default_root_dir=root, callbacks=[audit], **options).test(model, datamodule=data, verbose=False)
        audits.append(found(root, 1))
    assert audits[0] == audits[1]
    assert audits[0]["figures"] != audits[2]["figures"]
    assert "v_other" not in audits[0]["figures"]["all"]
    assert audits[0]["preservation"] == {}


def test_on_somebody_else_s_project_what_needs_no_timesteps_is_measured(tmp_path: Path) -> None:
    built = trainer(FisherAudit(**QUICK), default_root_dir=str(tmp_path))
    built.fit(Regression(), loader(0))
    of = found(tmp_path, 1)
    assert list(of["figures"]) == ["all"]
    assert of["figures"]["all"]["v_itself"]["samples"] == 16
    assert "true_leading_share" not in of["figures"]["all"]
    assert of["provenance"]["kinds"] == ["own"]
    pictures = {path.name for path in (tmp_path / "audit" / "after_task_1").glob("*.png")}
    assert pictures == {"directions.png", "spectra.png", "preservation.png"}
    assert any(name.startswith("each_loss/ratio") for name in of["preservation"]["all"])
    with pytest.raises(ValueError, match="no `draw"):
        trainer(FisherAudit(SNRBands.by_quantile(), **QUICK)).fit(Regression(), loader(0))


def test_somebody_else_s_training_goes_on_as_without_it(tmp_path: Path) -> None:
    """Two tasks in orders from torch's own generator, which the audit between them leaves as it was."""
    found_weights = []
    for callbacks in ([FisherAudit(**QUICK)], []):
        torch.manual_seed(1)
        model = Regression()
        for seed in (0, 1):
            trainer(*callbacks, default_root_dir=str(tmp_path)).fit(model, shuffled(seed))
        found_weights.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*found_weights, strict=True))


def test_a_task_of_a_few_samples_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="task 1 has 5 samples, and an audit needs 8"):
        trainer(FisherAudit(**QUICK), default_root_dir=str(tmp_path)).fit(Regression(), loader(0, samples=5))
    assert not (tmp_path / "audit").exists()


class Shifted(torch.nn.Module):
    """A network with a buffer that moves as it is trained, as running statistics do."""

    shift: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x + self.shift)
        return out


class Shifts(Callback):
    """Moves the buffer at the end of every epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.denoiser.network.shift += 0.5  # type: ignore[union-attr, operator]


def test_damage_starts_from_the_buffers_that_the_task_ended_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, seen = Shifted(), []

    def damage(self: Any, subject: Any, displacement: Any, directions: Any) -> dict[str, Any]:
        seen.append(float(network.shift))
        return {}

    monkeypatch.setattr(AuditMeasurements, "damage", damage)
    fit(DDPM(network), tmp_path, Shifts(), FisherAudit(**{**QUICK, "radii": []}, kinds=["own"]), data=SAMPLES)
    assert seen == [0.5]
    assert float(network.shift) == 1.0


class Recurrent(Regression):
    """torch's LSTM has no forward-mode derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = torch.nn.LSTM(3, 3, batch_first=True)

    def per_sample_loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return super().per_sample_loss((self.cell(x[:, None])[0][:, 0], y))


def test_a_module_without_forward_mode_derivatives_is_told_at_once_what_to_leave_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Recurrent has no forward-mode derivative.*radii=\[\]"):
        trainer(FisherAudit(**QUICK), default_root_dir=str(tmp_path)).fit(Recurrent(), loader(0))
    asked = FisherAudit(**{**QUICK, "radii": []}, kinds=["own", "true"])
    with pytest.warns(UserWarning, match=r"kinds=\['own', 'true'\]: true is not to be had of Recurrent"):
        trainer(asked, default_root_dir=str(tmp_path)).fit(Recurrent(), loader(0))
    assert found(tmp_path, 1)["preservation"] == {}


class OnlySteps(Regression):
    """Has no loss of each sample."""

    per_sample_loss = None  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return (self.net(x) - y).square().mean()


def test_a_project_that_has_a_training_step_alone_is_asked_for_its_loss_one_by_one(tmp_path: Path) -> None:
    trainer(FisherAudit(**QUICK), default_root_dir=str(tmp_path)).fit(OnlySteps(), loader(0))
    one_by_one = found(tmp_path, 1)["figures"]["all"]["leading_share"]["value"]
    trainer(FisherAudit(**QUICK), default_root_dir=str(tmp_path / "own")).fit(Regression(), loader(0))
    assert one_by_one == pytest.approx(found(tmp_path / "own", 1)["figures"]["all"]["leading_share"]["value"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 8}, "samples=8"),
        ({"radii": [0.0]}, "radii"),
        ({"kinds": ["own", "others"]}, "'others' is none of"),
        ({"later": "nowhere.ckpt"}, "later='nowhere.ckpt' is not a file"),
        ({"tau": 0.0}, "tau"),
        ({"name": ""}, "name=''; expected the name of a folder"),
        ({"name": "../audit"}, "name='../audit'"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FisherAudit(**options)
