"""Layouts of calls of a network: where samples are in them, and what each row has of its own."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import upcast
from diffsteer.guidance.batching import rows_of
from diffsteer.guidance.each_part import Parts
from diffsteer.hf.batched_arguments import by_length, stackable, with_shared
from diffsteer.hf.conditions import Part
from diffsteer.hf.families import Patch, known_family, packed, size_of, unpacked
from diffsteer.hf.network import unwrap_compiled
from diffsteer.hf.several_images import SampledImage
from diffsteer.hf.token_places import grids_of

INPUTS, ROWS = "inputs of the network", "rows of the call"
"""Names, in a condition, of what its call gave the network for a sample, and of its rows there.

A row i of another call, in which the image has the same place, is ~i.
"""


@dataclass(frozen=True, eq=False, repr=False)
class Layout:
    """Form of a condition's call; conditions of one form may be rows of one batch.

    Attributes:
        part: One of them.
        tree: Arguments of its call with rows apart; None where batches are like that of the call.
        grid: Height and width of packed samples in tokens, of a video after its frames; where there
            is sound as well, of the video alone.
        patch: Patch that is a token.
    """

    part: Part
    tree: Mapping[str, Any] | None
    grid: tuple[int, ...] | None
    patch: Patch = Patch()

    @classmethod
    def of(cls, part: Part, divided: bool, patch: Patch | None = None) -> "Layout":
        """Layout of a part of a call, of a pipeline that packs patches of images into tokens."""
        network, rows = unwrap_compiled(part.call.module), len(part.call.inputs)
        arguments, tree = part.call.arguments, None
        grid: tuple[int, ...] | None = None
        with suppress(InputError):  # rows of several forms
            tree = by_length(arguments, rows) if divided else None
        if (family := known_family(network)) is not None:
            tree = with_shared(network, arguments, rows)
        if family is not None and family.packed:
            start, count = part.taken.start, part.sample.shape[1]
            grid = size_of(arguments["img_ids"][..., start : start + count, :], count)
        elif patch is not None and part.sample.ndim == 3:
            count, last = (*part.call.lengths, part.sample.shape[1])[0], part.taken.start < 0
            grid = next(iter(grids_of(arguments, count, last)), None)
        return cls(part, tree, grid, patch or Patch())

    @property
    def sample(self) -> Tensor:
        """Sample, `(B, *D)`, unpacked, channels first, in float32 or wider."""
        return self.unpacked(upcast(self.part.sample))

    @property
    def channels(self) -> int | None:
        """Channels of the network's input, where its configuration says them."""
        return getattr(unwrap_compiled(self.part.call.module).config, "in_channels", None)

    def turned(self, x: Tensor) -> Tensor:
        """Samples with channels first, and back.

        Frames may be before channels, `(B, F, C, H, W)`; of several images it is the sampled one.
        """
        if (sampled := SampledImage.of(self.part.call)) is not None:
            return sampled.taken(x) if x.ndim == 6 else sampled.whole(x)
        shape = self.part.call.inputs.shape
        frames_first = len(shape) == x.ndim == 5 and shape[2] == self.channels != shape[1]
        return x.transpose(1, 2) if frames_first else x

    def unpacked(self, x: Tensor) -> Tensor:
        """Samples, `(B, *D)`, channels first, with packed tokens at their places."""
        if self.grid is None or self.part.call.lengths:
            return self.turned(x)
        return unpacked(x, self.grid, self.patch)

    def packed(self, x: Tensor) -> Tensor:
        """Inverse of `unpacked`."""
        if self.grid is None or self.part.call.lengths:
            return self.turned(x)
        return packed(x, self.patch)

    @property
    def parts(self) -> Parts | None:
        """Video and sound, which are guided each by itself; None where a sample is one."""
        if not (lengths := self.part.call.lengths):
            return None
        if self.grid is None:
            return Parts(lengths)
        to_video = partial(unpacked, size=self.grid, patch=self.patch)
        return Parts(lengths, to_video, partial(packed, patch=self.patch))

    def condition(self, base: "Layout") -> "RowsOf":
        """Condition of this part, by the layout of another where that fits it as well."""
        if self.tree is None:
            return {self: {}}
        part, call, shared = self.part, self.part.call, self
        rows = torch.arange(len(call.inputs))[part.rows]
        if base.fits(self):
            shared, rows = base, rows if call is base.part.call else ~rows
        tree = rows_of(self.tree, part.rows, len(call.inputs))
        return {shared: {**tree, INPUTS: call.inputs[part.rows], ROWS: rows}}

    def fits(self, other: "Layout") -> bool:
        """Whether conditions of another layout can be rows of the same batch."""
        a, b = self.part, other.part
        if _form(a) != _form(b):
            return False
        return self.tree is not None and stackable(self.tree, other.tree)


def _form(part: Part) -> tuple[Any, ...]:
    """Equal for parts that may be rows of one batch."""
    call = part.call
    return call.module, call.listed, call.second, part.taken, part.given, part.sign, part.replaced


RowsOf = Mapping[Layout, Mapping[str, Any]]
"""A condition: its layout, and what each of its rows has of its own."""
