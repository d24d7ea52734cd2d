"""Edits and records of attention, for some rows of a batch, in any network.

Inside chosen layers every call of `scaled_dot_product_attention` passes through a tap. The tap
leaves other rows as they are; edited rows get what the edit makes of their query, key and value. No
processor is written for any architecture. A tap that is never hit raises: its layer computes
attention in another way.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.guidance.attention_edits import Edit, Identity, in_plane, received
from diffsteer.guidance.attention_mode import AttentionMode
from diffsteer.guidance.image_tokens import ImageTokens, Locate

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From queries, keys and values of the image tokens to their attention map, `(B, tokens)`."""


@dataclass(eq=False)
class Tap:
    """Edits and records of one layer of attention.

    Attributes:
        score: Attention map that is recorded; None for that of `received`.
        edits: Rows of the batch and the edit for them.
        records: Rows whose scores are wanted, each with a list that receives them, `(rows, h, w)`.
        hits: How often the layer computed attention.

    Edits and records see the tokens of the image first, whatever their order in the layer is.
    """

    score: Score | None = None
    edits: list[tuple[slice, Edit]] = field(default_factory=list)
    records: list[tuple[slice, list[Tensor]]] = field(default_factory=list)
    hits: int = 0

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rest: Mapping[str, Any],
        tokens: ImageTokens,
        start: int = 0,
    ) -> Tensor:
        """Attention of all rows, those from `start` on, with those of the edits replaced."""
        if k.shape[2] != q.shape[2]:
            if tokens.key is None:
                raise InputError(
                    f"a layer attends from {q.shape[2]} tokens to {k.shape[2]} others, which is no "
                    "self-attention: guide by another layer"
                )
            k, v = (part.roll(-tokens.key, dims=2) for part in (k, v))
            rest = _rolled(rest, -tokens.key, dims=(-1,))
        if text := tokens.start:
            q, k, v = (part.roll(-text, dims=2) for part in (q, k, v))
            first = replace(tokens, start=0)
            return self.attend(q, k, v, _rolled(rest, -text), first, start).roll(text, dims=2)
        self.hits += 1
        keys, values = each_head(k, q), each_head(v, q)
        for samples, maps in self.records:
            rows = tokens.rows(samples, start)
            if len(q[rows]):
                image = [x[rows, :, : tokens.count] for x in (q, keys, values)]
                scores = received(*image[:2]) if self.score is None else self.score(*image)
                shape = *tokens.shape[:-2], *in_plane(tokens.shape)
                maps.append(scores.reshape(-1, *([tokens.frames] * (tokens.frames > 1)), *shape))
        out = F.scaled_dot_product_attention(q, k, v, **rest)
        if self.edits and out.requires_grad:
            out = out.clone()  # gradients need what attention returned
        for samples, edit in self.edits:
            rows = tokens.rows(samples, start)
            if len(q[rows]):
                attend = partial(_attend, _rows_of(rest, rows, len(out)))
                out[rows] = edit(q[rows], keys[rows], values[rows], attend, tokens.shape)
        return out


def _attend(
    rest: Mapping[str, Any], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention as it was, through a mask as well."""
    given = rest.get("attn_mask")
    if mask is None:
        mask = given
    elif isinstance(given, Tensor):
        mask = given & mask if given.dtype == torch.bool else given.masked_fill(~mask, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, **{**rest, "attn_mask": mask})


def each_head(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values with a head for each of the queries', which may share them."""
    return x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _rolled(rest: Mapping[str, Any], by: int, dims: tuple[int, ...] = (-2, -1)) -> dict[str, Any]:
    """Roll a mask along its keys, and its queries where it has one row for each."""
    mask = rest.get("attn_mask")
    if not isinstance(mask, Tensor):
        return dict(rest)
    dims = (-1,) if mask.ndim < 2 or mask.shape[-2] == 1 else dims
    return {**rest, "attn_mask": mask.roll((by,) * len(dims), dims=dims)}


def _rows_of(rest: Mapping[str, Any], rows: slice, batch: int) -> dict[str, Any]:
    mask = rest.get("attn_mask")
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[0] == batch:
        return {**rest, "attn_mask": mask[rows]}
    return dict(rest)


class _TapMode(AttentionMode):
    """Sends attention through a tap while its layer runs, of all rows or of some in each call."""

    def __init__(self, tap: Tap, locate: Callable[[int], ImageTokens], batch: int) -> None:
        super().__init__()
        self.tap, self.locate, self.batch = tap, locate, batch

    @override
    def __enter__(self) -> Any:
        self.calls = self.rows = 0
        return super().__enter__()  # type: ignore[no-untyped-call]

    @override
    def attend(self, q: Tensor, k: Tensor, v: Tensor, rest: dict[str, Any]) -> Tensor:
        tokens, call, start = self.locate(q.shape[2]), self.calls, self.rows
        self.calls, self.rows = call + 1, start + len(q)
        if tokens.call not in (None, call):  # of a text
            return F.scaled_dot_product_attention(q, k, v, **rest)
        first = start if len(q) < self.batch else 0
        if not tokens.starts:
            return self.tap.attend(q, k, v, rest, tokens, first)
        rows = (slice(i, i + 1) for i in range(len(q)))
        each = [
            (q[r], k[r], v[r], _rows_of(rest, r, len(q)), tokens.of(first + r.start)) for r in rows
        ]
        return torch.cat([self.tap.attend(*parts, first + i) for i, parts in enumerate(each)])


Using = Callable[[nn.Module], AbstractContextManager[None]]


@contextmanager
def tapped(
    layers: Mapping[str, nn.Module],
    taps: Mapping[str, Tap],
    locate: Locate,
    using: Using,
    batch: int,
) -> Iterator[None]:
    """Let `taps` act in the layers of the same names while the context is open.

    Args:
        layers: Attention modules by name.
        taps: What to do in them.
        locate: Finds the tokens of the image in a layer.
        using: Makes a layer compute attention by scaled_dot_product_attention, while it is open.
        batch: Rows of the pass.
    """
    with ExitStack() as stack:
        for name, tap in taps.items():
            if linear(layers[name]):
                _by_value(layers[name], tap, partial(locate, name), stack)
                continue
            stack.enter_context(using(layers[name]))
            _TapMode(tap, partial(locate, name), batch).hook(layers[name], stack)
        yield
    for name, tap in taps.items():
        if tap.hits == 0:
            raise other_attention(name)


def linear(layer: nn.Module) -> bool:
    """Whether a layer of diffusers computes linear attention, without a map (Sana)."""
    return "Linear" in type(getattr(layer, "processor", None)).__name__


def _by_value(layer: Any, tap: Tap, locate: Callable[[int], ImageTokens], stack: ExitStack) -> None:
    """Let the edits of a tap act in a layer of linear attention, where PAG leaves the values."""
    if tap.records or not all(isinstance(edit, Identity) for _, edit in tap.edits):
        raise no_map()
    values: list[Tensor] = []

    def replace_rows(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        value, x = values.pop(), args[0].clone()
        tokens = locate(value.shape[1])
        for rows, _edit in tap.edits:
            for row in range(len(x))[tokens.rows(rows)]:
                start = tokens.of(row).start
                image = slice(start, start + tokens.count)
                x[row, image] = value[row, image].to(x)
        tap.hits += 1
        return (x, *args[1:])

    noted = layer.to_v.register_forward_hook(lambda _, args, out: values.append(out))
    stack.callback(noted.remove)
    stack.callback(layer.to_out[0].register_forward_pre_hook(replace_rows).remove)


def no_map() -> InputError:
    """Make the error for what needs a map in a layer of linear attention."""
    return InputError(
        "this network has linear attention, without a map to be blurred or read: of the guidances "
        "by attention PAG alone acts in it"
    )


def other_attention(name: str) -> InputError:
    """Make the error for a layer whose attention no tap reaches."""
    return InputError(
        f"layer {name!r} ran without scaled_dot_product_attention, so it cannot be edited: give it "
        "the attention processor that the model was loaded with"
    )
