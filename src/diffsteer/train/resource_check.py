"""Memory and disk that a run takes, compared with what there is."""

from collections.abc import Iterable

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.train.settings import Run

WIDE, HALF = 4, 2
"""Bytes of a number in weights, gradients and moments, and in snapshots."""


def require_room(
    run: Run,
    weights: Iterable[Tensor],
    images: int,
    have: tuple[bool, int],
    free: tuple[int | None, int],
) -> None:
    """Refuse a run whose gradients, moments, checkpoints and snapshots find no room.

    Activations are not counted: the first step shows them.

    Args:
        run: Its settings.
        weights: Those that are trained.
        images: Count at which it begins.
        have: Whether moments are in memory already, and number of checkpoints on the disk.
        free: Bytes of memory, None where unknown, and of the disk.
    """
    training, numbers = run.training, sum(weight.numel() for weight in weights)
    memory = WIDE * numbers * (1 if have[0] else 3)
    if free[0] is not None and memory > free[0]:
        raise InputError(
            f"gradients and moments of {numbers / 1e6:.3g} M weights take {_gib(memory)}, and "
            f"{_gib(free[0])} are free: end other programs, or train fewer weights (settings.lora)"
        )
    widths = len(training.averages)
    checkpoint = WIDE * numbers * (3 + widths)
    left = max(0, training.end - images)
    snapshots = left // training.snapshot if training.snapshot else 0
    disk = max(1, 3 - have[1]) * checkpoint + snapshots * widths * HALF * numbers + WIDE * numbers
    if left and disk > free[1]:
        raise InputError(
            f"checkpoints, {snapshots} snapshots and the result take {_gib(disk)}, and the disk of "
            f"the run has {_gib(free[1])}: make room, give another --out, or raise "
            "training.snapshot"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
