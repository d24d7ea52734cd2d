"""A classifier that reads the attributes of critters, and scores of images against prompts.

`obedience` and `all_right` are scores, `diffsteer_lab.critters.judge:obedience` wherever diffsteer
takes one. `tools/build_judge.py` trains it.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.io.strict import read_safetensors
from diffsteer.metrics.features import resized
from diffsteer_lab.critters.grammar import ATTRIBUTES, VOCABULARY, Critter, parse_caption

SIDE, WIDTH = 64, 128
"""Pixels that it sees, and numbers in its features."""
BATCH = 256
"""Images of one forward pass."""
WEIGHTS = Path(str(files("diffsteer_lab"))) / "assets/critters/judge.safetensors"


class Judge(nn.Module):
    """Convolutions at 32, 16, 8 and 4 pixels, a hidden layer, a linear head for each attribute.

    317,000 weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(*_layer(3, 32, 5, 2), *_layer(32, 32, 3, 1)),
            *(*_layer(32, 64, 3, 2), *_layer(64, 64, 3, 1)),
            *(*_layer(64, 96, 3, 2), *_layer(96, 64, 3, 2)),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(64 * (SIDE // 16) ** 2, WIDTH)
        self.heads = nn.ModuleDict({k: nn.Linear(WIDTH, len(w)) for k, w in ATTRIBUTES.items()})

    def features(self, images: Tensor) -> Tensor:
        """Hidden layer, `(N, 128)`, of uint8 images `(N, 3, H, W)`; resized to 64 pixels."""
        return self.hidden_of(resized(images, SIDE).to(self.hidden.weight.device))

    def hidden_of(self, x: Tensor) -> Tensor:
        """Hidden layer of floats in [0, 255], `(N, 3, 64, 64)`."""
        return F.silu(self.hidden(self.body(x / 127.5 - 1)))

    @override
    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Logits of each attribute, of a hidden layer."""
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.inference_mode()
    def read(self, images: Tensor) -> list[Critter]:
        """Most likely attributes of uint8 images `(N, 3, H, W)`."""
        parts = [self(self.features(part)) for part in torch.split(images, BATCH)]
        best = {k: torch.cat([p[k] for p in parts]).argmax(1).tolist() for k in ATTRIBUTES}
        words = {k: [ATTRIBUTES[k][i] for i in indices] for k, indices in best.items()}
        return [Critter(*each) for each in zip(*words.values(), strict=True)]


def _layer(before: int, after: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2)
    return convolution, nn.GroupNorm(8, after), nn.SiLU()


@cache
def judge() -> Judge:
    """Load the judge that ships."""
    network = Judge().requires_grad_(False)
    network.load_state_dict({k: v.float() for k, v in read_safetensors(WEIGHTS).items()})
    return network.eval()


def right(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Whether each attribute is as prompted, `(N, 7)`: 1 or 0, NaN where the prompt names none.

    Args:
        images: uint8 `(N, 3, H, W)`.
        prompts: One each, of the grammar.

    Raises:
        ValueError: a prompt is none of the grammar, or names no attribute at all.
    """
    asked = [parse_caption(prompt) for prompt in prompts]
    if Critter() in asked:
        raise InputError(
            f"{prompts[asked.index(Critter())]!r} names no attribute that an image could have: "
            f"{VOCABULARY}"
        )
    pairs = zip(asked, judge().read(images), strict=True)
    same = [[a == b if a else torch.nan for a, b in zip(*pair, strict=True)] for pair in pairs]
    return torch.tensor(same, dtype=torch.float32).reshape(-1, len(ATTRIBUTES))


def obedience(images: Tensor, prompts: list[str]) -> Tensor:
    """Share of the attributes that a prompt names that its image shows, `(N,)`."""
    return right(images, prompts).nanmean(1)


def all_right(images: Tensor, prompts: list[str]) -> Tensor:
    """1 where an image shows all attributes that its prompt names, else 0, `(N,)`."""
    return 1 - (right(images, prompts) == 0).any(1).float()
