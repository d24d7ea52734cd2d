"""Attention edits and records in the UNets of ComfyUI, by its own hooks."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.guidance import Branch, Edit
from diffsteer.guidance.attention_edits import received
from diffsteer.guidance.image_tokens import in_grid

Block = tuple[str, int]


def block_of(layer: str, blocks: Sequence[Block]) -> Block:
    """Block that a layer of a guidance means: "mid", or as ComfyUI counts them, "output.3".

    Raises:
        InputError: no block of that name has self-attention that ComfyUI lets be replaced.
    """
    name, _, number = layer.replace("_", ".").partition(".")
    name = {"mid": "middle", "up": "output", "down": "input"}.get(name, name)
    chosen = [b for b in blocks if b[0] == name and number in ("", str(b[1]))]
    if not chosen:
        there = ", ".join(f"{kind}.{i}" for kind, i in blocks) or "none: it is no UNet"
        raise InputError(f"no attention block is called {layer!r} in this model: there are {there}")
    return chosen[0]


def attention_blocks(model: Any) -> list[Block]:
    """Blocks of a UNet that hold self-attention, in their order."""
    from comfy.ldm.modules.attention import SpatialTransformer

    unet, found = model.diffusion_model, []
    names = {"input": "input_blocks", "middle": "middle_block", "output": "output_blocks"}
    for kind, name in names.items():
        blocks = getattr(unet, name, ())
        parts = [blocks] if kind == "middle" and blocks else blocks
        for i, part in enumerate(parts):
            if any(isinstance(module, SpatialTransformer) for module in part.modules()):
                found.append((kind, i))
    return found


def edited(
    options: dict[str, Any], model: Any, branch: Branch, maps: dict[str, Tensor]
) -> dict[str, Any]:
    """Model options with the edits of a branch, which also fill `maps` with what it records."""
    from comfy.model_patcher import set_model_options_patch_replace

    if not branch.edits and not branch.record:
        return options
    options = {"transformer_options": {}, **options}  # ComfyUI changes what it is given
    blocks = attention_blocks(model)
    wanted: dict[Block, tuple[list[Edit], list[str]]] = {}
    for layer, edit in branch.edits:
        if isinstance(edit, Edit):
            wanted.setdefault(block_of(layer, blocks), ([], []))[0].append(edit)
    for layer in branch.record:
        wanted.setdefault(block_of(layer, blocks), ([], []))[1].append(layer)
    for (kind, number), (edits, records) in wanted.items():
        patch = _attention(edits, records, maps)
        options = set_model_options_patch_replace(options, patch, "attn1", kind, number)
    return options


def heads_of(extra: dict[str, Any]) -> tuple[Callable[..., Tensor], ...]:
    """Splitting of tokens into heads, the reverse, and attention of what is split."""
    from comfy.ldm.modules.attention import optimized_attention

    heads, precision = extra["n_heads"], extra["attn_precision"]

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def flat(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        parts = (flat(x) for x in (q, k, v))
        return split(optimized_attention(*parts, heads, mask, attn_precision=precision))

    return split, flat, attend


def _attention(
    edits: Sequence[Edit], records: Sequence[str], maps: dict[str, Tensor]
) -> Callable[..., Tensor]:
    """Self-attention of a block, `(B, tokens, heads x channels)`, edited and recorded."""

    def attention(
        q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any], mask: Any = None
    ) -> Tensor:
        split, flat, attend = heads_of(extra)
        size = in_grid(tuple(extra["original_shape"][-2:]), False, "", q.shape[1]).shape
        for layer in records:
            scores = received(split(q), split(k)).unflatten(-1, size)
            maps.setdefault(layer, scores)  # the first of the block's layers, as in pipelines
        out = None
        for edit in edits:
            out = edit(split(q), split(k), split(v), attend, size)
        return flat(attend(split(q), split(k), split(v), None) if out is None else out)

    return attention
