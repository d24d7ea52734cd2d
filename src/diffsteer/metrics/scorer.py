"""What scores that ship have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.fields import check_fields
from diffsteer.io.strict import read_safetensors
from diffsteer.models.adm.files import read_tensors

SHORT = 16
"""Digits of a digest."""
LEGACY_END = 2
"""End token of old configs of CLIP, which stands for the highest token."""


@dataclass(frozen=True)
class Scorer(ABC):
    """A score known by its text, such as 'CLIPScore("openai/clip-vit-base-patch16")'.

    Args:
        device: Where it runs; empty for a GPU if there is one. No part of what it is.

    Attributes:
        reads_prompts: Whether prompts matter.
    """

    device: str = field(default="", repr=False, compare=False, kw_only=True)

    reads_prompts: ClassVar[bool] = True
    example: ClassVar[str] = """'CLIPScore("openai/clip-vit-base-patch16")', with both quotes"""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hash of the weights that were loaded, in hex, short."""

    @abstractmethod
    def __call__(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        """Return a number each, `(N,)`, of uint8 images `(N, 3, H, W)`; more is better."""


def read_state(file: str, kind: str) -> Mapping[str, Tensor]:
    """State dict of a file, `.pt` or `.safetensors`, of a model of some kind, in words.

    Beside other values, as training programs store them, it is what is under "state_dict".
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: name the state dict of {kind}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return read_tensors(path, "state_dict")


def require_words(weights: str, config: Any, words: Any) -> None:
    """Refuse a tokenizer that ends texts elsewhere than the text model of `config` expects."""
    size, end = config.vocab_size, config.eos_token_id
    end = size - 1 if end == LEGACY_END else end
    if words.eos_token_id != end:
        raise InputError(
            f"{weights}: the text model knows {size} tokens and ends texts at {end}, the "
            f"tokenizer knows {len(words)} and ends them at {words.eos_token_id}, so that "
            "embeddings would be of no prompt: give the checkpoint with its own tokenizer"
        )
