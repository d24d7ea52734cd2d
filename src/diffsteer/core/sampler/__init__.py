"""Samplers. Importing the package registers all of them for `parse`."""

from diffsteer.core.sampler.ancestral import Ancestral
from diffsteer.core.sampler.base import (
    Denoise,
    Denoised,
    Past,
    Sampler,
    Step,
    Stepped,
    first_order,
    sample,
    trace,
)
from diffsteer.core.sampler.ddim import DDIM, DDPM, Euler, EulerAncestral
from diffsteer.core.sampler.heun import Heun
from diffsteer.core.sampler.multistep import DPMpp2M, UniPC

__all__ = ["Denoise", "Denoised", "Past", "Sampler", "Step", "Stepped"]
__all__ += ["DDIM", "DDPM", "Ancestral", "DPMpp2M", "Euler", "EulerAncestral", "Heun", "UniPC"]
__all__ += ["first_order", "sample", "trace"]

NAMED: dict[str, Sampler] = {"Euler": Euler, "DDPM": DDPM, "EulerAncestral": EulerAncestral}
"""Samplers that are known by a name of their own."""
Sampler.named = NAMED
