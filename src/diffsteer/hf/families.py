"""One row a model family of diffusers: what its pipelines send to the network, in which order."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from diffsteer.core.errors import InputError
from diffsteer.guidance.attention_edits import Edit, Identity
from diffsteer.guidance.attention_taps import linear, no_map, other_attention
from diffsteer.guidance.layer_names import matching
from diffsteer.guidance.queries import Branch
from diffsteer.guidance.row_dropout import no_dropout
from diffsteer.hf.hooks import replaced

Halves = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Reading of a call of the network.

    Attributes:
        sample: Name of the argument that holds the noisy sample, `(B, C, H, W)`, or packed.
        halves: Names of the conditions that a pipeline's batch holds, in order, when it guides.
        layers: Its self-attention modules, by name.
        output: Name of its last layer with weights.
        text_first: Whether text comes before the image in layers that attend to both.
        packed: Whether the sample is `(B, H/2 W/2, 4 C)`: patches of 2 x 2 in a row.
        flow_time: What it is told at the noisy end of a flow.
        null_class: Class of the null condition where the scheduler steps both halves (DiT).
    """

    sample: str
    halves: Halves
    layers: Callable[[nn.Module], dict[str, nn.Module]]
    output: str = "proj_out"
    text_first: bool = False
    packed: bool = False
    flow_time: float = 1000.0
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
    others = _inside_other_tokens(modules)
    return {
        name: module
        for name, module in modules.items()
        if _attends(module) and not name.startswith(others)
    }


def _attends(module: Any) -> bool:
    """Whether a module is a layer of attention of diffusers."""
    processor = type(getattr(module, "processor", None)).__name__
    return "AttnProcessor" in processor or (hasattr(module, "to_q") and processor != "NoneType")


def check_branch(network: nn.Module, layers: Mapping[str, nn.Module], branch: Branch) -> None:
    """Refuse a branch that a network of diffusers cannot answer, before it is evaluated."""
    ours = branch.dropout is not None and type(network).__module__.startswith("diffusers.")
    if ours and not any(isinstance(module, _DropoutNd) for module in network.modules()):
        raise no_dropout()
    edited = ((name, edit) for name, edit in branch.edits if isinstance(edit, Edit))
    for wanted, edit in (*edited, *((name, None) for name in branch.record)):
        for name in matching(list(layers), wanted):
            if linear(layers[name]):
                if not isinstance(edit, Identity):
                    raise no_map()
            elif not _taps(type(layers[name].processor)):
                raise other_attention(name)


def _taps(processor: Any) -> bool:
    """Whether a processor computes attention as taps need it, as far as its code shows."""
    if processor.__name__ in REPLACED or not processor.__module__.startswith("diffusers."):
        return True
    if not _native(processor):
        return False
    names = inspect.unwrap(processor.__call__).__code__.co_names
    return not {"scaled_dot_product_attention", "dispatch_attention_fn"}.isdisjoint(names)


def _native(processor: Any) -> bool:
    """Whether a processor takes the backend of scaled_dot_product_attention (not AnyFlow FAR's)."""
    return "native" in getattr(processor, "_SUPPORTED_BACKENDS", ("native",))


def _inside_other_tokens(modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Beginnings of names inside of modules whose tokens are not those of one image."""
    return tuple(f"{n}." for n, m in modules.items() if type(m).__name__ in OTHER_TOKENS)


def text_attention(network: nn.Module) -> dict[str, nn.Module]:
    """Modules of attention that may read a text, by name; none where the table knows of no text."""
    arguments = inspect.signature(type(network).forward).parameters
    if known_family(network) is not None and "encoder_hidden_states" not in arguments:
        return {}
    return {n: m for n, m in network.named_modules() if hasattr(m, "processor")}


def blocks_with_attention(network: nn.Module) -> dict[str, nn.Module]:
    """Innermost entries of lists of modules with attention inside, by name.

    They are the blocks of transformers, in UNets those of the transformers inside of its blocks.
    """
    modules = dict(network.named_modules())
    lists = {name for name, module in modules.items() if isinstance(module, nn.ModuleList)}
    attending = set()
    others = _inside_other_tokens(modules)
    for name, module in modules.items():
        if not hasattr(module, "processor") or name.startswith(others):
            continue
        while name and name.rpartition(".")[0] not in lists:
            name = name.rpartition(".")[0]
        attending.add(name)
    return {name: module for name, module in modules.items() if name and name in attending}


REPLACED = frozenset({"AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor"})
"""Processors that compute what AttnProcessor2_0 does in another way."""


@contextmanager
def by_sdpa(layer: Any) -> Iterator[None]:
    """Let a diffusers layer compute attention by scaled_dot_product_attention meanwhile."""
    with ExitStack() as stack:
        if type(layer.processor).__name__ in REPLACED:
            from diffusers.models.attention_processor import AttnProcessor2_0

            stack.callback(setattr, layer, "processor", layer.processor)
            layer.processor = AttnProcessor2_0()
        elif hasattr(layer.processor, "_attention_backend") and _native(layer.processor):
            # else that of set_attention_backend
            stack.enter_context(replaced(layer.processor, "_attention_backend", "native"))
        yield


class Patch(NamedTuple):
    """Square of an image or frame that is a token.

    Attributes:
        side: In pixels of the sample.
        channels_last: Whether channels are last in a token, `(side, side, C)`, not first.
    """

    side: int = 2
    channels_last: bool = False


PATCH = Patch()
CHANNELS_LAST = {"Ideogram4Pipeline": 2}
"""Sides of the patches that pipelines unpack after their last step alone, channels last."""


def unpacked(tokens: Tensor, size: Sequence[int], patch: Patch = PATCH) -> Tensor:
    """Put tokens of a patch each, `(B, h w, 4 C)`, at their places, `(B, C, 2 h, 2 w)`.

    Tokens of a video, of the size `(f, h, w)`, become `(B, C, f, 2 h, 2 w)`.
    """
    (*frames, h, w), p = size, patch.side
    inner = (p, p, -1) if patch.channels_last else (-1, p, p)
    patches = tokens.reshape(len(tokens), prod(frames), h, w, *inner)
    order = (0, 6, 1, 2, 4, 3, 5) if patch.channels_last else (0, 4, 1, 2, 5, 3, 6)
    return patches.permute(order).reshape(len(tokens), -1, *frames, p * h, p * w)


def packed(image: Tensor, patch: Patch = PATCH) -> Tensor:
    """Inverse of `unpacked`."""
    (b, c, *frames, h, w), p = image.shape, patch.side
    order = (0, 2, 3, 5, 4, 6, 1) if patch.channels_last else (0, 2, 3, 5, 1, 4, 6)
    patches = image.reshape(b, c, prod(frames), h // p, p, w // p, p).permute(order)
    return patches.reshape(b, prod(frames) * (h // p) * (w // p), p * p * c)


def patch_of(pipe: Any) -> Patch | None:
    """Patches of an image or frame that a pipeline packs into tokens; None where it does not."""
    if side := CHANNELS_LAST.get(type(pipe).__name__):
        return Patch(side, channels_last=True)
    if (pack := getattr(pipe, "_pack_latents", None)) is None:
        return None
    image = torch.arange(64.0).reshape(1, 4, 4, 4)
    sizes = {"batch_size": 1, "num_channels_latents": 4, "height": 4, "width": 4}
    config = getattr(getattr(pipe, "transformer", None), "config", None)
    sizes["patch_size"] = getattr(config, "patch_size", None) or 1
    given = {n: sizes[n] for n in inspect.signature(pack).parameters if n in sizes}
    as_channels = getattr(pipe, "_patchify_latents", lambda x: x)
    for latents in (as_channels(image), image[:, :, None]):
        with suppress(TypeError, ValueError, RuntimeError):  # of other dimensions, or of layers
            tokens = pack(latents, **given)
            patches = (Patch(2), Patch(1))
            return next((p for p in patches if torch.equal(packed(image, p), tokens)), None)
    return None


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
            f"{tokens} tokens are not an image of {h}x{w}: give img_ids with the place of each, "
            "rows and columns from 0"
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
    ),
}
"""Families by the class of their network."""


def known_family(network: nn.Module) -> Family | None:
    """Family of a network, or None where the table has none."""
    names = (cls.__name__ for cls in type(network).__mro__)
    return next((FAMILIES[name] for name in names if name in FAMILIES), None)


def count_classes(network: nn.Module) -> int:
    """Number of classes that a network is told by number, the null one left out; 0 for none.

    Class numbers of UNets with text are noise levels of their upscalers.
    """
    names = {"DiTTransformer2DModel": "num_embeds_ada_norm", "UNet2DModel": "num_class_embeds"}
    name = names.get(type(network).__name__)
    return (name and getattr(network.config, name, None)) or 0


def family_of(network: nn.Module) -> Family:
    """Family of a network."""
    if (family := known_family(network)) is None:
        raise InputError(
            f"{type(network).__name__} can be guided by steer(pipe, guidance) alone; all else is "
            f"for {', '.join(FAMILIES)}"
        )
    return family
