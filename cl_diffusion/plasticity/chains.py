"""Units that a trace proves: a layer, one activation, and the one layer that reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from cl_diffusion.plasticity.put_back import put_back
from cl_diffusion.plasticity.units import Site, Slice, Units

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MIXING_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_PASSING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
FIRING = ("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Hardswish")
"""Activations whose values are positive where their inputs are: a unit fires where it is."""
_SMOOTH = ("Tanh", "Sigmoid", "Softplus", "Softsign", "LogSigmoid", "Hardtanh", "Hardsigmoid", "Tanhshrink")
_FUNCTIONS: dict[Any, str] = {
    **{
        getattr(functional, {"LeakyReLU": "leaky_relu"}.get(name, name.lower())): name
        for name in FIRING
        if name != "PReLU"
    },
    **{torch.relu: "ReLU", torch.tanh: "Tanh", torch.sigmoid: "Sigmoid", functional.tanh: "Tanh"},
}
_METHODS = {"relu": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid"}
Refused = dict[str, str]
"""Layers that are no units, and why not."""


class Unproven(Exception):
    """What keeps a layer from being one of units."""


def chains(module: nn.Module) -> tuple[list[Units], Refused]:
    """The units of a module that ``torch.fx`` can trace, and the layers that have none.

    Proven is a layer (``Linear`` or a convolution of one group) whose output goes, by way of at most one norm, through
    one activation, and from there through dropout, pooling and flattening into one other layer, and nowhere else; that
    layer reads the axis along which the units lie. A norm after the activation, a second reader, a module that is used
    twice, a weight of two names or used beside its module, a parametrised weight are refused.

    Raises:
        Exception: whatever the tracer raises of a module that it cannot trace.
    """
    with put_back(module):
        graph = fx.Tracer().trace(module)
    modules = dict(module.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    names = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    shared = {name for name, p in module.named_parameters(remove_duplicate=False) if names[id(p)] > 1}
    shared |= {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    found: list[Units] = []
    refused: Refused = {}
    for node in graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, LAYERS) or str(node.target) in refused:
            continue
        try:
            found.append(_Walk(modules, calls, shared).units(node))
        except Unproven as reason:
            refused[str(node.target)] = str(reason)
    return found, refused


class _Walk:
    """From one layer to the one that reads it."""

    def __init__(self, modules: dict[str, nn.Module], calls: Counter[Any], shared: set[str]) -> None:
        self.modules = modules
        self.calls = calls
        self.shared = shared
        self.flattened = False
        self.activation: fx.Node | None = None
        self.called = ""
        self.shifts: list[Slice] = []
        self.scales: list[Slice] = []
        self.mixes = ""
        self.normed = False
        self.axes: int | None = None

    def units(self, node: fx.Node) -> Units:
        name = str(node.target)
        layer: Any = self.modules[name]
        self._require_own(name)
        count: int = layer.weight.shape[0]
        if layer.bias is not None:
            self.shifts.append(Slice(f"{name}.bias"))
        reader = self._next(node)
        while not self._is_layer(reader):
            self._pass(reader, name)
            reader = self._next(reader)
        if self.activation is None:
            raise Unproven(f"there is no activation between it and {reader.target}, which reads it")
        self._require_own(str(reader.target))
        read: Any = self.modules[str(reader.target)]
        if _kind(read) is not (nn.Linear if self.flattened else _kind(layer)):
            raise Unproven(f"{_called(reader, self.modules)} reads along another axis than that of its units")
        width, rest = divmod(read.weight.shape[1], count)
        if rest or (width > 1 and not self.flattened):
            raise Unproven(f"{reader.target} reads {read.weight.shape[1]} features of its {count} units")
        axis = -1 if isinstance(layer, nn.Linear) else 1
        if not isinstance(layer, nn.Linear):
            self.axes = layer.weight.ndim
        return Units(
            name,
            count,
            incoming=(Slice(f"{name}.weight"),),
            outgoing=(Slice(f"{reader.target}.weight", axis=1, width=width),),
            activations=self._site(axis),
            shifts=tuple(self.shifts),
            scales=tuple(self.scales),
            next_bias=f"{reader.target}.bias" if read.bias is not None else None,
            activation=self.called,
            mixes=self.mixes,
        )

    def _next(self, node: fx.Node) -> fx.Node:
        readers = list(node.users)
        if len(readers) != 1:
            raise Unproven(f"{len(readers)} others read the output of {_called(node, self.modules)}")
        if readers[0].op == "output":
            raise Unproven("its output leaves the module")
        return readers[0]

    def _is_layer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.modules[str(node.target)], LAYERS)

    def _require_own(self, name: str) -> None:
        layer: Any = self.modules[name]
        if self.calls[name] > 1:
            raise Unproven(f"{name} is used {self.calls[name]} times, by several paths")
        if tied := [full for full in self.shared if full.rpartition(".")[0] == name]:
            raise Unproven(f"{tied[0]} is used elsewhere too")
        if layer._parameters.get("weight") is None or (
            layer.bias is not None and layer._parameters.get("bias") is None
        ):
            raise Unproven(f"{name} has a weight that is computed from other parameters")
        if getattr(layer, "groups", 1) != 1:
            raise Unproven(f"{name} has {layer.groups} groups")
        if not hasattr(layer, "reset_parameters"):
            raise Unproven(f"{name} has no reset_parameters by which to draw it anew")

    def _pass(self, node: fx.Node, layer: str) -> None:
        """Through what lies between the layers."""
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, (*_BATCH_NORMS, *_MIXING_NORMS)):
            if self.activation is not None:
                raise Unproven(f"its outgoing side is a norm, {_called(node, self.modules)}")
            self._norm(str(node.target), module, self.modules[layer])
        elif (called := self._activation(node, module)) is not None:
            if self.activation is not None:
                raise Unproven(f"two activations follow it, the second {_called(node, self.modules)}")
            if self.flattened:
                raise Unproven(f"it is flattened before its activation {_called(node, self.modules)}")
            self.activation, self.called = node, called
        elif isinstance(module, nn.Flatten) or node.target in (torch.flatten, "flatten"):
            if not isinstance(self.modules[layer], nn.Linear):
                self._flatten(node, module)
        elif isinstance(module, _POOLS) or node.target in _POOLING:
            if self.activation is None or self.flattened:
                raise Unproven(f"{_called(node, self.modules)} is not between its activation and a flattening")
            if isinstance(self.modules[layer], nn.Linear):
                raise Unproven(f"{_called(node, self.modules)} pools over its units")
        elif not isinstance(module, _PASSING) and node.target not in _DROPOUTS:
            raise Unproven(
                f"its output goes through {_called(node, self.modules)}, of which it is not known what that does"
            )

    def _norm(self, name: str, module: Any, layer: Any) -> None:
        if self.normed:
            raise Unproven(f"two norms follow it, the second {name}")
        self.normed = True
        linear, over_last = isinstance(layer, nn.Linear), isinstance(module, (nn.LayerNorm, nn.RMSNorm))
        if over_last and not linear:
            raise Unproven(f"{name} normalises along another axis than that of its units")
        of = module.normalized_shape if over_last else (getattr(module, "num_features", None) or module.num_channels,)
        count = layer.weight.shape[0]
        if tuple(of) != (count,):
            raise Unproven(f"{name} normalises {of}, and there are {count} units")
        if linear and not over_last:
            self.axes = 2  # of more, this norm has the second and a linear layer the last
        if isinstance(module, _MIXING_NORMS):
            self.mixes = name
        if getattr(module, "weight", None) is not None:
            self.scales.append(Slice(f"{name}.weight"))
        if getattr(module, "bias", None) is not None:
            self.shifts.append(Slice(f"{name}.bias"))
        if getattr(module, "running_mean", None) is not None:
            self.shifts.append(Slice(f"{name}.running_mean"))
            self.scales.append(Slice(f"{name}.running_var"))

    def _activation(self, node: fx.Node, module: nn.Module | None) -> str | None:
        if module is not None:
            kind = type(module).__name__
            return kind if kind in (*FIRING, *_SMOOTH) and type(module).__module__.startswith("torch.nn") else None
        if node.op == "call_method":
            return _METHODS.get(str(node.target))
        return _FUNCTIONS.get(node.target)

    def _flatten(self, node: fx.Node, module: nn.Module | None) -> None:
        if isinstance(module, nn.Flatten):
            start, end = module.start_dim, module.end_dim
        else:
            start = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)  # type: ignore[assignment]
            end = node.kwargs.get("end_dim", node.args[2] if len(node.args) > 2 else -1)  # type: ignore[assignment]
        if (start, end) != (1, -1):
            raise Unproven(f"{_called(node, self.modules)} flattens axes {start} to {end}; 1 to -1 is known")
        self.flattened = True

    def _site(self, axis: int) -> Site:
        """Where the activations are seen: at the activation's own module, or at what comes before with it applied."""
        node = self.activation
        assert node is not None
        if node.op == "call_module" and self.calls[node.target] == 1:
            return Site(str(node.target), "output", axis, axes=self.axes)
        before = node.args[0]
        assert isinstance(before, fx.Node)
        if before.op != "call_module" or self.calls[before.target] > 1:
            raise Unproven(f"what its activation {_called(node, self.modules)} reads is no module's output of its own")
        return Site(str(before.target), "output", axis, activation=_applied(node, self.modules), axes=self.axes)


def _applied(node: fx.Node, modules: dict[str, nn.Module]) -> Callable[..., Any]:
    """The activation of a node, as a function of its first argument, which it leaves as it is."""
    rest, options = tuple(node.args[1:]), dict(node.kwargs)
    if any(isinstance(value, fx.Node) for value in [*rest, *options.values()]):
        raise Unproven(f"its activation {_called(node, modules)} has arguments that are computed")
    target: Any = modules[str(node.target)] if node.op == "call_module" else node.target
    apply = (
        methodcaller(str(target), *rest, **options)
        if node.op == "call_method"
        else partial(_call, target, rest, options)
    )
    in_place = getattr(target, "inplace", False) or options.get("inplace") or True in rest
    return (lambda x: apply(x.clone())) if in_place else apply


def _kind(layer: nn.Module) -> type[nn.Module]:
    return next(kind for kind in LAYERS if isinstance(layer, kind))


def _called(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """A node's name for people: ``2 (LayerNorm)``, ``relu``."""
    if node.op == "call_module":
        return f"{node.target} ({type(modules[str(node.target)]).__name__})"
    return str(getattr(node.target, "__name__", node.target))


def _call(function: Callable[..., Any], rest: tuple[Any, ...], options: dict[str, Any], x: Any) -> Any:
    return function(x, *rest, **options)


_DROPOUTS = (functional.dropout, functional.dropout2d, functional.alpha_dropout)
_POOLING = (
    *(functional.max_pool1d, functional.max_pool2d, functional.avg_pool1d, functional.avg_pool2d),
    *(functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d),
)
