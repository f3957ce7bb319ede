"""What an audit compares, sample by sample, and what it makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cl_diffusion import DDPM, TaskDataModule
from cl_diffusion.callbacks import FisherAudit
from cl_diffusion.callbacks.diagnostics.audit_measurements import AuditMeasurements
from cl_diffusion.callbacks.diagnostics.audit_sources import AuditSources
from cl_diffusion.callbacks.diagnostics.chosen_samples import Chosen
from cl_diffusion.diffusion import DrawnBatch, SNRBands
from cl_diffusion.diffusion.linear_surrogate import linear_output
from cl_diffusion.fisher.drawn import Drawn
from cl_diffusion.fisher.inner_products import inner_products
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.keys import KeyedBatch
from cl_diffusion.metrics.gradient_audit import ALL, KINDS, NOISE, OTHER, OWN, RELABELLED, SURROGATE, TRUE
from tests.tiny import DATA, ddpm

SETTINGS: dict[str, Any] = {"radii": (0.01,), "random": 1, "tau": 1e-3, "memory_budget": 2**20, "repeats": 4, "seed": 0}


class Looks(Callback):
    """Keeps the sources of the first task as they are when a test starts, and looks at them."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bands = SNRBands.by_quantile()
        self.subject = AuditSources(trainer, pl_module, 0, 1, bands, samples=24, seed=0)
        self.sources = {band: self.subject.sources(band) for band in self.subject.names}


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> Looks:
    torch.manual_seed(0)
    looks = Looks()
    data = TaskDataModule(**{**DATA, "images_per_class": 20})
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "inference_mode": False}
    root = str(tmp_path_factory.mktemp("looks"))
    Trainer(callbacks=[looks], default_root_dir=root, **options).test(ddpm(), datamodule=data, verbose=False)
    return looks


def drawn(samples: Samples) -> tuple[DrawnBatch, list[Drawn]]:
    """All that a source draws, in the order of the samples."""
    every = list(samples.drawn())
    order = torch.cat([each.indices for each in every]).argsort()
    parts = zip(*(each.inputs.batch for each in every), strict=True)
    return DrawnBatch(*(torch.cat(part)[order] for part in parts)), every


def test_each_kind_is_what_it_says_in_the_band_that_it_is_in(looks: Looks) -> None:
    for band, sources in looks.sources.items():
        assert list(sources) == [OWN, OTHER, RELABELLED, NOISE, SURROGATE, TRUE]
        own, other, relabelled, noise = (drawn(sources[kind])[0] for kind in (OWN, OTHER, RELABELLED, NOISE))
        for each in (own, other, relabelled, noise):
            inside = [b.contains(each.log_snr) for b in looks.subject.bands.bands if b.name == band]  # type: ignore[union-attr]
            assert band == ALL or bool(inside[0].all())
            assert len(each.images) == 24
        assert (set(own.labels.tolist()), set(other.labels.tolist())) == ({0, 1}, {2, 3})
        assert set(relabelled.labels.tolist()) == {0, 1}
        for part in ("images", "timesteps", "noise"):
            assert torch.equal(getattr(relabelled, part), getattr(other, part))
        assert torch.equal(noise.labels, own.labels)
        assert float(noise.images.std()) == pytest.approx(1, abs=0.1)
        for a, b in ((own, other), (own, noise), (other, noise)):
            assert abs(torch.corrcoef(torch.stack([a.noise.flatten(), b.noise.flatten()]))[0, 1]) < 0.1
    low, whole = (drawn(looks.sources[band][OWN])[0] for band in ("low", ALL))
    assert torch.equal(low.images, whole.images)  # the same samples
    assert abs(torch.corrcoef(torch.stack([low.noise.flatten(), whole.noise.flatten()]))[0, 1]) < 0.1
    assert len(whole.timesteps.unique()) > 20
    assert looks.subject.law() == pytest.approx({"low": 1 / 3, "mid": 1 / 3, "high": 1 / 3}, abs=1e-3)


def test_the_linear_denoiser_and_the_model_have_their_own_residuals(looks: Looks) -> None:
    denoiser = looks.subject.module.denoiser
    own, _ = drawn(looks.sources["mid"][OWN])
    moment = float(own.images.square().mean())
    batch, every = drawn(looks.sources["mid"][SURROGATE])
    order = torch.cat([each.indices for each in every]).argsort()
    linear = torch.cat([each.inputs.randomness for each in every])[order]  # type: ignore[arg-type]
    torch.testing.assert_close(linear, linear_output(denoiser, batch, moment))
    residual = torch.cat([each.inputs.randomness for each in drawn(looks.sources["mid"][TRUE])[1]])  # type: ignore[arg-type]
    assert float(residual.std()) == pytest.approx(1, abs=0.05)
    assert all(each.inputs.randomness is None for each in drawn(looks.sources["mid"][OWN])[1])


def test_output_normalised_weights_are_each_sample_s_own_loss(looks: Looks) -> None:
    by_kind = {kind: looks.sources["high"][kind] for kind in (OWN, NOISE)}
    found = inner_products(list(by_kind.values()))
    weights = AuditMeasurements(**SETTINGS)._weights(by_kind, found)
    batch, _ = drawn(by_kind[OWN])
    with torch.no_grad():
        losses = looks.subject.module.per_sample_loss(batch).double()
    torch.testing.assert_close(weights[:24], 1 / (4 / 64 * losses + 1e-3), rtol=1e-4, atol=0)
    assert torch.equal(weights[24:], torch.ones(24, dtype=torch.float64))


def test_steps_are_taken_on_draws_that_the_directions_have_not_seen(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    population = looks.subject.population(ALL)
    rows = type(population).rows
    monkeypatch.setattr(type(population), "rows", lambda self, draw=0: seen.append(draw) or rows(self, draw))
    u = {name: torch.ones_like(p) for name, p in looks.subject.module.named_parameters()}
    AuditMeasurements(**SETTINGS)._preservation(looks.subject, ALL, {"v, all": u}, {"v, all": u})
    assert set(seen) == {1}


def test_samples_are_chosen_at_random_and_by_the_seed_alone() -> None:
    x = torch.arange(100.0)[:, None]
    by_size = {
        size: Chosen([KeyedBatch((x[rows],), rows) for rows in torch.arange(100).split(size)], 20, seed=3)
        for size in (7, 50)
    }
    chosen = {size: torch.cat([indices for _, indices in of]) for size, of in by_size.items()}
    assert chosen[7].sort().values.tolist() == chosen[50].sort().values.tolist()
    assert len(chosen[7]) == len(by_size[7]) == 20
    assert int(chosen[7].max()) > 60
    for (batch,), indices in by_size[7]:
        assert batch[:, 0].tolist() == indices.tolist()
    assert len(list(by_size[50])) == 1  # together again
    few = Chosen([(x[:5],)], 20, seed=3)
    assert (len(few), [indices.tolist() for _, indices in few]) == (5, [[0, 1, 2, 3, 4]])


def test_the_damage_is_that_of_the_later_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = TaskDataModule(**{**DATA, "images_per_class": 20})
    model = ddpm()
    later = {name: p + 0.02 * torch.randn_like(p) for name, p in model.state_dict().items()}
    torch.save({"state_dict": later}, tmp_path / "later.ckpt")
    audit = FisherAudit(samples=24, radii=[], repeats=4, task=1, later=str(tmp_path / "later.ckpt"), kinds=["own"])
    looks = Looks()
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "inference_mode": False}
    built = Trainer(callbacks=[audit, looks], default_root_dir=tmp_path, **options)
    built.test(model, datamodule=data, verbose=False)
    found = json.loads((tmp_path / "audit" / "after_task_1" / "audit.json").read_text())
    moved = DDPM(ddpm().denoiser.network)
    moved.load_state_dict(later)
    moved.eval()
    for band in (ALL, "low"):
        batches = [rows.batch for rows in looks.subject.population(band).rows(draw=1)]
        with torch.no_grad():
            change = torch.cat([moved.per_sample_loss(b) - model.per_sample_loss(b) for b in batches]).mean()
        of = found["damage"][band]
        assert of["loss"]["value"] == pytest.approx(float(change), rel=1e-3)
        assert of["loss_along v, all"]["value"] != pytest.approx(0, abs=1e-12)
    assert set(KINDS) > {OWN}


def test_a_project_that_the_audit_would_fail_on_is_refused_on_its_first_batch(tmp_path: Path) -> None:
    from cl_diffusion.diffusion import NoiseSchedule, SNRBand
    from tests.callbacks.test_continual_metrics import fit

    short = DDPM(ddpm().denoiser.network, NoiseSchedule.linear(100))
    nowhere = FisherAudit(bands=SNRBands([SNRBand("none", low=50.0)]))
    with pytest.raises(ValueError, match="band 'none' = .* holds none of the schedule's 100"):
        fit(short, tmp_path, nowhere)
    with pytest.raises(ValueError, match="bands and timesteps are both given"):
        FisherAudit(bands=SNRBands.by_quantile(), timesteps=[3])
    with pytest.raises(ValueError, match="other=0 is the task itself"):
        FisherAudit(other=0)

    class Broken(DDPM):
        def draw(self, batch: Any, keys: Any = None, band: Any = None) -> Any:
            if band is not None and band.name == "high":
                raise RuntimeError("no such band")
            return super().draw(batch, keys, band)

    with pytest.raises(RuntimeError, match="no such band"):
        fit(Broken(ddpm().denoiser.network), tmp_path, FisherAudit(samples=16))
    assert not (tmp_path / "audit").exists()
