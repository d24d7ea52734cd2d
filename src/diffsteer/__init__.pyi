from .attention import BlurQuery, Edit, Identity
from .branch import Answer, Asking, Branch, Plan, Point, plan, run, together
from .denoiser import Denoiser, Network
from .dropout import Dropout
from .guidance import APG, CFG, PAG, SAG, SEG, Auto, AutoDropout, AutoNoise, CFGZero, Guidance
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
    "APG",
    "Answer",
    "Asking",
    "Auto",
    "AutoDropout",
    "AutoNoise",
    "BlurQuery",
    "Branch",
    "CFG",
    "CFGZero",
    "CLEAN",
    "Cosine",
    "DDIM",
    "DDPM",
    "DPMpp2M",
    "Denoiser",
    "Discrete",
    "Dropout",
    "EDM",
    "EDMWeight",
    "Edit",
    "Eps",
    "Euler",
    "EulerAncestral",
    "Flow",
    "Guidance",
    "Heun",
    "Identity",
    "Karras",
    "Kind",
    "Level",
    "MinSNR",
    "Network",
    "Noise",
    "PAG",
    "Plan",
    "Point",
    "Preconditioned",
    "SAG",
    "SEG",
    "SPACINGS",
    "Sampler",
    "Schedule",
    "SoftMinSNR",
    "Step",
    "UniPC",
    "Uniform",
    "V",
    "Velocity",
    "Weight",
    "X0",
    "grid",
    "parse",
    "plan",
    "rescale",
    "rescale_centred",
    "run",
    "sample",
    "together",
    "trace",
]
