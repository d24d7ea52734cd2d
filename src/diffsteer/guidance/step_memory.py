"""Tensors that guidances keep from step to step of one sampling.

A guidance reads and writes `at.memory` as a mapping. What it finds there is what it, at its place
in a sum, wrote in earlier steps of the same sampling. The first step finds nothing. Of several
evaluations in one step, as second-order samplers make them, the first alone writes, and the others
read it. Where a pipeline goes on with samples of another form (ChronoEdit leaves frames out in the
middle of a run), what was kept does not fit them, and the next step finds nothing.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level

Place = tuple[int, ...]


class Store:
    """Memory of all guidances of one sampling, or of samplings in turn.

    Attributes:
        kept: Tensors by place and name.
        step: The one that was evaluated last.
        form: Shape of its samples without the batch, `D`.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[Place, str], Tensor] = {}
        self.step: StepMemory | None = None
        self.form: tuple[int, ...] = ()


class StepMemory:
    """Memory as the evaluations of one step see it.

    Args:
        store: Memory of the sampling.
        index: Of the step, by which a sampling begins: at 0, and wherever a step does not follow
            the one before it. None where the store is made anew for each sampling.
        level: Where the step starts, if known: its evaluations at less noise are inner ones.

    Attributes:
        start: Level of its first evaluation.
        begins: Whether that is the first of a sampling, as far as `index` tells.
    """

    def __init__(self, store: Store, index: int | None = None, level: Level | None = None) -> None:
        self.store, self.index, self.level = store, index, level
        self.start: Level | None = None
        self.begins = False

    def begin(self, level: Level, shape: Sequence[int]) -> tuple["Memory", Level | None]:
        """Begin an evaluation of samples of a shape, `(B, *D)`.

        Returns the memory and, of an inner one, where its step starts.
        """
        store, before, (rows, *form) = self.store, self.store.step, shape
        last = None if before is None else before.index
        again = self.level is not None and last == self.index and level.ratio < self.level.ratio
        if before is not None and (before is self or again):
            return Memory(store, rows, inner=True), before.start
        self.begins = self.index is not None and (last is None or self.index != last + 1)
        if self.begins or store.form != tuple(form):
            store.kept.clear()
        store.step, store.form, self.start = self, tuple(form), level
        return Memory(store, rows), None


@dataclass(frozen=True, eq=False)
class Memory(MutableMapping[str, Tensor]):
    """Memory of one guidance in one evaluation: names to tensors with a row for each sample.

    Attributes:
        store: Holds it from step to step.
        rows: Number of samples, B.
        inner: Whether an earlier evaluation of this step writes; what is written here is dropped.
        place: Indices of the guidance in the sums that hold it.
    """

    store: Store = field(default_factory=Store)
    rows: int | None = None
    inner: bool = False
    place: Place = ()

    def of_term(self, i: int) -> "Memory":
        """Memory of a term of a sum."""
        return Memory(self.store, self.rows, self.inner, (*self.place, i))

    @override
    def __getitem__(self, name: str) -> Tensor:
        """Return what was kept, `(B, *D)`."""
        value = self.store.kept[self.place, name]
        if self.rows is not None and len(value) != self.rows:
            raise InputError(
                f"a guidance remembers {len(value)} samples and is asked for {self.rows}: a "
                "sampling has to keep its batch from step to step"
            )
        return value

    @override
    def __setitem__(self, name: str, value: Tensor) -> None:
        """Keep a tensor, `(B, *D)`, for later steps; inner evaluations keep nothing."""
        if self.rows is not None and (value.ndim == 0 or len(value) != self.rows):
            raise InputError(
                f"memory {name!r} must have a row for each of {self.rows} samples, got shape "
                f"{tuple(value.shape)}"
            )
        if not self.inner:
            self.store.kept[self.place, name] = value

    @override
    def __delitem__(self, name: str) -> None:
        if not self.inner:
            del self.store.kept[self.place, name]

    @override
    def __iter__(self) -> Iterator[str]:
        return (name for place, name in self.store.kept if place == self.place)

    @override
    def __len__(self) -> int:
        return sum(1 for _ in self)
