"""Menu of guidances, each with values to start from on the model at hand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffsteer.core.parse import parse
from diffsteer.core.schedule import Flow
from diffsteer.guidance import Guidance
from diffsteer.guidance.base import Sum
from diffsteer.guidance.defaults import EACH, Default, plainest, start
from diffsteer.hf.time_arguments import Timeline

NOTHING = "No guidance"
ENDS = {"Within": " in an interval", "Over": " in some steps", "Rescaled": ", rescaled"}
"""What wrappers append to the name of a guidance."""
FLOWS_ONLY = {"CFGZero", "RectifiedCFGpp", "SMC", "MAMBO"}
UNETS_ONLY = {"SAG", "FDG", "FreSca", "SWG", "CFGpp"}
ABSENT = {"Over", "Clamped", "Classifier", "AutoDropout", "Auto with a LoRA"}
"""Of EACH: what asks for more than a model."""


@dataclass(frozen=True)
class Entry:
    """An entry of the menu.

    Attributes:
        name: Of the guidance.
        text: Its expression.
        what: What it does, in a sentence.
    """

    name: str
    text: str
    what: str

    @property
    def label(self) -> str:
        """Text of the menu."""
        return f"{self.name}: {self.what}" if self.what else self.name


def entries(pipe: Any, guide: bool, known: Mapping[str, str]) -> list[Entry]:
    """Guidances that the family of a pipeline takes, by the values of `guidance/defaults.py`.

    Args:
        pipe: The pipeline.
        guide: Whether a weaker network belongs to the model.
        known: Expressions by name whose values were measured on this very model.
    """
    flow = isinstance(Timeline.of(pipe.scheduler).schedule, Flow)
    unet = getattr(pipe, "unet", None) is not None
    rest = {key: each for key, each in EACH.items() if key not in ABSENT}
    if unet:
        rest["TPG"] = start("TPG", "Stable Diffusion XL")  # in the blocks of a UNet
    own = {name_of(each.guidance): each for each in plainest(type(pipe).__name__, flow)}
    texts = own | {
        name: each for each in rest.values() if (name := name_of(each.guidance)) not in own
    }
    texts |= {name: Default(text, "measured on this model") for name, text in known.items()}
    out = (set() if flow else FLOWS_ONLY) | (set() if unet else UNETS_ONLY)
    out |= set() if guide else {"Auto"}
    chosen = [Entry(NOTHING, "", "the network alone, one evaluation a step")]
    return chosen + [
        Entry(name, each.guidance, _what(each))
        for name, each in texts.items()
        if not _names(each.guidance) & out
    ]


def name_of(text: str) -> str:
    """Name of a guidance without its numbers: "CFG + PAG", "CFG in an interval"."""

    def name(guidance: Guidance) -> str:
        if isinstance(guidance, Sum):
            return " + ".join(map(name, guidance.terms))
        inner, own = getattr(guidance, "inner", None), type(guidance).__name__
        return own if inner is None else f"{name(inner)}{ENDS.get(own, '')}"

    return name(parse(text, Guidance))


def _names(text: str) -> set[str]:
    return {type(part).__name__ for part in parse(text, Guidance).parts()}


def _what(start: Default) -> str:
    """First line of the docstring of a guidance, or the text of one that is made of several."""
    guidance = parse(start.guidance, Guidance)
    line = (type(guidance).__doc__ or "").splitlines()[0].split(";")[0].rstrip(".")
    what = start.guidance if list(guidance.inner_guidances()) else line
    return f"{what} ({start.note})" if start.note else what
