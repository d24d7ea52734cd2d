"""Scores of human preference that are dot products of CLIP: PickScore and HPSv2.

Images are prepared as published: the shorter side to the size of the model, then its middle square.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.io.device import device_of
from diffsteer.io.hashing import digest, weights_hash
from diffsteer.metrics.features import normalised, pictures
from diffsteer.metrics.pretrained import pretrained, require_checkpoint
from diffsteer.metrics.scorer import SHORT, Scorer, read_state, require_words

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
OUTER = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
}
NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
PROJECTIONS = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
"""Names of open_clip, and of transformers; projections are transposed."""


@dataclass(frozen=True)
class PickScore(Scorer):
    """Preference for an image given its prompt: CLIP's logit scale times the cosine.

    Args:
        weights: Folder or hub id of a transformers checkpoint of CLIP, yuvalkirstain/PickScore_v1.
        words: The same of its tokenizer, where `weights` has none; for PickScore_v1 that is
            laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
        device: Where it runs; empty for a GPU if there is one.

    Source: Kirstain et al. 2023, https://arxiv.org/abs/2305.01569.
    """

    weights: str
    words: str = ""

    @cached_property
    @override
    def digest(self) -> str:
        model, words = self._parts
        return digest({"model": weights_hash(model), "words": words.get_vocab()})[:SHORT]

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import CLIPModel

        model: Any = pretrained(CLIPModel, self.weights)
        words = _tokenizer(self.words or self.weights, model)
        return model.to(device_of(self.device)), words

    @override
    def __call__(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        model, words = self._parts
        with torch.inference_mode():
            scale: Tensor = model.logit_scale.exp()
            return scale * _cosine(model, words, pictures, prompts)


@dataclass(frozen=True)
class HPSv2(Scorer):
    """Human preference score: the cosine of an open_clip model.

    Args:
        weights: File of its state dict in open_clip's names, `.pt` or `.safetensors`; that of HPS
            v2.1 as published has it under "state_dict", which is read too.
        clip: Folder or hub id of a transformers checkpoint of CLIP of the same shape, for its
            config and tokenizer; laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
        device: Where it runs; empty for a GPU if there is one.

    Source: Wu et al. 2023, https://arxiv.org/abs/2306.09341.
    """

    weights: str
    clip: str

    @cached_property
    @override
    def digest(self) -> str:
        model, words = self._parts
        return digest({"model": weights_hash(model), "words": words.get_vocab()})[:SHORT]

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        state = read_state(self.weights, "a CLIP of open_clip")
        require_checkpoint(self.clip)
        from transformers import CLIPConfig, CLIPModel

        with torch.device("meta"):
            model: Any = CLIPModel(CLIPConfig.from_pretrained(self.clip))
        for name, buffer in list(model.named_buffers()):  # numbers of places, in no state dict
            owner, _, end = name.rpartition(".")
            place = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            model.get_submodule(owner).register_buffer(end, place, persistent=False)
        try:
            model.load_state_dict(renamed(state), assign=True)
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.weights} does not fit the model of {self.clip}: {reason}. Give the CLIP of "
                "its shape, laion/CLIP-ViT-H-14-laion2B-s32B-b79K for HPS v2"
            ) from error
        model = model.float().eval().requires_grad_(False)
        return model.to(device_of(self.device)), _tokenizer(self.clip, model)

    @override
    def __call__(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        model, words = self._parts
        with torch.inference_mode():
            return _cosine(model, words, pictures, prompts)


def _tokenizer(place: str, model: Any) -> Any:
    from transformers import CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(place)
    require_words(place, model.config.text_config, words)
    return words


def _cosine(model: Any, words: Any, images: Tensor, prompts: list[str]) -> Tensor:
    if len(images) != len(prompts):
        raise InputError(f"{len(prompts)} prompts for {len(images)} images: give one each")
    longest = model.config.text_config.max_position_embeddings
    tokens = words(
        prompts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
    ).to(model.device)
    x = middle(images, model.config.vision_config.image_size).to(model.device)
    out = model(**tokens, pixel_values=normalised(x, MEAN, STD))
    return F.cosine_similarity(out.image_embeds, out.text_embeds)


def middle(images: Tensor, size: int) -> Tensor:
    """Middle square of uint8 images, `(N, 3, size, size)`, float32, their shorter side at `size`.

    Resized by Pillow's bicubic filter, as transformers does without torchvision.
    """
    height, width = pictures(images).shape[2:]
    short = min(height, width)
    shape = (int(size * width / short), int(size * height / short))
    left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
    return torch.stack([_resized(x, shape) for x in images.cpu()])[
        :, :, top : top + size, left : left + size
    ]


def _resized(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """One image, `(3, H, W)`, at a width and height."""
    import numpy as np
    from PIL import Image

    whole = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    array = np.asarray(whole.resize(shape, Image.Resampling.BICUBIC), np.float32)
    return torch.from_numpy(array).permute(2, 0, 1)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of open_clip under the names of transformers."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in OUTER:
            out[OUTER[name]] = value
        elif name in PROJECTIONS:
            out[PROJECTIONS[name]] = value.T.contiguous()
        elif match := re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.*)", name):
            model = "vision_model" if match[1] else "text_model"
            out |= _layer(f"{model}.encoder.layers.{match[2]}", match[3], value)
        elif (norm := name.rpartition("."))[0] in NORMS:
            out[f"{NORMS[norm[0]]}.{norm[2]}"] = value
        elif name != "attn_mask":
            raise KeyError(f"{name} is no part of a CLIP of open_clip")
    return out


def _layer(place: str, name: str, value: Tensor) -> dict[str, Tensor]:
    if name.startswith("attn.in_proj_"):
        part = name.removeprefix("attn.in_proj_")
        keys = [f"{place}.self_attn.{letter}_proj.{part}" for letter in "qkv"]
        return dict(zip(keys, value.chunk(3), strict=True))
    inner, _, part = name.rpartition(".")
    return {f"{place}.{INNER[inner]}.{part}": value}
