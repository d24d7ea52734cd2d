"""The image that is sampled, in samples that hold others beside it (JoyImage).

Such samples are `(B, N, C, F, H, W)`: N images, the last of which is sampled, or N patches, of
which those of the image that is sampled come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from diffsteer.hf.probed_calls import Call


@dataclass(frozen=True)
class SampledImage:
    """Place of the image that is sampled.

    Attributes:
        count: Images or patches of a sample.
        start: First of those that are sampled.
        grid: Frames, rows and columns of patches; none of an image as it is.
    """

    count: int
    start: int
    grid: Sequence[int] = (1, 1, 1)

    @classmethod
    def of(cls, call: Call) -> "SampledImage | None":
        """Place in the samples of a call; None where they hold no others."""
        if call.inputs.ndim != 6:
            return None
        count, shapes = call.inputs.shape[1], call.arguments.get("shape_list")
        return cls(count, count - 1) if shapes is None else cls(count, 0, tuple(shapes[0][0]))

    @property
    def others(self) -> tuple[int, ...]:
        """Images or patches that are given."""
        end = self.start + prod(self.grid)
        return (*range(self.start), *range(end, self.count))

    def taken(self, x: Tensor) -> Tensor:
        """Image of samples, `(B, C, F, H, W)`."""
        patches = x.narrow(1, self.start, prod(self.grid))
        patches = patches.reshape(len(x), *self.grid, *x.shape[2:])
        sizes = [n * side for n, side in zip(self.grid, x.shape[3:], strict=True)]
        return patches.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(x), -1, *sizes)

    def whole(self, image: Tensor) -> Tensor:
        """Samples with an image, `(B, N, C, F, H, W)`, and 0 for all else."""
        sides = [n // count for n, count in zip(image.shape[2:], self.grid, strict=True)]
        pairs = [n for pair in zip(self.grid, sides, strict=True) for n in pair]
        patches = image.reshape(*image.shape[:2], *pairs).permute(0, 2, 4, 6, 1, 3, 5, 7)
        x = image.new_zeros(len(image), self.count, image.shape[1], *sides)
        x.narrow(1, self.start, prod(self.grid)).copy_(patches.flatten(1, 3))
        return x
