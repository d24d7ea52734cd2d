"""Tensors that PyTorch wrote into a pickle, from their bytes and without PyTorch's own reader."""

import io
import math
import struct
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
        """Make one tensor, contiguous.

        Args:
            call: What the pickle would have called.
            name: Of the tensor, for errors.

        Raises:
            CheckpointError: it is no tensor, or lies outside of its data.
        """
        if isinstance(call, Call) and call.name == PARAMETER:
            call = call.args[0]
        if not isinstance(call, Call) or call.name != REBUILD:
            raise CheckpointError(f"{name} is no tensor")
        offset, size, stride = _shape(call.args[1:4], name)
        flat = self._storage(call.args[0], name)
        count = math.prod(size)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if not 0 < count <= len(flat) or last >= len(flat):
            raise CheckpointError(f"{name} asks for {count} numbers of {len(flat)}: refused")
        self.budget -= max(count * flat.itemsize, LEAST)
        if self.budget < 0:
            raise CheckpointError(f"{name}: tensors take more than the file holds: refused")
        return torch.as_strided(flat, size, stride, offset).clone()

    def _storage(self, call: Any, name: str) -> Tensor:
        if not isinstance(call, Call) or call.name != STORAGE:
            raise CheckpointError(f"{name} has no data")
        data = call.args[0]
        if id(data) not in self._storages:
            try:
                self._storages[id(data)] = data, storage(data)
            except CheckpointError as error:
                raise CheckpointError(f"{name}: {error}") from error
        return self._storages[id(data)][1]


def _shape(call: tuple[Any, ...], name: str) -> tuple[int, Any, Any]:
    """Check offset, size and stride before anything is computed of them."""
    offset, size, stride = call
    fits = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 8
    if not fits or not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *size, *stride)):
        raise CheckpointError(
            f"{name} has no shape that a tensor can have: at most 8 sizes and as many strides, "
            "whole numbers of 63 bits"
        )
    return offset, size, stride


def storage(data: bytes) -> Tensor:
    """View the data of a tensor, `(N,)`, as `torch.save` wrote them before zip files.

    Raises:
        CheckpointError: they are anything else.
    """
    if data[:2] == b"PK":
        raise CheckpointError("its data are a zip archive, which is not unpacked: refused")
    file = io.BytesIO(data)
    if read(file, {}, most=HEADER) != MAGIC or read(file, {}, most=HEADER) != 1001:
        raise CheckpointError("its data are not of torch.save")
    system = read(file, {}, most=HEADER)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("its data are not little-endian")
    names: Allowed = dict.fromkeys(DTYPES, lambda args: False)
    storage_id = read(file, names, _storage_id, HEADER)
    if not isinstance(storage_id, _StorageId):
        raise CheckpointError("its data are no storage")
    if read(file, {}, most=HEADER) != [storage_id.key]:
        raise CheckpointError("its data hold more than one storage")
    dtype, count, start = DTYPES[storage_id.kind], storage_id.length, file.tell()
    if len(data) != start + 8 + count * dtype.itemsize or count < 1:
        raise CheckpointError(f"its data are {len(data) - start} bytes for {count} numbers")
    if struct.unpack_from("<q", data, start) != (count,):
        raise CheckpointError("its data contradict their length")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it is read-only, and only ever copied
        return torch.frombuffer(data, dtype=dtype, offset=start + 8)


class _StorageId(NamedTuple):
    """Data of a tensor: the kind of its numbers, its key, and how many there are."""

    kind: str
    key: str
    length: int


def _storage_id(value: Any) -> _StorageId:
    """Read the persistent id of a storage."""
    if isinstance(value, tuple) and len(value) == 6 and value[0] == "storage" and value[5] is None:
        _, kind, key, _, count, _ = value
        if isinstance(kind, Name) and isinstance(key, str) and type(count) is int:
            return _StorageId(kind.name, key, count)
    raise CheckpointError("its data are no storage")
