"""Edits, dropout, adapters and records of branches, together in one pass of a network."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from diffsteer.guidance.attention_taps import Tap, tapped
from diffsteer.guidance.block_edits import BlockEdit, ShuffleTokens, blocks_edited
from diffsteer.guidance.image_tokens import Locate, in_grid
from diffsteer.guidance.network import Cond, Network
from diffsteer.guidance.queries import Branch
from diffsteer.guidance.row_dropout import Dropout, dropped

Maps = dict[str, list[Tensor]]
"""Attention scores of the parts of a branch, by layer."""


@contextmanager
def edited(
    net: Network, group: list[Branch], maps: list[Maps], rows: slice, x: Tensor, cond: Cond
) -> Iterator[None]:
    """Let all that branches ask for act in a pass over some rows of their stack.

    Args:
        net: The network.
        group: The branches, stacked.
        maps: Receive what each of them records.
        rows: Rows of the stack that are evaluated.
        x: The stack, `(rows, *D)`.
        cond: Condition of the rows that are evaluated.
    """
    size = len(x) // len(group)
    first, batch = net.place(cond) or (0, rows.stop - rows.start)
    changes = _Changes()
    for i, branch in enumerate(group):
        start, stop = max(i * size, rows.start), min((i + 1) * size, rows.stop)
        if start < stop:
            own = slice(start - rows.start + first, stop - rows.start + first)
            changes.add(net, branch, maps[i], own, slice(start - i * size, stop - i * size))
    locate = located(net, x, cond) if changes.taps or changes.shuffles else None
    layers = list(net.layers) if changes.shuffles else []  # may be measured, by other passes
    adapter = group[0].adapter
    with ExitStack() as stack:
        if changes.any or adapter is not None:
            deep = bool(changes.blocks or changes.drops) or adapter is not None
            stack.enter_context(net.touched(deep))
        if adapter is not None:
            stack.enter_context(net.adapted(adapter))
        if changes.drops:
            stack.enter_context(dropped(changes.drops, batch))
        places = partial(_places, net, layers, locate)
        stack.enter_context(blocks_edited(net.blocks, changes.blocks, batch, places))
        if locate is not None:
            stack.enter_context(tapped(net.layers, changes.taps, locate, net.using, batch))
        yield


def located(net: Network, x: Tensor, cond: Cond, second: Cond | None = None) -> Locate:
    """Function that finds the tokens of the image in layers, for samples of the shape of `x`.

    Where a second text is given, its samples come after those of the condition.
    """
    grid = (x.shape[-2] // net.patch, x.shape[-1] // net.patch)
    return net.locate(cond, second) if net.locate else partial(in_grid, grid, net.text_first)


@dataclass(eq=False)
class _Changes:
    """Changes and records of a pass, by layer or block, each with its rows."""

    taps: dict[str, Tap] = field(default_factory=dict)
    blocks: dict[str, list[tuple[slice, BlockEdit]]] = field(default_factory=dict)
    drops: list[tuple[slice, Dropout]] = field(default_factory=list)

    @property
    def any(self) -> bool:
        return bool(self.taps or self.blocks or self.drops)

    @property
    def shuffles(self) -> bool:
        edits = (edit for parts in self.blocks.values() for _, edit in parts)
        return any(isinstance(edit, ShuffleTokens) for edit in edits)

    def add(self, net: Network, branch: Branch, maps: Maps, rows: slice, samples: slice) -> None:
        """Add what a branch asks for in its rows, which are these samples."""
        for wanted, edit in branch.edits:
            for name in net.matching(wanted, edit):
                if isinstance(edit, BlockEdit):
                    own = replace(edit, seeds=edit.seeds[samples])
                    self.blocks.setdefault(name, []).append((rows, own))
                else:
                    self.taps.setdefault(name, Tap(net.score)).edits.append((rows, edit))
        for wanted in branch.record:
            name = net.matching(wanted)[0]
            self.taps.setdefault(name, Tap(net.score)).records.append((rows, maps[wanted]))
        if branch.dropout is not None:
            dropout = Dropout(branch.dropout.p, branch.dropout.seeds[samples])
            self.drops.append((rows, dropout))


def _places(
    net: Network, layers: list[str], locate: Locate | None, block: str, count: int, row: int
) -> slice | None:
    """Tokens of the image among those of a block, from a layer of attention inside of it."""
    inner = [name for name in layers if f"{name}.".startswith(f"{block}.")]
    if locate is None or (not inner and net.locate is not None):
        return None
    tokens = locate(inner[0] if inner else block, count).of(row)
    start = tokens.key if tokens.key is not None and count > tokens.count else tokens.start
    return slice(start, start + tokens.count)
