"""One random generator a sample, so that a seed means one image at any batch size."""

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from operator import index

import torch
from torch import Tensor

from diffsteer.core.errors import InputError, brief

Draw = Callable[[Tensor], Tensor]
"""Draws unit Gaussian noise with the shape, dtype and device of its argument."""


def checked_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """Seeds as whole numbers of Python's own; arrays and tensors of them serve too.

    Raises:
        InputError: there is none, or one is no whole number in [0, 2^64).
    """
    try:
        given = tuple(seeds)
        numbers = tuple(index(seed) for seed in given if not isinstance(seed, bool))
    except TypeError:  # one number alone, a text, fractions
        given = numbers = ()
    if not numbers or len(numbers) < len(given) or not all(0 <= n < 2**64 for n in numbers):
        raise InputError(
            f"{brief(seeds)} are no seeds: give one a sample, in [0, 2^64), as in [7] or range(4)"
        )
    return numbers


class Noise:
    """Unit Gaussian noise, each row from a generator of its own.

    Row i depends on `seeds[i]` and on how often it was drawn, on nothing else: neither the batch,
    nor the device, nor the number of processes. Drawn on the CPU in float32, by generators that
    see the lower 32 bits of a seed: 0 and 2^32 give the same noise.

    Args:
        seeds: One for each sample, in [0, 2^64).
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = checked_seeds(seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def __call__(self, like: Tensor) -> Tensor:
        """Draw noise with the shape, dtype and device of `like`, `(B, *D)`."""
        if len(like) != len(self.seeds):
            raise InputError(
                f"{len(self.seeds)} seeds cannot serve {len(like)} samples: give one each"
            )
        rows = torch.stack([torch.randn(like.shape[1:], generator=g) for g in self._generators])
        if like.is_cuda:
            return rows.pin_memory().to(like.device, like.dtype, non_blocking=True)
        return rows.to(like)


def number(data: bytes) -> int:
    """A number in [0, 2^64) that depends on all of `data`."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def seeds_of(start: Tensor) -> tuple[int, ...]:
    """A seed for each sample, from the signs of 256 values that its sampling starts from.

    So a sample has the same one alone and in any batch, and in half precision, which rounds values
    and keeps signs. Reads these values alone.
    """
    flat = start.detach().flatten(1)
    signs = flat[:, :: -(-flat.shape[1] // 256)].signbit().tolist()
    return tuple(number(bytes(row)) for row in signs)
