"""Arguments of an EDM2 network and its folder, checked without building it or loading torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import Rule, between, check_fields, is_number
from diffsteer.io import model_folder
from diffsteer.io.strict import from_table

FORMAT = "diffsteer.EDM2"
Sides = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """Arguments of `EDM2` in the ranges of any network; no file can ask for more."""

    img_resolution: Annotated[int, between(1, 4096)]
    img_channels: Annotated[int, between(1, 1024)]
    label_dim: Annotated[int, between(0, 10**6)]
    model_channels: Annotated[int, between(1, 8192)]
    channel_mult: Sides
    num_blocks: Annotated[int, between(1, 64)]
    attn_resolutions: Sides
    channels_per_head: Annotated[int, between(1, 8192)]
    dropout: Annotated[float, Rule("in [0, 1[", lambda p: is_number(p) and 0 <= p < 1)]
    sigma_data: Annotated[float, Rule("in ]0, 1e6[", lambda s: is_number(s) and 0 < s < 1e6)]
    logvar_channels: Annotated[int, between(1, 8192)]
    use_fp16: bool

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("channel_mult", "attn_resolutions"):
            if not all(0 < value <= 4096 for value in getattr(self, name)):
                raise InputError(
                    f"{name} must hold integers in [1, 4096], got {brief(getattr(self, name))}"
                )
        levels, side = len(self.channel_mult), self.img_resolution
        if not 1 <= levels <= 12 or side % 2 ** (levels - 1):
            raise InputError(
                f"img_resolution={side} must be divisible by 2 once less than the {levels} values "
                "of channel_mult, of which there are 1 to 12"
            )


def read_config(folder: Path) -> dict[str, Any]:
    """Contents of a folder's `config.json`: "config", and metadata such as "encoder".

    Raises:
        InputError: the folder is of another format.
        OSError: the file cannot be read.
    """
    return model_folder.read_config(folder, FORMAT)


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Check arguments: InputError for those of which no network of reasonable size is built."""
    return from_table(Architecture, config, "EDM2")


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
