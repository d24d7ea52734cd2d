"""Arguments of a pipeline's call, read from the source of diffusers without importing it.

Importing diffusers takes seconds, and a mistake should be told sooner.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from diffsteer.io.model_folder import INDEX
from diffsteer.io.strict import read_object


def pipeline_class(folder: str) -> str:
    """Name of the pipeline of a folder; empty where that is not known without asking the hub."""
    index = Path(folder) / INDEX
    name = read_object(index).get("_class_name") if index.is_file() else ""
    return name if isinstance(name, str) else ""


@dataclass(frozen=True)
class Argument:
    """An argument of a pipeline's call, as the source writes it.

    Attributes:
        annotation: Its type; empty where none is named.
        default: Its default; None where it has none.
    """

    annotation: str
    default: str | None


def call_parameters(name: str) -> frozenset[str]:
    """Names of the arguments of a pipeline's call; empty where the class is not found."""
    return frozenset(call_arguments(name))


@cache
def call_arguments(name: str) -> Mapping[str, Argument]:
    """Arguments of a pipeline's call by name; empty where the class is not found."""
    definition = _class(name)
    if definition is None:
        return {}
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__call__":
            return _arguments(node.args)
    bases = [base.id for base in definition.bases if isinstance(base, ast.Name)]
    return next((found for base in bases if (found := call_arguments(base))), {})


def _arguments(given: ast.arguments) -> dict[str, Argument]:
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults))
    defaults += [*given.defaults, *given.kw_defaults]
    return {
        each.arg: Argument(
            ast.unparse(each.annotation) if each.annotation else "",
            None if default is None else ast.unparse(default),
        )
        for each, default in zip([*plain, *given.kwonlyargs], defaults, strict=True)
        if each.arg != "self"
    }


@cache
def scheduler_exists(name: str) -> bool:
    """Whether diffusers has a scheduler of a name."""
    pattern = re.compile(rf"^class {re.escape(name)}\b", re.M)
    return any(pattern.search(path.read_text("utf-8")) for path in _sources("schedulers/*.py"))


def _class(name: str) -> ast.ClassDef | None:
    pattern = re.compile(rf"^class {re.escape(name)}\b", re.M)
    for path in _sources():
        text = path.read_text("utf-8")
        if name in text and pattern.search(text):
            nodes = ast.parse(text).body
            return next(n for n in nodes if isinstance(n, ast.ClassDef) and n.name == name)
    return None


def _sources(pattern: str = "pipelines/**/pipeline*.py") -> Iterator[Path]:
    spec = find_spec("diffusers")
    if spec is not None and spec.origin:
        yield from sorted(Path(spec.origin).parent.glob(pattern))
