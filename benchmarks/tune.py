"""Prepare the search of docs/tune.md on the pocket model: prompts, reference and rivals.

    python benchmarks/tune.py tune

Writes tune/prompts.txt, captions of the training split, tune/reference.npz of real emoji of other
captions, and the best recipes of docs/results.md, at 32 network evaluations, as tune/*.json.
"""

import argparse
import json
from pathlib import Path

import torch
from diffsteer_lab.emoji import Emoji
from pocket import captions

from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.metrics.statistics import measure

PROMPTS, REAL, SIDE, MASK = 1000, 2000, 64, 16.0
BEST = {"cfg": ("CFG(1.5)", ""), "auto": ("Auto(1.25)", "pocket-guide"), "masked": ("CFG(2)", "")}
"""Of docs/results.md: by its distances, and by those through a mask."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    source, order = Emoji("train"), captions(PROMPTS + REAL)
    texts = [source.caption(i) for i in order[:PROMPTS]]
    (out / "prompts.txt").write_text("".join(f"{text}\n" for text in texts))
    for name, (guidance, guide) in BEST.items():
        recipe = {"model": "pocket", "prompts": "prompts.txt", "guidance": guidance}
        recipe |= {"guide": guide} if guide else {}
        (out / f"{name}.json").write_text(json.dumps(recipe | {"sampler": "UniPC()", "steps": 16}))
    batches = torch.split(torch.tensor(order[PROMPTS:]), 64)
    real = (torch.stack([source[i].pixels for i in batch.tolist()]) for batch in batches)
    measure(real, REAL, EfficientNetLite0(size=SIDE, mask=MASK)).save(out / "reference.npz")


if __name__ == "__main__":
    main()
