"""Layers and blocks of a network by parts of their names."""

import re
from collections.abc import Sequence

from diffsteer.core.errors import InputError


def matching(names: Sequence[str], wanted: str, kind: str = "attention layer") -> list[str]:
    """Names that `wanted` means, in its order: parts of names, "mid" or "layers.3, layers.5".

    "all" is all of them; "mid" is the middle one in transformers, where none is called so.
    """
    matches = (name for part in wanted.split(",") for name in _fitting(names, part.strip(), kind))
    return list(dict.fromkeys(matches))


def _fitting(names: Sequence[str], wanted: str, kind: str) -> list[str]:
    part = re.compile(rf"(^|\.){re.escape(wanted)}($|[._])")
    fitting = list(names) if wanted == "all" else [n for n in names if wanted and part.search(n)]
    if wanted == "mid" and names and not fitting:
        return [names[len(names) // 2]]
    if not fitting:
        there = ", ".join(names) or "none in this network"
        raise InputError(f"no {kind} is called {wanted!r}: there are {there}")
    return fitting
