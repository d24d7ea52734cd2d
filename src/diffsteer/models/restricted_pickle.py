"""Pickles as inert data: nothing that a file names is imported, called or built.

A pickle is a program. This machine runs only those of its instructions that make plain data. Where
the program would import a name there is a `Name`, and only if it is on the reader's list; where it
would call one there is a `Call`, with what it would have been given. What those mean the reader
decides. Source text in a pickle stays text.

Memory is bounded by the size of the file and by `MOST` instructions, and so is time.
"""

import mmap
import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from diffsteer.core.errors import InputError

MOST = 1_000_000
"""Instructions of one pickle; a published network has some ten thousand."""


class CheckpointError(InputError):
    """A file is broken, or asks for what is not allowed; says which."""


@dataclass(frozen=True)
class Name:
    """A global that a pickle refers to, "module.name"."""

    name: str


@dataclass(eq=False, repr=False)
class Call:
    """What a pickle would have called, and what it would then have put into the result.

    Attributes:
        name: Of the function or class.
        args: Its arguments.
        state: What the object's state would be set to.
        items: Items that it would be given as a mapping.
    """

    name: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


Allowed = Mapping[str, Callable[[tuple[Any, ...]], bool]]
"""Globals that may be named, "module.name", and whether they may be called with such arguments."""

MARK = object()
"""Where a list of arguments starts on the stack."""


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
    machine = _Machine(allowed, persistent)
    try:
        for count, (code, arg) in enumerate(_instructions(file)):
            if count >= most:
                raise CheckpointError(f"more than {most:,} instructions: no network needs so many")
            if code == "STOP":
                return machine.pop()
            machine.run(code, arg)
    except (IndexError, KeyError, TypeError, struct.error, OverflowError, MemoryError) as error:
        raise CheckpointError(f"the pickle is damaged: {type(error).__name__}") from error
    raise CheckpointError("the pickle is truncated")


def _instructions(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    try:
        for code, arg, _ in pickletools.genops(file):
            yield code.name, arg
    except ValueError as error:  # pickletools says what is truncated or unknown
        raise CheckpointError(f"the pickle is damaged: {str(error)[:200]}") from error


class _Machine:
    """The stack machine of pickles, on plain data; one method an instruction."""

    def __init__(self, allowed: Allowed, persistent: Callable[[Any], Any] | None) -> None:
        self.allowed, self.persistent = allowed, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, code: str, arg: Any) -> None:
        """Carry out one instruction, if it is one of plain data."""
        if code in PUSHES:
            self.stack.append(arg)
        elif code in CONSTANTS:
            self.stack.append(CONSTANTS[code]())
        elif code.startswith("TUPLE") and len(code) == 6:
            self.stack.append(tuple(reversed([self.pop() for _ in range(int(code[-1]))])))
        elif code in METHODS:
            METHODS[code](self, arg)
        else:
            raise CheckpointError(f"the instruction {code} is not allowed: refused")

    def pop(self, kind: type = object) -> Any:
        value = self.stack.pop()
        if value is MARK or not isinstance(value, kind):
            raise TypeError
        return value

    def marked(self) -> list[Any]:
        """Take all above the last mark, and the mark."""
        found: list[Any] = []
        while (value := self.stack.pop()) is not MARK:
            found.append(value)
        return found[::-1]

    def top(self, kind: type) -> Any:
        """What stays on the stack and is filled."""
        if not isinstance(self.stack[-1], kind):
            raise TypeError
        return self.stack[-1]

    def protocol(self, arg: int) -> None:
        if not 2 <= arg <= 5:
            raise CheckpointError(f"pickle protocol {arg} is not read: 2 to 5 are")

    def frame(self, arg: int) -> None:
        """Pass over a hint for buffering."""

    def memoize(self, arg: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def put(self, arg: int) -> None:
        self.memo[arg] = self.stack[-1]

    def get(self, arg: int) -> None:
        self.stack.append(self.memo[arg])

    def tuple(self, arg: None) -> None:
        self.stack.append(tuple(self.marked()))

    def append(self, arg: None) -> None:
        value = self.pop()
        self.top(list).append(value)

    def appends(self, arg: None) -> None:
        values = self.marked()
        self.top(list).extend(values)

    def add_items(self, arg: None) -> None:
        values = self.marked()
        self.top(set).update(map(_key, values))

    def set_item(self, arg: None) -> None:
        value, key = self.pop(), self.pop()
        self.fill([key, value])

    def set_items(self, arg: None) -> None:
        self.fill(self.marked())

    def fill(self, values: list[Any]) -> None:
        items = self.stack[-1].items if isinstance(self.stack[-1], Call) else self.top(dict)
        if len(values) % 2:
            raise IndexError
        for key, value in zip(values[::2], values[1::2], strict=True):
            items[_key(key)] = value

    def named(self, arg: str) -> None:
        self.name(*arg.split(" ", 1))

    def stack_named(self, arg: None) -> None:
        name = self.pop(str)
        self.name(self.pop(str), name)

    def name(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise CheckpointError(f"it asks for {full[:100]!r}, which is not allowed: refused")
        self.stack.append(Name(full))

    def reduce(self, arg: None) -> None:
        args, name = self.pop(tuple), self.pop(Name).name
        if not self.allowed[name](args):
            raise CheckpointError(f"it calls {name} as no network does: refused")
        self.stack.append(Call(name, args))

    def build(self, arg: None) -> None:
        state, found = self.pop(), self.top(Call)
        if found.state is not None:
            raise CheckpointError(f"the state of a {found.name} is set twice: refused")
        found.state = state

    def outside(self, arg: None) -> None:
        if self.persistent is None:
            raise CheckpointError("it asks for a persistent id, an object outside of it: refused")
        self.stack.append(self.persistent(self.pop()))


def _key(value: Any) -> Any:
    """Only plain keys: a nested tuple can take forever to hash."""
    if not isinstance(value, str | int | float):
        raise CheckpointError(f"a {type(value).__name__} is no key, text and numbers are: refused")
    return value


PUSHES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
"""Instructions whose argument is the value."""

CONSTANTS: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set},
    "MARK": lambda: MARK,
}

METHODS: dict[str, Callable[[_Machine, Any], None]] = {
    **{"PROTO": _Machine.protocol, "FRAME": _Machine.frame, "MEMOIZE": _Machine.memoize},
    **{"BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put},
    **{"BINGET": _Machine.get, "LONG_BINGET": _Machine.get, "TUPLE": _Machine.tuple},
    **{"APPEND": _Machine.append, "APPENDS": _Machine.appends, "ADDITEMS": _Machine.add_items},
    **{"SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items},
    **{"GLOBAL": _Machine.named, "STACK_GLOBAL": _Machine.stack_named},
    **{"REDUCE": _Machine.reduce, "NEWOBJ": _Machine.reduce, "BUILD": _Machine.build},
    "BINPERSID": _Machine.outside,
}
