"""Values of `--set KEY=VALUE`, of the types that the call of a pipeline names."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from diffsteer.core.errors import InputError, brief
from diffsteer.hf.signature import Argument

CONSTANTS = {"True": True, "False": False, "None": None}
"""As Python writes them; JSON has them in small letters."""
NUMBER = re.compile(r"[+-]?(\d+\.|\.\d+|\+\d+(\.\d*)?)([eE][+-]?\d+)?")
"""Numbers as Python writes them, and JSON does not."""
NEVER = {
    *("Tensor", "FloatTensor", "LongTensor", "Image", "ndarray", "Generator", "RandomState"),
    *("PipelineImageInput", "Callable"),
}
"""Types whose values no text can give."""
SEQUENCES = ("list", "List", "tuple", "Tuple", "Iterable", "Sequence")


def value_of(pipeline: str, name: str, text: str, arguments: Mapping[str, Argument]) -> Any:
    """The value that a text means: JSON, or a word of Python's, or the text itself.

    Args:
        pipeline: Name of the pipeline, for errors.
        name: Of the argument of its call.
        text: What stands behind KEY=.
        arguments: Of the call; any value is taken for one that is not there.

    Raises:
        InputError: it has not the type of the argument.
    """
    value, argument = _parsed(text), arguments.get(name)
    if argument is None:
        return value
    hint = _hint(argument)
    fits = next((each for each in (value, text) if _accepts(hint, each)), ...)
    if fits is ...:
        kind = argument.annotation or f"{type(_parsed(argument.default or '')).__name__}"
        default = "" if argument.default is None else f" ({argument.default} by default)"
        raise InputError(
            f"--set {name}={brief(text)[1:-1]}: {pipeline} takes {brief(kind)[1:-1]}{default}"
        )
    if isinstance(fits, float) and not _accepts(hint, 0.5):
        return int(fits)
    return tuple(fits) if isinstance(fits, list) and not _accepts_list(hint) else fits


def _parsed(text: str) -> Any:
    if text in CONSTANTS:
        return CONSTANTS[text]
    try:
        return float(text) if NUMBER.fullmatch(text) else json.loads(text)
    except ValueError:
        return text


def _hint(argument: Argument) -> ast.expr | None:
    """Annotation of an argument, or the type of its default; None where neither says."""
    if argument.annotation:
        text = argument.annotation + (" | None" if argument.default == "None" else "")
        return ast.parse(text, mode="eval").body
    value = _parsed((argument.default or "None").strip("'\""))
    return ast.Name(type(value).__name__) if isinstance(value, bool | int | float | str) else None


def _accepts(hint: ast.expr | None, value: Any) -> bool:
    """Whether a value has the type of an annotation; a type that is not known takes any."""
    match hint:
        case ast.BinOp():
            return _accepts(hint.left, value) or _accepts(hint.right, value)
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str(text)):
            return _accepts(ast.parse(text, mode="eval").body, value)
        case ast.Subscript():
            return _accepts_parameters(hint, value)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _accepts_name(name, value)
    return True


def _accepts_name(name: str, value: Any) -> bool:
    match name:
        case "bool":
            return isinstance(value, bool) or value in (0, 1)
        case "int":
            return _is_number(value) and float(value).is_integer()
        case "float":
            return _is_number(value)
        case "str":
            return isinstance(value, str)
        case "dict" | "Dict":
            return isinstance(value, dict)
    if name in SEQUENCES:
        return isinstance(value, list)
    return name not in NEVER


def _is_number(value: Any) -> bool:
    """Whether a value is a number, not NaN and no truth."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _accepts_parameters(hint: ast.Subscript, value: Any) -> bool:
    base = ast.unparse(hint.value).rpartition(".")[-1]
    inner = hint.slice.elts if isinstance(hint.slice, ast.Tuple) else [hint.slice]
    kinds = [each for each in inner if not (isinstance(each, ast.Constant) and each.value is ...)]
    if base == "Literal":
        return value in [each.value for each in kinds if isinstance(each, ast.Constant)]
    if base in SEQUENCES:  # of timesteps, which are called whole and need not be
        numbers = any(isinstance(kind, ast.Name) and kind.id == "int" for kind in kinds)
        return isinstance(value, list) and all(
            (numbers and _is_number(each)) or any(_accepts(kind, each) for kind in kinds)
            for each in value
        )
    if base in ("Optional", "Union"):
        return (base == "Optional" and value is None) or any(_accepts(k, value) for k in kinds)
    return _accepts_name(base, value)


def _accepts_list(hint: ast.expr | None) -> bool:
    """Whether an annotation is of lists, not of tuples alone, which cannot be added to one."""
    return hint is None or "tuple" not in ast.unparse(hint) or "list" in ast.unparse(hint).lower()
