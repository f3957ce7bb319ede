"""A network that training steps run compiled, and everything else as it was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from cl_diffusion.diffusion import Denoiser

_Compiled = tuple[nn.Module, Callable[..., Any]]


class CompiledNetwork(Callback):
    """Compiles the module's networks for training steps, in place, with 4-d parameters laid out channels-last.

    Names stay what they are, so that checkpoints, operators, penalties and teachers fit runs without the callback. The
    compiled code serves the ``training_step`` alone: Fisher passes, audits, metrics and samplers call the same modules
    as they are written, since they differentiate in ways that compiled code cannot be (``vmap``, twice, forwards). The
    step is run as written too

    - while a part of the network has a forward or backward hook, which compiled code would silently pass by;
    - on the last batch of an epoch, whose size is its own: it would be compiled for one step.

    The module's ``teacher``, as ``DistillationMixin`` freezes one, is compiled likewise. Optimizer states follow the
    layout of their parameters, those of a checkpoint too.

    Args:
        networks: names of the parts to compile; by default each part of the module that has parameters, a ``Denoiser``
            being its ``network``.
        channels_last: whether convolutions' weights are laid out so; that is the faster layout on a GPU.
        backend: of ``torch.compile``.
        mode: of ``torch.compile``.

    Raises:
        ValueError: before a fit: the module has no such part, or one is compiled already.
    """

    def __init__(
        self,
        networks: Sequence[str] | None = None,
        channels_last: bool = True,
        backend: str = "inductor",
        mode: str | None = None,
    ) -> None:
        self.networks = networks
        self.channels_last = channels_last
        self.backend = backend
        self.mode = mode
        self._own: list[_Compiled] = []
        self._teachers: list[_Compiled] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._teachers = []
            self._own = [self._compiled(network) for network in _networks(pl_module, self.networks)]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers if self.channels_last else ():
            for parameter, state in optimizer.state.items():
                state.update({name: _laid_out_as(parameter, value) for name, value in state.items()})

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch and batch_idx > 0:
            return
        teachers = _teachers(pl_module)
        if [id(network) for network in teachers] != [id(network) for network, _ in self._teachers]:
            self._teachers = [self._compiled(network) for network in teachers]
        for network, compiled in (*self._own, *self._teachers):
            if not _is_watched(network):
                network._compiled_call_impl = compiled

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._as_written()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._as_written()  # a step that was skipped has no backward

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._as_written()

    def _compiled(self, network: nn.Module) -> _Compiled:
        for parameter in network.parameters() if self.channels_last else ():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        network.compile(backend=self.backend, mode=self.mode, dynamic=False)
        compiled, network._compiled_call_impl = network._compiled_call_impl, None
        assert compiled is not None
        return network, compiled

    def _as_written(self) -> None:
        for network, _ in (*self._own, *self._teachers):
            network._compiled_call_impl = None


def _networks(module: LightningModule, names: Sequence[str] | None) -> list[nn.Module]:
    """The parts to compile."""
    known = dict(module.named_modules())
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"networks: {type(module).__name__} has no part {unknown[0]!r}; name those of named_modules()")
    if names is None:
        names = [name for name, part in module.named_children() if next(part.parameters(), None) is not None]
    if lists := [name for name in names if isinstance(known[name], (nn.ModuleList, nn.ModuleDict))]:
        raise ValueError(
            f"networks: {lists[0]!r} is a list, which is never called; name its parts, such as '{lists[0]}.0'"
        )
    networks = [_network(known[name]) for name in names]
    for name, network in zip(names, networks, strict=True):
        if network._compiled_call_impl is not None or hasattr(network, "_orig_mod"):
            raise ValueError(f"networks: {name!r} is compiled already; leave that to CompiledNetwork, or the part out")
    return networks


def _network(part: nn.Module) -> nn.Module:
    return part.network if isinstance(part, Denoiser) else part


def _teachers(module: LightningModule) -> list[nn.Module]:
    """A teacher that stands outside the module's own parts."""
    teacher = getattr(module, "teacher", None)
    if not isinstance(teacher, nn.Module) or any(part is teacher for part in module.modules()):
        return []
    return [_network(teacher)]


def _is_watched(network: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, name) for part in network.modules() for name in hooks)


def _laid_out_as(parameter: Tensor, value: Any) -> Any:
    """An optimizer's state in the memory layout of its parameter, which a fused step takes for granted."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
