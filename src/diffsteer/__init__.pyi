from .core.level import Level
from .core.loss_weight import Debiased, EDMWeight, MinSNR, SoftMinSNR, Uniform, Weight
from .core.parse import parse
from .core.prediction import X0, Eps, Preconditioned, Prediction, V, Velocity
from .core.sampler import (
    DDIM,
    DDPM,
    Ancestral,
    DPMpp2M,
    Euler,
    EulerAncestral,
    Heun,
    Sampler,
    UniPC,
    sample,
)
from .core.schedule import EDM, Cosine, Discrete, Flow, LogSigma, OffsetCosine, Schedule
from .core.spacing import SPACINGS, Karras, grid, respaced
from .generate.generator import open_generator
from .generate.recipe import Recipe
from .guidance import (
    ADG,
    APG,
    CFG,
    FBG,
    FDG,
    ICG,
    MAMBO,
    NAG,
    PAG,
    S2,
    SAG,
    SEG,
    SLG,
    SMC,
    STG,
    SWG,
    TCFG,
    TPG,
    TSG,
    Adaptive,
    Auto,
    AutoDropout,
    AutoNoise,
    CFGNorm,
    CFGpp,
    CFGRenorm,
    CFGZero,
    Clamped,
    Classifier,
    DynamicThreshold,
    FreSca,
    Guidance,
    Momentum,
    RectifiedCFGpp,
    SelfGuidance,
    WeightSchedule,
    cosine,
    exponential,
    interval,
    ramp,
)
from .guidance.attention_edits import BlurQuery, Edit, Identity
from .guidance.cost import plan
from .guidance.row_dropout import Dropout
from .hf.guider import SteerGuider
from .hf.load import load
from .hf.scheduler import SteerScheduler
from .metrics.image_sets import compare, evaluate
from .refine.refiner import NoiseRefiner
from .steering import steer

__version__: str

__all__ = ["NoiseRefiner", "Recipe", "SteerGuider", "SteerScheduler"]
__all__ += ["compare", "evaluate", "load", "open_generator", "parse", "plan", "steer"]
__all__ += ["APG", "CFG", "PAG", "SAG", "SEG", "Auto", "AutoDropout", "AutoNoise", "CFGZero"]
__all__ += ["CFGpp", "Clamped", "Classifier", "Guidance", "Momentum"]
__all__ += ["ADG", "FBG", "FDG", "ICG", "MAMBO", "SMC", "SWG", "TCFG", "TSG", "Adaptive", "CFGNorm"]
__all__ += ["CFGRenorm", "DynamicThreshold", "FreSca", "RectifiedCFGpp", "SelfGuidance"]
__all__ += ["NAG", "S2", "SLG", "STG", "TPG"]
__all__ += ["WeightSchedule", "cosine", "exponential", "interval", "ramp"]
__all__ += ["BlurQuery", "Dropout", "Edit", "Identity"]
__all__ += ["DDIM", "DDPM", "Ancestral", "DPMpp2M", "Euler", "EulerAncestral", "Heun", "UniPC"]
__all__ += ["Sampler", "sample"]
__all__ += ["EDM", "Cosine", "Discrete", "Flow", "Level", "LogSigma", "OffsetCosine", "Schedule"]
__all__ += ["SPACINGS", "Karras", "grid", "respaced"]
__all__ += ["Eps", "Preconditioned", "Prediction", "V", "Velocity", "X0"]
__all__ += ["Debiased", "EDMWeight", "MinSNR", "SoftMinSNR", "Uniform", "Weight"]
