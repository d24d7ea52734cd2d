"""`diffsteer models`: which guidances work on which network."""

import csv
from importlib.resources import files
from typing import Annotated

import tyro

from diffsteer.core.errors import InputError


def models(name: Annotated[str, tyro.conf.Positional] = "", /) -> None:
    """Print which guidances work on which network of diffusers, and what to start with.

    Args:
        name: Part of the name of a network or a pipeline, such as "wan"; all without.
    """
    text = files("diffsteer.hf").joinpath("models.csv").read_text()
    head, *rows = csv.reader(text.splitlines())
    chosen = [row for row in rows if name.lower() in f"{row[0]} {row[1]}".lower()]
    if not chosen:
        raise InputError(
            f"no network or pipeline is called {name!r}: give a part of its name, such as wan or "
            "StableDiffusion3; `diffsteer models` prints all"
        )
    widths = [max(map(len, column)) for column in zip(head, *chosen, strict=True)]
    for row in (head, *chosen):
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    if not name:
        return
    from diffsteer.guidance.defaults import defaults

    for pipeline in dict.fromkeys(row[1] for row in chosen if row[1]):
        for start in defaults(pipeline):
            text = f"{pipeline}: start with {start.guidance}{', ' * bool(start.note)}{start.note}"
            print(f"{text} ({start.source})")
