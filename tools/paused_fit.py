"""A fit that goes on for so many steps when it is asked to, so that it can be timed in turns with something else."""

from __future__ import annotations

import threading
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from typing_extensions import override


class PausedFit:
    """``trainer.fit`` in a thread of its own, which stands still but within ``run``.

    What comes before the first counted step (the Trainer's set-up, earlier tasks) is behind once this is made. A run of
    n steps is all that happens from one batch's start to that of the nth after it: loading, hooks and logging, and an
    epoch's end and the next one's beginning wherever one falls.

    Args:
        trainer: of one process.
        module: to train.
        datamodule: its data, in enough epochs.
        first: the first counted step.

    Raises:
        RuntimeError: here or in ``run``: the fit has failed or has ended.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, datamodule: LightningDataModule, first: int = 0
    ) -> None:
        self._gate = _Gate(first)
        trainer.callbacks.append(self._gate)  # type: ignore[attr-defined]
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, args=(trainer, module, datamodule), daemon=True)
        self._thread.start()
        self._wait()

    def run(self, steps: int) -> None:
        """Go on for so many steps."""
        self._gate.left = steps
        self._gate.go.release()
        self._wait()

    def close(self) -> None:
        """End the fit."""
        self._gate.left = -1
        self._gate.go.release()
        self._thread.join()

    def _fit(self, trainer: Trainer, module: LightningModule, datamodule: LightningDataModule) -> None:
        try:
            trainer.fit(module, datamodule=datamodule)
            self._error = RuntimeError("the fit has ended; give it more epochs")
        except _Enough:
            pass
        except BaseException as error:
            self._error = error
        self._gate.arrived.release()

    def _wait(self) -> None:
        self._gate.arrived.acquire()
        if self._error is not None:
            raise RuntimeError(f"the fit came to no further step: {self._error}") from self._error


class _Enough(Exception):
    pass


class _Gate(Callback):
    def __init__(self, first: int) -> None:
        self.first = first
        self.left = 0
        self.go, self.arrived = threading.Semaphore(0), threading.Semaphore(0)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step < self.first:
            return
        if self.left == 0:
            self.arrived.release()
            self.go.acquire()
        if self.left < 0:
            raise _Enough
        self.left -= 1
