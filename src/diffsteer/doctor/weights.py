"""Faults of a checkpoint's weights: missing, of another shape, NaN, of a dtype that hurts."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import is_whole
from diffsteer.doctor import architectures
from diffsteer.doctor.architectures import PREFIX, current_name, unet_config
from diffsteer.doctor.checkpoint import Checkpoint, sharded
from diffsteer.doctor.schedulers import Finding
from diffsteer.doctor.tensors import Scan
from diffsteer.hf.network import PARTS as NETWORKS
from diffsteer.io.model_folder import CONFIG, INDEX
from diffsteer.io.safetensors_header import Entry
from diffsteer.io.strict import read_object

PARTS = (*NETWORKS, "vae")
Shapes = Mapping[str, tuple[int, ...]]


def findings(checkpoint: Checkpoint, scan: Scan) -> Iterator[Finding]:
    """Yield faults of weights."""
    yield from _values(scan)
    yield from _overflow(checkpoint, scan)
    if checkpoint.kind == "lora":
        yield from _pairs(checkpoint.entries)
    elif checkpoint.kind == "file":
        yield from _file(checkpoint)
    else:
        yield from _folder(checkpoint)


def _values(scan: Scan) -> Iterator[Finding]:
    if scan.not_finite:
        text = f"{len(scan.not_finite)} tensors hold NaN or infinity, such as {scan.not_finite[0]}"
        yield Finding(
            "not-finite", "problem", text, "take another copy: no repair can restore them"
        )
    if scan.beyond_fp16:
        text = f"{len(scan.beyond_fp16)} tensors exceed float16, such as {scan.beyond_fp16[0]}"
        yield Finding("beyond-fp16", "warning", text, "load in bfloat16 or float32")
    if half := scan.dtypes.keys() & {"F16", "BF16"}:
        text = (
            f"weights are {', '.join(sorted(half))}: schedulers that add noise in this dtype lose "
        )
        text += "1 - alpha^2 at the first timesteps"
        yield Finding("half-precision", "note", text, "give float32 latents to add_noise")
    if small := [d for d in scan.dtypes if d.startswith("F8")]:
        text = f"weights are {', '.join(small)}, in which no CPU and few GPUs compute"
        yield Finding("float8", "warning", text, "upcast them when loading")


def _overflow(checkpoint: Checkpoint, scan: Scan) -> Iterator[Finding]:
    """Yield parts whose activations exceed float16 though their weights do not."""
    if any("F16" in scan.dtypes and checkpoint.entries[n].dtype == "F16" for n in scan.not_finite):
        text = "float16 weights that are infinite overflowed when they were converted"
        yield Finding("overflowed", "note", text, "convert the float32 weights to bfloat16")
    vae = "first_stage_model." if checkpoint.kind == "file" else "vae/"
    if checkpoint.architecture.name == architectures.SDXL.name and any(
        n.startswith(vae) for n in checkpoint.entries
    ):
        text = "the autoencoder of SDXL overflows in float16, to black images, unless its weights "
        text += "were changed for it"
        remedy = "keep force_upcast in its config, or decode in bfloat16 or float32"
        upcast = _config(checkpoint, "vae").get("force_upcast", True)
        yield Finding("vae-float16", "note" if upcast else "warning", text, remedy)


def _config(checkpoint: Checkpoint, part: str) -> Mapping[str, Any]:
    """Config of a part of a folder; empty where there is none."""
    places = (folder / part / CONFIG for folder in checkpoint.folders)
    return next((read_object(place) for place in places if place.is_file()), {})


def _pairs(entries: Mapping[str, Entry]) -> Iterator[Finding]:
    """Yield halves of a LoRA that stand alone."""
    halves = {"down": "up", "up": "down", "A": "B", "B": "A"}
    pattern = re.compile(r"^(.*lora[._]?)(down|up|A|B)(\..*|$)")
    matches = [m for name in entries if (m := pattern.match(name))]
    alone = [m[0] for m in matches if f"{m[1]}{halves[m[2]]}{m[3]}" not in entries]
    if alone:
        text = f"{len(alone)} tensors lack their other half, such as {alone[0]}"
        yield Finding("missing-tensors", "problem", text, "take another copy")


def _file(checkpoint: Checkpoint) -> Iterator[Finding]:
    names = checkpoint.names
    if sum(n.startswith("model_ema.") for n in names) > 100:
        text = "it holds averaged weights (EMA) as well, which programs leave out"
        yield Finding("ema", "note", text)
    parts = {"VAE": ("first_stage_model.",), "text encoder": ("cond_stage_model.", "conditioner.")}
    absent = [p for p, start in parts.items() if not any(n.startswith(start) for n in names)]
    if absent and any(n.startswith(PREFIX) for n in names):
        text = f"it holds no {' and no '.join(absent)}"
        yield Finding("parts", "note", text, "load them from the base model")
    own = {
        n: e for n, e in checkpoint.entries.items() if n.startswith((PREFIX, *architectures.BARE))
    }
    if checkpoint.architecture in architectures.SINGLE and any("input_blocks." in n for n in own):
        try:
            expected, shapes = _converted(own, checkpoint)
        except InputError as error:
            yield Finding("missing-tensors", "problem", str(error), "take another copy")
            return
        yield from _differences("network", expected, shapes)


def _converted(entries: Mapping[str, Entry], checkpoint: Checkpoint) -> tuple[Shapes, Shapes]:
    """Shapes that a UNet of diffusers has, and those of a file under its names."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config(entries, checkpoint.architecture))
        tensors = {
            PREFIX + n.removeprefix(PREFIX): torch.empty(e.shape) for n, e in entries.items()
        }
        try:
            weights = convert_ldm_unet_checkpoint(tensors, dict(unet.config))
        except (KeyError, AttributeError, IndexError) as error:
            raise InputError(f"tensors of the network are missing, such as {error}") from error
    return _shapes(unet.state_dict()), _shapes({k: v for k, v in weights.items() if v is not None})


def _shapes(tensors: Mapping[str, Any]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _folder(checkpoint: Checkpoint) -> Iterator[Finding]:
    import diffusers

    lost = dict(_lost_files(checkpoint))
    for file, names in lost.items():
        text = f"{file} is missing, and with it {len(names)} tensors that the index beside it names"
        yield Finding("missing-files", "problem", text, "copy it from where the others came from")
    yield from _lost_parts(checkpoint)
    for part in PARTS if checkpoint.kind == "folder" else ("",):
        config = _config(checkpoint, part)
        kind = getattr(diffusers, str(config.get("_class_name")), None)
        own = {current_name(n.rpartition("::")[2]): e for n, e in checkpoint.entries.items()
               if n.partition("/")[0] == part}  # fmt: skip
        if config and kind is None:
            text = f"{part}/{CONFIG}".lstrip("/") + f" is of {brief(config.get('_class_name'))}"
            yield Finding("config", "warning", f"{text}, which diffusers does not have")
        if not config or kind is None or not hasattr(kind, "from_config"):
            continue
        if not own:
            text = f"{part or 'the folder'} holds no weights in safetensors"
            yield Finding("no-weights", "problem", text, "save them by save_pretrained")
            continue
        try:
            _require_few_layers(config, len(own))
            with torch.device("meta"):
                expected = _shapes(kind.from_config(config).state_dict())
        except Exception as error:  # of diffusers, for a config that no network has
            yield Finding("config", "problem", f"{part}/{CONFIG}: {str(error)[:200]}")
            continue
        gone = {n for f, names in lost.items() if part in ("", f.parent.name) for n in names}
        rest = {name: shape for name, shape in expected.items() if name not in gone}
        yield from _differences(part or "network", rest, {n: e.shape for n, e in own.items()})


def _lost_parts(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield parts that the index of a pipeline names and that are not there."""
    for part, named in checkpoint.index.items():
        there = any((folder / part).is_dir() for folder in checkpoint.folders)
        if not there and isinstance(named, list) and all(isinstance(word, str) for word in named):
            text = f"{part} is missing, which {INDEX} names"
            remedy = "copy it from where the others came from"
            remedy = "--fix writes it" if part == "scheduler" else remedy
            yield Finding("missing-files", "problem", text, remedy)


def _lost_files(checkpoint: Checkpoint) -> Iterator[tuple[Path, list[str]]]:
    """Yield files of weights that are not there though an index names them, and their tensors."""
    indices = (p for f in checkpoint.folders for p in f.glob("*/*.safetensors.index.json"))
    for place in sorted({*checkpoint.folders, *(index.parent for index in indices)}):
        shards = sharded(place)
        lost = {file: names for file, names in shards.items() if not file.is_file()}
        if len(lost) < len(shards) or not any(place.glob("*.safetensors")):  # no other variant
            yield from lost.items()


def _require_few_layers(config: Mapping[str, Any], tensors: int) -> None:
    """Check, before a network is made for its shapes, that its layers are no more than tensors."""
    for name, value in config.items():
        counts = value if isinstance(value, list) else [value]
        if "layers" in name and any(is_whole(n) and n > tensors for n in counts):
            raise InputError(f"{name}={brief(value)}, and there are {tensors} tensors")


def _differences(part: str, expected: Shapes, shapes: Shapes) -> Iterator[Finding]:
    missing = sorted(expected.keys() - shapes.keys())
    other = sorted(n for n in expected.keys() & shapes.keys() if expected[n] != shapes[n])
    if missing:
        text = f"{len(missing)} tensors of the {part} are missing, such as {missing[0]}"
        yield Finding("missing-tensors", "problem", text, "take another copy")
    if other:
        name = other[0]
        text = f"{len(other)} tensors of the {part} have another shape than its layout says, such "
        text += f"as {name}, {list(shapes[name])} in place of {list(expected[name])}"
        yield Finding("other-shapes", "problem", text, "take another copy")
