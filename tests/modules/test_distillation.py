"""The teacher: what it is, where it stands, and what it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from cl_diffusion import DDPM, DistillationMixin, DistilledDDPM, ReplayDataModule, TaskDataModule
from cl_diffusion.callbacks import EWC, TaskCallback
from cl_diffusion.data import ClassBalancedBuffer, GenerativeReplay
from cl_diffusion.diffusion import SNRBand, SNRBands
from cl_diffusion.diffusion.rehearsal import (
    GaussianDistillation,
    GenerativeDistillation,
    LearningWithoutForgetting,
    NoiseRehearsal,
    PartialDistillation,
    Rehearsal,
)
from cl_diffusion.diffusion.samplers import DDIMSampler
from cl_diffusion.fisher import DiagonalFisher
from cl_diffusion.stream import ReplayBatch
from tests.tiny import DATA, unet

REHEARSALS: dict[str, Any] = {
    "noise": NoiseRehearsal,
    "generative": GenerativeDistillation,
    "without forgetting": LearningWithoutForgetting,
    "gaussian": GaussianDistillation,
    "partial": lambda: PartialDistillation(DDIMSampler(steps=3)),
}


def model(**options: Any) -> DistilledDDPM:
    torch.manual_seed(0)
    return DistilledDDPM(unet(), **{"sampler": DDIMSampler(steps=2), **options})


def batch(seed: int = 0, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, 1, 8, 8, generator=generator) * 2 - 1, torch.randint(4, (size,), generator=generator)


def taught(tasks: int = 1, **options: Any) -> DistilledDDPM:
    """After so many tasks, moved on from its teacher since."""
    distilled = model(**options)
    for _ in range(tasks):
        distilled.freeze_teacher()
    with torch.no_grad():
        for parameter in distilled.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return distilled


def trainer(folder: Path, *callbacks: Callback, epochs: int = 4, **options: Any) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        default_root_dir=folder,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **options,
    )


def stream(**data: Any) -> ReplayDataModule:
    return ReplayDataModule(GenerativeReplay(images_per_class=4), 0.5, **{**DATA, **data})


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("kind", REHEARSALS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind: str, prediction: Any) -> None:
    distilled = model(rehearsal=REHEARSALS[kind](), prediction=prediction)
    distilled.freeze_teacher()
    losses = distilled.eval().old_losses(batch(0), batch(1))
    assert losses is not None
    assert losses.shape == (4,)
    assert (float(losses.abs().max()) < 1e-10) == (kind != "noise")


@pytest.mark.parametrize("kind", REHEARSALS)
def test_gradients_are_the_students_and_teach_it_what_the_teacher_says(kind: str) -> None:
    distilled = taught(rehearsal=REHEARSALS[kind]())
    losses = distilled.old_losses(batch(0), batch(1))
    assert losses is not None
    losses.mean().backward()
    assert all(p.grad is not None for p in distilled.parameters())
    assert (distilled.teacher is None) == (kind == "noise")
    if distilled.teacher is not None:
        assert all(p.grad is None and not p.requires_grad for p in distilled.teacher.parameters())


def asked(rehearsal: Rehearsal, seed: int = 3) -> tuple[Any, Any, Any, DistilledDDPM]:
    distilled = taught(rehearsal=rehearsal)
    current, replay = distilled.draw(batch(0)), distilled.draw(batch(1))
    torch.manual_seed(seed)
    teacher: Any = distilled.teacher or distilled.denoiser
    return rehearsal.question(distilled.loss, teacher, current, replay), current, replay, distilled


@pytest.mark.parametrize("kind", REHEARSALS)
def test_what_is_asked_and_what_is_wanted(kind: str) -> None:
    question, current, replay, distilled = asked(REHEARSALS[kind]())
    noised = {
        name: distilled.denoiser.schedule.add_noise(part.images, part.noise, part.timesteps)
        for name, part in (("current", current), ("replay", replay))
    }
    expected = {
        "noise": noised["replay"],
        "generative": noised["replay"],
        "without forgetting": noised["current"],
        "gaussian": replay.noise,
    }
    if kind in expected:
        torch.testing.assert_close(question.x_t, expected[kind])
    assert torch.equal(question.labels, (current if kind == "without forgetting" else replay).labels)
    if kind == "noise":
        assert torch.equal(question.wanted, replay.noise)
    else:
        torch.testing.assert_close(question.wanted, distilled.teacher(question.x_t, question.t, question.labels))
    torch.testing.assert_close(question.log_snr, distilled.denoiser.schedule.log_snr[question.t])


def test_a_partial_chain_stops_where_it_is_asked() -> None:
    """Deterministic from its noise on: each image is the state of one and the same chain at its own timestep."""
    sampler = DDIMSampler(steps=5)
    question, _, replay, distilled = asked(PartialDistillation(sampler))
    torch.manual_seed(3)
    torch.randint(5, (4,))
    states = dict(sampler.chain(distilled.teacher, (4, 1, 8, 8), replay.labels))  # type: ignore[arg-type]
    assert set(question.t.tolist()) <= set(sampler.timesteps(distilled.denoiser.schedule))
    for row, t in enumerate(question.t.tolist()):
        torch.testing.assert_close(question.x_t[row], states[t][row])


@pytest.mark.parametrize("kind", REHEARSALS)
@pytest.mark.parametrize("noise_of_replay", [False, True])
def test_one_forward_is_the_same_step(kind: str, noise_of_replay: bool) -> None:
    options = {"rehearsal": REHEARSALS[kind](), "noise_of_replay": noise_of_replay}
    options |= {"bands": SNRBands.by_quantile(), "band_weights": {"low": 0.5}}
    found = []
    for one_forward in (False, True):
        student, forwards = taught(one_forward=one_forward, **options), 0

        def count(*_: Any) -> None:
            nonlocal forwards
            forwards += 1

        student.denoiser.register_forward_hook(count)
        torch.manual_seed(7)
        losses, old = student.both_losses(batch(), batch(1, size=6))
        assert old is not None
        (losses.mean() + old.mean()).backward()
        found.append((losses, old, [p.grad for p in student.parameters() if p.grad is not None], forwards))
    torch.testing.assert_close(found[0][:3], found[1][:3], rtol=1e-4, atol=1e-6)
    assert found[0][3] == found[1][3] + 1


def test_one_forward_is_refused_where_layers_look_at_the_batch() -> None:
    with pytest.raises(ValueError, match="one_forward=True, and the network has batch norms"):
        DistilledDDPM(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), one_forward=True)


@pytest.mark.parametrize("tasks", [1, 3])
def test_balanced_and_sum_weigh_as_published(tasks: int) -> None:
    both = ReplayBatch(batch(0), batch(1))
    for balance in ("balanced", "sum"):
        distilled = taught(tasks, balance=balance, old_strength=0.7)
        torch.manual_seed(5)
        total = distilled.combined_loss(both)
        torch.manual_seed(5)
        current = distilled.current_losses(both.current, both.replay).mean()
        old = distilled.old_losses(both.current, both.replay)
        assert old is not None
        weights = (1 / (tasks + 1), 1 - 1 / (tasks + 1)) if balance == "balanced" else (1.0, 1.0)
        torch.testing.assert_close(total, weights[0] * current + weights[1] * 0.7 * old.mean())


def test_bands_weigh_the_old_tasks_term() -> None:
    bands = SNRBands([SNRBand("low", high=-1.0), SNRBand("high", low=1.0)])
    plain, banded = taught(), taught(bands=bands, band_weights={"low": 0.0, "high": 3.0})
    torch.manual_seed(1)
    expected = plain.old_losses(batch(0, 64), batch(1, 64))
    torch.manual_seed(1)
    found = banded.old_losses(batch(0, 64), batch(1, 64))
    torch.manual_seed(1)
    plain.draw(batch(0, 64))
    log_snr = plain.draw(batch(1, 64)).log_snr
    assert log_snr is not None
    factors = torch.where(log_snr < -1, 0.0, torch.where(log_snr >= 1, 3.0, 1.0))
    torch.testing.assert_close(found, factors * expected)  # type: ignore[operator]
    assert set(factors.tolist()) == {0.0, 1.0, 3.0}
    for wrong in ({"middle": 1.0}, {"low": -1.0}):
        with pytest.raises(ValueError, match="band_weights=.*names among \\['low', 'high'\\]"):
            model(bands=bands, band_weights=wrong)
    with pytest.raises(ValueError, match="names among \\[\\]"):
        model(band_weights={"low": 1.0})


def test_noise_of_replay_is_one_mean_over_both_parts() -> None:
    both = ReplayBatch(batch(0, 2), batch(1, 6))
    distilled = taught(noise_of_replay=True, old_strength=0.0, balance="sum")
    distilled.log = lambda *_, **__: None  # type: ignore[method-assign]
    torch.manual_seed(5)
    loss = distilled.training_step(both, 0)
    torch.manual_seed(5)
    images, labels = (torch.cat(parts) for parts in zip(*both, strict=True))
    torch.testing.assert_close(loss, distilled.per_sample_loss((images, labels)).mean())
    plain = DDPM(unet())
    plain.log = lambda *_, **__: None  # type: ignore[method-assign]
    torch.manual_seed(5)
    loss = plain.training_step(both, 0)
    torch.manual_seed(5)
    torch.testing.assert_close(loss, plain.per_sample_loss((images, labels)).mean())


def test_the_teacher_is_the_student_as_the_last_task_left_it_and_no_part_of_the_module(tmp_path: Path) -> None:
    weights: dict[int, dict[str, Tensor]] = {}

    class Watching(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            weights[trainer.current_epoch] = {n: p.detach().clone() for n, p in pl_module.denoiser.named_parameters()}

    distilled, ewc = model(), EWC(DiagonalFisher(), 1.0)
    trainer(tmp_path, Watching(), ewc).fit(distilled, datamodule=stream())
    assert distilled.teacher is not None
    assert not any(module.training for module in distilled.teacher.modules())
    for name, parameter in distilled.teacher.named_parameters():
        assert torch.equal(parameter, weights[1][name])
    assert not any("teacher" in name for name, _ in [*distilled.named_parameters(), *distilled.named_modules()])
    assert not any("teacher" in name for name in ewc.terms[0].operator.names)
    assert len(distilled.state_dict()) == len(DDPM(unet()).state_dict())


@pytest.mark.parametrize("kind", ["generative", "partial", "without forgetting", "noise"])
def test_resumed_is_uninterrupted(kind: str, tmp_path: Path) -> None:
    """Within the first task, at the boundary, within the second."""

    def fit(*callbacks: Callback, **options: Any) -> DistilledDDPM:
        torch.manual_seed(0)
        distilled = DistilledDDPM(unet(), rehearsal=REHEARSALS[kind](), sampler=DDIMSampler(steps=2))
        trainer(tmp_path, *callbacks).fit(distilled, datamodule=stream(), weights_only=True, **options)
        return distilled

    whole = fit(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True))
    for stopped_after in (0, 1, 2):
        resumed = fit(ckpt_path=tmp_path / f"epoch={stopped_after}.ckpt")
        assert (whole.teacher is None) == (resumed.teacher is None) == (kind == "noise")
        for mine, theirs in ((whole, resumed), (whole.teacher or whole, resumed.teacher or resumed)):
            for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
                assert torch.equal(a, b)


def test_both_terms_are_logged(tmp_path: Path) -> None:
    distilled, fitting = model(balance="sum", old_strength=3.0), trainer(tmp_path)
    fitting.fit(distilled, datamodule=stream())
    figures = fitting.callback_metrics
    torch.testing.assert_close(figures["train_loss"], figures["current_loss"] + 3 * figures["old_loss"])


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="balance='mean'; expected one of 'balanced', 'sum'"):
        model(balance="mean")
    with pytest.raises(ValueError, match="old_strength=-1.0"):
        model(old_strength=-1.0)
    with pytest.raises(
        ValueError, match="GenerativeDistillation asks about replayed images, and TaskDataModule replays"
    ):
        trainer(tmp_path).fit(untrained := model(), datamodule=TaskDataModule(**DATA))
    assert untrained.trainer.global_step == 0
    with pytest.raises(ValueError, match="asks about replayed images, and the batch holds none"):
        taught().old_losses(batch(), None)
    trainer(tmp_path).fit(model(rehearsal=LearningWithoutForgetting()), datamodule=TaskDataModule(**DATA))
    wider = DistilledDDPM(unet(block_out_channels=[8, 12]))
    state: dict[str, Any] = {"state_dict": wider.state_dict()}
    DistillationMixin.on_save_checkpoint(taught(), state)
    with pytest.raises(ValueError, match="teacher is of another architecture than this student: '.*' is \\(.*here"):
        DistillationMixin.on_load_checkpoint(wider, state)
    with pytest.raises(ValueError, match="the checkpoint holds no teacher, and DistilledDDPM distils from one"):
        DistillationMixin.on_load_checkpoint(model(), {"state_dict": model().state_dict()})
    without, state = taught(rehearsal=NoiseRehearsal()), {"state_dict": model().state_dict()}
    assert without.teacher is None
    DistillationMixin.on_save_checkpoint(without, state)
    with pytest.raises(ValueError, match="the checkpoint holds no teacher, and DistilledDDPM distils from one"):
        DistillationMixin.on_load_checkpoint(model(), state)
    DistillationMixin.on_load_checkpoint(model(rehearsal=NoiseRehearsal()), state)


def test_half_sums_are_half_the_elements_times_means() -> None:
    means, sums = model(), model(reduction="half_sum")
    torch.manual_seed(2)
    expected = means.per_sample_loss(batch(0))
    torch.manual_seed(2)
    torch.testing.assert_close(sums.per_sample_loss(batch(0)), 32 * expected)
    assert means.loss_identity["loss_reduction"] != sums.loss_identity["loss_reduction"]


def test_the_teacher_is_as_the_task_s_end_left_the_student_whatever_the_next_one_begins_with(tmp_path: Path) -> None:
    class Halving(TaskCallback):
        def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
            pl_module.denoiser.network.conv_in.weight.data.fill_(0.25)

        def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
            pl_module.denoiser.network.conv_in.weight.data.fill_(0.5)

    distilled = model()
    trainer(tmp_path, Halving(), epochs=4).fit(distilled, datamodule=stream())
    assert bool((distilled.teacher.network.conv_in.weight == 0.25).all())  # type: ignore[union-attr]


@pytest.mark.parametrize("rehearsal", [LearningWithoutForgetting, GenerativeDistillation])
def test_joint_training_has_no_teacher(rehearsal: Any, tmp_path: Path) -> None:
    distilled, data = model(rehearsal=rehearsal()), stream(joint=True)
    trainer(tmp_path, epochs=data.num_epochs).fit(distilled, datamodule=data)
    assert distilled.teacher is None
    assert distilled.tasks_before == 0


def test_a_task_s_end_that_was_missed_is_made_up(tmp_path: Path) -> None:
    """A checkpoint on the last batch of an epoch resumes without that epoch's end."""
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    torch.manual_seed(0)
    whole = model()
    trainer(tmp_path, saving).fit(whole, datamodule=stream())
    steps = len(stream().training_loader(0, 0)) * 2
    resumed = model()
    trainer(tmp_path).fit(resumed, datamodule=stream(), ckpt_path=tmp_path / f"step={steps}.ckpt", weights_only=True)
    assert (resumed.tasks_before, whole.tasks_before) == (1, 1)
    for mine, theirs in zip(whole.teacher.parameters(), resumed.teacher.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(mine, theirs)


class Classifier(DistillationMixin, LightningModule):
    """Somebody's classifier, distilled by its logits, with no diffusion in it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.set_up_distillation("sum", 2.0)

    @property
    def student(self) -> nn.Module:
        return self.net

    def current_losses(self, current: Any, replay: Any | None) -> Tensor:
        return cross_entropy(self.net(current[0]), current[1], reduction="none")

    def old_losses(self, current: Any, replay: Any | None) -> Tensor | None:
        if self.teacher is None:
            return None
        wanted = log_softmax(self.teacher(current[0]), 1)
        return kl_div(log_softmax(self.net(current[0]), 1), wanted, log_target=True, reduction="none").sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.combined_loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_any_module_can_be_distilled_and_any_buffer_replayed_beside() -> None:
    data = torch.randn(8, 4), torch.randint(3, (8,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=4)
    classifier = Classifier()
    for _ in range(2):
        Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False).fit(classifier, loader)
        classifier.freeze_teacher()
    assert classifier.tasks_before == 2
    assert classifier.teacher is not None


def test_real_images_replayed_beside_are_an_ordinary_ddpm_s_too(tmp_path: Path) -> None:
    plain = DDPM(unet(), sampler=DDIMSampler(steps=2))
    fitting = trainer(tmp_path)
    fitting.fit(plain, datamodule=ReplayDataModule(ClassBalancedBuffer(images=8), 0.5, **DATA))
    assert fitting.global_step == 8
