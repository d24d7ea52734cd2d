"""Tensors that PyTorch wrote into a pickle, from their bytes and without PyTorch's own reader."""

import io
import math
import struct
import warnings
from typing import Any

import torch
from torch import Tensor

from diffsteer.io.strict import refused
from diffsteer.models.restricted_pickle import Allowed, Call, CheckpointError, Name, read

REBUILD = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
STORAGE = "torch.storage._load_from_bytes"
ALLOWED: Allowed = {
    REBUILD: lambda args: 6 <= len(args) <= 7 and isinstance(args[0], Call),
    PARAMETER: lambda args: len(args) == 3 and isinstance(args[0], Call),
    STORAGE: lambda args: len(args) == 1 and isinstance(args[0], bytes),
    "collections.OrderedDict": lambda args: not args,
}
"""Globals of a pickled tensor."""

DTYPES = {
    **{"torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16},
    **{"torch.FloatStorage": torch.float32, "torch.DoubleStorage": torch.float64},
}
LEAST = 64
"""Bytes of the budget that any tensor takes; the header of its data alone is longer in a file."""
HEADER = 200
"""Instructions of a pickle before the data of a tensor; PyTorch writes some thirty."""
MAGIC = 0x1950A86A20F9469CFC6C
"""First value of a stream of `torch.save` before it wrote zip files; storages are still such."""


class Tensors:
    """Makes tensors of what a pickle says of them, no more of them than its file has bytes.

    Args:
        budget: Bytes that all tensors together may take.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._storages: dict[int, tuple[bytes, Tensor]] = {}

    def made(self, call: Any, name: str) -> Tensor:
        """Make one tensor, contiguous, of a recorded call; `name` stands in errors."""
        if isinstance(call, Call) and call.name == PARAMETER:
            call = call.args[0]
        if not isinstance(call, Call) or call.name != REBUILD or call.args[0].name != STORAGE:
            raise CheckpointError(f"{name} is no tensor with data")
        data, offset, size, stride = call.args[0].args[0], *call.args[1:4]
        _require_shape(offset, size, stride, name)
        if id(data) not in self._storages:
            with refused(name, error=CheckpointError):
                self._storages[id(data)] = data, storage(data)
        flat = self._storages[id(data)][1]
        count = math.prod(size)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if not 0 < count <= len(flat) or last >= len(flat):
            raise CheckpointError(f"{name} asks for {count} numbers of {len(flat)}: refused")
        self.budget -= max(count * flat.itemsize, LEAST)
        if self.budget < 0:
            raise CheckpointError(f"{name}: tensors take more than the file holds: refused")
        return torch.as_strided(flat, size, stride, offset).clone()


def _require_shape(offset: Any, size: Any, stride: Any, name: str) -> None:
    """Check offset, size and stride before anything is computed of them."""
    fits = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 8
    if not fits or not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *size, *stride)):
        raise CheckpointError(
            f"{name} has no shape that a tensor can have: at most 8 sizes and as many strides, "
            "whole numbers of 63 bits"
        )


def storage(data: bytes) -> Tensor:
    """View the data of a tensor, `(N,)`, as `torch.save` wrote them before zip files."""
    if data[:2] == b"PK":
        raise CheckpointError("its data are a zip archive, which is not unpacked: refused")
    file, names = io.BytesIO(data), dict.fromkeys(DTYPES, lambda args: False)
    match [read(file, names, lambda pid: pid, HEADER) for _ in range(5)]:
        case [magic, 1001, {"little_endian": True},
              ("storage", Name(kind), str(key), _, int(count), None), [str(one)]] if (
            magic == MAGIC and one == key and count > 0
        ):  # fmt: skip
            size = count * DTYPES[kind].itemsize
        case _:
            raise CheckpointError("its data are no storage of little-endian numbers")
    start = file.tell() + 8
    if len(data) != start + size or struct.unpack_from("<q", data, start - 8) != (count,):
        raise CheckpointError(f"its data are {len(data) - start} bytes for {count} numbers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it is read-only, and only ever copied
        return torch.frombuffer(data, dtype=DTYPES[kind], offset=start)
