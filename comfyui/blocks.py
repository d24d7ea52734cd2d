"""Skipped blocks of ComfyUI's networks: SLG, STG and S2."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from diffsteer.core.errors import InputError
from diffsteer.guidance import Branch
from diffsteer.guidance.block_edits import BlockEdit, SkipBlock, blocks_edited
from diffsteer.guidance.layer_names import matching

LISTS = {
    "joint_blocks": "double_block",
    "double_blocks": "double_block",
    "single_blocks": "single_block",
    "blocks": "double_block",
}
"""Lists of blocks of transformers (Stable Diffusion 3, Flux, Wan), and ComfyUI's word for each."""


@contextmanager
def skipping(options: Any, model: Any, branch: Branch, batch: int) -> Iterator[Any]:
    """Let the blocks that a branch skips return what they are given; yields options for it.

    Raises:
        InputError: the model has no such blocks, or runs them in a way that cannot be changed.
    """
    edits = {}
    for layer, edit in branch.edits:
        if isinstance(edit, SkipBlock):
            names = matching(list(skippable(model)), layer, "block with attention")
            edits |= dict.fromkeys(names, edit)
        elif isinstance(edit, BlockEdit):
            raise InputError(
                "guidance by shuffled tokens works in pipelines of diffusers: in ComfyUI take PAG, "
                "SEG or SLG"
            )
    blocks, names, hits = skippable(model) if edits else {}, list(edits), set[str]()
    modules = {name: block for name, block in blocks.items() if not isinstance(block, tuple)}
    rows = {name: [(slice(0, batch), edits[name])] for name in names if name in modules}
    for name in (name for name in names if name not in modules):
        mask = [edits[name].acts(i, name, names) for i in range(batch)]
        options = _replaced(options, blocks[name], name, mask, hits)
    with blocks_edited(modules, rows, batch, lambda *_: None):
        yield options
    if idle := edits.keys() - modules.keys() - hits:
        raise InputError(f"this model does not let block {min(idle)!r} be skipped: take CFG or PAG")


def skippable(model: Any) -> dict[str, Any]:
    """Blocks with attention inside: modules of UNets, "input.3.0", "mid.0"; places of others."""
    from comfy.ldm.modules.attention import BasicTransformerBlock

    blocks: dict[str, Any] = {}
    for name, module in model.diffusion_model.named_modules():
        parts = name.split(".")
        if isinstance(module, BasicTransformerBlock):
            kind = parts[0].removesuffix("_blocks")
            place = "mid" if kind == "middle_block" else f"{kind}.{parts[1]}"
            blocks[f"{place}.{sum(n.startswith(f'{place}.') for n in blocks)}"] = module
        elif len(parts) == 2 and parts[0] in LISTS:
            blocks[name] = (LISTS[parts[0]], int(parts[1]))
    return blocks


def _replaced(
    options: Any, place: tuple[str, int], name: str, mask: Sequence[bool], hits: set[str]
) -> Any:
    """Options by which some samples skip a block of a transformer."""
    from comfy.model_patcher import set_model_options_patch_replace

    def skip(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        hits.add(name)
        given = {key: args[key] for key in ("img", "txt") if args.get(key) is not None}
        if all(mask):
            return given
        copies = {key: value.clone() for key, value in given.items()}  # blocks add in place
        out = extra["original_block"]({**args, **copies})
        return {key: _chosen(mask, given.get(key), value) for key, value in out.items()}

    options = {"transformer_options": {}, **options}
    return set_model_options_patch_replace(options, skip, "dit", *place)


def _chosen(mask: Sequence[bool], given: Any, out: Any) -> Any:
    if out is None:
        return None
    rows = torch.tensor(mask, device=out.device).repeat(len(out) // len(mask))
    return torch.where(rows.view(-1, *[1] * (out.ndim - 1)), given, out)
