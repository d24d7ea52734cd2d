"""Menu of guidances, each with values to start from on the model at hand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffsteer.core.parse import parse, subclasses
from diffsteer.core.schedule import Flow
from diffsteer.guidance import Guidance
from diffsteer.hf.time_arguments import Timeline

NOTHING = "No guidance"
EVERY = {
    "CFG": "CFG(7.5)",
    "CFG in an interval": "CFG(7.5).within(0.28, 5.4)",
    "CFG, rescaled": "CFG(7.5).rescaled(0.7)",
    "CFG + PAG": "CFG(6) + PAG(3)",
    "CFG + SAG": "CFG(7.5) + SAG(0.75)",
    "APG": "APG(7, norm=15, momentum=-0.5)",
    "CFGpp": "CFGpp(0.6)",
    "CFGZero": "CFGZero(5)",
    "RectifiedCFGpp": "RectifiedCFGpp(ramp(4.5, 0))",
    "FDG": "FDG(5, 10)",
    "FreSca": "FreSca(5)",
    "SMC": "SMC(5, gain=0.2, rate=5)",
    "Adaptive": "Adaptive(7.5)",
    "FBG": "FBG()",
    "MAMBO": "MAMBO(10)",
    "TCFG": "TCFG(5)",
    "CFGNorm": "CFGNorm(4)",
    "CFGRenorm": "CFGRenorm(4)",
    "DynamicThreshold": "DynamicThreshold(9, mimic=5)",
    "ADG": "ADG(5)",
    "Momentum": "Momentum(0.5)",
    "PAG": "PAG(3)",
    "SEG": "SEG(3)",
    "SAG": "SAG(0.75)",
    "SelfGuidance": "SelfGuidance(2)",
    "TSG": "TSG(2)",
    "ICG": "ICG(5)",
    "SWG": "SWG(1.5)",
    "SLG": "SLG(2.8)",
    "STG": "STG(1)",
    "S2": "S2(0.25)",
    "TPG": 'TPG(3, "down_blocks")',
    "NAG": "NAG(4)",
    "AutoNoise": "AutoNoise(2)",
    "Auto": "Auto(2)",
}
"""Values to start from, of docs/choosing-a-guidance.md; Auto where a guide belongs to the model."""
OF_FLOWS = {
    "CFG": "CFG(4.5)",
    "CFG in an interval": "CFG(4.5).within(0.3, inf)",
    "CFG, rescaled": "CFG(4.5).rescaled(0.7)",
    "CFG + PAG": "CFG(4) + PAG(1)",
    "PAG": "PAG(1)",
    "SMC": "SMC(5)",
}
"""Where flows take other values."""
FLOWS_ONLY = ("CFGZero", "RectifiedCFGpp", "SMC", "MAMBO")
UNETS_ONLY = ("CFG + SAG", "SAG", "FDG", "FreSca", "SWG", "CFGpp")


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
    """Guidances that the family of a pipeline takes.

    Args:
        pipe: The pipeline.
        guide: Whether a weaker network belongs to the model.
        known: Expressions by name whose values were measured on this very model.
    """
    flow = isinstance(Timeline.of(pipe.scheduler).schedule, Flow)
    unet = getattr(pipe, "unet", None) is not None
    texts = EVERY | (OF_FLOWS if flow else {}) | dict(known)
    out = {
        *(() if flow else FLOWS_ONLY),
        *(() if unet else UNETS_ONLY),
        *(() if guide else ("Auto",)),
    }
    chosen = [Entry(NOTHING, "", "the network alone, one evaluation a step")]
    return chosen + [Entry(n, t, _what(t)) for n, t in texts.items() if n not in out]


def _what(text: str) -> str:
    """First line of the docstring of a guidance that is no sum."""
    guidance = parse(text, Guidance)
    names = {c.__name__: c for c in subclasses(Guidance)}
    parts = [type(part) for part in guidance.parts() if not hasattr(part, "inner")]
    if len(parts) > 1 or hasattr(guidance, "inner"):
        return text
    line = (names[parts[0].__name__].__doc__ or "").splitlines()[0]
    return line.split(";")[0].rstrip(".")
