"""What the call of a pipeline takes, read from the source of diffusers without importing it.

Importing diffusers takes seconds, and a mistake should be told sooner.
"""

import ast
import re
from collections.abc import Iterator
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


@cache
def call_parameters(name: str) -> frozenset[str]:
    """Names of the arguments of a pipeline's call; empty where the class is not found."""
    definition = _class(name)
    if definition is None:
        return frozenset()
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__call__":
            arguments = node.args
            every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            return frozenset(argument.arg for argument in every) - {"self"}
    bases = [base.id for base in definition.bases if isinstance(base, ast.Name)]
    return next((names for base in bases if (names := call_parameters(base))), frozenset())


def _class(name: str) -> ast.ClassDef | None:
    pattern = re.compile(rf"^class {re.escape(name)}\b", re.M)
    for path in _sources():
        text = path.read_text("utf-8")
        if name in text and pattern.search(text):
            nodes = ast.parse(text).body
            return next(n for n in nodes if isinstance(n, ast.ClassDef) and n.name == name)
    return None


def _sources() -> Iterator[Path]:
    spec = find_spec("diffusers")
    if spec is not None and spec.origin:
        yield from sorted((Path(spec.origin).parent / "pipelines").rglob("pipeline*.py"))
