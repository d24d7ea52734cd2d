"""Seeds, prompts and numbers as texts."""

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from diffsteer.core.errors import InputError, brief
from diffsteer.io.strict import read_bytes

MOST = 5_000_000
"""Seeds of one text."""


def prompts_of(path: Path) -> tuple[str, ...]:
    """Read one prompt a line; an empty line, which would shift those after it, is refused."""
    if not path.exists():
        raise FileNotFoundError(
            f"no file {path} of prompts: give a file with one prompt a line, or one prompt alone "
            "by --prompt"
        )
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: {error}") from error
    lines = (
        text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
        if text
        else []
    )
    empty = [i for i, line in enumerate(lines, start=1) if not line.strip()]
    if empty or not lines:
        where = f"line {empty[0]} is empty" if empty else "it is empty"
        raise InputError(f"{path}: {where}; write one prompt a line")
    return tuple(lines)


def parse_seeds(text: str) -> list[int]:
    """Read "0-63" or "1,5,7-9": at most `MOST` seeds of 64 bits, each once, no falling ranges."""
    try:
        ranges = [_range(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f'{brief(text)} are no seeds: write "7", "0-63" or "0-3,8"') from error
    if (count := sum(r.stop - r.start for r in ranges)) > MOST:
        raise InputError(f"{brief(text)} are {count} seeds: take at most {MOST} at a time")
    seeds = list(chain(*ranges))
    if len(set(seeds)) < count:
        raise InputError(f"{brief(text)} names a seed twice")
    return seeds


def is_seed(value: object) -> bool:
    """Accept whole numbers of 64 bits, not negative."""
    return type(value) is int and 0 <= value < 2**64


def _range(part: str) -> range:
    low, dash, high = (each.strip() for each in part.partition("-"))
    if not re.fullmatch("[0-9]+", low + high):  # int reads 1_0 and digits of other scripts too
        raise ValueError
    first, last = int(low), int(high if dash else low)
    if not first <= last < 2**64:
        raise ValueError
    return range(first, last + 1)


def format_seeds(seeds: Sequence[int]) -> str:
    """Text that `parse_seeds` reads back as the sorted seeds."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1][1:] = [seed]
        else:
            parts.append([seed])
    return ",".join("-".join(map(str, part)) for part in parts)


def format_number(weight: float) -> str:
    """Shortest text of a number, whole ones without a point."""
    return repr(float(weight)).removesuffix(".0")
