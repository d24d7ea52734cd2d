"""Pickles as inert data: nothing that a file names is imported, called or built.

The standard library's unpickler in Python carries out instructions of plain data only. An import
gives a `Name`, if the caller allows it, and a call a `Call` with its arguments, for the caller to
interpret. Source text in a pickle stays text. Time and memory are bounded by the size of the file
and by a count of instructions.

The unpickler in C will not do: it allocates its memo by the largest index that a file names.
"""

import mmap
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from typing_extensions import override

from diffsteer.core.errors import InputError

MOST = 1_000_000
"""Instructions of one pickle; a published network has some ten thousand."""


class CheckpointError(InputError):
    """A file is broken or asks for what is not allowed; the message names it."""


@dataclass(eq=False, repr=False)
class Call:
    """Record of a call that a pickle asks for, and of what it would then put into the result.

    Attributes:
        name: Function or class, "module.name".
        args: Its arguments.
        state: State that the object would be given.
        items: Items that it would be given as a mapping.
    """

    name: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Name:
    """A global that a pickle refers to, "module.name"."""

    name: str


Allowed = Mapping[str, Callable[[tuple[Any, ...]], bool]]
"""Globals that may be named, "module.name", and whether they may be called with such arguments."""

NAMES = {ord(instruction.code): instruction.name for instruction in pickletools.opcodes}
PLAIN = (
    *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET"),
    *("LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES"),
    *("BINBYTES8", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "EMPTY_LIST", "APPEND"),
    *("APPENDS", "EMPTY_DICT", "EMPTY_SET", "GLOBAL", "STACK_GLOBAL", "BINPERSID"),
)
"""Instructions that are carried out as they are; GLOBAL and BINPERSID ask the methods below."""

DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError),
    *(AttributeError, struct.error, OverflowError, MemoryError),
)


def read_file(path: Path, allowed: Allowed) -> Any:
    """Read a file that is one pickle.

    Args:
        path: The file.
        allowed: Globals that may be named.

    Raises:
        CheckpointError: it is no such pickle, is broken, or asks for anything else.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4)
        if start[:2] == b"PK":
            raise CheckpointError(f"{path} is a zip archive, not a pickle: it is not unpacked")
        if len(start) < 4:
            raise CheckpointError(f"{path} has {len(start)} bytes: it is no pickle")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            try:
                tree = read(cast(BinaryIO, mapped), allowed)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
            if rest := len(mapped) - mapped.tell():
                raise CheckpointError(f"{path}: {rest} bytes follow the end of the pickle")
            return tree


def read(
    file: BinaryIO,
    allowed: Allowed,
    persistent: Callable[[Any], Any] | None = None,
    most: int = MOST,
) -> Any:
    """Read one pickle, and leave the file behind it.

    Args:
        file: Its `read(n)` must not allocate more than there is: `io.BytesIO` or `mmap`.
        allowed: Globals that may be named.
        persistent: Makes a value of a persistent id; None refuses them.
        most: Instructions that are carried out.

    Raises:
        CheckpointError: as `read_file`.
    """
    try:
        return _Reader(file, allowed, persistent, most).load()
    except CheckpointError:
        raise
    except DAMAGE as error:
        raise CheckpointError(f"the pickle is damaged: {type(error).__name__}") from error


class _Instructions(dict[int, Callable[[Any], None]]):
    """Allowed instructions by their byte, with a limit on how many are carried out."""

    def __init__(self, most: int) -> None:
        super().__init__(INSTRUCTIONS)
        self.most, self.count = most, 0

    @override
    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.count += 1
        if self.count > self.most:
            raise CheckpointError(f"more than {self.most:,} instructions: no network needs so many")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> NoReturn:
        if code not in NAMES:
            raise CheckpointError(f"the pickle is damaged: no instruction has the code {code}")
        raise CheckpointError(f"the instruction {NAMES[code]} is not allowed: refused")


class _Reader(pickle._Unpickler):
    """The standard library's stack machine; what would import, call or build is recorded."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        file: BinaryIO,
        allowed: Allowed,
        persistent: Callable[[Any], Any] | None,
        most: int,
    ) -> None:
        super().__init__(file)
        self.allowed, self.persistent = allowed, persistent
        self.dispatch = _Instructions(most)  # type: ignore[misc]  # per instance: it counts

    @override
    def find_class(self, module: str, name: str) -> Name:
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise CheckpointError(f"it asks for {full[:100]!r}, which is not allowed: refused")
        return Name(full)

    @override
    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise CheckpointError("it asks for a persistent id, an object outside of it: refused")
        return self.persistent(pid)

    def reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(args, tuple) or not isinstance(function, Name):
            raise TypeError
        if not self.allowed[function.name](args):
            raise CheckpointError(f"it calls {function.name} as no network does: refused")
        self.stack.append(Call(function.name, args))

    def build(self) -> None:
        state, call = self.stack.pop(), self.stack[-1]
        if not isinstance(call, Call):
            raise TypeError
        if call.state is not None:
            raise CheckpointError(f"the state of a {call.name} is set twice: refused")
        call.state = state

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def set_items(self) -> None:
        self._fill(self.pop_mark())

    def _fill(self, pairs: list[Any]) -> None:
        items = self.stack[-1].items if isinstance(self.stack[-1], Call) else self.stack[-1]
        if not isinstance(items, dict):
            raise TypeError
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            items[_key(key)] = value

    def add_items(self) -> None:
        values = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise TypeError
        self.stack[-1].update(map(_key, values))


def _key(value: Any) -> Any:
    """Only plain keys: a nested tuple can take forever to hash."""
    if not isinstance(value, str | int | float):
        raise CheckpointError(f"a {type(value).__name__} is no key, text and numbers are: refused")
    return value


INSTRUCTIONS: dict[int, Callable[[Any], None]] = {
    **{code: pickle._Unpickler.dispatch[code] for code, name in NAMES.items() if name in PLAIN},
    **{pickle.REDUCE[0]: _Reader.reduce, pickle.NEWOBJ[0]: _Reader.reduce},
    **{pickle.BUILD[0]: _Reader.build, pickle.ADDITEMS[0]: _Reader.add_items},
    **{pickle.SETITEM[0]: _Reader.set_item, pickle.SETITEMS[0]: _Reader.set_items},
}
