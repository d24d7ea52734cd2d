"""Arguments of an EDM2 network and its folder, checked without building it or loading torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.io import model_folder

FORMAT = "diffsteer.EDM2"
LIMITS = {
    "img_resolution": (1, 4096),
    "img_channels": (1, 1024),
    "label_dim": (0, 10**6),
    "model_channels": (1, 8192),
    "num_blocks": (1, 64),
    "channels_per_head": (1, 8192),
    "logvar_channels": (1, 8192),
}
"""Smallest and largest values of integers; far beyond any network, but no file can ask for more."""


def read_config(folder: Path) -> dict[str, Any]:
    """Contents of a folder's `config.json`: "config", and metadata such as "encoder".

    Raises:
        InputError: the folder is of another format.
        OSError: the file cannot be read.
    """
    return model_folder.read_config(folder, FORMAT)


def check_config(config: Mapping[str, Any]) -> None:
    """Raise InputError for arguments from which no network of reasonable size can be built."""
    for name, (least, most) in LIMITS.items():
        value = config[name]
        if type(value) is not int or not least <= value <= most:
            raise InputError(f"EDM2: {name} must be an integer in [{least}, {most}], got {value!r}")
    if type(config["use_fp16"]) is not bool:
        raise InputError(f"EDM2: use_fp16 must be true or false, got {config['use_fp16']!r}")
    for name in ("channel_mult", "attn_resolutions"):
        if not all(type(v) is int and 0 < v <= 4096 for v in config[name]):
            raise InputError(f"EDM2: {name} must hold integers in [1, 4096], got {config[name]!r}")
    levels, side = len(config["channel_mult"]), config["img_resolution"]
    if not 1 <= levels <= 12 or side % 2 ** (levels - 1):
        raise InputError(
            f"EDM2: img_resolution={side} must be divisible by 2 once less than the {levels} "
            "values of channel_mult, of which there are 1 to 12"
        )
    dropout, sigma_data = config["dropout"], config["sigma_data"]
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise InputError(f"EDM2: dropout must be in [0, 1[, got {dropout!r}")
    if type(sigma_data) not in (int, float) or not 0 < sigma_data < 1e6:
        raise InputError(f"EDM2: sigma_data must be in ]0, 1e6[, got {sigma_data!r}")


def check_encoder(encoder: Any, channels: int) -> None:
    """Raise InputError for a latent encoder whose factors cannot be undone."""
    kind = encoder.get("kind") if isinstance(encoder, dict) else None
    if kind not in ("rgb", "vae"):
        raise InputError(f"encoder must be of kind rgb or vae, got {str(encoder)[:100]}")
    for name in ("scale", "bias") if kind == "vae" else ():
        factors = encoder.get(name)
        listed = isinstance(factors, list | tuple) and len(factors) == channels
        if not listed or not all(type(v) in (int, float) and abs(v) < 1e300 for v in factors):
            raise InputError(
                f"encoder {name} must hold a finite number for each of {channels} channels, got "
                f"{str(factors)[:100]}"
            )
        if name == "scale" and min(factors) <= 0:
            raise InputError(f"encoder scale must be > 0, as latents are divided by it: {factors}")
