"""Sampling options of EDM2 and ADM networks; importable without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Suppress

from diffsteer.core.errors import InputError, brief, did_you_mean
from diffsteer.io.strict import from_table, read_object
from diffsteer.models.edm2.loop_settings import Loop

EDM2, ADM = "diffsteer.EDM2", "diffsteer adm 1"
"""Formats of the folders of `diffsteer convert`."""
OFFICIAL = Loop()


@dataclass(frozen=True)
class EDM2Options:
    """Of an EDM2 network: a folder of `diffsteer convert edm2` or `train`, or a preset.

    Attributes:
        label: Class of all images, by number or, of a network that was trained here, by name; None
            draws one for each seed, after the noise.
        precision: "official-bit" rounds gains as official sampling did, "f32-clean" does not;
            empty for the second.
        loop: Settings of the sampler; the number of steps is the recipe's.
        preset: Name of the published configuration that the recipe repeats; empty for none.
        models: Folder in which to look for the decoder of latents; does not decide the images.
    """

    label: int | str | None = None
    precision: Literal["", "official-bit", "f32-clean"] = ""
    loop: Loop = OFFICIAL
    preset: str = ""
    models: Path = field(default=Path("models"), compare=False)

    def __post_init__(self) -> None:
        unused = [n for n in ("s_min", "s_max", "s_noise") if n in changed(self.loop)]
        if unused and not self.loop.s_churn:
            raise InputError(f"an EDM2 network takes no {unused[0]} without s_churn")

    def to_dict(self) -> dict[str, Any]:
        """What is not at its default, as images hold it."""
        precision = {"precision": self.precision} if self.precision == "official-bit" else {}
        loop = {name: value for name, value in changed(self.loop).items() if name != "steps"}
        return _label(self.label) | precision | loop

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], where: str) -> "EDM2Options":
        """Inverse of `to_dict`; `where` stands in errors."""
        where = f"{where} is an EDM2 network, which"
        names = {f.name for f in fields(Loop) if f.name != "steps"}
        loop = from_table(Loop, {n: v for n, v in table.items() if n in names}, where)
        rest = {n: v for n, v in table.items() if n not in names}
        return from_table(
            cls, _fields(rest, ("precision", "models"), where) | {"loop": loop}, where
        )


@dataclass(frozen=True)
class ADMOptions:
    """Of an ADM or IDDPM network, a folder of `diffsteer convert adm`.

    Attributes:
        label: Class of all images, by number or, of a network that was trained here, by name; None
            draws one for each seed, after the noise.
        respacing: Its timesteps as the official --timestep_respacing says them, "250" or "ddim25",
            instead of steps and spacing.
        classifier: Folder of a classifier of noisy images, for "Classifier(1.0)" and
            "Ancestral(classifier=1.0)".
        official_head_split: Read attention maps as the official code of SAG does.
    """

    label: Annotated[int | str | None, Suppress] = None
    respacing: str = ""
    classifier: str = ""
    official_head_split: Annotated[bool, FlagCreatePairsOff] = False

    def to_dict(self) -> dict[str, Any]:
        """What is not at its default, as images hold it."""
        return _label(self.label) | {n: v for n, v in changed(self).items() if n != "label"}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], where: str) -> "ADMOptions":
        """Inverse of `to_dict`; `where` stands in errors."""
        where = f"{where} is an ADM network, which"
        names = ("respacing", "classifier", "official_head_split")
        return from_table(cls, _fields(table, names, where), where)


Options = EDM2Options | ADMOptions


def format_of(model: str) -> str:
    """Format of a folder of `diffsteer convert`, EDM2 or ADM; empty for anything else."""
    path = Path(model) / "config.json"
    if not model or not path.is_file():
        return ""
    try:
        kind = read_object(path).get("format")
    except InputError:
        return ""
    return kind if kind in (EDM2, ADM) else ""


def options_of(model: str, table: Mapping[str, Any]) -> Options | None:
    """Options of a model by a table of those that are given; None where none is."""
    kind = format_of(model)
    if not table:
        return None
    if not kind:
        raise InputError(
            f"{model or 'no model'} takes no {next(iter(table))}: respacing, classifier and head "
            "split are of ADM networks, sigmas, rho and churn of EDM2, a class of both: name a "
            "folder of `diffsteer convert adm` or `convert edm2` as model"
        )
    return (EDM2Options if kind == EDM2 else ADMOptions).from_dict(table, model)


def class_number(label: int | str, names: Any, model: str | Path) -> int:
    """Number of a class of a network; where classes are named by whole numbers, by that name.

    Args:
        label: Its number or name.
        names: Of the classes in their order, as the folder of the network has them, if it does.
        model: Stands in errors.
    """
    known = [str(name) for name in names] if isinstance(names, list) else []
    if isinstance(label, int):
        if not known or not all(name.isdecimal() for name in known):
            return label
        numbers = [int(name) for name in known]
        if label in numbers:
            return numbers.index(label)
    elif label in known:
        return known.index(label)
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    raise InputError(
        f"{model} has no class {label!r}{did_you_mean(str(label), known)}: "
        + (f"there are {listed}" if known else "its classes have no names, give a number")
    )


def changed(settings: Any) -> dict[str, Any]:
    """Fields of a dataclass that are not at their defaults."""
    return {f.name: v for f in fields(settings) if (v := getattr(settings, f.name)) != f.default}


def _label(label: int | str | None) -> dict[str, int | str]:
    return {} if label is None else {"class": label}


def _fields(table: Mapping[str, Any], names: tuple[str, ...], where: str) -> dict[str, Any]:
    """Options under the names of their fields; they are known, and `class` is one."""
    if unknown := table.keys() - {"class", *names}:
        raise InputError(f"{where} takes no {brief(min(unknown))[1:-1]}")
    return {{"class": "label"}.get(name, name): value for name, value in table.items()}
