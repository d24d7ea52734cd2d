"""Options of EDM2 and ADM networks that no recipe says; importable without torch."""

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff

from diffsteer.core.errors import InputError
from diffsteer.generate.published import Published
from diffsteer.generate.recipe import metadata


@dataclass(frozen=True)
class Options:
    """Of an ADM or IDDPM network, a folder of `diffsteer convert adm`.

    Attributes:
        respacing: Its timesteps as the official --timestep_respacing says them, "250" or "ddim25",
            instead of steps and spacing.
        classifier: Folder of a classifier of noisy images, for "Classifier(1.0)" and
            "Ancestral(classifier=1.0)".
        official_head_split: Read attention maps as the official code of SAG does.
    """

    respacing: str = ""
    classifier: str = ""
    official_head_split: Annotated[bool, FlagCreatePairsOff] = False


NO_OPTIONS = Options()


@dataclass(frozen=True)
class Noise:
    """Of the sampler of an EDM2 network, under the official names.

    Attributes:
        sigma_min: Least noise.
        sigma_max: Most noise.
        rho: Emphasis on low noise.
        s_churn: Noise that is added, over all steps; 0 is none.
        s_min: Add where the noise is at least this.
        s_max: And at most this.
        s_noise: Standard deviation of added noise.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0


OFFICIAL_NOISE = Noise()


def again(picture: Path, said: Published) -> tuple[Published, Options, Noise]:
    """Options with which an image was made, to repeat it.

    Args:
        picture: Of such a folder.
        said: Where the decoder of latents is, and subdirs; these do not decide.

    Raises:
        ValueError: more is given, or the image says options that cannot be.
    """
    if said != Published(models=said.models, subdirs=said.subdirs):
        raise InputError("--from repeats an image as it was: give no preset, class or precision")
    more = (metadata(picture) or {}).get("options", {})
    kinds: dict[str, type] = {"class": int, "precision": str}
    kinds |= {f.name: type(f.default) for group in (Options, Noise) for f in fields(group)}
    if odd := [name for name, value in more.items() if type(value) is not kinds.get(name)]:
        raise InputError(f"{picture} was made with {odd[0]}={more[odd[0]]!r}, which cannot be here")

    def of(group: type) -> dict[str, Any]:
        return {f.name: more[f.name] for f in fields(group) if f.name in more}

    said = replace(said, label=more.get("class"), precision=more.get("precision", ""))
    return said, Options(**of(Options)), Noise(**of(Noise))


def told(said: Published, options: Options, noise: Noise) -> dict[str, Any]:
    """All that decides images and no recipe says, where it is not at its default."""
    found: dict[str, Any] = {} if said.label is None else {"class": said.label}
    if said.precision == "official-bit":
        found["precision"] = said.precision
    return found | changed(options) | changed(noise)


def changed(group: Options | Noise) -> dict[str, Any]:
    """Those that are not at their defaults."""
    return {n: v for n, v in asdict(group).items() if v != getattr(type(group), n)}
