from .core.level import CLEAN, Level
from .core.loss_weight import EDMWeight, MinSNR, SoftMinSNR, Uniform, Weight
from .core.noise import Noise
from .core.parse import parse
from .core.prediction import X0, Eps, Preconditioned, Prediction, V, Velocity
from .core.sampler import (
    DDIM,
    DDPM,
    Ancestral,
    Denoised,
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
from .core.schedule import EDM, Cosine, Discrete, Flow, Schedule
from .core.spacing import SPACINGS, Karras, grid, respaced
from .generate.generator import open_generator
from .generate.recipe import Recipe
from .guidance import (
    APG,
    CFG,
    PAG,
    SAG,
    SEG,
    Auto,
    AutoDropout,
    AutoNoise,
    CFGZero,
    Clamped,
    Classifier,
    Guidance,
)
from .guidance.attention_taps import BlurQuery, Edit, Identity
from .guidance.classifier import class_gradient
from .guidance.denoiser import Denoiser, Network
from .guidance.queries import Answer, Branch, GuidanceState, Plan, Queries, lockstep, plan, run
from .guidance.rescale import rescale, rescale_centred
from .guidance.row_dropout import Dropout
from .hf.guider import SteerGuider
from .hf.load import load
from .hf.scheduler import SteerScheduler
from .metrics.evaluate import compare
from .metrics.image_sets import evaluate
from .refine.refiner import NoiseRefiner
from .steering import steer

__version__: str

__all__ = [
    "NoiseRefiner",
    "Recipe",
    "SteerGuider",
    "SteerScheduler",
    "compare",
    "evaluate",
    "load",
    "open_generator",
    "steer",
    "APG",
    "Ancestral",
    "Answer",
    "Queries",
    "Auto",
    "AutoDropout",
    "AutoNoise",
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
    "Denoised",
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
    "Prediction",
    "Level",
    "MinSNR",
    "Network",
    "Noise",
    "PAG",
    "Plan",
    "GuidanceState",
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
    "lockstep",
    "trace",
]
