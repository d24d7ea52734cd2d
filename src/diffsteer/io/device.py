"""Where a process computes."""

import os
import time
from contextlib import suppress
from pathlib import Path

import torch

from diffsteer.core.errors import InputError, did_you_mean


def device_of(name: str = "") -> str:
    """Return `name`, or where it is empty the GPU of this process, or the CPU.

    Raises:
        InputError: this machine has no such device, or torch was built without it.
    """
    if name:
        _require(name)
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def dtype_of(name: str, device: str) -> torch.dtype:
    """Precision by its name; "auto" is bfloat16 on an accelerator and float32 on a CPU."""
    if name == "auto":
        name = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise InputError(
            f"weights are loaded in {', '.join(dtypes)} or auto, not in dtype={name!r} as asked"
            f"{did_you_mean(name, dtypes)}"
        )
    return dtypes[name]


def free_memory(device: str) -> int | None:
    """Bytes that a device has left; None where it does not say."""
    kind = torch.device(device).type
    if kind == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if kind == "cpu":
        with suppress(OSError):
            lines = Path("/proc/meminfo").read_text().splitlines()
            sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
            return sizes["MemAvailable"] + sizes["SwapFree"]
    return None


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
        if torch.empty(0, device=name).is_meta:
            raise NotImplementedError("it holds no numbers")
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0].partition("Expected one of")[0]
        reason = reason or "devices are cpu, cuda, cuda:1, mps, xpu and those of other torches"
        raise InputError(
            f"device={name!r} cannot be used here ({reason}): leave it out for the GPU, where "
            "there is one, or else the CPU"
        ) from error
