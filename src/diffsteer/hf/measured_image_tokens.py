"""Image tokens in the attention layers of a network, measured by moving the sample.

Networks put text before the image, after it or in layers of its own, and frames of a video into the
batch. Where the sample moves and the conditioning does not, the queries of a text are as before in
the first layer that sees it. In later layers, where all is mixed, the queries that follow the first
and the last pixel most show whether the image comes first or last.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.guidance.attention_edits import Size
from diffsteer.guidance.attention_taps import linear
from diffsteer.guidance.image_tokens import ImageTokens
from diffsteer.hf.conditions import Part
from diffsteer.hf.families import by_sdpa, joint_attention
from diffsteer.hf.recorded_queries import Crossing, Record, Recorded, calls_of
from diffsteer.hf.token_places import grids_of, places_of

SAME = 1e-4
"""Largest change of a token, relative to the layer's largest, that is rounding."""
Span = tuple[int, int]
"""First token of an image, and how many it has."""
Located = dict[str, tuple[nn.Module, ImageTokens, int]]
"""Layers by name, with their tokens of the image and the number of all their tokens."""


class MeasuredLayers(Mapping[str, nn.Module]):
    """Layers that attend from image to image, by name; measured when they are first asked for.

    Args:
        network: The network.
        run: Evaluates it for samples `(B, *D)`.
        x: Samples as it is given them, channels first.
        part: Condition whose call is evaluated.
        known: What was measured before, by what it depends on; added to.
    """

    def __init__(
        self,
        network: Any,
        run: Callable[[Tensor], Any],
        x: Tensor,
        part: Part,
        known: dict[Any, Located],
    ) -> None:
        self._network, self._run, self._x, self._part = network, run, x, part
        self._arguments, self._known = part.call.arguments, known
        self._batch, self._lengths = len(part.call.inputs), part.call.lengths

    @override
    def __getitem__(self, name: str) -> nn.Module:
        return self._layers[name][0]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    @override
    def __len__(self) -> int:
        return len(self._layers)

    @property
    def places(self) -> Mapping[str, ImageTokens]:
        """Tokens of the image in each layer."""
        return {name: tokens for name, (_, tokens, _) in self._layers.items()}

    @property
    def text_first(self) -> bool:
        """Whether text comes before the image in a layer."""
        return any(tokens.start or tokens.starts for tokens in self.places.values())

    def tokens(self, name: str, count: int, rows: Sequence[int] = ()) -> ImageTokens:
        """Tokens of the image in a layer of so many tokens, in some rows of the call or in all."""
        _, tokens, length = self._layers[name]
        if tokens.call is not None:  # of the image alone
            return tokens
        if count == tokens.count:  # in a block that joins the text in its attention alone
            return replace(tokens, start=0, starts=())
        if count == length or tokens.starts:
            return tokens.taken(rows) if rows else tokens
        after = length - tokens.count - tokens.start
        if (tokens.start == 0) == (after == 0):  # no text, or some before and some after
            raise InputError(
                f"{name} has {count} tokens where it was measured with {length}: its text has "
                "another length under this condition, or comes to the block by itself; edit "
                "attention under the prompt, give both prompts one length, or skip the block (SLG)"
            )
        return tokens if after else replace(tokens, start=count - tokens.count)

    @cached_property
    def _layers(self) -> Located:
        key = id(self._network), self._part.call.key, places_of(self._arguments)
        if key not in self._known:
            self._known[key] = self._measured()
        return self._known[key]

    def _measured(self) -> Located:
        layers = joint_attention(self._network)
        with torch.no_grad(), ExitStack() as stack:
            crossing = Crossing(layers if self._lengths else {}, stack)
            still, *moved = (self._recorded(layers, x) for x in (self._x, *moves(self._x)))
        still = {name: record for name, record in still.items() if name not in crossing.names}
        rows = []
        for row in range(self._batch):
            changes = {n: self._change(row, r, [m[n] for m in moved]) for n, r in still.items()}
            rows.append(self._located({n: c for n, c in changes.items() if c is not None}))
        alike = [{n: replace(t, start=0) for n, t in row.items()} for row in rows]
        if any(row != alike[0] for row in alike):
            raise InputError(
                "attention layers see the image otherwise under each prompt of this batch: edit "
                "attention with prompts of one length, or one prompt at a time"
            )
        located = {}
        for name, tokens in rows[0].items():
            starts = tuple(row[name].start for row in rows)
            places = tokens if len(set(starts)) == 1 else replace(tokens, starts=starts)
            located[name] = layers[name], places, still[name][0].q.shape[1]
        return located

    def _change(
        self, row: int, still: list[Recorded], moved: list[list[Recorded]]
    ) -> "Change | None":
        """Change of a row in the call of a layer that attends from image to image."""
        of_row = [calls_of(row, self._batch, records) for records in (still, *moved)]
        calls = zip(*of_row, strict=True)
        changes = [(i, change) for i, c in enumerate(calls) if (change := Change.of(row, *c))]
        if not changes:
            return None
        call, change = changes[0]
        return replace(change, call=call if len(changes) == 1 < len(of_row[0]) else None)

    def _recorded(self, layers: Mapping[str, nn.Module], x: Tensor) -> "dict[str, list[Recorded]]":
        """Rows, queries and keys of each call of each layer, projected, `(tokens, PROJECTED)`."""
        records: dict[str, list[Recorded]] = {}
        with ExitStack() as stack:
            for name, layer in layers.items():
                record = Record(records, name, self._batch)
                if not linear(layer):
                    stack.enter_context(by_sdpa(layer))
                record.hook(layer, stack)
            self._run(x)
        return records

    def _located(self, changes: "Mapping[str, Change]") -> dict[str, ImageTokens]:
        """Image tokens of the layers, in the order in which they run."""
        counts, located = set[int](), dict[str, ImageTokens]()
        exact: dict[int, Span] = {}  # by the number of tokens, of the first layer that has so many
        for name, change in changes.items():
            length, (frames, left) = len(change.all), divmod(change.rows, self._batch)
            if change.others:
                counts.add(exact.setdefault(length, change.span)[1])
            spans = {(start, n) for n in counts if n <= length for start in (0, length - n)}
            if length in exact:
                spans.add(exact[length])
            if not counts or len(self._shape(length, frames)) > 1:
                spans.add((0, length))
            if change.key is not None or length in self._lengths:
                spans = {(0, length)}
            if spans and not left:
                start, count = min(spans, key=change.distance)
                shape = (count,) if self._of_sound(change) else self._shape(count, frames)
                located[name] = ImageTokens(shape, start, frames, change.key, change.call)
                counts = counts or {count}
        return located

    def _of_sound(self, change: "Change") -> bool:
        """Whether a layer is of the second of two samples: its last token moves it more."""
        length, lengths = len(change.all), self._lengths
        alike = length in lengths[:1] and bool(change.first.max() >= change.last.max())
        return length in lengths and not alike

    def _shape(self, count: int, folded: int) -> Size:
        """Shape of the tokens of an image or video, or their number where no grid fits."""
        size = self._x.shape[2:]
        if self._x.ndim < 4:
            last = self._part.taken.start < 0
            return next(iter(grids_of(self._arguments, count, last)), (count,))
        most = size[0] if len(size) > 2 and folded == 1 else 1
        for frames in dict.fromkeys((most, -(-most // 2), *range(most, 0, -1))):
            h, w = size[-2:]
            while frames * h * w > count and h * w > 1:
                h, w = -(-h // 2), -(-w // 2)
            if frames * h * w == count:
                return (frames, h, w) if most > 1 else (h, w)
        return (count,)


@dataclass(frozen=True, eq=False)
class Change:
    """Response of the queries of a layer to the sample.

    Attributes:
        rows: Rows of its batch.
        all: Change of each token where the whole sample moves, `(tokens,)`.
        first: The same, where its first pixel or token moves.
        last: The same, where its last one moves.
        key: First key of the image, where the queries are the image alone and the keys are not.
        call: As in `ImageTokens`.
    """

    rows: int
    all: Tensor
    first: Tensor
    last: Tensor
    key: int | None = None
    call: int | None = None

    @classmethod
    def of(cls, row: int, still: "Recorded", *moved: "Recorded") -> "Change | None":
        """Change of a row; None for a layer that attends to a text, or not to itself."""
        if len(still.q) != len(still.k) or torch.equal(moved[0].k, still.k):
            return None
        row = min(row, len(still.q) - 1)
        parts = [(record.q[row] - still.q[row]).norm(dim=1) for record in moved]
        change = cls(still.rows, *parts)
        if parts[0].max() == 0 or still.q.shape == still.k.shape:
            return change if parts[0].max() > 0 else None
        # keys of a text beside those of the image, which alone follow the sample
        keys = (moved[0].k[row] - still.k[row]).norm(dim=1)
        followed = (keys > SAME * keys.max()).nonzero().flatten()
        run = len(followed) == int(followed[-1] - followed[0]) + 1 == len(parts[0])
        return replace(change, key=int(followed[0])) if run and not change.others else None

    @property
    def others(self) -> int:
        """Tokens that did not follow the sample."""
        return int((self.all <= SAME * self.all.max()).sum())

    @property
    def span(self) -> Span:
        """First token that followed the sample, and the number of those that did."""
        followed = (self.all > SAME * self.all.max()).nonzero()
        return int(followed[0]), len(followed)

    def distance(self, span: Span) -> int:
        """Distance of the ends of a span from where the first and the last pixel act most."""
        start, count = span
        first, last = int(self.first.argmax()), int(self.last.argmax())
        return abs(first - start) + abs(last - (start + count - 1))


def moves(x: Tensor) -> Iterator[Tensor]:
    """Samples with all, with only the first, and with only the last pixel or token changed.

    Args:
        x: Samples, `(B, C, *space)`, or packed, `(B, tokens, C)`.
    """
    yield 3 - x
    dims = range(2, x.ndim) if x.ndim > 3 else range(1, 2)
    for last in (False, True):
        moved = x.clone()
        pixel = moved
        for dim in dims:
            pixel = pixel.narrow(dim, x.shape[dim] - 1 if last else 0, 1)
        pixel.mul_(-1).add_(3)
        yield moved
