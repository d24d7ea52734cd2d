"""Numbers of a guidance expression, each with the range of a slider."""

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from diffsteer.core.fields import Rule, rules_of
from diffsteer.core.parse import parse, subclasses
from diffsteer.guidance import Guidance
from diffsteer.io.seeds import format_number

STEP, REACH = 0.05, 10.0
"""Step of a slider, and least upper end of one whose number has no bounds."""


@dataclass(frozen=True)
class Number:
    """A number of an expression.

    Attributes:
        name: Such as "CFG scale" or "within lo"; unique in its expression.
        value: As it stands there.
        lo: Lower end of its slider.
        hi: Upper end.
        step: Of the slider; 1 for whole numbers.
        place: First character in the text, and the one after its last.
    """

    name: str
    value: float
    lo: float
    hi: float
    step: float
    place: tuple[int, int]


def numbers(text: str) -> list[Number]:
    """Numbers of an expression in the order of its text; none of an empty one.

    Raises:
        InputError: the text is no guidance.
    """
    text = one_line(text)
    if not text:
        return []
    parse(text, Guidance)
    made: list[Number] = []
    constants = _constants(ast.parse(text, mode="eval"))
    for owner, name, rules, node in sorted(constants, key=lambda c: c[3].col_offset):
        place = _characters(text, node.col_offset), _characters(text, node.end_col_offset or 0)
        label = f"{owner} {name}".strip()
        count = sum(n.name.partition(" #")[0] == label for n in made)
        value = ast.literal_eval(node)
        whole = any(rule.holds(1) and not rule.holds(0.5) for rule in rules)
        label = f"{label} #{count + 1}" if count else label
        made.append(Number(label, value, *_range(value, rules, whole), place))
    return made


def with_numbers(text: str, values: Sequence[float | None]) -> str:
    """Expression with other numbers in their order; None leaves one as it is."""
    text = one_line(text)
    for number, value in reversed([*zip(numbers(text), values, strict=True)]):
        if value is not None:
            first, last = number.place
            text = f"{text[:first]}{format_number(value)}{text[last:]}"
    if text:
        parse(text, Guidance)
    return text


def one_line(text: str) -> str:
    """Expression without line breaks and further spaces."""
    return " ".join(text.split())


Constant = tuple[str, str, tuple[Rule, ...], ast.expr]


def _constants(tree: ast.AST) -> Iterator[Constant]:
    classes = {
        c.__name__: c for kind in (Guidance, *Guidance.written_with) for c in subclasses(kind)
    }
    methods = {c.method: c for c in subclasses(Guidance) if getattr(c, "method", "")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            method = isinstance(node.func, ast.Attribute)
            owner = node.func.attr if method else node.func.id  # type: ignore[attr-defined]
            cls = (methods if method else classes)[owner]
            names = [f.name for f in fields(cls) if f.init][1 if method else 0 :]
            given = [*zip(names, node.args, strict=False)]
            given += [(k.arg or "", k.value) for k in node.keywords]
            for name, value in given:
                if _is_number(value):
                    yield owner, name, rules_of(cls, name), value
        elif isinstance(node, ast.BinOp) and _is_number(node.left):
            yield _first_class(node.right), "factor", (), node.left


def _first_class(node: ast.expr) -> str:
    names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
    return names[0] if names else ""


def _is_number(node: ast.expr) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(inner, ast.Constant) and type(inner.value) in (int, float)


def _range(value: float, rules: Sequence[Rule], whole: bool) -> tuple[float, float, float]:
    """Ends and step of a slider that fits the rules of a field."""
    holds: Callable[[Any], bool] = lambda v: all(rule.holds(v) for rule in rules)  # noqa: E731
    step = 1.0 if whole else STEP
    cast = int if whole else float
    hi = max(REACH, 2.0 ** _exponent(2 * abs(value)))
    if not holds(cast(hi)):
        hi = 1.0 if holds(cast(1)) and not whole else max(value, 1.0)
    lo = -hi if value < 0 else 0.0 if holds(cast(0)) else step
    return min(lo, value), max(hi, value), min(step, abs(value)) if 0 < abs(value) < step else step


def _exponent(value: float) -> int:
    return max(int(value) - 1, 0).bit_length()


def _characters(text: str, count: int) -> int:
    """Characters of the first bytes of a text, in which Python counts."""
    return len(text.encode()[:count].decode())
