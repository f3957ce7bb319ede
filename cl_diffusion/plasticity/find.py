"""All units of a network that can be told, and why the other layers have none."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from torch import nn

from cl_diffusion.plasticity.blocks import builder
from cl_diffusion.plasticity.chains import LAYERS, Refused, Unproven, chains
from cl_diffusion.plasticity.units import Units, prefixed


class Found(NamedTuple):
    """What a search has come to.

    Attributes:
        units: of each layer that has them.
        refused: by the name of every other layer, why it has none.
    """

    units: list[Units]
    refused: Refused


def find_units(module: nn.Module) -> Found:
    """The units of a module: of the blocks that are known, and of all that ``torch.fx`` can prove.

    A module that cannot be traced is searched part by part; what its parts do to each other's outputs is then not
    known, and the last layer of each part has no units. A layer that several modules hold has none.
    """
    found, refused = _search(module, "", set())
    parents = Counter(id(child) for parent in module.modules() for child in parent.children())
    units: list[Units] = []
    for of in found:
        if several := [part.owner for part in of.slices if parents[id(module.get_submodule(part.owner))] > 1]:
            refused[of.name] = f"{several[0]} is held by several modules, and so may be used by several paths"
        else:
            units.append(of)
    for name, layer in module.named_modules():
        if isinstance(layer, LAYERS) and not any(name == of.name for of in units):
            refused.setdefault(name, "it is in no known block and in no module that can be traced")
    return Found(units, {name: refused[name] for name in refused if not any(name == of.name for of in units)})


def _search(module: nn.Module, prefix: str, visited: set[int]) -> tuple[list[Units], Refused]:
    if isinstance(module, LAYERS) or id(module) in visited:
        return [], {}
    visited.add(id(module))
    if (build := builder(module)) is not None:
        try:
            return [prefixed(prefix, build(module))], {}
        except Unproven as reason:
            return [], {prefix: str(reason)}
    try:
        found, reasons = chains(module)
    except Exception:  # whatever a forward pass that is not made for tracers may raise
        found, reasons = [], {}
        traced = False
    else:
        traced = True
        found = [prefixed(prefix, of) for of in found]
    refused = {f"{prefix}.{name}".lstrip("."): reason for name, reason in reasons.items()}
    reached = {*refused, *(part.owner for of in found for part in of.slices)}
    for name, child in module.named_children():
        more, because = _search(child, f"{prefix}.{name}".lstrip("."), visited)
        if traced:  # what its forward pass does not reach may be another's part: an autoencoder's decoder
            more = [of for of in more if not any(part.owner in reached for part in of.slices)]
            because = {layer: reason for layer, reason in because.items() if layer not in reached}
        found, refused = [*found, *more], {**because, **refused}
    return found, refused
