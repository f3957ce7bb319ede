"""One kernel a step, from the first step or from a checkpoint's on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import SGD, Adam, RMSprop

from cl_diffusion.callbacks import FusedOptimizer
from tests.callbacks.stranger import Regression, loader, trainer, weights


@pytest.mark.parametrize(
    ("optimizer", "options", "fused"),
    [
        (Adam, {}, True),
        (SGD, {"momentum": 0.9}, True),
        (Adam, {"foreach": True}, None),
        (RMSprop, {}, None),
    ],
)
def test_the_steps_are_the_same_and_fused_where_there_is_such_a_step(
    optimizer: Any, options: dict[str, Any], fused: bool | None
) -> None:
    plain, other = (Regression(optimizer, **options) for _ in range(2))
    trainer().fit(plain, loader(0))
    fitting = trainer(FusedOptimizer())
    fitting.fit(other, loader(0))
    assert fitting.optimizers[0].param_groups[0].get("fused") is fused
    torch.testing.assert_close(weights(other), weights(plain))


def test_a_checkpoint_goes_on_either_way(tmp_path: Path) -> None:
    plain = Regression(Adam)
    trainer(max_epochs=4).fit(plain, loader(0))
    for first, then in (([], [FusedOptimizer()]), ([FusedOptimizer()], [])):
        saving = ModelCheckpoint(tmp_path, filename="half", enable_version_counter=False)
        trainer(*first, saving, enable_checkpointing=True).fit(Regression(Adam), loader(0))
        resumed = Regression(Adam)
        trainer(*then, max_epochs=4).fit(resumed, loader(0), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
        torch.testing.assert_close(weights(resumed), weights(plain))
