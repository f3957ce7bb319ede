"""Hyper-parameters that a checkpoint holds without pickle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin as _Base
else:
    _Base = object


class PlainHyperparameters(_Base):
    """For a LightningModule or data module, listed before it: ``save_hyperparameters()`` keeps plain values only.

    An object that is given from Python (a network, a data set) is left out; under LightningCLI its configuration, which
    is plain, is kept, and everything can be built from it again.
    """

    def remove_ignored_hparams(self, ignore_list: list[str]) -> None:
        """Leaves out the list, and whatever is not plain."""
        objects = [name for name, value in self.hparams.items() if not _is_plain(value)]
        super().remove_ignored_hparams([*ignore_list, *objects])


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))
