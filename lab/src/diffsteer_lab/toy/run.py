"""`diffsteer toy` from networks to files."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from diffsteer.core.errors import InputError
from diffsteer.io.atomic import atomic_write, put
from diffsteer.io.progress import progress
from diffsteer.io.seeds import format_seeds
from diffsteer_lab.toy.draw import draw
from diffsteer_lab.toy.measure import Truth
from diffsteer_lab.toy.report import claims, table
from diffsteer_lab.toy.study import (
    FLOORS,
    NETS,
    SCHEDULE,
    START,
    STEPS,
    WAYS,
    Study,
    choices,
    trained,
)

LEAST = 100
"""Fewest samples that can be measured."""


def run(out: Path, mains: Sequence[int], guides: Sequence[int], samples: int) -> str:
    """Train what is not there, sample, measure and draw; writes toy.json, toy.md and toy.png.

    Returns:
        The table and which claims hold, in Markdown, as in toy.md.
    """
    if samples < LEAST:
        raise InputError(f"{samples} samples show nothing: give at least {LEAST}")
    study = Study(trained(out / "networks", mains, guides), Truth(samples))
    total = len(FLOORS) + len(choices(mains, guides))
    rows = []
    with progress(total, "row") as bar:
        for row in study.rows(mains, guides):
            rows.append(row)
            bar.update(1)
    results = claims(rows)
    content = {
        "samples": samples,
        "seeds": {"main": list(mains), "guides": list(guides), "start": START},
        "sampler": {"name": "Heun()", "steps": STEPS, "schedule": repr(SCHEDULE)},
        "ways": [asdict(way) for way in WAYS],
        "networks": {role: asdict(how) for role, how in NETS.items()},
        "versions": {"torch": torch.__version__},
        "rows": [asdict(row) for row in rows],
        "claims": [asdict(claim) for claim in results],
    }
    head = (
        f"N={samples}, main networks of seeds {format_seeds(mains)}, "
        f"guides of seeds {format_seeds(guides)}, "
        f"{STEPS} Heun steps: median (least to most) over networks.\n"
    )
    text = "\n".join([head, table(rows), "", *(f"* {claim}" for claim in results)])
    for name, part in (("toy.json", json.dumps(content, indent=1)), ("toy.md", text)):
        put(out / name, f"{part}\n".encode())
    with atomic_write(out / "toy.png") as file:
        draw(study, mains[0], guides[0], file)
    return text
