"""Seeds of samples, from the noise that they start from."""

from torch import Tensor

from diffsteer.core.noise import number


def seeds_of(start: Tensor) -> tuple[int, ...]:
    """A seed for each sample, from the signs of 256 values that its sampling starts from.

    So a sample has the same one alone and in any batch, and in half precision, which rounds values
    and keeps signs. Reads these values alone.
    """
    flat = start.detach().flatten(1)
    signs = flat[:, :: -(-flat.shape[1] // 256)].signbit().cpu().numpy()
    return tuple(number(row.tobytes()) for row in signs)
