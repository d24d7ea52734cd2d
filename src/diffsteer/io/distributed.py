"""What the processes of `torchrun` or `accelerate launch` share: a number each, and small data.

Everything that measuring exchanges is on the CPU, so the group is of gloo, on GPU machines too.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long a process waits for one that has more to sample."""


@dataclass(frozen=True)
class Processes:
    """The processes that measure together.

    Attributes:
        rank: Number of this one, 0 to world - 1.
        world: How many there are.
        group: Of gloo; None where there is one process.
    """

    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def running(cls) -> "Processes":
        """All processes of `torch.distributed`, or this one alone where that was not started."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        world = dist.group.WORLD
        if "gloo" not in str(dist.get_backend()):
            world = dist.new_group(backend="gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), world)

    def told(self, value: T) -> T:
        """What the first process has for `value`, on each."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, on each."""
        if self.group is None:
            return [value]
        every: list[T | None] = [None] * self.world
        dist.all_gather_object(every, value, group=self.group)
        return every  # type: ignore[return-value]


@contextmanager
def launched() -> Iterator[None]:
    """Join the processes that a launcher started, if one did, until closed."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()
