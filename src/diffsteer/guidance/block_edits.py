"""Edits of what whole blocks of a network take and return, for some samples of a batch.

A block takes tokens of an image, maybe with those of a text, and returns them with something added.
Which of its arguments an output replaces is seen from shapes and values, not from its class.

Source: the skipped layers of Stable Diffusion 3.5; Hyung et al. 2024 (STG),
https://arxiv.org/abs/2411.18664; Rajabi et al. 2025 (TPG), https://arxiv.org/abs/2506.10036.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffsteer.core.errors import InputError
from diffsteer.core.noise import number

Places = Callable[[str, int, int], slice | None]
"""From a block, its number of tokens and a row to those of the image; None where not known."""


@dataclass(frozen=True)
class SkipBlock:
    """A block returns what it was given.

    Args:
        share: Of the blocks, for each sample; drawn by its seed where it is below 1, at least one.
        seeds: One for each sample, where blocks are drawn.
    """

    share: float = 1.0
    seeds: tuple[int, ...] = field(default=(), kw_only=True)

    def acts(self, i: int, name: str, names: Sequence[str]) -> bool:
        """Whether the sample i skips the block; `names` are all that it may."""
        if self.share == 1:
            return True
        order = sorted(names, key=lambda other: number(f"{self.seeds[i]} {other}".encode()))
        return name in order[: max(1, round(self.share * len(names)))]


@dataclass(frozen=True)
class ShuffleTokens:
    """A block is given the tokens of the image in an order drawn for each sample and block."""

    seeds: tuple[int, ...]

    def shuffled(self, tokens: Tensor, i: int, name: str) -> Tensor:
        """Tokens of the sample i, `(rows, tokens, C)`, at other places."""
        generator = torch.Generator().manual_seed(number(f"{self.seeds[i]} {name}".encode()))
        order = torch.randperm(tokens.shape[1], generator=generator)
        return tokens[:, order.to(tokens.device)]


BlockEdit = SkipBlock | ShuffleTokens
"""A change of a block."""


@dataclass(eq=False)
class _Hook:
    """Edits of one block in a pass.

    Attributes:
        name: Of the block.
        batch: Rows of the pass.
        places: Finds the tokens of the image.
        skips: Rows that skip the block.
        shuffles: Rows whose tokens are shuffled, each with its index in the edit.
        hits: How often the block ran.
    """

    name: str
    batch: int
    places: Places
    skips: list[int] = field(default_factory=list)
    shuffles: list[tuple[int, int, ShuffleTokens]] = field(default_factory=list)
    hits: int = 0

    def add(self, rows: slice, edit: BlockEdit, names: Sequence[str]) -> None:
        """Let an edit act in some rows, one for each of its samples."""
        for i, row in enumerate(range(rows.start, rows.stop)):
            if isinstance(edit, ShuffleTokens):
                self.shuffles.append((row, i, edit))
            elif edit.acts(i, self.name, names):
                self.skips.append(row)

    def before(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        """Shuffle the first argument, the tokens of the image."""
        self.hits += 1
        if not self.shuffles:
            return None
        named = inspect.signature(block.forward).bind(*args, **kwargs).arguments
        first, given = next(iter(named.items()))
        tokens = given.flatten(2).transpose(1, 2) if given.ndim == 4 else given
        alone = given.ndim == 4 or named.get("encoder_hidden_states") is not None
        changed = tokens.clone()
        for row, i, edit in self.shuffles:
            (rows,) = self._rows(row, tokens)
            here = rows, self._image(tokens, alone, rows.start)
            changed[here] = edit.shuffled(tokens[here], i, self.name)
        if given.ndim == 4:
            changed = changed.transpose(1, 2).reshape(given.shape)
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, first: changed})

    def after(self, block: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Put what the block was given in the place of its output."""
        if not self.skips:
            return None
        given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        if isinstance(output, tuple):
            return tuple(self._skipped(v, given) for v in output)
        return self._skipped(output, given)

    def _skipped(self, output: Any, given: list[Tensor]) -> Any:
        if not isinstance(output, Tensor):
            return output
        alike = [x for x in given if x.shape == output.shape]
        if not alike:
            raise InputError(
                f"block {self.name!r} returns {tuple(output.shape)}, the shape of nothing that it "
                "is given, so it cannot be skipped: name another"
            )
        if len(alike) > 1:  # a block adds to what it is given, so the nearest is what it replaces
            alike.sort(key=lambda x: float((output - x).float().norm()))
        changed = output.clone()
        for row in self.skips:
            rows = self._rows(row, output)
            changed[rows] = alike[0][rows]
        return changed

    def _image(self, tokens: Tensor, alone: bool, row: int) -> slice:
        """Tokens of the image in a row; all where a text is an argument of its own."""
        place = self.places(self.name, tokens.shape[1], row) if tokens.ndim == 3 else None
        if place is None and alone and tokens.ndim == 3:
            place = slice(None)
        if place is None:
            raise InputError(
                f"block {self.name!r} takes {tuple(tokens.shape)}, in which the tokens of the "
                "image are not known, so they cannot be shuffled: skip it (SLG), or name another"
            )
        return place

    def _rows(self, row: int, x: Tensor) -> tuple[slice, ...]:
        """Where a row of the pass is: it may have frames of its own, or come after the tokens."""
        each, left = divmod(len(x), self.batch)
        if each != 1 and x.ndim > 2 and x.shape[1] == self.batch and not self.shuffles:
            return slice(None), slice(row, row + 1)
        if left or not each:
            raise InputError(
                f"block {self.name!r} sees {len(x)} rows in a pass of {self.batch}, so that its "
                "samples cannot be told apart: name another"
            )
        return (slice(row * each, (row + 1) * each),)


BlockEdits = Mapping[str, Sequence[tuple[slice, BlockEdit]]]
"""Rows of a pass and the edit for them, by block; its seeds are those of the rows."""


@contextmanager
def blocks_edited(
    blocks: Mapping[str, nn.Module], edits: BlockEdits, batch: int, places: Places
) -> Iterator[None]:
    """Let edits act in the blocks of the same names while the context is open."""
    hooks = [_Hook(name, batch, places) for name in edits]
    with ExitStack() as stack:
        for hook in hooks:
            for rows, edit in edits[hook.name]:
                hook.add(rows, edit, list(edits))
            block = blocks[hook.name]
            stack.callback(block.register_forward_pre_hook(hook.before, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(hook.after, with_kwargs=True).remove)
        yield
    if idle := [hook.name for hook in hooks if not hook.hits]:
        raise InputError(f"block {idle[0]!r} did not run, so it cannot be edited: name another")
