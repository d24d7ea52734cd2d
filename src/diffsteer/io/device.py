"""Where a process computes."""

import os
import time

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


def bf16_slowdown() -> float:
    """Seconds of a convolution and its gradient in bfloat16 on this CPU, over those in float32."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(4, 32, 32, 32, dtype=dtype, requires_grad=True)
        weight = torch.ones(32, 32, 3, 3, dtype=dtype, requires_grad=True)
        for _ in range(2):  # the first prepares
            start = time.perf_counter()
            torch.autograd.backward(torch.nn.functional.conv2d(x, weight).sum())
        seconds.append(time.perf_counter() - start)
    return seconds[1] / seconds[0]


def _require(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device={name!r} cannot be used here ({reason}): leave it out for the GPU, where "
            "there is one, or else the CPU"
        ) from error
