"""Values to start from, for each family of models and each guidance, each with its source."""

from dataclasses import dataclass
from typing import NamedTuple

from diffsteer.core.errors import InputError, did_you_mean


class Default(NamedTuple):
    """A guidance to start from.

    Attributes:
        guidance: Its text, as `parse` reads it.
        source: Where its values are from.
        note: What else belongs to it; empty for nothing.
    """

    guidance: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class Family:
    """Models that take the same values.

    Attributes:
        name: What people call them.
        pipelines: Beginnings of the names of their pipelines in diffusers; none where a model is
            told by its weights alone.
        starts: Guidances, the plainest first.
    """

    name: str
    pipelines: tuple[str, ...]
    starts: tuple[Default, ...]


CFG_CTRL = "official repository of CFG-Ctrl"
README = "README of its authors, `nag_scale` {}"
SELF = "README of its authors, `self_guidance_scale` {}"
LARGE = "3.5 large"
INTERVAL = "interval: Kynkäänniemi et al. 2024"
DIFFUSIONS, FLOWS = "Stable Diffusion 1.5, 2", "Stable Diffusion 3, 3.5"
"""Families whose values are those of models of no family."""
FAMILIES = (
    Family(
        DIFFUSIONS,
        ("StableDiffusionPipeline", "StableDiffusionImg2Img", "StableDiffusionInpaint"),
        (
            Default("CFG(7.5)", "diffusers' default"),
            Default("CFG(7.5).rescaled(0.7)", "Lin et al. 2023, section 3.4"),
            Default("CFGpp(0.6)", "Chung et al. 2024", "with DDIM"),
            Default("Adaptive(7.5, agree=0.991)", "Castillo et al. 2023"),
            Default("CFG(7.5) + SAG(0.75)", "diffusers' default of SAG"),
            Default("CFG(6) + PAG(3)", "scale of PAG: Ahn et al. 2024"),
            Default("FreSca(7.5)", "weight: official code; README of its authors: high 1 to 1.5"),
        ),
    ),
    Family(
        "Stable Diffusion XL",
        ("StableDiffusionXL",),
        (
            Default("CFG(5)", "diffusers' default"),
            Default("FDG(5, 10)", "Sadat et al. 2025, table 8"),
            Default(
                "APG(7.5, norm=15, momentum=-0.5)",
                "norm: diffusers' default; momentum: Sadat et al. 2024",
            ),
            Default("CFG(5).within(0.28, 5.42)", INTERVAL),
            Default("SEG(3)", "README of its authors, `seg_scale` 3", "in place of CFG"),
            Default('TPG(3, "down_blocks")', "Rajabi et al. 2025", "in place of CFG"),
            Default("NAG(2, alpha=0.5)", README.format(3), "distilled by DMD2"),
        ),
    ),
    Family(
        FLOWS,
        ("StableDiffusion3",),
        (
            Default("CFG(4.5)", "model card of Stable Diffusion 3.5 medium"),
            Default(
                'CFG(4) + SLG(2.8, "7, 8, 9").over(1, 8)',
                "reference code of Stable Diffusion 3.5",
                "3.5 medium, 40 steps",
            ),
            Default("CFG(4.5) + S2(0.25)", "scale of S2: Chen et al. 2025"),
            Default('CFG(7.5) + PAG(0.7, "13") + SelfGuidance(3)', SELF.format(3), "3 medium"),
            Default("ADG(4)", "README of its authors, `guidance_scale` 4", LARGE),
            Default("CFGZero(3.5)", "script of its authors", LARGE),
            Default("SMC(5, gain=0.2, rate=5)", CFG_CTRL),
            Default("MAMBO(10, damping=8)", "Zhu et al. 2025"),
            Default(
                "RectifiedCFGpp(ramp(4.5, 0))",
                "weight of the official pipeline; Saini et al. 2025 let it fall",
            ),
            Default("NAG(4)", README.format(5), "3.5 large turbo"),
        ),
    ),
    Family("PixArt, Sana", ("PixArt", "Sana"), (Default("CFG(4.5)", "diffusers' default"),)),
    Family(
        "CogVideoX",
        ("CogVideoX",),
        (
            Default("CFG(6)", "diffusers' default"),
            Default('CFG(6) + STG(1, "11")', "script of its authors", "CogVideoX-2b"),
            Default("CFG(6) + SelfGuidance(3)", SELF.format(3), "CogVideoX-5b"),
        ),
    ),
    Family(
        "Mochi",
        ("Mochi",),
        (
            Default("CFG(4.5)", "diffusers' default"),
            Default('CFG(4.5) + STG(1, "34")', "README of its authors, `stg_scale` 1"),
        ),
    ),
    Family(
        "LTX-Video",
        ("LTXPipeline",),
        (
            Default("CFG(3)", "diffusers' default"),
            Default('CFG(3) + STG(1, "19")', "layer: script of its authors; weight: their README"),
        ),
    ),
    Family(
        "Flux",
        ("FluxPipeline",),
        (
            Default("SelfGuidance(1)", SELF.format(1), "dev"),
            Default("NAG(4)", README.format(5), "schnell"),
        ),
    ),
    Family(
        "Wan 2.1",
        ("Wan",),
        (
            Default("CFG(5)", "diffusers' default"),
            Default("CFG(5) + NAG(8)", README.format(9)),
            Default("CFGZero(5, zero=2)", "zero: README of its authors", "4 % of 50 steps"),
            Default(
                'CFG(5) + SLG(1, "9")', "diffusers, `SkipLayerGuidance`", "from 0.1 of the steps on"
            ),
            Default("CFG(5) + S2(0.25)", "scale of S2: Chen et al. 2025"),
        ),
    ),
    Family("Qwen-Image", ("QwenImage",), (Default("CFGNorm(4)", "its pipeline"),)),
    Family(
        "Lumina 2, Z-Image", ("Lumina2", "ZImage"), (Default("CFGRenorm(4)", "Qin et al. 2025"),)
    ),
    Family(
        "EDM2-S 512",
        (),
        (
            Default(
                "Auto(2.1)",
                "Karras et al. 2024, table 1",
                "guided by XS, a sixteenth of the training",
            ),
            Default("CFG(2.1).within(0.28, 2.9)", "Kynkäänniemi et al. 2024"),
            Default("SWG(1.5, crop=0.625)", "crop: Adaloglou et al. 2024"),
        ),
    ),
    Family(
        "ADM 256",
        (),
        (
            Default(
                'SAG(0.5, "output_blocks.2", sigma=9, kernel=31, clamp=1, on="cond").clamped()',
                "settings of the official code, docs/published-adm.md",
            ),
        ),
    ),
)


NONE = "no published value in its terms: {}"
EACH = {
    "CFG": Default("CFG(7.5)", "diffusers, `ClassifierFreeGuidance`"),
    "APG": Default(
        "APG(7.5, norm=15, momentum=-0.5)",
        "diffusers, `AdaptiveProjectedGuidance`; momentum: Sadat et al. 2024",
    ),
    "CFGZero": Default("CFGZero(7.5)", "diffusers, `ClassifierFreeZeroStarGuidance`"),
    "CFGpp": Default("CFGpp(0.6)", "Chung et al. 2024", "with DDIM"),
    "RectifiedCFGpp": Default(
        "RectifiedCFGpp(ramp(4.5, 0))",
        "weight of the official pipeline; Saini et al. 2025 let it fall",
    ),
    "FDG": Default("FDG(5, 10)", "diffusers, `FrequencyDecoupledGuidance`"),
    "FreSca": Default("FreSca(7.5)", "weight: official code; README of its authors: high 1 to 1.5"),
    "SMC": Default("SMC(5)", CFG_CTRL, "flows; gain=0.01 for eps"),
    "Adaptive": Default("Adaptive(7.5)", "Castillo et al. 2023"),
    "FBG": Default("FBG()", NONE.format("the class defaults")),
    "MAMBO": Default("MAMBO(10)", "diffusers, `MagnitudeAwareGuidance`"),
    "TCFG": Default("TCFG(7.5)", "diffusers, `TangentialClassifierFreeGuidance`"),
    "CFGNorm": Default("CFGNorm(4)", "diffusers, pipeline of Qwen-Image"),
    "CFGRenorm": Default("CFGRenorm(4)", "diffusers, pipeline of Lumina 2"),
    "DynamicThreshold": Default(
        "DynamicThreshold(9)",
        "mimic, percentile: node of its authors; no published weight: any above mimic",
    ),
    "ADG": Default("ADG(4)", "README of its authors, `guidance_scale` 4"),
    "Momentum": Default("Momentum(0.5)", NONE.format("the class's decay, a weight to try")),
    "PAG": Default("PAG(3)", "Ahn et al. 2024"),
    "SEG": Default("SEG(3)", "README of its authors, `seg_scale` 3"),
    "SAG": Default("SAG(0.75)", "diffusers, `StableDiffusionSAGPipeline`", "beside CFG"),
    "SelfGuidance": Default("SelfGuidance(3)", SELF.format(3)),
    "TSG": Default("TSG(2)", NONE.format("the class disturbs the time, the paper its embedding")),
    "ICG": Default("ICG(7.5)", "that of CFG, as which it acts: Sadat et al. 2024"),
    "SWG": Default("SWG(1.5)", "crop: Adaloglou et al. 2024; weight: none published"),
    "SLG": Default("SLG(2.8)", "diffusers, `SkipLayerGuidance`"),
    "STG": Default("STG(1)", "README of its authors, `stg_scale` 1"),
    "S2": Default("S2(0.25)", "Chen et al. 2025"),
    "TPG": Default("TPG(3)", "Rajabi et al. 2025", 'layer="down_blocks" in UNets'),
    "NAG": Default("NAG(4)", README.format(5)),
    "Auto": Default("Auto(2.1)", "Karras et al. 2024, table 1", "a guide of EDM2-S 512"),
    "Auto with a LoRA": Default(
        'Auto(2, adapter="style@0.3")',
        NONE.format('AutoLoRA, Kasymov et al. 2024, guides by adapter="none"'),
    ),
    "AutoDropout": Default("AutoDropout(2)", NONE.format("no gain, Karras et al. 2024, 5.1")),
    "AutoNoise": Default("AutoNoise(2)", NONE.format("no gain, Karras et al. 2024, 5.1")),
    "Classifier": Default("Classifier(1)", "README of the official code, ImageNet 256"),
    "Within": Default("CFG(5).within(0.28, 5.42)", INTERVAL, "Stable Diffusion XL"),
    "Over": Default(
        'CFG(4) + SLG(2.8, "7, 8, 9").over(1, 8)', "reference code of Stable Diffusion 3.5"
    ),
    "Rescaled": Default("CFG(7.5).rescaled(0.7)", "Lin et al. 2023, section 3.4"),
    "Clamped": Default("SAG(0.75).clamped()", "official code of SAG", "networks of pixels"),
}
"""Guidances by class, for families that have no values of their own. `Sum` and `Scaled` are not
here: they are + and *, and take the values of what they hold."""


def start(name: str, family: str = "") -> Default:
    """Value to start from of one guidance: that of a family, alone or in a sum, or any family's.

    Args:
        name: Class of the guidance, or another key of EACH.
        family: Name of one of FAMILIES, or of a pipeline's class.

    Raises:
        InputError: there is no such guidance or family.
    """
    if name not in EACH:
        known = ", ".join(EACH)
        raise InputError(f"no guidance {name!r}{did_you_mean(name, EACH)}: there are {known}")
    own = defaults(family) if family else ()
    last = ((each.guidance.split(" + ")[-1], each) for each in own)
    return next((each for text, each in last if text.startswith(f"{name}(")), EACH[name])


def plainest(pipeline: str, flow: bool) -> tuple[Default, ...]:
    """Guidances to start from of any pipeline: of its family, or those that suit its schedule.

    Args:
        pipeline: Name of its class.
        flow: Whether its schedule is that of a flow.
    """
    own = defaults(pipeline) if pipeline.endswith("Pipeline") else ()
    return own or (defaults(FLOWS)[:1] if flow else defaults(DIFFUSIONS))


def defaults(family: str) -> tuple[Default, ...]:
    """Guidances to start from, the plainest first.

    Args:
        family: Name of one of FAMILIES, or of a pipeline's class; none are known of most pipelines.

    Raises:
        InputError: it is the name of neither.
    """
    for each in FAMILIES:
        if family == each.name or family.startswith(each.pipelines or ("\0",)):
            return each.starts
    if family.endswith("Pipeline"):
        return ()
    names = [each.name for each in FAMILIES]
    raise InputError(
        f"no family {family!r}{did_you_mean(family, names)}: there are {'; '.join(names)}, and "
        "the classes of pipelines"
    )
