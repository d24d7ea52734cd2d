from .attention import BlurQuery, Edit, Identity
from .branch import Answer, Asking, Branch, Plan, Point, plan, run, together
from .denoiser import Denoiser, Network
from .guidance import APG, CFG, PAG, SAG, SEG, Auto, CFGZero, Clamped, Classifier, Guidance
from .guidance.classifier import class_gradient
from .guidance.rescale import rescale, rescale_centred
from .level import CLEAN, Level
from .noise import Noise
from .prediction import X0, Eps, Kind, Preconditioned, V, Velocity
from .sampler import (
    DDIM,
    DDPM,
    Ancestral,
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
from .spacing import SPACINGS, Karras, grid, respaced
from .text import parse
from .weight import EDMWeight, MinSNR, SoftMinSNR, Uniform, Weight

__all__ = [
    "APG",
    "Ancestral",
    "Answer",
    "Asking",
    "Auto",
    "BlurQuery",
    "Branch",
    "CFG",
    "CFGZero",
    "CLEAN",
    "Clamped",
    "Classifier",
    "Cosine",
    "DDIM",
    "DDPM",
    "DPMpp2M",
    "Denoiser",
    "Discrete",
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
    "class_gradient",
    "grid",
    "parse",
    "plan",
    "rescale",
    "rescale_centred",
    "respaced",
    "run",
    "sample",
    "together",
    "trace",
]
