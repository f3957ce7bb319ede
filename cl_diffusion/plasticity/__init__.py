"""Units of a network, what they do, and their reset; any torch module."""

from cl_diffusion.plasticity.find import Found, find_units
from cl_diffusion.plasticity.reset import reset_units
from cl_diffusion.plasticity.units import Site, Slice, Units

__all__ = ["Found", "Site", "Slice", "Units", "find_units", "reset_units"]
