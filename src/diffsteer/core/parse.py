"""Value objects from their text, safely: `parse(repr(value), Kind) == value`.

That holds for values of numbers, texts and other such values: for all that ships but `Discrete`.
"""

import ast
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields
from itertools import accumulate
from typing import Any, TypeVar

from diffsteer.core.errors import InputError, brief, did_you_mean

T = TypeVar("T")

NODES = (
    *(ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword),
    *(ast.UnaryOp, ast.USub, ast.UAdd, ast.BinOp, ast.Add, ast.Mult, ast.Attribute),
)
METHODS: set[str] = set()
"""Methods that a text may call, such as `within`; wrappers register theirs."""
COMBINED = {"inner", "terms"}
"""Fields of classes that operators and methods make, which errors do not name."""
LONGEST, LARGEST = 10_000, 2**63
"""Characters of a text, and size of a whole number in it."""
PUBLISHED = r"([^\W\d_](?:[\w^*-]|\N{SUPERSCRIPT TWO}| (?=[^\W\d_]))*[+*]*)(?=\s*\(|\s*$| \+ )"
"""Names as papers write them: "CFG++", "CFG-Zero*", "Sliding window guidance"."""
INNERMOST, DEEPEST = 50, 620
"""Parentheses in each other, and levels of its tree: two for each method in a chain of them."""


def parse(text: str, kind: type[T], *parts: type, named: Mapping[str, T] | None = None) -> T:
    """Read a value from its `repr`; only known classes, named values and literals can be said.

    Classes of its `written_with` may stand in a text as well.

    Args:
        text: Such as "DDIM(eta=0.5)" or "CFG(5).within(0.3, 5) + 2 * PAG(3)"; a class without
            parentheses means its defaults.
        kind: What the text has to be: this class or a subclass.
        parts: Further classes whose subclasses may occur as arguments.
        named: Values that a plain name stands for; without, those in `named` of the class.

    Raises:
        ValueError: the text says anything else, or its arguments do not fit.
    """
    roots: tuple[type, ...] = (kind, *parts, *getattr(kind, "written_with", ()))
    if not isinstance(text, str):
        raise InputError(f"{brief(text)} is a {type(text).__name__}, not text of a {kind.__name__}")
    classes = {c.__name__: c for root in roots for c in (*_itself(root), *subclasses(root))}
    known = {**classes, **(getattr(kind, "named", {}) if named is None else named)}
    try:
        code = _compiled(text, {**known, "inf": math.inf}, kind)
        value = eval(code, {"__builtins__": {}}, {"inf": math.inf, **known})
        if isinstance(value, type):
            value = value()
    except Exception as error:  # the text is all that was run
        hint = _example(kind) if isinstance(error, SyntaxError) else ""
        reason = _misspelled(text, known, kind) or f"{_reason(error, classes)}{hint}"
        raise InputError(f"{brief(text)}: {reason}") from error
    if not isinstance(value, kind):
        raise InputError(
            f"{brief(text)} is a {type(value).__name__}, not a {kind.__name__}{_example(kind)}"
        )
    return value


def subclasses(kind: type) -> list[type[Any]]:
    """Every class below `kind`, private ones left out: defining a class registers it."""
    below: list[type[Any]] = kind.__subclasses__()
    known = [d for c in below for d in (c, *subclasses(c))]
    return [c for c in known if not c.__name__.startswith("_")]


def _itself(kind: type) -> list[type]:
    """A class whose values a text may name; none for an abstract one."""
    return [] if getattr(kind, "__abstractmethods__", None) else [kind]


def _example(kind: type) -> str:
    """What an error says of how texts of a kind are written; nothing where the kind says none."""
    example = getattr(kind, "example", "")
    return example and f": write it as {example}"


def _reason(error: Exception, classes: Mapping[str, type[Any]]) -> str:
    """What is wrong with a text; of arguments that do not fit, which a class takes."""
    match = re.fullmatch(r"(\w+)\.__init__\(\) (.*)", str(error))
    if match is None or match[1] not in classes:
        return getattr(error, "msg", "") or str(error) or type(error).__name__
    takes = [
        f.name if f.default is MISSING else f"{f.name}={f.default!r}"
        for f in sorted(fields(classes[match[1]]), key=lambda f: bool(f.kw_only))
        if f.init
    ]
    return f"{match[1]} {match[2]}; it is {match[1]}({', '.join(takes)})"


def _compiled(text: str, known: Mapping[str, object], kind: type) -> Any:
    """Compile a text that can name nothing but `known`."""
    inner = max(accumulate((c == "(") - (c == ")") for c in text), default=0)
    if len(text) > LONGEST or inner > INNERMOST:
        raise InputError(
            f"it has {len(text)} characters and {inner} parentheses in each other: a "
            f"{kind.__name__} has at most {LONGEST} and {INNERMOST}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # of escapes that are none
        tree = ast.parse(text.strip(), mode="eval")
        level: list[ast.AST] = [tree]
        for _ in range(DEEPEST):
            for node in level:
                _require_harmless(node, known, kind)
            level = [child for node in level for child in ast.iter_child_nodes(node)]
        if level:
            raise InputError("it is nested too deeply")
        return compile(tree, "<text>", "eval")


def _require_harmless(node: ast.AST, known: Mapping[str, object], kind: type) -> None:
    if isinstance(node, ast.Attribute) and node.attr not in METHODS:
        kinds = [kind, *getattr(kind, "written_with", ())]
        there = sorted(name for name in METHODS if any(hasattr(each, name) for each in kinds))
        hint = did_you_mean(node.attr, there)
        hint += f"; there are {', '.join(there)}" if there else _example(kind)
        raise InputError(f"unknown .{brief(node.attr)[1:-1]}{hint}")
    called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    if isinstance(value := known.get(called), kind):
        raise InputError(f"{called} is {value!r} and takes no arguments")
    if not isinstance(node, NODES) or not _harmless(node):
        raise InputError(f"this {type(node).__name__} is not allowed here{_example(kind)}")
    if isinstance(node, ast.Name) and node.id not in known:
        if node.id == "nan":
            raise InputError("nan is not finite: give a number")
        raise InputError(_unknown(node.id, known, kind))


def _misspelled(text: str, known: Mapping[str, object], kind: type) -> str:
    """Message on the first name that is written as in papers, "CFG++(0.6)"; empty for none."""
    for name in re.findall(PUBLISHED, text[:LONGEST]):
        if not name.isidentifier() and _meant(name, _spellings(known, kind)):
            return _unknown(name, known, kind)
    return ""


def _unknown(name: str, known: Mapping[str, object], kind: type) -> str:
    spellings = _spellings(known, kind)
    names = sorted({*spellings.values()})
    meant = _meant(name, spellings)
    hint = f" (did you mean {meant!r}?)" if meant else did_you_mean(name, names)
    return (
        f"unknown {kind.__name__} {brief(name)}{hint}; there are {', '.join(names)}, "
        "and your own once their file is imported"
    )


def _spellings(known: Mapping[str, object], kind: type) -> dict[str, str]:
    """Names that a text may use, by themselves and by what their docstrings call them, plain."""
    kinds = [kind, *getattr(kind, "written_with", ())]
    below = [c for k in kinds for c in subclasses(k)]
    simple = [c for c in below if not COMBINED & {*c.__annotations__}]
    values = {n: v for n, v in known.items() if isinstance(v, kind) or v in simple}
    titles = {_plain(re.split("[;:,.]", v.__doc__ or "")[0]): n for n, v in values.items()}
    return titles | {_plain(n): n for n in values}


def _meant(name: str, spellings: Mapping[str, str]) -> str:
    """Known name that differs in case, signs or, where it is no identifier, in its end; or none."""
    plain = _plain(name)
    if plain in spellings or name.isidentifier():
        return spellings.get(plain, "")
    begun = [known for known in spellings if len(known) > 1 and plain.startswith(known)]
    longer = [known for known in spellings if len(plain) > 3 and known.startswith(plain)]
    return spellings[max(begun or longer, key=len)] if begun or longer else ""


def _plain(name: str) -> str:
    """Letters and digits of a name: "cfgpp" of "CFG++", "selfattention" of its full name."""
    signs = name.lower().replace("++", "pp").replace("\N{SUPERSCRIPT TWO}", "2")
    return re.sub(r"[\W_]", "", signs).removesuffix("guidance")


def _harmless(node: ast.AST) -> bool:
    """Refuse large numbers, and literals in sums but for a factor in front."""
    if isinstance(node, ast.Constant):
        plain = type(node.value) in (str, float, bool, type(None))
        return plain or (type(node.value) is int and node.value < LARGEST)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name | ast.Attribute)
    if isinstance(node, ast.BinOp):
        values = (ast.Call, ast.BinOp, ast.Name)
        factor = isinstance(node.op, ast.Mult) and isinstance(node.left, ast.Constant | ast.UnaryOp)
        return isinstance(node.right, values) and (factor or isinstance(node.left, values))
    return True
