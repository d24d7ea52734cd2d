"""Guidances, and the guided denoiser. Importing the package registers all guidances for `parse`.

A guidance (`base`) asks for branches of the network (`queries`). `denoiser` answers them from
networks (`network`) and conditions, stacked into as few passes as there can be (`batching`), with
edits of a pass (`edited_pass`) in attention (`attention_taps`, `attention_edits`), in blocks
(`block_edits`), by dropout (`row_dropout`) and by adapters. The guidances themselves are in files
of their names or families; `defaults` has values to start from.
"""

from diffsteer.guidance.adaptive import FBG, Adaptive
from diffsteer.guidance.attention_edits import BlurQuery, Edit, Identity
from diffsteer.guidance.autoguidance import Auto, AutoDropout, AutoNoise
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.cfg import APG, CFG, CFGZero
from diffsteer.guidance.cfg_variants import ADG, MAMBO, TCFG, CFGNorm, CFGRenorm, DynamicThreshold
from diffsteer.guidance.cfgpp import CFGpp, RectifiedCFGpp
from diffsteer.guidance.clamped import Clamped
from diffsteer.guidance.classifier import Classifier, class_gradient
from diffsteer.guidance.cost import Plan
from diffsteer.guidance.denoiser import Denoiser, Network
from diffsteer.guidance.frequency import FDG, FreSca
from diffsteer.guidance.icg import ICG
from diffsteer.guidance.interval import Over, Within
from diffsteer.guidance.momentum import SMC, Momentum
from diffsteer.guidance.nag import NAG
from diffsteer.guidance.perturbed import PAG, S2, SEG, SLG, STG, TPG
from diffsteer.guidance.queries import Answer, Branch, GuidanceState, Queries, lockstep, run
from diffsteer.guidance.rescale import Rescaled, rescale, rescale_centred
from diffsteer.guidance.row_dropout import Dropout
from diffsteer.guidance.sag import SAG
from diffsteer.guidance.swg import SWG
from diffsteer.guidance.timestep_guidance import TSG, SelfGuidance
from diffsteer.guidance.weight_schedules import WeightSchedule, cosine, exponential, interval, ramp

__all__ = ["APG", "CFG", "PAG", "SAG", "SEG", "Auto", "AutoDropout", "AutoNoise", "CFGZero"]
__all__ += [
    "NAG",
    "S2",
    "SLG",
    "STG",
    "TPG",
    "CFGpp",
    "Clamped",
    "Classifier",
    "Guidance",
    "Momentum",
]
__all__ += ["Answer", "Branch", "GuidanceState", "Plan", "Queries", "lockstep", "run"]
__all__ += ["BlurQuery", "Denoiser", "Dropout", "Edit", "Identity", "Network"]
__all__ += ["class_gradient", "rescale", "rescale_centred"]
__all__ += ["ADG", "FBG", "FDG", "ICG", "MAMBO", "SMC", "SWG", "TCFG", "TSG", "Adaptive", "CFGNorm"]
__all__ += ["CFGRenorm", "DynamicThreshold", "FreSca", "RectifiedCFGpp", "SelfGuidance"]
__all__ += ["Over", "Rescaled", "Within"]
__all__ += ["WeightSchedule", "cosine", "exponential", "interval", "ramp"]
