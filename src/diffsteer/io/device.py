"""Where a process computes."""

import os

import torch

from diffsteer.core.errors import InputError


def device_of(name: str = "") -> str:
    """Return `name`, or where it is empty the GPU of this process, or the CPU.

    Raises:
        InputError: this machine has no such device, or torch was built without it.
    """
    if name:
        _require(name)
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _require(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device={name!r} cannot be used here ({reason}): leave it out for the GPU, where "
            "there is one, or else the CPU"
        ) from error
