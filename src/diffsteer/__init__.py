"""Better samples from the diffusion model you already have, and the measurements that prove it."""

from diffsteer.grid import SPACINGS, Karras, grid
from diffsteer.level import CLEAN, Level
from diffsteer.noise import Noise
from diffsteer.prediction import X0, Eps, Kind, Preconditioned, V, Velocity
from diffsteer.rescale import rescale, rescale_centred
from diffsteer.sampler import (
    DDIM,
    DDPM,
    DPMpp2M,
    Euler,
    EulerAncestral,
    Heun,
    Sampler,
    Step,
    UniPC,
    sample,
    trace,
)
from diffsteer.schedule import EDM, Cosine, Discrete, Flow, Schedule
from diffsteer.weight import EDMWeight, MinSNR, SoftMinSNR, Uniform, Weight

__all__ = [
    "CLEAN",
    "DDIM",
    "DDPM",
    "EDM",
    "SPACINGS",
    "X0",
    "Cosine",
    "DPMpp2M",
    "Discrete",
    "EDMWeight",
    "Eps",
    "Euler",
    "EulerAncestral",
    "Flow",
    "Heun",
    "Karras",
    "Kind",
    "Level",
    "MinSNR",
    "Noise",
    "Preconditioned",
    "Sampler",
    "Schedule",
    "SoftMinSNR",
    "Step",
    "UniPC",
    "Uniform",
    "V",
    "Velocity",
    "Weight",
    "grid",
    "rescale",
    "rescale_centred",
    "sample",
    "trace",
]
