"""Scores that ship, by their text, and functions of yours, by MODULE:FUNCTION.

Those that ship load weights that you name, when they first judge.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError, brief
from diffsteer.core.parse import parse, subclasses
from diffsteer.io.device import device_of
from diffsteer.io.hashing import digest, weights_hash
from diffsteer.metrics.best_of_n import Score
from diffsteer.metrics.preference import HPSv2 as HPSv2
from diffsteer.metrics.preference import PickScore as PickScore
from diffsteer.metrics.preference import middle
from diffsteer.metrics.pretrained import CLIP, pretrained
from diffsteer.metrics.scorer import SHORT, Scorer, read_state, require_words

PREPARED = {"prepared": "middle square, by Pillow"}
"""Part of digests, since scores of squashed images differ."""


@dataclass(frozen=True)
class CLIPScore(Scorer):
    """100 times the cosine between CLIP's embeddings of the image and of its prompt.

    Without the paper's factor 2.5, cut at 0 and prefix "A photo depicts". Prompts are cut at the
    length of the text model, images to their middle square, as CLIP prepares them.

    Args:
        weights: Folder or hub id of a transformers checkpoint of CLIP, with its tokenizer.
        device: Where it runs; empty for a GPU if there is one.

    Source: Hessel et al. 2021, https://arxiv.org/abs/2104.08718.
    """

    weights: str

    @cached_property
    @override
    def digest(self) -> str:
        text, words = self._text
        parts = {"image": self._image.origin.weights, "text": weights_hash(text)}
        return digest({**parts, **PREPARED, "words": words.get_vocab()})[:SHORT]

    @cached_property
    def _image(self) -> CLIP:
        return CLIP(self.weights, device_of(self.device))

    @cached_property
    def _text(self) -> tuple[Any, Any]:
        """The text model and its tokenizer."""
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        text: Any = pretrained(CLIPTextModelWithProjection, self.weights)
        words = CLIPTokenizer.from_pretrained(self.weights)
        require_words(self.weights, text.config, words)
        return text.to(device_of(self.device)), words

    @override
    def __call__(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        if len(pictures) != len(prompts):
            raise InputError(f"{len(prompts)} prompts for {len(pictures)} images: give one each")
        text, words = self._text
        longest = text.config.max_position_embeddings
        tokens = words(
            prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        with torch.inference_mode():
            embedding = text(**tokens.to(text.device)).text_embeds
            return 100 * F.cosine_similarity(_embedded(self._image, pictures), embedding)


@dataclass(frozen=True)
class Aesthetic(Scorer):
    """LAION's aesthetic predictor: linear layers on CLIP's unit embedding, about 1 to 10.

    V2, or one with a single layer; prompts do not matter. Those with ReLU are refused.

    Args:
        weights: File of its state dict, `.pth` or `.safetensors`.
        clip: Folder or hub id of the CLIP that it was trained on, as a transformers checkpoint;
            openai/clip-vit-large-patch14 for V2.
        device: Where it runs; empty for a GPU if there is one.

    Source: https://github.com/christophschuhmann/improved-aesthetic-predictor.
    """

    weights: str
    clip: str
    reads_prompts = False

    @cached_property
    @override
    def digest(self) -> str:
        parts = {"image": self._image.origin.weights, "layers": weights_hash(self._layers)}
        return digest(parts | PREPARED)[:SHORT]

    @cached_property
    def _image(self) -> CLIP:
        return CLIP(self.clip, device_of(self.device))

    @cached_property
    def _layers(self) -> nn.Sequential:
        state = read_state(self.weights, "an aesthetic predictor")
        return _chain(state, self.weights).to(device_of(self.device))

    @override
    def __call__(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        with torch.inference_mode():
            x, first = _embedded(self._image, pictures), self._layers[0].in_features
            if x.shape[1] != first:
                raise InputError(
                    f"{self.weights} was trained on embeddings of {first} numbers, {self.clip} "
                    f"gives {x.shape[1]}: name its own CLIP, openai/clip-vit-large-patch14 for 768"
                )
            score: Tensor = self._layers(F.normalize(x))[:, 0]
            return score


def _embedded(clip: CLIP, images: Tensor) -> Tensor:
    """Embeddings of images as CLIP prepares them, `(N, D)`."""
    return clip(middle(images, clip.size).byte())


def _chain(state: Mapping[str, Tensor], name: str) -> nn.Sequential:
    """The linear layers of a state dict, in the order of their numbers, or else of the file.

    Dropout, which is off, takes a number between two of them; where there is room for more, it is
    for an activation.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    places = dict.fromkeys(re.sub(r"(weight|bias)$", "", key) for key in state)  # as in the file
    order = sorted(places, key=_number)
    weights = [shapes.get(f"{place}weight", ()) for place in order]
    biases = [shapes.get(f"{place}bias") for place in order]
    fits = all(len(shape) == 2 for shape in weights) and biases == [w[:1] for w in weights]
    if not fits or biases != [*(w[1:] for w in weights[1:]), (1,)]:
        raise InputError(
            f"{name} holds {shapes}, no linear layers of which each takes what the one before "
            "gives, the last one number: give the state dict of an aesthetic predictor"
        )
    if any(_number(b) - _number(a) > 2 for a, b in pairwise(order)):
        raise InputError(
            f"{name} has layers {', '.join(order)}: so much lies between them that they have "
            "activations, as the ReLU variants do, which are not computed here: give a linear one"
        )
    layers = [nn.Linear(shape[1], shape[0], device="meta") for shape in weights]
    for place, layer in zip(order, layers, strict=True):
        tensors = {part: state[f"{place}{part}"].float() for part in ("weight", "bias")}
        layer.load_state_dict(tensors, assign=True)
    return nn.Sequential(*layers).requires_grad_(False)


def _number(place: str) -> int:
    """Number in "layers.4."; -1 without one."""
    return int((re.findall(r"\d+", place) or [-1])[-1])


def score_of(text: str, device: str = "") -> Score:
    """The score that a text names.

    Args:
        text: Of a `Scorer`, or MODULE:FUNCTION, from uint8 images `(N, 3, H, W)` and their
            prompts to a number each.
        device: Where a `Scorer` runs that does not say so itself.
    """
    known = sorted(kind.__name__ for kind in subclasses(Scorer))
    if not isinstance(text, str):
        raise InputError(
            f"{brief(text)} is no text of a score: write MODULE:FUNCTION, or one of "
            f"{', '.join(known)} with its weights"
        )
    if "(" in text or text.strip() in known:
        scorer = parse(text, Scorer)
        return replace(scorer, device=scorer.device or device)
    module, colon, function = text.partition(":")
    either = f"write MODULE:FUNCTION, or one of {', '.join(known)} with its weights"
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # as `python -m` has it, and a console script has not
    try:
        score: Score = getattr(import_module(module), function)
    except Exception as error:  # of the module, which is run
        raise InputError(f"score {text}: {' '.join(str(error).split())}; {either}") from error
    if not colon or not callable(score):
        raise InputError(f"score {text} is no function: {either}")
    return score


def name_of(score: Score, text: str) -> str:
    """Text of a score with the digest of its weights, by which recorded scores are told apart."""
    return f"{score!r} {score.digest}" if isinstance(score, Scorer) else text
