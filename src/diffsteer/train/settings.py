"""Settings of a training run: a preset with the user's changes, checked by name and type.

    run = Run.named("critters", "training.images=1000", "settings.prediction=epsilon")

A preset is a TOML file of `presets/`, or a user's own; its tables are the classes below and the
settings of its task. With `like = "edm2-img512-xs"` it takes what it does not set from that preset.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.io.strict import from_table
from diffsteer.train.preset_files import (
    SOURCE,
    apply,
    leave_out,
    overlaid,
    source_of,
    table_of,
    texts,
)


@dataclass(frozen=True)
class Data:
    """Data of a run.

    Attributes:
        source: "emoji" or "critters", or a folder of images with captions, or one of webdataset
            tar files.
        split: Of emoji and critters: train, test or all.
        size: Side in pixels that each of a user's images must have; 0 allows any one size of all.
            Emoji and critters are made of this size, emoji of 64, 32 or 16; 0 is 64.
        drop: Share of captions that are left empty, for classifier-free guidance.
        label: Class that takes the place of the caption: of emoji "group", "style" or
            "background", of critters an attribute, such as "eyes", of a folder "folder" or
            "dataset.json", of tar files "cls", of any data of yours "none"; empty for the whole
            caption.
        group: Of the emoji: those of one group, such as "Smileys & Emotion"; empty for all.
        images: Number of the critters, which are rendered on demand; 0 is 20,000.
        seed: Of the critters: other images of the same split.
    """

    source: str = SOURCE
    split: str = "train"
    size: int = 0
    drop: float = 0.0
    label: str = ""
    group: str = ""
    images: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.drop <= 1 and min(self.size, self.images, self.seed) >= 0):
            raise InputError(
                f"data.drop={self.drop}, data.size={self.size}, data.images={self.images}, "
                f"data.seed={self.seed}: give 0 <= drop <= 1, and the others >= 0"
            )

    def require_default(self, *names: str) -> None:
        """Refuse settings that mean nothing for this source."""
        for name in names:
            if (value := getattr(self, name)) != getattr(Data, name):
                owners = {"group": "emoji", "images": "critters", "seed": "critters"}
                raise InputError(
                    f"data.{name}={value!r} is of the {owners[name]}, not of {self.source}: leave "
                    "it out"
                )


@dataclass(frozen=True)
class Training:
    """Length, rate and steps of training; lengths are in images over all processes.

    Attributes:
        images: Count at which training ends, with the whole of its last batch.
        batch: Images of one step of the optimizer.
        rows: Most images of one forward pass of a process; 0 for no limit. Larger batches are
            accumulated.
        rate: Learning rate.
        warmup: Images over which it rises from 0; the first batch has 0, as published.
        flat: Images after which it falls as 1 / sqrt(images); 0 for never (Karras et al. 2024,
            eq. 67, https://arxiv.org/abs/2312.02696).
        betas: Of Adam.
        decay: Decoupled weight decay.
        clip: Greatest norm of the gradient; 0 for no limit.
        precision: "bf16" (autocast) or "no".
        channels_last: Memory layout; faster for convolutions.
        averages: Relative widths of the power-function averages of the weights.
        keep: Which of them the result holds.
        seed: Of order, noise and new weights.
        workers: Processes that prepare images.
        checkpoint: Images between checkpoints.
        snapshot: Images between stored averages, of which `diffsteer ema` makes any other; 0 for
            none.
        log: Images between lines of metrics.jsonl.
    """

    images: int
    batch: int
    rate: float
    rows: int = 0
    warmup: int = 0
    flat: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 0.0
    clip: float = 1.0
    precision: str = "bf16"
    channels_last: bool = True
    averages: tuple[float, ...] = (0.05, 0.1)
    keep: float = 0.05
    seed: int = 0
    workers: int = 0
    checkpoint: int = 10_000
    snapshot: int = 0
    log: int = 1_000

    def __post_init__(self) -> None:
        for name in ("images", "batch", "checkpoint", "log"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("rows", "warmup", "flat", "decay", "clip", "workers", "snapshot"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(0 < self.rate < math.inf, "rate", self.rate, "a number > 0")
        _require(self.precision in ("no", "bf16"), "precision", self.precision, '"no" or "bf16"')
        _require(self.keep in self.averages, "keep", self.keep, f"one of {self.averages}")
        _require(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "numbers in [0, 1[")
        _require(-(2**63) <= self.seed < 2**64, "seed", self.seed, "a number of 64 bits")
        exact = not self.snapshot or all(round(width, 3) == width for width in self.averages)
        different = len(set(self.averages)) == len(self.averages)
        need = "different widths, of at most three decimals where they name snapshots"
        _require(exact and different, "averages", self.averages, need)

    @property
    def end(self) -> int:
        """Count of images after the last batch."""
        return -(-self.images // self.batch) * self.batch

    def learning_rate(self, images: int) -> float:
        """Learning rate of the step after `images` images, 0 in the first of a warm-up.

        Source: Karras et al. 2024, https://arxiv.org/abs/2312.02696, with their constants in
        images: sqrt(flat / max(images, flat)) min(images / warmup, 1).
        """
        rise = min(1.0, images / self.warmup) if self.warmup else 1.0
        fall = max(1.0, images / self.flat) ** -0.5 if self.flat else 1.0
        return self.rate * rise * fall

    def passes(self, world: int) -> int:
        """Forward passes of a step on each of `world` processes."""
        share, rest = divmod(self.batch, world)
        if rest:
            raise InputError(f"training.batch={self.batch} does not divide among {world} processes")
        passes = -(-share // self.rows) if self.rows else 1
        if share % passes:
            raise InputError(
                f"{share} images a process do not divide into {passes} passes of at most "
                f"{self.rows} images: choose training.rows that divides training.batch"
            )
        return passes


@dataclass(frozen=True)
class Pictures:
    """Grids of samples during a run; they change no weights.

    Attributes:
        every: Images between grids of samples; 0 for none.
        prompts: One image each, where the task has prompts.
        guidance: Guidance scale.
        steps: Sampling steps.
    """

    every: int = 0
    prompts: tuple[str, ...] = ()
    guidance: float = 4.0
    steps: int = 25

    def __post_init__(self) -> None:
        if self.every < 0 or self.steps < 1:
            raise InputError(
                f"pictures.every={self.every}, pictures.steps={self.steps}: give every >= 0, "
                "steps >= 1"
            )


LATER = frozenset({"images", "checkpoint", "snapshot", "log", "workers", "keep"})
"""Settings of `Training` that a resumed run may change: they do not decide the weights."""


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        task: Name of the task, a key of `diffsteer.train.registry.TASKS`.
        training: Table [training].
        data: Table [data].
        pictures: Table [pictures], which may be named [images] as well.
        about: Purpose, in a sentence.
        cost: Time and hardware that it takes.
        settings: Table [settings], of the task.
    """

    task: str
    training: Training
    data: Data = Data()
    pictures: Pictures = Pictures()
    about: str = ""
    cost: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def named(cls, preset: str, *changes: str) -> "Run":
        """Read a preset by name, or a TOML file by path, with changes ("training.images=9")."""
        table, given = table_of(preset), dict[str, Any]()
        own = source_of(table)
        for change in changes:
            apply(table, change)
            apply(given, change)
        if source_of(table) != own:
            leave_out(own, table, given)
        if "images" in table:  # another name of [pictures]
            overlaid(table, {"pictures": table.pop("images")})
        return from_table(cls, table, preset)

    def binds(self) -> dict[str, Any]:
        """Settings that decide the weights, which a resumed run has to share."""
        table: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        del table["about"], table["cost"], table["pictures"]
        for name in LATER:
            del table["training"][name]
        return table


def presets() -> dict[str, tuple[str, str]]:
    """Presets that ship, by name: purpose, and time and hardware that they take."""
    tables = {name: table_of(name) for name in sorted(texts())}
    return {name: (table["about"], table.get("cost", "")) for name, table in tables.items()}


def flat(table: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Values of a nested table by their path, "training.rate"."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        values |= flat(value, f"{at}{key}.") if isinstance(value, Mapping) else {at + key: value}
    return values


def _require(holds: bool, name: str, value: Any, need: str) -> None:
    if not holds:
        raise InputError(f"training.{name}={value!r}: give {need}")
