"""Pickles as inert data: nothing that a file names is imported, called or built.

A stack machine of the instructions of plain data. An import gives a `Name`, if the caller allows
it, and a call a `Call` with its arguments, for the caller to interpret. Source text in a pickle
stays text. Time and memory are bounded by the size of the file and by a count of instructions.
"""

import mmap
import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from diffsteer.core.errors import InputError
from diffsteer.io.strict import open_file, refused

MOST = 1_000_000
"""Instructions of one pickle; a published network has some ten thousand."""


class CheckpointError(InputError):
    """A file is broken or asks for what is not allowed; the message names it."""


@dataclass(eq=False, repr=False)
class Call:
    """Record of a call that a pickle asks for: function or class, "module.name", and arguments.

    `state` and `items` are what the made object would be given.
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


def read_file(path: Path, allowed: Allowed) -> Any:
    """Read a file that is one pickle, and names nothing but `allowed`."""
    with open_file(path) as file:
        start = file.read(4)
        if start[:2] == b"PK":
            raise CheckpointError(f"{path} is a zip archive, not a pickle: it is not unpacked")
        if len(start) < 4:
            raise CheckpointError(f"{path} has {len(start)} bytes: it is no pickle")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            with refused(str(path), error=CheckpointError):
                tree = read(cast(BinaryIO, mapped), allowed)
            if rest := len(mapped) - mapped.tell():
                raise CheckpointError(f"{path}: {rest} bytes follow the end of the pickle")
            return tree


def no_object(pid: Any) -> Any:
    """Refuse a persistent id."""
    raise CheckpointError("it asks for a persistent id, an object outside of it: refused")


def read(
    file: BinaryIO,
    allowed: Allowed,
    persistent: Callable[[Any], Any] = no_object,
    most: int = MOST,
) -> Any:
    """Read one pickle, and leave the file behind it.

    Args:
        file: Its `read(n)` must not allocate more than there is: `io.BytesIO` or `mmap`.
        allowed: Globals that may be named.
        persistent: Makes a value of a persistent id.
        most: Instructions that are carried out.
    """
    machine = _Machine(allowed, persistent)
    try:
        for _ in range(most):
            opcode = OPCODES[file.read(1)]
            if opcode.name == "STOP":
                return machine.stack.pop()
            if opcode.name not in VALUES and opcode.name not in EFFECTS:
                raise CheckpointError(f"the instruction {opcode.name} is not allowed: refused")
            arg = opcode.arg.reader(file) if opcode.arg else None
            if opcode.name in EFFECTS:
                EFFECTS[opcode.name](machine, arg)
            else:
                value = VALUES[opcode.name](machine, arg)
                machine.stack.append(value)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"the pickle is damaged: {type(error).__name__}") from error
    raise CheckpointError(f"more than {most:,} instructions: no network needs so many")


class _Machine:
    """Stack, marks and memo of a pickle."""

    def __init__(self, allowed: Allowed, persistent: Callable[[Any], Any]) -> None:
        self.allowed, self.persistent = allowed, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def top(self, count: int) -> tuple[Any, ...]:
        return tuple(self.stack.pop() for _ in range(count))[::-1]

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def memoize(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def extend(self, values: Sequence[Any]) -> None:
        list.extend(self.stack[-1], values)

    def add(self, values: Sequence[Any]) -> None:
        set.update(self.stack[-1], map(_key, values))

    def fill(self, values: Sequence[Any]) -> None:
        target = self.stack[-1]
        pairs = zip(map(_key, values[::2]), values[1::2], strict=True)
        dict.update(target.items if isinstance(target, Call) else target, pairs)

    def name(self, name: str) -> Name:
        if name not in self.allowed:
            raise CheckpointError(f"it asks for {name[:100]!r}, which is not allowed: refused")
        return Name(name)

    def call(self, function: Any, args: Any) -> Call:
        if not isinstance(args, tuple) or not isinstance(function, Name):
            raise TypeError
        if not self.allowed[function.name](args):
            raise CheckpointError(f"it calls {function.name} as no network does: refused")
        return Call(function.name, args)

    def build(self, _: Any) -> None:
        state, call = self.stack.pop(), self.stack[-1]
        if not isinstance(call, Call):
            raise TypeError
        if call.state is not None:
            raise CheckpointError(f"the state of a {call.name} is set twice: refused")
        call.state = state


def _key(value: Any) -> Any:
    """Only plain keys: a nested tuple can take forever to hash."""
    if not isinstance(value, str | int | float):
        raise CheckpointError(f"a {type(value).__name__} is no key, text and numbers are: refused")
    return value


OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINBYTES", "BINBYTES"),
    *("BINBYTES8", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
VALUES: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(LITERALS, lambda m, arg: arg),
    **{"NONE": lambda m, _: None, "NEWTRUE": lambda m, _: True, "NEWFALSE": lambda m, _: False},
    **{"EMPTY_TUPLE": lambda m, _: (), "EMPTY_LIST": lambda m, _: []},
    **{"EMPTY_DICT": lambda m, _: {}, "EMPTY_SET": lambda m, _: set()},
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, place: m.memo[place]),
    **{"TUPLE": lambda m, _: tuple(m.marked()), "TUPLE1": lambda m, _: m.top(1)},
    **{"TUPLE2": lambda m, _: m.top(2), "TUPLE3": lambda m, _: m.top(3)},
    "GLOBAL": lambda m, name: m.name(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(".".join(m.top(2))),
    "BINPERSID": lambda m, _: m.persistent(m.stack.pop()),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.call(*m.top(2))),
}
"""Instructions that put a value on the stack; others than these and `EFFECTS` are refused."""
EFFECTS: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    **dict.fromkeys(("MEMOIZE", "BINPUT", "LONG_BINPUT"), _Machine.memoize),
    **{"MARK": _Machine.mark, "BUILD": _Machine.build},
    "APPEND": lambda m, _: m.extend(m.top(1)),
    "APPENDS": lambda m, _: m.extend(m.marked()),
    "ADDITEMS": lambda m, _: m.add(m.marked()),
    "SETITEM": lambda m, _: m.fill(m.top(2)),
    "SETITEMS": lambda m, _: m.fill(m.marked()),
}
