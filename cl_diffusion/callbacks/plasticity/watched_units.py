"""Which units of a module a callback watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from cl_diffusion.plasticity.find import find_units
from cl_diffusion.plasticity.units import Units

FindsUnits = Callable[[LightningModule], Sequence[Units]]


def watched_units(
    module: LightningModule,
    layers: Sequence[str] | None,
    given: FindsUnits | Sequence[Units] | None,
    or_none: bool = False,
    trained: bool = False,
) -> list[Units]:
    """The units of a module by patterns of their layers' names, found or given.

    Args:
        module: whose.
        layers: patterns; None is all.
        given: in place of what ``find_units`` can tell.
        trained: only those whose weights are.
        or_none: where nothing is asked for by name and none are found, a warning says why.

    Raises:
        ValueError: there are none, with the reason for each layer, or a pattern fits none.
    """
    if isinstance(layers, str) or (layers is not None and not list(layers)):
        raise ValueError(f"layers={layers!r}; expected a list of patterns such as ['net.*'], or None for all")
    refused: dict[str, str] = {}
    if given is None:
        units, refused = find_units(module)
    else:
        units = list(given(module) if callable(given) else given)
        if others := [each for each in units if not isinstance(each, Units)]:
            raise TypeError(
                f"units: {others[0]!r} is none; expected cl_diffusion.plasticity.Units, or what returns them"
            )
    for of in units:
        of.check(module)
    if trained:
        frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
        still = {of.name: held for of in units if (held := [s.tensor for s in of.slices if s.tensor in frozen])}
        refused |= {name: f"{held[0]} is frozen (requires_grad is False)" for name, held in still.items()}
        units = [of for of in units if of.name not in still]
    for pattern in layers or ():
        if not any(fnmatchcase(of.name, pattern) for of in units):
            fitting = [f"{name}: {reason}" for name, reason in refused.items() if fnmatchcase(name, pattern)]
            there = ", ".join(of.name for of in units) or "none"
            raise ValueError(
                f"layers has {pattern!r}: {'; '.join(fitting) or f'no such layer; units are found of {there}'}"
            )
    chosen = [of for of in units if layers is None or any(fnmatchcase(of.name, pattern) for pattern in layers)]
    if not chosen:
        why = "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "it has no layers"
        said = f"no units are found in {type(module).__name__} ({why}); give units=..., slices of its parameters"
        if not or_none:
            raise ValueError(said)
        rank_zero_warn(said)
    elif given is None and refused:
        names = ", ".join(of.name for of in chosen)
        without = "1 other layer has" if len(refused) == 1 else f"{len(refused)} other layers have"
        rank_zero_info(f"units of {names}; {without} none (layers=[NAME] says why)")
    return chosen
