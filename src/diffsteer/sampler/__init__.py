"""Samplers. Importing the package registers all of them for `parse`."""

from diffsteer.sampler.ancestral import Ancestral
from diffsteer.sampler.base import (
    Denoise,
    Learned,
    Past,
    Sampler,
    Step,
    Stepped,
    first_order,
    sample,
    trace,
)
from diffsteer.sampler.ddim import DDIM, DDPM, Euler, EulerAncestral
from diffsteer.sampler.heun import Heun
from diffsteer.sampler.multistep import DPMpp2M, UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "Ancestral",
    "DPMpp2M",
    "Denoise",
    "Euler",
    "EulerAncestral",
    "Heun",
    "Learned",
    "Past",
    "Sampler",
    "Step",
    "Stepped",
    "UniPC",
    "first_order",
    "sample",
    "trace",
]

NAMED: dict[str, Sampler] = {"Euler": Euler, "DDPM": DDPM, "EulerAncestral": EulerAncestral}
"""Samplers that are known by a name of their own."""
