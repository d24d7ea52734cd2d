"""Seeds, prompts and numbers as texts."""

from collections.abc import Sequence
from pathlib import Path

from diffsteer.core.errors import InputError


def prompts_of(path: Path) -> tuple[str, ...]:
    """Read one prompt a line.

    Raises:
        ValueError: there is none, or a line is empty, which would shift those after it, or the file
            is no UTF-8.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: {error}") from error
    lines = text.removesuffix("\n").split("\n") if text else []
    empty = [i for i, line in enumerate(lines, start=1) if not line.strip()]
    if empty or not lines:
        where = f"line {empty[0]} is empty" if empty else "it is empty"
        raise InputError(f"{path}: {where}; write one prompt a line")
    return tuple(lines)


def parse_seeds(text: str) -> list[int]:
    """Read "0-63" or "1,5,7-9".

    Raises:
        ValueError: it is no such list, has a range that falls or a number over 64 bits, or names a
            seed twice.
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            low, dash, high = part.partition("-")
            first, last = int(low), int(high if dash else low)
            if not first <= last < 2**64:
                raise InputError
            seeds += range(first, last + 1)
    except ValueError as error:
        raise InputError(f'{text!r} are no seeds: write "7", "0-63" or "0-3,8"') from error
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{text!r} names a seed twice")
    return seeds


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
