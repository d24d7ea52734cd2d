"""Options that several commands take; importable without torch."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, make_dataclass, replace
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar, get_type_hints

from docstring_parser import parse
from tyro.conf import arg

from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe
from diffsteer.io.seeds import parse_seeds

if TYPE_CHECKING:
    from diffsteer.metrics.best_of_n import Score
    from diffsteer.metrics.features import Extractor
    from diffsteer.metrics.sampled import Sampled


Described = TypeVar("Described")
_typed: ContextVar[frozenset[str]] = ContextVar("typed", default=frozenset())


@contextmanager
def command_line(words: Sequence[str]) -> Iterator[None]:
    """Let `typed` tell meanwhile which options stand among the words of a command line."""
    flags = (word.partition("=")[0] for word in words if word.startswith("--"))
    token = _typed.set(frozenset(flag[2:].replace("-", "_") for flag in flags))
    try:
        yield
    finally:
        _typed.reset(token)


def typed() -> frozenset[str]:
    """Options that were typed, such as "num_frames"; none where Python calls a command."""
    return _typed.get()


def is_typed(flag: str) -> bool:
    """Whether an option was typed, or its --no-FLAG."""
    return flag in typed() or f"no_{flag}" in typed()


def said(group: Any, **flags: str) -> dict[str, Any]:
    """What options say, by their flags: those that were typed, also at their defaults.

    Lists say by one empty text that they are empty, `--lora ""`.

    Args:
        group: Dataclass of options, all of which have defaults.
        flags: Those of fields that are called otherwise.
    """
    plain, result = type(group)(), {}
    for field in fields(group):
        flag, value = flags.get(field.name, field.name), getattr(group, field.name)
        value = () if value == ("",) else value
        if is_typed(flag) or value not in (field.default, getattr(plain, field.name)):
            result[flag] = value
    return result


def described(command: Described) -> Described:
    """Let help wrap what a docstring says of each option: tyro keeps many of its line breaks."""
    command.__doc__ = re.sub(r"\n {8,}(?=\S)", " ", cleandoc(command.__doc__ or ""))
    return command


FLAGS = {
    "layer": "--layer",
    "size": "--size",
    "mask": "--noise-mask",
    "weights": "--checkpoint",
}
"""Options of extractors by the names of their fields."""
PUBLISHED = {
    "DINOv2": "FD-DINOv2 is of facebook/dinov2-large",
    "CLIP": "CMMD is of openai/clip-vit-large-patch14-336",
}
"""Extractors without weights of their own, and what published figures have."""


@described
@dataclass(frozen=True)
class Features:
    """How images become features; the same for a reference and for what is compared with it.

    Attributes:
        extractor: EfficientNetLite0 works offline; Inception gives FID, CLIP gives CMMD.
        layer: Of EfficientNetLite0 (block10, head, logits) or Inception (2048, logits_unbiased, 64,
            192, 768); its default is the first named.
        size: Side in pixels at which EfficientNetLite0 or DINOv2 sees images; 224 by default.
        noise_mask: Grey levels of a fixed noise field through which EfficientNetLite0 sees images,
            so that grain that nobody sees does not decide; 16 hides 4 levels.
        checkpoint: Folder or hub id of DINOv2 and CLIP; weights file of Inception.
        batch: Images in one pass, >= 1.
        device: Where networks run; empty for a GPU if there is one.
        keep: Images of which features are kept, for all metrics but Fréchet distances.
    """

    extractor: Literal["EfficientNetLite0", "Inception", "DINOv2", "CLIP"] = "EfficientNetLite0"
    layer: str | None = None
    size: int | None = None
    noise_mask: float | None = None
    checkpoint: str | None = None
    batch: int = 32
    device: str = ""
    keep: int = 10_000

    def __post_init__(self) -> None:
        if self.batch < 1 or self.keep < 0:
            raise InputError(f"batch={self.batch}, keep={self.keep}: give batch >= 1 and keep >= 0")

    def build(self) -> "Extractor":
        """Make the extractor."""
        from diffsteer.io.device import device_of
        from diffsteer.metrics.efficientnet import EfficientNetLite0
        from diffsteer.metrics.pretrained import CLIP, DINOv2, Inception

        kinds = {k.__name__: k for k in (EfficientNetLite0, Inception, DINOv2, CLIP)}
        wanted = {"layer": self.layer, "size": self.size, "mask": self.noise_mask}
        wanted["weights"] = self.checkpoint
        given = {name: value for name, value in wanted.items() if value is not None}
        kind = kinds[self.extractor]
        takes = {name: flag for name, flag in FLAGS.items() if name in kind.__dataclass_fields__}
        if strange := [FLAGS[name] for name in given if name not in takes]:
            raise InputError(
                f"{self.extractor} takes no {strange[0]}: leave it out; it takes "
                f"{', '.join(takes.values())}"
            )
        if self.checkpoint is None and self.extractor in PUBLISHED:
            raise InputError(
                f"{self.extractor} has many weights: say which, --checkpoint FOLDER or a hub id "
                f"(published {PUBLISHED[self.extractor]})"
            )
        made: Extractor = kind(**given, device=device_of(self.device))  # type: ignore[arg-type]
        return made


@described
@dataclass(frozen=True)
class Samples:
    """Which images of a recipe are made, and where their features stay.

    Attributes:
        seeds: One image each: "0-9999", "0-3,8". The same seeds serve every recipe.
        at_once: Images sampled at a time, >= 1; changes them by rounding alone.
        work: Folder in which features of samples are kept and found again, under a hash of recipe,
            weights and extractor: a run that was stopped goes on, and nothing is made twice.
    """

    seeds: str = "0-999"
    at_once: int = 8
    work: Path = Path("measured")

    def __post_init__(self) -> None:
        parse_seeds(self.seeds)
        if self.at_once < 1:
            raise InputError(f"at_once={self.at_once} samples nothing: give at least 1")

    def measure(
        self,
        recipe: Recipe,
        features: Features,
        extractor: "Extractor",
        show: Path | None = None,
        shown: int = 0,
        scores: "Mapping[str, Score] | None" = None,
    ) -> "Sampled":
        """Make and measure the images of a recipe, as `metrics.sampled.measure_recipe`."""
        from diffsteer.metrics.sampled import measure_recipe

        return measure_recipe(
            *(recipe, parse_seeds(self.seeds), extractor, self.work, self.at_once),
            *(features.keep, features.device, show, shown, scores or {}),
        )


def part(name: str, doc: str, *names: str) -> Any:
    """Dataclass of some fields of a recipe, with their descriptions; a group of options."""
    hints = get_type_hints(Recipe, include_extras=True)
    texts = {each.arg_name: each.description or "" for each in parse(Recipe.__doc__ or "").params}
    fields: list[Any] = [
        (n, Annotated[hints[n], arg(help=" ".join(texts[n].split()))], getattr(Recipe, n))
        for n in names
    ]
    return make_dataclass(name, fields, frozen=True, namespace={"__doc__": doc})


if TYPE_CHECKING:
    Loading: TypeAlias = Any
else:
    Loading = part("Loading", "How models are loaded.", "dtype", "offload", "lora")


def loaded(recipe: Recipe, loading: Loading) -> Recipe:
    """Recipe whose model is loaded as options say, where they were typed."""
    return replace(recipe, **said(loading))


FEATURES, SAMPLES, LOADING = Features(), Samples(), Loading()
