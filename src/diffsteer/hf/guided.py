"""A network of diffusers, its guide and a guidance: one guided output for all conditions."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level, upcast
from diffsteer.core.noise import number
from diffsteer.guidance import Guidance
from diffsteer.guidance.denoiser import Cond, Denoiser, Network
from diffsteer.guidance.memory import Store
from diffsteer.hf.adapters import adapted
from diffsteer.hf.architectures import (
    blocks_with_attention,
    by_sdpa,
    check_branch,
    family_of,
    known_family,
    packed,
    size_of,
    text_attention,
    unpacked,
)
from diffsteer.hf.call import NetworkCall
from diffsteer.hf.network import PipelineNetwork, place_of, uncompiled, unwrap_compiled
from diffsteer.hf.second_text import with_text_of
from diffsteer.hf.timesteps import StepTracker, level_at, next_level

Size = tuple[int, int]


class Guided:
    """Answers calls of a network as a guidance asks for it.

    Args:
        module: A network of a known family, maybe compiled.
        guidance: What guides.
        guide: For autoguidance, a second network for the same latents and conditions.
        max_rows: Most rows of one pass.
    """

    def __init__(
        self, module: Any, guidance: Guidance, guide: Any = None, max_rows: int | None = None
    ) -> None:
        self.module, self.guide = module, guide
        self.guidance, self.max_rows = guidance, max_rows
        self.family = family_of(unwrap_compiled(module))
        if guide is not None:
            _check_fit(unwrap_compiled(module), unwrap_compiled(guide))
        inner = [unwrap_compiled(m) for m in (module, guide) if m is not None]
        self._inside = [
            (self.family.layers(m), blocks_with_attention(m), text_attention(m)) for m in inner
        ]
        blocks = (block for m in (module, guide) if m is not None for block in m.modules())
        compiled = any(getattr(block, "_compiled_call_impl", None) for block in blocks)
        # blocks that are compiled in place; asked for only where there are any, since it is slow
        self._eagerly = uncompiled if compiled else nullcontext
        self._size: tuple[Any, Size] | None = None
        self._seeds: tuple[int, ...] = ()
        self._memory = Store()
        self._tapping = False

    def __call__(self, call: NetworkCall) -> Tensor:
        """Guided output for one condition, `(B, *D)`, as the network would return it."""
        network, level, conds = call.network, call.level, call.conds
        if call.step.first and self.guide is not None:
            _check_residuals(
                unwrap_compiled(self.module), unwrap_compiled(self.guide), conds["cond"]
            )
        size = self._tokens(call) if self.family.packed else None
        x = upcast(call.sample if size is None else unpacked(call.sample, size))
        if call.step.first or len(self._seeds) != len(x):
            self._seeds = seeds_of(x)
        if call.step.first:
            self._memory = Store()
        dtype, prediction = call.inputs.dtype, network.prediction
        nets = {"main": self._net(network, self.module, level, dtype, size)}
        if self.guide is self.module:
            nets["guide"] = nets["main"]
        elif self.guide is not None:
            second = replace(
                network, module=unwrap_compiled(self.guide), forward=self.guide.forward
            )
            nets["guide"] = self._net(second, self.guide, level, dtype, size)
        settings = self.guidance, self.max_rows, network.schedule, self._seeds, call.step.step
        tracker = call.reader.tracker
        ahead = next_level(tracker, call.step.step, partial(level_at, network.schedule))
        denoiser = Denoiser(nets, conds, prediction, *settings, ahead, self._memory)
        if call.step.first:
            self._dry_run(denoiser, x, tracker)
        base, shift = denoiser.predict(x, level)
        assert shift is not None
        out = base.out + prediction.output_shift(shift, level)
        if base.variance is not None:
            out = torch.cat([out, base.variance], dim=1)
        return out if size is None else packed(out)

    def _dry_run(self, denoiser: Denoiser, x: Tensor, tracker: StepTracker) -> None:
        """Ask all that later steps will ask, so that what is missing shows before the first call.

        On a small sample. At each level the output has to fix x0, whether a guidance acts or not.
        """
        small, schedule = x.new_zeros(1, x.shape[1], 8, 8), denoiser.schedule
        assert schedule is not None
        alone = replace(denoiser, seeds=None)
        for step, time in tracker.remaining():
            level = level_at(schedule, time)
            denoiser.prediction.x0(small, small, level)
            ahead = next_level(tracker, step, partial(level_at, schedule))
            replace(alone, step=step, next=ahead).dry_run(small, level)

    def _net(
        self,
        network: PipelineNetwork,
        module: Any,
        now: Level,
        dtype: torch.dtype,
        size: Size | None,
    ) -> Network:
        """Wrap a network for the engine: float32 and `(B, C, H, W)` outside, its own form inside.

        A compiled network runs uncompiled where something in it is touched, since compiled code
        ignores that.
        """

        def evaluate(x: Tensor, level: Level, cond: Cond) -> Tensor:
            eager = module is not network.module and self._tapping
            chosen = replace(network, forward=network.module.forward) if eager else network
            other = None if level is now else level
            if size is None:
                return chosen.evaluate(x, cond, dtype, other)
            return unpacked(chosen.evaluate(packed(x), cond, dtype, other), size)

        patch = 2 if self.family.packed else getattr(network.module.config, "patch_size", None) or 1
        layers, blocks, texts = self._inside[module is not self.module]
        settings = by_sdpa, patch, self.family.text_first, self._touched
        check = partial(check_branch, network.module, layers)
        acting = partial(adapted, network.module)
        sizes = "UNet" in type(network.module).__name__ and network.place.certain
        more: dict[str, Any] = {
            "second": with_text_of,
            "attention": texts,
            "adapted": acting,
            "check": check,
            "sizes": sizes,
        }
        return Network(evaluate, layers, *settings, **more, blocks=blocks)

    def _tokens(self, call: NetworkCall) -> Size:
        """Height and width of a packed sample in tokens; read once for each tensor of places."""
        ids = call.arguments["img_ids"]
        if self._size is None or self._size[0] is not ids:
            self._size = (ids, size_of(ids, call.inputs.shape[1]))
        return self._size[1]

    @contextmanager
    def _touched(self) -> Iterator[None]:
        """Run the network where hooks and function modes reach it."""
        before, self._tapping = self._tapping, True
        try:
            with self._eagerly():
                yield
        finally:
            self._tapping = before


def seeds_of(start: Tensor) -> tuple[int, ...]:
    """A seed for each sample, from the signs of 256 values that its sampling starts from.

    So a sample has the same one alone and in any batch, and in half precision, which rounds values
    and keeps signs. Reads these values alone.
    """
    flat = start.detach().flatten(1)
    signs = flat[:, :: -(-flat.shape[1] // 256)].signbit().cpu().numpy()
    return tuple(number(row.tobytes()) for row in signs)


def _check_residuals(main: Any, guide: Any, cond: Cond) -> None:
    """Check that what a ControlNet or adapter adds to the network's features fits the guide's."""
    residuals = [n for n in cond if "additional_residual" in n and cond[n] is not None]
    layouts = [
        [getattr(m.config, name, None) for name in ("block_out_channels", "layers_per_block")]
        for m in (main, guide)
    ]
    if residuals and layouts[0] != layouts[1]:
        raise InputError(
            "the pipeline adds features of a ControlNet or adapter inside of its network, which "
            "do not fit a guide of another size: guide without it, or by a network of this size"
        )


CONDITIONED = (
    *("addition_embed_type", "class_embed_type", "num_class_embeds", "num_embeds_ada_norm"),
    *("encoder_hid_dim", "projection_class_embeddings_input_dim", "pooled_projection_dim"),
    *("time_cond_proj_dim", "guidance_embeds"),
)
"""What the configurations of networks say of the conditions that they take."""


def _check_fit(main: Any, guide: Any) -> None:
    if family_of(main) != known_family(guide):
        raise InputError(
            f"a guide of {type(guide).__name__} does not take what a {type(main).__name__} is "
            "called with: give a network of the same architecture"
        )
    sizes, others = ((m.config.in_channels, place_of(m).size) for m in (main, guide))
    if sizes != others:
        raise InputError(
            f"the guide takes {others[0]} channels and returns {others[1]}, the network {sizes[0]} "
            f"and {sizes[1]}: both must see the same latents"
        )
    for width in ("cross_attention_dim", "joint_attention_dim", "caption_channels"):
        widths = [getattr(m.config, width, None) for m in (main, guide)]
        if widths[0] != widths[1]:
            raise InputError(
                f"the guide reads text of width {widths[1]}, the network of width {widths[0]}: "
                "both must take the same prompt"
            )
    for name in CONDITIONED:
        own, other = (getattr(m.config, name, None) for m in (main, guide))
        if own != other:
            raise InputError(
                f"the guide has {name}={other!r}, the network {own!r}: both must take the same "
                "conditions"
            )
