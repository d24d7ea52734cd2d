from .guidance.rescale import rescale, rescale_centred
from .level import CLEAN, Level
from .noise import Noise
from .prediction import X0, Eps, Kind, Preconditioned, V, Velocity
from .sampler import (
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
from .schedule import EDM, Cosine, Discrete, Flow, Schedule
from .spacing import SPACINGS, Karras, grid
from .text import parse
from .weight import EDMWeight, MinSNR, SoftMinSNR, Uniform, Weight

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
    "parse",
    "rescale",
    "rescale_centred",
    "sample",
    "trace",
]
