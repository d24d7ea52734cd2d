"""Places of the tokens of the image in layers of attention."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from diffsteer.guidance.attention_edits import Size


@dataclass(frozen=True)
class ImageTokens:
    """Tokens of the image in a layer of attention.

    Attributes:
        shape: Height and width in tokens, after the number of frames for videos; the number of
            tokens alone where no more is known.
        start: Index of the first; text comes before it, or after the last.
        starts: The same of each sample, where texts of other lengths come before the image.
        frames: Frames of a video that lie in the batch, each an image.
        key: Index of the first among the keys, in a layer whose queries are the image alone and
            whose keys hold text as well; None in others.
        call: Which of the calls of attention in the layer it is, from 0, where text has calls of
            its own, so that the queries are the image alone; None for all.
    """

    shape: Size
    start: int = 0
    frames: int = 1
    key: int | None = None
    call: int | None = None
    starts: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many there are."""
        return prod(self.shape)

    def rows(self, samples: slice, first: int = 0) -> slice:
        """Rows that belong to samples, in a call of attention from the row `first` on."""
        start, stop = (max(i * self.frames - first, 0) for i in (samples.start, samples.stop))
        return slice(start, stop)

    def of(self, row: int) -> "ImageTokens":
        """Tokens in a row of the batch."""
        if not self.starts:
            return self
        return replace(self, start=self.starts[row // self.frames], starts=())

    def taken(self, samples: Sequence[int]) -> "ImageTokens":
        """Tokens of some of the samples, in this order."""
        if not self.starts:
            return self
        return replace(self, starts=tuple(self.starts[i] for i in samples))


Locate = Callable[[str, int], ImageTokens]
"""From the name of a layer and its number of tokens to those of the image."""


def in_grid(size: tuple[int, int], text_first: bool, name: str, tokens: int) -> ImageTokens:
    """Tokens of an image in a layer, told from the number of its tokens.

    A layer with fewer tokens than the sample sees it halved some times, rounded up or down. One
    with more holds text as well. Where no halving fits, only the number of tokens is known.

    Args:
        size: Height and width of the sample in tokens of the first layer.
        text_first: Whether text comes before the image in layers that attend to both.
        name: Of the layer.
        tokens: Of the layer.
    """
    h, w = size
    if tokens > h * w:
        return ImageTokens((h, w), tokens - h * w if text_first else 0)
    for up in (1, 0):
        h, w = size
        while h * w > tokens and h * w > 1:
            h, w = max((h + up) // 2, 1), max((w + up) // 2, 1)
        if h * w == tokens:
            return ImageTokens((h, w))
    return ImageTokens((tokens,))
