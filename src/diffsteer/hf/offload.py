"""Offloading of a pipeline's weights while it samples, and checks that they fit into memory."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffsteer.core.errors import InputError
from diffsteer.io.device import free_memory
from diffsteer.io.model_folder import CONFIG
from diffsteer.io.safetensors_header import read_header
from diffsteer.io.strict import read_object

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights that loading converts to the precision that is asked for."""
GB = 1e9


def require_offload(offload: str, device: str) -> None:
    """Check, before a model is loaded, that a device can do what is asked."""
    if offload in ("model", "sequential") and torch.device(device).type == "cpu":
        raise InputError(
            f"offload={offload!r} moves weights between this machine's memory and an accelerator, "
            f"and device={device} is none: leave --offload out, or take group, which diffusers "
            "does on a CPU too (it saves no memory there)"
        )


def place(pipe: Any, device: str, offload: str) -> Any:
    """Move a pipeline to a device, or let its parts come there in turn; returns it."""
    if offload == "none":
        return pipe.to(device)
    if offload == "group":
        _require_groups(pipe)
    try:
        if offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            onload = torch.device(device)
            pipe.enable_group_offload(
                onload, offload_type="leaf_level", use_stream=onload.type == "cuda"
            )
    except (ValueError, NotImplementedError) as error:
        raise InputError(
            f"{type(pipe).__name__} does not do offload={offload!r}: {error}"
        ) from error
    return pipe


def _require_groups(pipe: Any) -> None:
    """Check that all parts of a pipeline let single layers wait elsewhere."""
    parts = pipe.components.items()
    unable = [n for n, part in parts if getattr(part, "_supports_group_offloading", True) is False]
    if unable:
        raise InputError(
            f"offload='group' moves single layers, which the {' and '.join(unable)} of "
            f"{type(pipe).__name__} cannot do: leave --offload out, or take --offload model where "
            "there is an accelerator"
        )


def require_memory(name: str, sizes: Mapping[str, int], device: str, offload: str) -> None:
    """Check, before weights are read, that they fit.

    Args:
        name: Of the model, for the error.
        sizes: Bytes of each part of the pipeline, in the precision that is asked for.
        device: Where it computes.
        offload: As of `place`.
    """
    total, largest = sum(sizes.values()), max(sizes.values(), default=0)
    on_device = {"none": total, "model": largest}.get(offload, 0)
    for place, needed in {device: on_device, "cpu": total}.items():
        free = free_memory(place)
        if free is None or needed <= free:
            continue
        advice = "a lower --dtype or a smaller model"
        if place != "cpu":
            fits = "model" if offload == "none" and largest <= free else "group"
            advice = f"--offload {fits}, or {advice}"
        raise InputError(
            f"{name} needs {needed / GB:.2f} GB for its weights and {place} has "
            f"{free / GB:.2f} GB left: take {advice}"
        )


def weights_sizes(folder: Path, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of the weights of each part of a pipeline's folder, once loaded in a precision."""
    parts = sorted(path for path in folder.iterdir() if path.is_dir())
    return {part.name: size for part in parts if (size := _part_size(part, dtype))}


def _part_size(part: Path, dtype: torch.dtype) -> int:
    files = list(part.glob("*.safetensors"))
    plain = [file for file in files if file.name.count(".") == 1] or files  # of no variant
    if not plain:
        return sum(file.stat().st_size for file in part.glob("*.bin"))
    config = part / CONFIG
    stored = config.is_file() and "quantization_config" in read_object(config)
    return sum(file_size(file, None if stored else dtype) for file in plain)


def file_size(path: Path, dtype: torch.dtype | None = None) -> int:
    """Bytes of the weights of a file of safetensors in a precision; None is as they are stored."""
    size = 0
    for entry in read_header(path)[0].values():
        first, last = entry.span
        if dtype is not None and entry.dtype in FLOATS:
            size += math.prod(entry.shape) * dtype.itemsize
        else:
            size += last - first
    return size
