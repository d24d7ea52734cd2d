"""Values to start from, for each family of models, each with its source."""

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
FAMILIES = (
    Family(
        "Stable Diffusion 1.5, 2",
        ("StableDiffusionPipeline", "StableDiffusionImg2Img", "StableDiffusionInpaint"),
        (
            Default("CFG(7.5)", "diffusers' default"),
            Default("CFG(7.5).rescaled(0.7)", "Lin et al. 2023, section 3.4"),
            Default("CFGpp(0.6)", "Chung et al. 2024", "with DDIM"),
            Default("Adaptive(7.5, agree=0.991)", "Castillo et al. 2023"),
            Default("CFG(7.5) + SAG(0.75)", "diffusers' default of SAG"),
            Default("CFG(6) + PAG(3)", "scale of PAG: Ahn et al. 2024"),
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
            Default('TPG(3, "down_blocks")', "Rajabi et al. 2025", "in place of CFG"),
            Default("NAG(2, alpha=0.5)", README.format(3), "distilled by DMD2"),
        ),
    ),
    Family(
        "Stable Diffusion 3, 3.5",
        ("StableDiffusion3",),
        (
            Default("CFG(4.5)", "model card of Stable Diffusion 3.5 medium"),
            Default(
                'CFG(4) + SLG(2.8, "7, 8, 9").over(1, 8)',
                "reference code of Stable Diffusion 3.5",
                "3.5 medium, 40 steps",
            ),
            Default("CFG(4.5) + S2(0.25)", "scale of S2: Chen et al. 2025"),
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
    Family("CogVideoX", ("CogVideoX",), (Default("CFG(6)", "diffusers' default"),)),
    Family("LTX-Video", ("LTXPipeline",), (Default("CFG(3)", "diffusers' default"),)),
    Family("Flux schnell", ("FluxPipeline",), (Default("NAG(4)", README.format(5)),)),
    Family(
        "Wan 2.1",
        ("Wan",),
        (
            Default("CFG(5)", "diffusers' default"),
            Default("CFG(5) + NAG(8)", README.format(9)),
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
