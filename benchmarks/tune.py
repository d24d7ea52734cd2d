"""Prepare the search of docs/tune.md on the critter model: prompts, rivals and a reference.

    python benchmarks/tune.py tune

Writes tune/prompts.txt, captions of the training split, tune/held-out/prompts.txt, captions of
held-out combinations of attributes, the best recipes of docs/results.md, as tune/*.json with the
former and tune/held-out/*.json with the latter, and tune/real, renderings.
"""

import argparse
import json
from pathlib import Path
from typing import Literal

from diffsteer_lab.critters.images import Critters
from PIL import Image

PROMPTS, SEED, REAL = 1000, 106, 400
BEST = {"none": "", "cfg": "CFG(2)", "interval": "CFG(3).within(0.2, 5)"}
"""Of docs/results.md."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    splits: tuple[tuple[Path, Literal["train", "test"]], ...]
    splits = ((out, "train"), (out / "held-out", "test"))
    for folder, split in splits:
        folder.mkdir(parents=True, exist_ok=True)
        data = Critters(split, PROMPTS, SEED)
        text = "".join(f"{data.caption(i)}\n" for i in range(PROMPTS))
        (folder / "prompts.txt").write_text(text, "utf-8")
        for name, guidance in BEST.items():
            recipe = {"model": "critters", "prompts": "prompts.txt", "guidance": guidance}
            text = json.dumps({**recipe, "sampler": "UniPC()", "steps": 12})
            (folder / f"{name}.json").write_text(text, "utf-8")
    real, data = out / "real", Critters("all", REAL)
    real.mkdir(exist_ok=True)
    for i in range(REAL):
        Image.fromarray(data[i].pixels.permute(1, 2, 0).numpy()).save(real / f"{i:05}.png")


if __name__ == "__main__":
    main()
