"""Low-rank adaptations (LoRA) on a pipeline, from files of diffusers and of our trainer."""

import logging
import math
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.hf.scheduler_config import Config, flows
from diffsteer.hf.shipped import shipped_folder
from diffsteer.hf.signature import scheduler_exists
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
HALVES = (
    *(("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up")),
    *(("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")),
    *(("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b")),
)
"""Of the names of two factors, of which a layer has both."""


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


def require_lora(text: str, model: str = "") -> None:
    """Check, before a model is loaded, that a text names low-rank weights.

    Args:
        text: Of the LoRA, PATH or PATH:SCALE.
        model: Folder of the pipeline or of its configuration, where there is one: a scheduler that
            the LoRA brings has to be of its kind.
    """
    path, _ = lora_of(text)
    file = _file(Path(path))
    if file is None:
        if Path(path).exists() or not HUB_ID.fullmatch(path):
            what = f"a folder without {FILE}" if Path(path).is_dir() else "not there"
            raise FileNotFoundError(
                f"no LoRA {path!r}, which is {what}: give a file of safetensors, a folder with "
                f"{FILE}, or a hub id NAME/MODEL; a scale follows as PATH:0.8"
            )
        return
    names = read_header(file)[0].keys()
    if not any(mark in name for name in names for mark in MARKS):
        raise InputError(f"{file} holds no low-rank weights: is it a whole model?")
    _require_pairs(file, names)
    own = Path(model) / SCHEDULER
    if (config := Path(path) / SCHEDULER).is_file():
        _require_scheduler(config, read_object(own) if own.is_file() else None)


def _require_scheduler(file: Path, own: Config | None) -> None:
    """Check that the scheduler of a LoRA can take the place of one, where that is known."""
    config = read_object(file)
    name = config.get("_class_name")
    if not scheduler_exists(str(name)):
        raise InputError(f"{file} is of {name!r}, which diffusers does not have")
    if own is not None and flows(config) != flows(own):
        kinds = [f"{c.get('_class_name')} ({'' if flows(c) else 'no '}flow)" for c in (config, own)]
        raise InputError(
            f"{file} is of {kinds[0]}, and the model samples by {kinds[1]}: the LoRA is of another "
            "model, or its scheduler folder does not belong to it"
        )


def is_low_rank(names: Collection[str]) -> bool:
    """Whether most names of weights are those of a LoRA; one may bring a few whole ones."""
    return 2 * sum(any(mark in name for mark in MARKS) for name in names) > len(names)


def _require_pairs(file: Path, names: Collection[str]) -> None:
    """Check that each factor of a product has its other one."""
    for half in (pair for both in HALVES for pair in (both, both[::-1])):
        for name in names:
            other = name.replace(*half)
            if other != name and not name.endswith(".bias") and other not in names:
                raise InputError(
                    f"{file} is damaged: it holds {name} and no {other}, and a low-rank weight is "
                    "the product of both"
                )


def lora_files(texts: Sequence[str]) -> list[Path]:
    """Local files of LoRAs, whose change changes images."""
    folders = [Path(lora_of(text)[0]) for text in texts]
    files = [file for folder in folders if (file := _file(folder))]
    return files + [path for folder in folders if (path := folder / SCHEDULER).is_file()]


def lora_names(texts: Sequence[str]) -> list[str]:
    """Names of the adapters of LoRAs, by which guidances mean them: of their file or folder.

    peft keeps adapters in torch's dicts of modules, which take no name of a method of theirs; these
    get a "_" at the end.
    """
    from torch.nn import ModuleDict

    names: list[str] = []
    for text in texts:
        path = Path(lora_of(text)[0].removesuffix(f"/{FILE}"))
        stem = re.sub(r"\W", "_", path.name.removesuffix(".safetensors"))
        stem += "_" * hasattr(ModuleDict, stem)
        names.append(stem if stem not in names else f"{stem}_{len(names)}")
    return names


def _incomplete(pipe: Any) -> bool:
    """Whether layers of a LoRA were made and got no weights: their names are of another form."""
    modules = (part for part in pipe.components.values() if hasattr(part, "named_parameters"))
    return any(p.is_meta and "lora_" in n for part in modules for n, p in part.named_parameters())


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
            except (LookupError, TypeError, AttributeError) as error:  # slips of a converter
                raise InputError(
                    f"{path} cannot be read as a LoRA of this {type(pipe).__name__} "
                    f"({type(error).__name__}: {error}): it is damaged, or of another kind"
                ) from error
        there = any(name in adapters for adapters in pipe.get_list_adapters().values())
        if not there or _incomplete(pipe):
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
        own = {"_class_name": type(pipe.scheduler).__name__, **pipe.scheduler.config}
        _require_scheduler(configs[0], own)
        kind = getattr(diffusers, read_object(configs[0])["_class_name"])
        pipe.scheduler = kind.from_pretrained(configs[0].parent)


def _file(path: Path) -> Path | None:
    """Weights at a path; None where there are none."""
    if path.is_dir():
        return path / FILE if (path / FILE).is_file() else None
    return path if path.is_file() else None
