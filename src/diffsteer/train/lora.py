"""Low-rank adaptations (LoRA) that are trained, in files as diffusers reads them."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError

PARTS = ("unet", "transformer")
"""Networks of pipelines that take a LoRA."""


def add_lora(network: Any, rank: int, alpha: int, layers: Sequence[str]) -> None:
    """Freeze a network and add an adapter to layers of it; `alpha` 0 is the rank, a scale of 1."""
    from peft import LoraConfig

    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=[*layers]))


def lora_part(pipe: Any) -> str:
    """Name of the network of a pipeline that takes a LoRA."""
    writes = getattr(pipe, "save_lora_weights", None)
    takes = inspect.signature(writes).parameters if writes else {}
    part = next((part for part in PARTS if f"{part}_lora_layers" in takes), "")
    if not part:
        raise InputError(
            f"{type(pipe).__name__} takes no LoRA, which would be the result: train another model"
        )
    return part


def save_lora(pipe: Any, folder: Path) -> None:
    """Write the adapter of a pipeline's network, with its scale."""
    from peft.utils import get_peft_model_state_dict

    part = lora_part(pipe)
    network = getattr(pipe, part)
    scale = network.peft_config["default"].to_dict()  # else readers take a scale of 1
    layers = {n: w.contiguous() for n, w in get_peft_model_state_dict(network).items()}
    files = {"lora_layers": layers, "lora_adapter_metadata": scale}
    pipe.save_lora_weights(folder, **{f"{part}_{name}": value for name, value in files.items()})
