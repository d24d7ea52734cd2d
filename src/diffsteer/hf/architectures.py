"""One row a model family of diffusers: what its pipelines send to the network, in which order."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffsteer.core.errors import InputError

Halves = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """How to read a call of the network.

    Attributes:
        sample: Name of the argument that holds the noisy sample, `(B, C, H, W)`, or packed.
        halves: Names of the conditions that a pipeline's batch holds, in order, when it guides.
        layers: Its self-attention modules, by name.
        output: Name of its last layer with weights.
        text_first: Whether text comes before the image in layers that attend to both.
        packed: Whether the sample is `(B, H/2 W/2, 4 C)`: patches of 2 x 2 in a row.
        flow_time: What it is told at the noisy end of a flow.
        encoded: Arguments that the pipeline's `encode_prompt` returns, in order, where the pipeline
            never sends the null prompt in the same call.
        shared: Arguments without a row for each sample.
    """

    sample: str
    halves: Halves
    layers: Callable[[nn.Module], dict[str, nn.Module]]
    output: str = "proj_out"
    text_first: bool = False
    packed: bool = False
    flow_time: float = 1000.0
    encoded: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def channel_dim(self) -> int:
        """Dimension of the sample that holds its channels."""
        return -1 if self.packed else 1

    def conditions_in_batch(self, pipe: Any, sample: Tensor) -> Halves:
        """Which conditions the batch of this call holds.

        Pipelines say so, or duplicate the sample for both halves; to see that, the sample is read.
        """
        guides = len(self.halves) > 1 and getattr(pipe, "do_classifier_free_guidance", None)
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
    """Modules that compute attention of image and text to each other, by name."""
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


def unpacked(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Put tokens, `(B, h w, 4 C)`, at their places, `(B, C, 2 h, 2 w)`."""
    h, w = size
    patches = tokens.reshape(len(tokens), h, w, -1, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, 2 * h, 2 * w)


def packed(image: Tensor) -> Tensor:
    """Inverse of `unpacked`."""
    b, c, h, w = image.shape
    patches = image.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, h // 2 * (w // 2), 4 * c)


def size_of(ids: Tensor, tokens: int) -> tuple[int, int]:
    """Height and width of packed samples in tokens.

    Args:
        ids: Places of the tokens, `(h w, 3)`; the last two of a place are its row and column.
        tokens: How many the samples have.

    Raises:
        ValueError: they have more than one image.
    """
    last = ids.reshape(-1, ids.shape[-1]).amax(dim=0).tolist()
    h, w = int(last[1]) + 1, int(last[2]) + 1
    if tokens != h * w:
        raise InputError(
            f"{tokens} tokens are not an image of {h}x{w}: pipelines that append tokens of another "
            "image (Kontext) cannot be steered"
        )
    return h, w


FAMILIES: Mapping[str, Family] = {
    "UNet2DConditionModel": Family("sample", ("null", "cond"), image_attention, "conv_out"),
    "UNet2DModel": Family("sample", ("cond",), image_attention, "conv_out"),
    "DiTTransformer2DModel": Family(
        "hidden_states", ("cond", "null"), image_attention, "proj_out_2"
    ),
    "PixArtTransformer2DModel": Family("hidden_states", ("null", "cond"), image_attention),
    "SD3Transformer2DModel": Family("hidden_states", ("null", "cond"), joint_attention),
    "FluxTransformer2DModel": Family(
        "hidden_states",
        ("cond",),
        joint_attention,
        text_first=True,
        packed=True,
        flow_time=1.0,
        encoded=("encoder_hidden_states", "pooled_projections", "txt_ids"),
        shared=("txt_ids", "img_ids"),
    ),
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
    raise InputError(
        f"{type(network).__name__} is no network that can be steered yet: {', '.join(FAMILIES)} are"
    )


def check_halves(whole: Tensor, halves: Halves, pipe: str) -> None:
    """Check that a batch holds the same samples once for each condition.

    Raises:
        ValueError: it does not: the pipeline stacks other conditions, or calls for one alone.
    """
    size, left = divmod(len(whole), len(halves))
    if left or not all(
        torch.equal(part, whole[:size]) for part in torch.split(whole, max(size, 1))
    ):
        raise InputError(
            f"{pipe} calls its network with {len(whole)} rows that are not the same samples under "
            f"{' and '.join(halves)}: switch off what else it guides by (an image, PAG, skipped "
            "layers) while it is steered, or take the plain pipeline"
        )
