"""Ways to steer a prediction. Importing the package registers all of them for `parse`."""

from diffsteer.guidance.auto import Auto, AutoDropout, AutoNoise
from diffsteer.guidance.base import Clamped, Guidance
from diffsteer.guidance.cfg import APG, CFG, CFGZero
from diffsteer.guidance.classifier import Classifier
from diffsteer.guidance.perturbed import PAG, SEG
from diffsteer.guidance.sag import SAG

__all__ = [
    "APG",
    "CFG",
    "PAG",
    "SAG",
    "SEG",
    "Auto",
    "AutoDropout",
    "AutoNoise",
    "CFGZero",
    "Clamped",
    "Classifier",
    "Guidance",
]
