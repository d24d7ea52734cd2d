"""Low-rank adaptations (LoRA) on a pipeline, from files of diffusers and of our trainer."""

import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.hf.shipped import shipped_folder
from diffsteer.hf.weights import quiet
from diffsteer.io.hub import HUB_ID
from diffsteer.io.safetensors_header import read_header
from diffsteer.io.strict import read_object

FILE = "pytorch_lora_weights.safetensors"
"""Name of the weights in a folder."""
SCHEDULER = "scheduler/scheduler_config.json"
"""Of the scheduler that a LoRA was trained for, in its folder."""
UNEXPECTED = re.compile(r"([\w.]+?)\.(?:lora_|lokr_)")
"""Layers in what diffusers says of weights that have none."""
MARKS = ("lora", "hada_", "lokr_")
"""Parts of the names of low-rank weights."""


def lora_of(text: str) -> tuple[str, float]:
    """Path and scale of "PATH" or "PATH:SCALE"; that of one that ships is its folder."""
    path, colon, scale = text.rpartition(":")
    try:
        weight = float(scale) if colon and path else None
    except ValueError:
        weight = None
    if weight is None:
        path, weight = text, 1.0
    if not math.isfinite(weight):
        raise InputError(f"lora={text!r}: the scale must be a finite number, got {scale}")
    return str(shipped_folder(path)), weight


def require_lora(text: str) -> None:
    """Check, before a model is loaded, that a text names low-rank weights."""
    path, _ = lora_of(text)
    file = _file(Path(path))
    if file is None:
        if Path(path).exists() or not HUB_ID.fullmatch(path):
            what = f"a folder without {FILE}" if Path(path).is_dir() else "not there"
            raise FileNotFoundError(
                f"no LoRA {path!r}, which is {what}: give a file of safetensors, a folder with "
                f"{FILE}, or a hub id NAME/MODEL; a scale follows as PATH:0.8"
            )
    elif not any(mark in name for name in read_header(file)[0] for mark in MARKS):
        raise InputError(f"{file} holds no low-rank weights: is it a whole model?")


def lora_files(texts: Sequence[str]) -> list[Path]:
    """Local files of LoRAs, whose change changes images."""
    folders = [Path(lora_of(text)[0]) for text in texts]
    files = [file for folder in folders if (file := _file(folder))]
    return files + [path for folder in folders if (path := folder / SCHEDULER).is_file()]


def lora_names(texts: Sequence[str]) -> list[str]:
    """Names of the adapters of LoRAs, by which guidances mean them: of their file or folder."""
    names: list[str] = []
    for text in texts:
        path = Path(lora_of(text)[0].removesuffix(f"/{FILE}"))
        stem = re.sub(r"\W", "_", path.name.removesuffix(".safetensors"))
        names.append(stem if stem not in names else f"{stem}_{len(names)}")
    return names


def add_loras(pipe: Any, texts: Sequence[str]) -> None:
    """Add LoRAs to a pipeline, each at its scale, and the scheduler that one of them brings."""
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"{type(pipe).__name__} takes no LoRA: leave it out")
    scales = {}
    for name, text in zip(lora_names(texts), texts, strict=True):
        path, scale = lora_of(text)
        file = _file(Path(path))
        where = (str(file.parent), {"weight_name": file.name}) if file else (path, {})
        with warnings.catch_warnings(), quiet(bar=True), _left_out() as messages:
            warnings.simplefilter("ignore")  # of parts that a LoRA leaves as they are
            try:
                pipe.load_lora_weights(where[0], adapter_name=name, **where[1])
            except (RuntimeError, ValueError) as error:  # layers of other sizes, or names
                first = " ".join(str(error).splitlines()[:2])  # one line for each layer follows
                raise _other_model(pipe, path, f" ({first})") from error
        if not any(name in adapters for adapters in pipe.get_list_adapters().values()):
            raise _other_model(pipe, path)
        if layers := sorted({key for text in messages for key in UNEXPECTED.findall(text)}):
            warnings.warn(
                f"layers of {path} that this {type(pipe).__name__} does not have do nothing "
                f"({len(layers)} in all): {', '.join(layers[:3])}",
                stacklevel=2,
            )
        scales[name] = scale
    pipe.set_adapters(list(scales), list(scales.values()))
    _take_scheduler(pipe, texts)


@contextmanager
def _left_out() -> Iterator[list[str]]:
    """Receive what diffusers says of weights that have no layer, which it only logs."""
    messages: list[str] = []
    logger = logging.getLogger("diffusers.utils.peft_utils")

    def note(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage().partition("missing keys")[0])
        return False

    loader = logging.getLogger("diffusers.loaders.peft")  # logs each error before it raises it
    levels = logger.level, loader.level
    logger.setLevel(logging.WARNING)
    loader.setLevel(logging.CRITICAL)
    logger.addFilter(note)
    try:
        yield messages
    finally:
        logger.removeFilter(note)
        logger.setLevel(levels[0])
        loader.setLevel(levels[1])


def _other_model(pipe: Any, path: str, reason: str = "") -> InputError:
    return InputError(
        f"{path} fits no part of this {type(pipe).__name__}: it is of another model{reason}"
    )


def _take_scheduler(pipe: Any, texts: Sequence[str]) -> None:
    import diffusers

    folders = [Path(lora_of(text)[0]) for text in texts]
    configs = [path for folder in folders if (path := folder / SCHEDULER).is_file()]
    if len({path.read_bytes() for path in configs}) > 1:
        names = " and ".join(str(path.parents[1]) for path in configs)
        raise InputError(f"{names} were trained for different schedulers: take one of them")
    if configs:
        name = read_object(configs[0]).get("_class_name")
        kind = getattr(diffusers, str(name), None)
        if kind is None:
            raise InputError(f"{configs[0]} is of {name!r}, which diffusers does not have")
        pipe.scheduler = kind.from_pretrained(configs[0].parent)


def _file(path: Path) -> Path | None:
    """Weights at a path; None where there are none."""
    if path.is_dir():
        return path / FILE if (path / FILE).is_file() else None
    return path if path.is_file() else None
