"""Where a process computes."""

import os

import torch


def device_of(name: str = "") -> str:
    """Return `name`, or where it is empty the GPU of this process, or the CPU."""
    if name:
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
