"""Conditions of ComfyUI with other texts: random ones (ICG), and two in one attention (NAG)."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, cat

from diffsteer.core.errors import InputError
from diffsteer.guidance.attention_edits import SecondContext
from diffsteer.guidance.icg import unrelated

from .attention import attention_blocks, heads_of

TEXT, POOLED = "c_crossattn", "y"
"""Keys under which ComfyUI keeps the tokens of a text, and its pooled embedding."""


def random_texts(entries: Sequence[Any], seeds: Sequence[int]) -> list[Any]:
    """Entries of a condition with a random text for each sample, as `ICG` of pipelines."""

    def other(entry: Any) -> dict[str, Tensor]:
        given = {name: entry["model_conds"][name].cond for name in _texts(entry, "ICG")}
        rows = {name: value.expand(len(seeds), *value.shape[1:]) for name, value in given.items()}
        made = unrelated({"encoder_hidden_states": rows[TEXT]}, seeds)
        changed = {TEXT: made["encoder_hidden_states"]}
        if POOLED in rows and entry.get("pooled_output") is not None:
            n = entry["pooled_output"].shape[-1]
            pooled = unrelated({"text_embeds": rows[POOLED][:, :n]}, seeds)["text_embeds"]
            changed[POOLED] = cat([pooled, rows[POOLED][:, n:]], dim=1)
        return changed

    return [_with(entry, other(entry)) for entry in entries]


def two_texts(
    entries: Sequence[Any], others: Sequence[Any], options: Any, model: Any, second: SecondContext
) -> tuple[list[Any], Any]:
    """Entries with the text of another condition behind their own, and options that read both.

    Raises:
        InputError: the model is no UNet, or the other condition has several parts.
    """
    from comfy.model_patcher import set_model_options_patch_replace

    blocks = attention_blocks(model)
    if not blocks or len(others) != 1:
        reason = "conditions of one part" if blocks else "a UNet (Stable Diffusion 1, 2, XL)"
        raise InputError(f"NAG in ComfyUI takes {reason}: take CFG or PAG")
    more = others[0]["model_conds"][TEXT].cond
    made, counts = [], set()
    for entry in entries:
        text = entry["model_conds"][_texts(entry, "NAG")[0]].cond
        counts.add(text.shape[1])
        made.append(_with(entry, {TEXT: cat([text, more.to(text)], dim=1)}))
    if len(counts) != 1:
        raise InputError("NAG takes positive conditions of one length: combine none, or take CFG")
    options, patch = {"transformer_options": {}, **options}, _reader(second, counts.pop())
    for kind, number in blocks:
        options = set_model_options_patch_replace(options, patch, "attn2", kind, number)
    return made, options


def _reader(second: SecondContext, count: int) -> Callable[..., Tensor]:
    """Attention of an image that reads two texts, the first of `count` tokens."""

    def attention(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        split, flat, attend = heads_of(extra)
        rows = split(q), split(k), split(v)
        both = [
            attend(rows[0], rows[1][:, :, part], rows[2][:, :, part], None)
            for part in (slice(count), slice(count, None))
        ]
        return flat(second.combined(*both))

    return attention


def _texts(entry: Any, name: str) -> list[str]:
    """Conditions of an entry that hold its text."""
    if TEXT not in entry.get("model_conds", {}):
        raise InputError(f"{name} finds no text in the conditions of this model: take PAG")
    return [key for key in (TEXT, POOLED) if key in entry["model_conds"]]


def _with(entry: Any, values: dict[str, Tensor]) -> Any:
    kinds = entry["model_conds"]
    changed = {name: kinds[name]._copy_with(value) for name, value in values.items()}
    return {**entry, "model_conds": {**kinds, **changed}}
