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
        null_class: Class of the null condition where the scheduler steps both halves (DiT).
    """

    sample: str
    halves: Halves
    layers: Callable[[nn.Module], dict[str, nn.Module]]
    output: str = "proj_out"
    text_first: bool = False
    packed: bool = False
    flow_time: float = 1000.0
    encoded: tuple[str, ...] = ()
    null_class: int | None = None

    @property
    def channel_dim(self) -> int:
        """Dimension of the sample that holds its channels."""
        return -1 if self.packed else 1


OTHER_TOKENS = frozenset(
    {
        "AnimateDiffTransformer3D",
        "GatedSelfAttentionDense",
        "TemporalBasicTransformerBlock",
        "TransformerTemporalModel",
    }
)
"""Modules inside of which tokens are not those of one image: grounded objects (GLIGEN), frames."""


def image_attention(network: nn.Module) -> dict[str, nn.Module]:
    """Modules of diffusers that compute attention of the image to itself, by name."""
    return {
        name: module
        for name, module in joint_attention(network).items()
        if not getattr(module, "is_cross_attention", False)
        and getattr(module, "added_kv_proj_dim", None) is None
    }


def joint_attention(network: nn.Module) -> dict[str, nn.Module]:
    """Modules that compute attention of image and text to each other, by name."""
    modules = dict(network.named_modules())
    others = tuple(f"{n}." for n, m in modules.items() if type(m).__name__ in OTHER_TOKENS)
    return {
        name: module
        for name, module in modules.items()
        if hasattr(module, "to_q") and hasattr(module, "processor") and not name.startswith(others)
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
        "hidden_states", ("cond", "null"), image_attention, "proj_out_2", null_class=1000
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
    ),
}
"""Families by the class of their network."""


def known_family(network: nn.Module) -> Family | None:
    """Family of a network, or None where the table has none."""
    names = (cls.__name__ for cls in type(network).__mro__)
    return next((FAMILIES[name] for name in names if name in FAMILIES), None)


def family_of(network: nn.Module) -> Family:
    """Family of a network."""
    if (family := known_family(network)) is None:
        raise InputError(
            f"{type(network).__name__} can be guided by steer(pipe, guidance) alone; all else is "
            f"for {', '.join(FAMILIES)}"
        )
    return family


@dataclass(frozen=True)
class Conditions:
    """Conditions that a batch holds.

    Attributes:
        names: In order.
        interleaved: Whether each sample comes under all conditions in turn, not all samples.
    """

    names: Halves
    interleaved: bool = False

    def rows(self, name: str, size: int) -> slice:
        """Rows of a condition in a batch of `size`."""
        place, each = self.names.index(name), size // len(self.names)
        if self.interleaved:
            return slice(place, None, len(self.names))
        return slice(place * each, (place + 1) * each)

    def repeated(self, out: Tensor) -> Tensor:
        """The batch that holds `out` under each condition."""
        if self.interleaved:
            return out.repeat_interleave(len(self.names), dim=0)
        return torch.cat([out] * len(self.names)) if len(self.names) > 1 else out

    def repeats(self, inputs: Tensor) -> bool:
        """Whether a batch holds the same samples under each condition."""
        if len(inputs) % len(self.names):
            return False
        parts = [inputs[self.rows(name, len(inputs))] for name in self.names]
        return all(torch.equal(part, parts[0]) for part in parts[1:])


ALONE = Conditions(("cond",))
"""One condition."""


def conditions_in_batch(
    pipe: Any, network: nn.Module, inputs: Tensor, arguments: Mapping[str, Any]
) -> Conditions:
    """Conditions that the batch of a call holds; reads the sample."""
    family = family_of(network)
    halves = family.halves
    if len(halves) == 1:
        return ALONE
    guides = declared = _declared(pipe)
    doubled = [c for c in (Conditions(halves), Conditions(halves, True)) if c.repeats(inputs)]
    if guides is None:
        guides = bool(doubled)
        if doubled and family.null_class is not None:
            labels = arguments["class_labels"][doubled[0].rows("null", len(inputs))]
            guides = bool((labels == family.null_class).all())
    threefold = not guides and declared is None and Conditions(("", "", "")).repeats(inputs)
    if threefold or (guides and not doubled):
        raise InputError(
            f"{type(pipe).__name__} calls its network with {len(inputs)} rows that are not the "
            f"same samples under {' and '.join(halves)}: switch off what else it guides by (an "
            "image, PAG, skipped layers) while it is steered, or take the plain pipeline"
        )
    _check_processors(pipe, network)
    return doubled[0] if guides else ALONE


def _check_processors(pipe: Any, network: nn.Module) -> None:
    """Check that no attention processor counts the rows of its pipeline's batch."""
    for module in network.modules():
        kind = type(getattr(module, "processor", None))
        if kind.__module__.startswith("diffusers.pipelines.") or kind.__name__.startswith("PAG"):
            raise InputError(
                f"{type(pipe).__name__} has put {kind.__name__} into its network, which looks at "
                "attention of the rows that the pipeline sends: take the plain pipeline"
            )


def _declared(pipe: Any) -> bool | None:
    """Whether a pipeline says that it guides; None where it says nothing, or always the same."""
    declared: Any = getattr(type(pipe), "do_classifier_free_guidance", None)
    if not isinstance(declared, property):
        return None
    reads: Any = declared.fget
    if not reads.__code__.co_names:
        return None
    guides: bool | None = getattr(pipe, "do_classifier_free_guidance", None)
    return guides
