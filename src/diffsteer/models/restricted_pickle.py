"""Pickles as inert data: nothing that a file names is imported, called or built.

A stack machine of the instructions of plain data. An import gives a `Name`, if the caller allows
it, and a call a `Call` with its arguments, for the caller to interpret. Source text in a pickle
stays text. Time and memory are bounded by the size of the file and by a count of instructions.
"""

import mmap
import pickletools
from collections.abc import Callable, Mapping
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

OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
CONSTANTS: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set},
}
LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINBYTES", "BINBYTES"),
    *("BINBYTES8", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
OTHERS = (
    *("PROTO", "FRAME", "MARK", "STOP", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET"),
    *("LONG_BINGET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM"),
    *("SETITEMS", "ADDITEMS", "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "NEWOBJ", "BUILD"),
)
KNOWN = frozenset((*CONSTANTS, *LITERALS, *OTHERS))
"""Instructions that are carried out; any other is refused before its argument is read."""


def read_file(path: Path, allowed: Allowed) -> Any:
    """Read a file that is one pickle.

    Args:
        path: The file.
        allowed: Globals that may be named.

    Raises:
        CheckpointError: it is no such pickle, is broken, or asks for anything else.
        OSError: it cannot be read.
    """
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
        for _ in range(most):
            opcode = OPCODES[file.read(1)]
            if opcode.name not in KNOWN:
                raise CheckpointError(f"the instruction {opcode.name} is not allowed: refused")
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.run(opcode.name, opcode.arg.reader(file) if opcode.arg else None)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"the pickle is damaged: {type(error).__name__}") from error
    raise CheckpointError(f"more than {most:,} instructions: no network needs so many")


class _Machine:
    """Stack, marks and memo of a pickle."""

    def __init__(self, allowed: Allowed, persistent: Callable[[Any], Any] | None) -> None:
        self.allowed, self.persistent = allowed, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, arg: Any) -> None:
        """Carry out an instruction."""
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in LITERALS:
            self.stack.append(arg)
        elif name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif name.endswith("GET"):
            self.stack.append(self.memo[arg])
        elif name.endswith("PUT") or name == "MEMOIZE":
            self.memo[len(self.memo) if arg is None else arg] = self.stack[-1]
        elif name.startswith("TUPLE"):
            values = self._marked() if name == "TUPLE" else self._top(int(name[5]))
            self.stack.append(tuple(values))
        elif name.startswith(("APPEND", "SETITEM", "ADDITEM")):
            self._fill(name)
        elif name.endswith("GLOBAL"):
            module, _, attribute = (arg or " ".join(self._top(2))).partition(" ")
            self.stack.append(self._name(f"{module}.{attribute}"))
        elif name == "BINPERSID":
            self.stack.append(self._persistent(self.stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            self.stack.append(self._call(*self._top(2)))
        elif name == "BUILD":
            self._build(*self._top(1))

    def _top(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def _marked(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def _fill(self, name: str) -> None:
        """Put values into the list, set, dictionary or call below them."""
        single = {"APPEND": 1, "SETITEM": 2}.get(name)
        values = self._top(single) if single else self._marked()
        target = self.stack[-1]
        if name.startswith("APPEND"):
            list.extend(target, values)
        elif name == "ADDITEMS":
            set.update(target, map(_key, values))
        else:
            items = target.items if isinstance(target, Call) else target
            pairs = zip(map(_key, values[::2]), values[1::2], strict=True)
            dict.update(items, pairs)

    def _name(self, name: str) -> Name:
        if name not in self.allowed:
            raise CheckpointError(f"it asks for {name[:100]!r}, which is not allowed: refused")
        return Name(name)

    def _persistent(self, pid: Any) -> Any:
        if self.persistent is None:
            raise CheckpointError("it asks for a persistent id, an object outside of it: refused")
        return self.persistent(pid)

    def _call(self, function: Any, args: Any) -> Call:
        if not isinstance(args, tuple) or not isinstance(function, Name):
            raise TypeError
        if not self.allowed[function.name](args):
            raise CheckpointError(f"it calls {function.name} as no network does: refused")
        return Call(function.name, args)

    def _build(self, state: Any) -> None:
        call = self.stack[-1]
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
