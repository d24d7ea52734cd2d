"""Queries and keys of attention layers, kept while a network runs."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.guidance.attention_mode import AttentionMode
from diffsteer.guidance.attention_taps import linear

PROJECTED = 8
"""Random projections of a query that are kept of it."""


class Recorded(NamedTuple):
    """Queries and keys of a call, `(samples, tokens, PROJECTED)`, and the rows of its batch."""

    rows: int
    q: Tensor
    k: Tensor


class Record(AttentionMode):
    """Keeps projected queries and keys of a layer, of each call of attention in its first run."""

    def __init__(self, records: dict[str, list[Recorded]], name: str, batch: int) -> None:
        super().__init__()
        self.records, self.name, self.batch = records, name, batch
        self.ended = False

    @override
    def __exit__(self, *args: Any) -> None:
        self.ended = True
        super().__exit__(*args)  # type: ignore[no-untyped-call]

    @override
    def attend(self, q: Tensor, k: Tensor, v: Tensor, rest: dict[str, Any]) -> Tensor:
        if not self.ended:
            self.keep(q, k)
        return F.scaled_dot_product_attention(q, k, v, **rest)

    def keep(self, q: Tensor, k: Tensor) -> None:
        """Keep queries and keys, `(rows, heads, tokens, channels)`."""
        frames = max(len(q) // self.batch, 1)
        parts = (_projected(x[::frames]) for x in (q, k))
        self.records.setdefault(self.name, []).append(Recorded(len(q), *parts))

    @override
    def hook(self, layer: Any, stack: ExitStack) -> None:
        """Keep queries and keys of a layer, of linear attention too, until the stack is closed."""
        if not linear(layer):
            super().hook(layer, stack)
            return
        queries: list[Tensor] = []

        def keep(_: nn.Module, args: Any, keys: Tensor) -> None:
            self.keep(queries.pop()[:, None], keys[:, None])

        noted = layer.to_q.register_forward_hook(lambda _, args, out: queries.append(out))
        stack.callback(noted.remove)
        stack.callback(layer.to_k.register_forward_hook(keep).remove)


class Crossing:
    """Layers whose queries and keys are of two samples (video and sound), until a stack is closed.

    Attributes:
        names: Those that ran.
    """

    def __init__(self, layers: Mapping[str, nn.Module], stack: ExitStack) -> None:
        self.names, self._inputs = set[str](), dict[str, Tensor]()
        for name, layer in layers.items():
            q, k = getattr(layer, "to_q", None), getattr(layer, "to_k", None)
            if isinstance(q, nn.Module) and isinstance(k, nn.Module):
                for part, note in ((q, self._note_queries), (k, self._note_keys)):
                    stack.callback(part.register_forward_pre_hook(partial(note, name)).remove)

    def _note_queries(self, name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._inputs[name] = args[0]

    def _note_keys(self, name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        asked = self._inputs.pop(name, args[0])
        if asked.shape != args[0].shape or not torch.equal(asked, args[0]):
            self.names.add(name)


def calls_of(row: int, batch: int, records: Sequence[Recorded]) -> list[Recorded]:
    """Records that hold a row of a batch: of all calls, or, of a call for each row, its own."""
    rows = [record.rows for record in records]
    if len(records) < 2 or sum(rows) != batch:
        return list(records)
    owner = [i for i, count in enumerate(rows) for _ in range(count)][row]
    start, record = row - sum(rows[:owner]), records[owner]
    return [Recorded(batch, record.q[start : start + 1], record.k[start : start + 1])]


def _projected(x: Tensor) -> Tensor:
    """Random projections of tokens, `(rows, tokens, PROJECTED)`, float32."""
    tokens = x.transpose(1, 2).flatten(2).float()
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(tokens.shape[-1], PROJECTED, generator=generator)
    return tokens @ matrix.to(tokens.device)
