"""The reset of units: drawn anew, cut off from what reads them, and forgotten by the optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cl_diffusion.plasticity.units import Slice, Units

Moments = Literal["layer_mean", "zero"]
Initializer = Callable[[nn.Module], None]
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum")


def reset_units(
    module: nn.Module,
    units: Units,
    chosen: Tensor,
    *,
    seed: int,
    optimizers: Iterable[Optimizer] = (),
    moments: Moments = "layer_mean",
    shadows: Sequence[nn.Module] = (),
    initializer: Initializer | None = None,
    agree: Callable[[Tensor], Tensor] = lambda fresh: fresh,
) -> None:
    """Make the chosen units new: incoming weights from the initialiser, outgoing ones zero.

    Biases and the beta of a norm become 0, its gamma 1. What the unit gave to the network before is gone, and what it
    gives now is exactly zero; where it gave nothing, as a dead ReLU without a norm, the network's function stays the
    same. No other entry of any tensor changes, and no random state.

    Moments of the optimizers in those entries: first moments become 0. Second moments become 0 under ``"zero"``, by
    which Adam's next updates can be 6.6 times the learning rate, as its step count goes on; or under ``"layer_mean"``
    the mean over the tensor's other units (over all, where all are reset), by which they stay within 1.05 times it for
    gradients up to the layer's root mean square.

    Args:
        module: that has them.
        units: of one layer.
        chosen: int64, which of them.
        seed: of the fresh weights, which are drawn on the CPU: the same on every device.
        optimizers: whose state is of the module's parameters.
        moments: ``"layer_mean"`` or ``"zero"``.
        shadows: copies of the module, such as its average, that get the same entries.
        initializer: of a layer, in place of its own ``reset_parameters``.
        agree: makes the fresh weights those of all processes.
    """
    if moments not in get_args(Moments):
        raise ValueError(f"moments={moments!r}; expected one of {', '.join(map(repr, get_args(Moments)))}")
    tensors = _tensors(module)
    copies = [_tensors(shadow) for shadow in shadows]
    state = {id(p): state for optimizer in optimizers for p, state in optimizer.state.items()}
    with torch.no_grad():
        fresh = {
            name: agree(tensor.to(tensors[name])) for name, tensor in _drawn(module, units, seed, initializer).items()
        }
        for part in units.incoming:
            part.of(tensors[part.tensor], units.count)[chosen] = part.of(fresh[part.tensor], units.count)[chosen]
        for parts, value in ((units.outgoing, 0.0), (units.shifts, 0.0), (units.scales, 1.0)):
            for part in parts:
                part.of(tensors[part.tensor], units.count)[chosen] = value
        for part in units.slices:
            for other in copies:
                new = part.of(tensors[part.tensor], units.count)[chosen]
                part.of(other[part.tensor], units.count)[chosen] = new.to(other[part.tensor])
            _forget(state.get(id(tensors[part.tensor]), {}), tensors[part.tensor], part, units.count, chosen, moments)


def kept(module: nn.Module, units: Units, chosen: Tensor) -> dict[str, Tensor]:
    """By parameter, on the CPU: False in the entries of the chosen units, True in all others."""
    found: dict[str, Tensor] = {}
    tensors = _tensors(module)
    for part in units.slices:
        mask = found.setdefault(part.tensor, torch.ones(tensors[part.tensor].shape, dtype=torch.bool))
        part.of(mask, units.count)[chosen.cpu()] = False
    return found


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _drawn(module: nn.Module, units: Units, seed: int, initializer: Initializer | None) -> dict[str, Tensor]:
    """The incoming tensors, as a fresh layer has them."""
    found: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed other devices too
        for owner in dict.fromkeys(part.owner for part in units.incoming):
            layer: Any = twin(module.get_submodule(owner))
            (initializer or _own_initializer)(layer)
            names = {part.tensor for part in units.incoming if part.owner == owner}
            found |= {name: layer.get_parameter(name.rpartition(".")[2]) for name in names}
    return found


def twin(layer: nn.Module) -> nn.Module:
    """A copy with parameters and buffers of its own, on the CPU, without hooks; all else is shared."""
    made = copy.copy(layer)
    for name, value in vars(layer).items():
        if "_hooks" in name:
            vars(made)[name] = type(value)()
    vars(made)["_parameters"] = {
        name: None if p is None else nn.Parameter(p.detach().cpu().clone(), p.requires_grad)
        for name, p in layer._parameters.items()
    }
    vars(made)["_buffers"] = {
        name: None if b is None else b.detach().cpu().clone() for name, b in layer._buffers.items()
    }
    vars(made)["_modules"] = {name: None if m is None else twin(m) for name, m in layer._modules.items()}
    return made


def _own_initializer(layer: Any) -> None:
    layer.reset_parameters()


def _forget(
    state: Mapping[str, Any], tensor: Tensor, part: Slice, count: int, chosen: Tensor, moments: Moments
) -> None:
    for name, moment in state.items():
        if not isinstance(moment, Tensor) or moment.shape != tensor.shape:
            continue
        entries = part.of(moment, count)
        if moments == "layer_mean" and name in _SQUARES:
            rest = torch.ones(count, dtype=torch.bool, device=moment.device)
            rest[chosen] = False
            entries[chosen] = entries[rest if bool(rest.any()) else chosen].mean()
        else:
            entries[chosen] = 0.0
