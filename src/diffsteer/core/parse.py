"""Value objects from their text, safely: `parse(repr(value), Kind) == value`.

That holds for values of numbers, texts and other such values: for all that ships but `Discrete`.
"""

import ast
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from diffsteer.core.errors import InputError

T = TypeVar("T")

NODES = (
    *(ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword),
    *(ast.UnaryOp, ast.USub, ast.UAdd, ast.BinOp, ast.Add, ast.Mult, ast.Attribute),
)
METHODS: set[str] = set()
"""Methods that a text may call, such as `within`; wrappers register theirs."""
LONGEST = 10_000


def parse(text: str, kind: type[T], *parts: type, named: Mapping[str, T] | None = None) -> T:
    """Read a value from its `repr`; only known classes, named values and literals can be said.

    Args:
        text: Such as "DDIM(eta=0.5)" or "CFG(5).within(0.3, 5) + 2 * PAG(3)"; a class without
            parentheses means its defaults.
        kind: What the text has to be: this class or a subclass.
        parts: Further classes whose subclasses may occur as arguments.
        named: Values that a plain name stands for.

    Raises:
        ValueError: the text says anything else, or its arguments do not fit.
    """
    roots: tuple[type, ...] = (kind, *parts)
    if not isinstance(text, str):
        raise InputError(f"{text!r} is a {type(text).__name__}, not the text of a {kind.__name__}")
    classes = {c.__name__: c for root in roots for c in subclasses(root)}
    known = {**classes, **(named or {})}
    tree = _checked(text, {**known, "inf": math.inf}, kind)
    try:
        value = eval(
            compile(tree, "<text>", "eval"), {"__builtins__": {}}, {"inf": math.inf, **known}
        )
        if isinstance(value, type):
            value = value()
    except (TypeError, AttributeError, SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(f"{text!r}: {error}") from error
    if not isinstance(value, kind):
        raise InputError(f"{text!r} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def subclasses(kind: type) -> list[type[Any]]:
    """Every class below `kind`: defining a class registers it."""
    below: list[type[Any]] = kind.__subclasses__()
    return [d for c in below for d in (c, *subclasses(c))]


def _checked(text: str, known: Mapping[str, object], kind: type) -> ast.Expression:
    """Parse to a tree that can name nothing but `known`."""
    if len(text) > LONGEST:
        raise InputError(f"a text of {len(text)} characters is no {kind.__name__}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{text!r} cannot be read as a {kind.__name__}: {error}") from error
    for node in ast.walk(tree):
        if not isinstance(node, NODES) or not _harmless(node):
            raise InputError(f"{text!r}: this {type(node).__name__} is not allowed here")
        if isinstance(node, ast.Name) and node.id not in known:
            fit = (n for n, v in known.items() if isinstance(v, kind) or v in subclasses(kind))
            names = ", ".join(sorted(fit))
            raise InputError(f"{text!r}: unknown {kind.__name__} {node.id!r}; there are {names}")
    return tree


def _harmless(node: ast.AST) -> bool:
    """Refuse attributes but for known methods, and literals in sums but for a factor in front."""
    if isinstance(node, ast.Attribute):
        return node.attr in METHODS
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name | ast.Attribute)
    if isinstance(node, ast.BinOp):
        values = (ast.Call, ast.BinOp, ast.Name)
        factor = isinstance(node.op, ast.Mult) and isinstance(node.left, ast.Constant | ast.UnaryOp)
        return isinstance(node.right, values) and (factor or isinstance(node.left, values))
    return True
