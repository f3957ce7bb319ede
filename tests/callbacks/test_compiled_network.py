"""Compiled and channels-last, and all else as it was: the same run, the same names, and nobody's hooks passed by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from cl_diffusion import DistilledDDPM, ReplayDataModule
from cl_diffusion.callbacks import EWC, CompiledNetwork
from cl_diffusion.data import ClassBalancedBuffer
from cl_diffusion.diffusion.samplers import DDIMSampler
from cl_diffusion.fisher import FisherEstimator, KroneckerFisher, MeanGradientFisher
from tests.callbacks.stranger import Regression, loader
from tests.callbacks.stranger import trainer as plain_trainer
from tests.tiny import DATA, unet


class Calls(Callback):
    """Whether the networks are compiled in each training step, and that they are not anywhere else."""

    def __init__(self) -> None:
        self.student: list[bool] = []
        self.teacher: list[bool] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.student.append(pl_module.denoiser.network._compiled_call_impl is not None)
        self.teacher.append(pl_module.teacher is not None and pl_module.teacher.network._compiled_call_impl is not None)

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        assert pl_module.denoiser.network._compiled_call_impl is None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        assert pl_module.denoiser.network._compiled_call_impl is None


def trainer(folder: Path, *callbacks: Callback) -> Trainer:
    return Trainer(
        max_epochs=4,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        default_root_dir=folder,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )


def fit(folder: Path, fisher: FisherEstimator, *callbacks: Callback, **options: Any) -> tuple[DistilledDDPM, EWC]:
    """Two tasks with a penalty and a teacher, each epoch of a few full batches and a short one."""
    torch.manual_seed(0)
    model = DistilledDDPM(unet(), sampler=DDIMSampler(steps=2), balance="sum")
    ewc = EWC(fisher, strength=10.0)
    data = ReplayDataModule(ClassBalancedBuffer(images=8), 0.5, **{**DATA, "batch_size": 10})
    trainer(folder, *callbacks, ewc).fit(model, datamodule=data, weights_only=True, **options)
    return model, ewc


def close(mine: Any, theirs: Any) -> None:
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fisher", [MeanGradientFisher, KroneckerFisher])
def test_a_run_with_penalty_and_teacher_is_the_run_without_it(fisher: Any, tmp_path: Path) -> None:
    written, its_ewc = fit(tmp_path, fisher())
    calls = Calls()
    compiled, ewc = fit(tmp_path, fisher(), CompiledNetwork(backend="aot_eager"), calls)
    steps = len(calls.student) // 4
    assert calls.student == [*[True] * (steps - 1), False] * 4  # all but the last of an epoch
    assert calls.teacher == [*[False] * 2 * steps, *([*[True] * (steps - 1), False] * 2)]
    assert list(compiled.state_dict()) == list(written.state_dict())
    close(compiled.state_dict().values(), written.state_dict().values())
    close(compiled.teacher.state_dict().values(), written.teacher.state_dict().values())  # type: ignore[union-attr]
    mine, theirs = ewc.terms[0].operator, its_ewc.terms[0].operator
    assert mine.names == theirs.names
    torch.testing.assert_close(mine.trace(), theirs.trace(), rtol=1e-3, atol=0.0)
    weight = compiled.denoiser.network.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("first", [True, False])
def test_compiled_code_is_what_runs_wherever_the_penalty_stands(first: bool, tmp_path: Path) -> None:
    """A trial pass through compiled code would have it given up for good, without a word."""
    runs = [0]

    def counting(graph: Any, inputs: Any) -> Any:
        def run(*given: Any) -> Any:
            runs[0] += 1
            return graph.forward(*given)

        return run

    torch._dynamo.reset()
    calls, ewc = Calls(), EWC(KroneckerFisher(), strength=10.0)
    model = DistilledDDPM(unet(), sampler=DDIMSampler(steps=2), balance="sum")
    data = ReplayDataModule(ClassBalancedBuffer(images=8), 0.5, **{**DATA, "batch_size": 10})
    compiled = CompiledNetwork(backend=counting)
    order = [compiled, ewc] if first else [ewc, compiled]
    trainer(tmp_path, *order, calls).fit(model, datamodule=data)
    assert runs[0] == sum(calls.student) + 2 * sum(calls.teacher)  # the teacher once, the student again


def test_a_checkpoint_of_a_run_without_it_goes_on_with_it(tmp_path: Path) -> None:
    """Within the second task, with a teacher and with moments that are laid out otherwise."""
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    written, _ = fit(tmp_path, MeanGradientFisher(), saving)
    path = tmp_path / "epoch=2.ckpt"
    layouts: list[bool] = []

    class Layouts(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            states = trainer.optimizers[0].state.items()
            layouts.extend(state["exp_avg"].stride() == parameter.stride() for parameter, state in states)

    compiled, _ = fit(tmp_path, MeanGradientFisher(), CompiledNetwork(backend="aot_eager"), Layouts(), ckpt_path=path)
    close(compiled.state_dict().values(), written.state_dict().values())
    assert layouts
    assert all(layouts)


@pytest.mark.parametrize("watched", [False, True])
def test_a_network_with_hooks_is_run_as_it_is_written(watched: bool) -> None:
    """Compiled code takes no notice of a hook that comes after it was compiled."""
    seen, steps = [0], [0]

    class Watching(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            steps[0] += batch_idx == 1
            if watched and batch_idx == 1:
                self.handle = pl_module.net[1].register_forward_hook(lambda *_: seen.__setitem__(0, seen[0] + 1))

        def on_train_batch_end(self, *_: Any) -> None:
            if hasattr(self, "handle"):
                self.handle.remove()

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain_trainer(Watching(), CompiledNetwork(backend="eager")).fit(Regression(), loader(0, samples=40))
    assert steps[0] == 2
    assert seen[0] == (2 if watched else 0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # and without a hook it is compiled


def test_which_parts_are_compiled_and_what_is_refused() -> None:
    class Two(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(1, 1)
            self.without = nn.ReLU()

    def parts(module: LightningModule, **options: Any) -> list[nn.Module]:
        callback = CompiledNetwork(**options)
        callback.setup(plain_trainer(), module, "fit")
        return [network for network, _ in callback._own]

    two = Two()
    assert parts(two) == [two.net, two.other]
    assert parts(two, networks=["net.0"]) == [two.net[0]]
    assert all(not isinstance(part, torch._dynamo.OptimizedModule) for part in two.modules())
    with pytest.raises(ValueError, match="networks: Two has no part 'nets'"):
        parts(two, networks=["nets"])
    two.net.compile(backend="eager")
    with pytest.raises(ValueError, match="networks: 'net' is compiled already"):
        parts(two)
