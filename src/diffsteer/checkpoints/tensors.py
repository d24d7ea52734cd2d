"""Tensors that PyTorch wrote into a pickle, from their bytes and without PyTorch's own reader."""

import io
import math
import struct
import warnings
from typing import Any

import torch
from torch import Tensor

from diffsteer.checkpoints.unpickle import Allowed, Call, CheckpointError, Name, read

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
MAGIC = 0x1950A86A20F9469CFC6C
"""First value of a stream of `torch.save` before it wrote zip files; storages are still such."""


class Tensors:
    """Makes tensors of what a pickle says of them, no more of them than its file has bytes.

    Args:
        budget: Bytes that all tensors together may take.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._storages: dict[int, tuple[Call, Tensor]] = {}

    def made(self, said: Any, name: str) -> Tensor:
        """Make one tensor, contiguous.

        Args:
            said: What the pickle would have called.
            name: Of the tensor, for errors.

        Raises:
            CheckpointError: it is no tensor, or lies outside of its data.
        """
        if isinstance(said, Call) and said.name == PARAMETER:
            said = said.args[0]
        if not isinstance(said, Call) or said.name != REBUILD:
            raise CheckpointError(f"{name} is no tensor")
        storage, offset, size, stride = said.args[:4]
        whole = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
        if not whole or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
            raise CheckpointError(f"{name} has no shape that a tensor can have")
        flat = self._storage(storage, name)
        count = math.prod(size)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if len(size) > 8 or count > len(flat) or (count and last >= len(flat)):
            raise CheckpointError(f"{name} asks for {count} numbers of {len(flat)}: refused")
        self.budget -= count * flat.itemsize
        if self.budget < 0:
            raise CheckpointError(f"{name}: tensors take more than the file holds: refused")
        return torch.as_strided(flat, size, stride, offset).clone()

    def _storage(self, said: Any, name: str) -> Tensor:
        if not isinstance(said, Call) or said.name != STORAGE:
            raise CheckpointError(f"{name} has no data")
        if id(said) not in self._storages:
            try:
                self._storages[id(said)] = said, storage(said.args[0])
            except CheckpointError as error:
                raise CheckpointError(f"{name}: {error}") from error
        return self._storages[id(said)][1]


def storage(data: bytes) -> Tensor:
    """View the data of a tensor, `(N,)`, as `torch.save` wrote them before zip files.

    Raises:
        CheckpointError: they are anything else.
    """
    if data[:2] == b"PK":
        raise CheckpointError("its data are a zip archive, which is not unpacked: refused")
    file = io.BytesIO(data)
    if read(file, {}) != MAGIC or read(file, {}) != 1001:
        raise CheckpointError("its data are not of torch.save")
    system = read(file, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("its data are not little-endian")
    names: Allowed = dict.fromkeys(DTYPES, lambda args: False)
    kind, key, count = read(file, names, _identified)
    if read(file, {}) != [key]:
        raise CheckpointError("its data hold more than one storage")
    dtype, start = DTYPES[kind], file.tell()
    if len(data) != start + 8 + count * dtype.itemsize or count < 1:
        raise CheckpointError(f"its data are {len(data) - start} bytes for {count} numbers")
    if struct.unpack_from("<q", data, start) != (count,):
        raise CheckpointError("its data contradict their length")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it is read-only, and only ever copied
        return torch.frombuffer(data, dtype=dtype, offset=start + 8)


def _identified(said: Any) -> tuple[str, str, int]:
    """Read the persistent id of a storage."""
    if isinstance(said, tuple) and len(said) == 6 and said[0] == "storage" and said[5] is None:
        _, kind, key, _, count, _ = said
        if isinstance(kind, Name) and isinstance(key, str) and type(count) is int:
            return kind.name, key, count
    raise CheckpointError("its data are no storage")
