"""One row a model family of diffusers: what its pipelines send to the network, in which order."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Halves = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """How to read a call of the network.

    Attributes:
        sample: Name of the argument that holds the noisy sample, `(B, C, H, W)`.
        halves: Names of the conditions that a pipeline's batch holds, in order, when it guides.
        layers: Its self-attention modules, in which image tokens come first, by name.
    """

    sample: str
    halves: Halves
    layers: Callable[[nn.Module], dict[str, nn.Module]]

    def sent(self, pipe: Any, sample: Tensor) -> Halves:
        """Which conditions the batch of this call holds.

        Pipelines say so, or duplicate the sample for both halves.
        """
        guides = getattr(pipe, "do_classifier_free_guidance", None)
        if guides is None and len(sample) % 2 == 0:
            a, b = sample.chunk(2)
            guides = torch.equal(a, b)
        return self.halves if guides else ("cond",)


def image_attention(network: nn.Module) -> dict[str, nn.Module]:
    """Modules of diffusers that compute attention of the image to itself, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if hasattr(module, "to_q")
        and hasattr(module, "processor")
        and not getattr(module, "is_cross_attention", False)
        and getattr(module, "added_kv_proj_dim", None) is None
    }


def joint_attention(network: nn.Module) -> dict[str, nn.Module]:
    """Modules that compute attention of image and text to each other, the image first, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if hasattr(module, "to_q") and hasattr(module, "processor")
    }


REPLACED = frozenset({"AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor"})
"""Processors that compute what AttnProcessor2_0 does in another way."""


@contextmanager
def by_sdpa(layer: Any) -> Iterator[None]:
    """Let a diffusers layer compute attention by scaled_dot_product_attention meanwhile."""
    before = layer.processor
    if type(before).__name__ in REPLACED:
        from diffusers.models.attention_processor import AttnProcessor2_0

        layer.processor = AttnProcessor2_0()
    try:
        yield
    finally:
        layer.processor = before


FAMILIES: Mapping[str, Family] = {
    "UNet2DConditionModel": Family("sample", ("null", "cond"), image_attention),
    "UNet2DModel": Family("sample", ("cond",), image_attention),
    "DiTTransformer2DModel": Family("hidden_states", ("cond", "null"), image_attention),
    "PixArtTransformer2DModel": Family("hidden_states", ("null", "cond"), image_attention),
    "SD3Transformer2DModel": Family("hidden_states", ("null", "cond"), joint_attention),
}
"""Families by the class of their network."""


def family_of(network: nn.Module) -> Family:
    """Return the family of a network.

    Raises:
        ValueError: it is none of those that we know.
    """
    for cls in type(network).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    raise ValueError(
        f"{type(network).__name__} is no network that can be steered yet: {', '.join(FAMILIES)} are"
    )
