"""A score for `--score judge:brightness`."""

from torch import Tensor


def brightness(pictures: Tensor, prompts: list[str]) -> Tensor:
    """Mean of a picture."""
    return pictures.double().mean((1, 2, 3))
