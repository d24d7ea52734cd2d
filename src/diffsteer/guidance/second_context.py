"""A branch whose attention reads two texts: normalised attention guidance (NAG).

The sample is evaluated as a pair of rows, under a text and under another. Where an attention reads
the text, its outputs for the image, Z+ and Z-, are combined and both rows go on with the same, so
that the image is one and each text is read as if alone.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.guidance.attention_edits import SecondContext
from diffsteer.guidance.attention_mode import AttentionMode
from diffsteer.guidance.batching import chunks, joined, rows_of, stacked
from diffsteer.guidance.image_tokens import ImageTokens, Locate
from diffsteer.guidance.network import Cond, Network

Image = Callable[[Tensor, Tensor], Sequence[slice] | None]
"""From queries and keys to the queries of the image in each row; None where no text is read."""


class _PairMode(AttentionMode):
    """Combines the outputs of the two halves of a batch."""

    def __init__(self, second: SecondContext, image: Image) -> None:
        super().__init__()
        self.second, self.image, self.hits = second, image, 0

    @override
    def attend(self, q: Tensor, k: Tensor, v: Tensor, rest: dict[str, Any]) -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v, **rest)
        image = self.image(q, k)
        if image is None or len(out) < 2:  # of one sample of a pair
            return out
        self.hits += 1
        both = out.clone()
        read = torch.stack([row[:, part] for row, part in zip(out, image, strict=True)])
        combined = self.second.combined(*read.chunk(2))
        for row, part, moved in zip(both, image, (*combined, *combined), strict=True):
            row[:, part] = moved
        return both


def evaluated(
    net: Network,
    locate: Locate,
    second: SecondContext,
    x: Tensor,
    level: Level,
    conds: Sequence[Cond],
    max_rows: int | None,
) -> Tensor:
    """Output of a network for samples whose attention reads a second text.

    Args:
        net: The network.
        locate: Finds the tokens of the image in a layer, of the samples under both texts in turn.
        second: How both texts act together.
        x: The samples, `(B, *D)`.
        level: Their level.
        conds: What `Network.second` makes of their condition and that of the second text.
        max_rows: Most rows of a pass; a sample takes two.
    """
    layers, outs = set(net.layers), []  # layers may be measured, by other passes
    most = None if max_rows is None or len(conds) == 1 else max(max_rows // 2, 1)
    for rows in chunks(len(x), most):
        part, inputs = conds[0], x
        if len(conds) == 2:
            halves = [rows_of(cond, rows, len(x)) for cond in conds]
            part, inputs = joined(halves, rows.stop - rows.start), stacked([x[rows]] * 2)
        samples = [i + half for half in (0, len(x)) for i in range(rows.start, rows.stop)]
        with ExitStack() as stack:
            stack.enter_context(net.touched(True))
            modes = []
            for name, layer in net.attention.items():
                stack.enter_context(net.using(layer))
                crossing = bool(getattr(layer, "is_cross_attention", False))
                own = partial(locate, name) if name in layers else None
                modes.append(_PairMode(second, _image_of(own, samples, crossing)))
                modes[-1].hook(layer, stack)
            out = net.call(inputs, level, part)
        if not any(mode.hits for mode in modes):
            raise InputError(
                "NAG combines two texts in the attention that reads them, and no attention of this "
                "network tells the image from the text and has both samples of a pair in one "
                "batch: take CFG, or PAG, which needs no text"
            )
        outs.append(out[: rows.stop - rows.start])
    return torch.cat(outs)


def _image_of(
    locate: Callable[[int], ImageTokens] | None, samples: Sequence[int], crossing: bool
) -> Image:
    def image(q: Tensor, k: Tensor) -> Sequence[slice] | None:
        rows, queries, reads = len(q), q.shape[2], q.shape[2] != k.shape[2]
        if locate is None or crossing:
            return [slice(None)] * rows if crossing or reads else None
        tokens = locate(queries).taken(samples)
        if tokens.call is not None and queries != tokens.count:  # of a text to itself
            return None
        if tokens.count == queries:  # of the image to itself, which both rows have in common
            return [slice(None)] * rows if reads else None
        starts = (tokens.of(row).start for row in range(rows))
        return [slice(start, start + tokens.count) for start in starts]

    return image
