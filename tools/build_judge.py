"""Train the judge of critters on renderings, and measure it on others.

python tools/build_judge.py --work WORK     # render, train, write the weights, print its ceiling

It sees every combination, colours as jittered, noise of up to 12 grey levels and blur of up to 1.2
pixels, so that what it reads does not hang on the grain of an autoencoder.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffsteer_lab.critters.grammar import ATTRIBUTES, Critter
from diffsteer_lab.critters.images import Critters
from diffsteer_lab.critters.judge import WEIGHTS, Judge
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

IMAGES, HELD_OUT = 24_000, 4_000
EPOCHS, BATCH, RATE = 6, 64, 2e-3
NOISE, BLUR = 12.0, 1.2
"""Greatest standard deviations of noise, in grey levels, and of blur, in pixels."""


def rendered(source: Critters, path: Path) -> Tensor:
    """Pixels of a source, kept in a file."""
    if not path.exists():
        images = torch.stack([source[i].pixels for i in tqdm(range(len(source)), "rendering")])
        np.save(path, images.numpy())
    return torch.from_numpy(np.load(path))


def labels(critters: list[Critter]) -> dict[str, Tensor]:
    """Numbers of the words of each attribute."""
    return {
        name: torch.tensor([words.index(getattr(critter, name)) for critter in critters])
        for name, words in ATTRIBUTES.items()
    }


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own standard deviation, in pixels."""
    places = torch.arange(-3, 4.0)
    kernel = (-(places**2) / (2 * sigma[:, None] ** 2 + 1e-6)).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    n, c, h, w = x.shape
    flat = F.pad(x.reshape(1, n * c, h, w), (3, 3, 3, 3), mode="replicate")
    rows = F.conv2d(flat, kernel[:, :, None, :], groups=n * c)
    return F.conv2d(rows, kernel[:, :, :, None], groups=n * c).reshape(n, c, h, w)


def augmented(x: Tensor, draw: torch.Generator) -> Tensor:
    """Floats in [0, 255]; half of the images blurred, half of them noisy."""
    half = (torch.rand(2, len(x), generator=draw) < 0.5).float()
    size = torch.rand(2, len(x), generator=draw)
    x = blurred(x.float(), BLUR * size[0] * half[0])
    noise = torch.randn(x.shape, generator=draw) * (NOISE * size[1] * half[1])[:, None, None, None]
    return (x + noise).clamp(0, 255)


def train(images: Tensor, targets: dict[str, Tensor]) -> Judge:
    """Minimise the mean cross entropy of the attributes."""
    torch.manual_seed(0)
    network: Judge = Judge().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    draw = torch.Generator().manual_seed(0)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=draw)[: steps // EPOCHS * BATCH]
        for batch in tqdm(torch.split(order, BATCH), "training"):
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(network.hidden_of(augmented(images[batch], draw)))
            losses = [
                F.cross_entropy(logits[k].float(), v[batch], label_smoothing=0.02)
                for k, v in targets.items()
            ]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate.step()
    return network.eval()


def ceiling(network: Judge, images: Tensor, critters: list[Critter]) -> dict[str, float]:
    """Accuracy of each attribute, of all, and the share of images that are all right."""
    pairs = zip(network.read(images), critters, strict=True)
    same = torch.tensor([[a == b for a, b in zip(*p, strict=True)] for p in pairs]).double()
    each = dict(zip(ATTRIBUTES, same.mean(0).tolist(), strict=True))
    return {
        **each,
        "attributes": same.mean().item(),
        "all right": same.all(1).double().mean().item(),
    }


def main() -> None:
    """Render, train, write and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the renderings")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    source, unseen = Critters("all", IMAGES, seed=101), Critters("test", HELD_OUT, seed=102)
    images = rendered(source, args.work / "judge-train.npy")
    begin = time.process_time()
    network = train(images, labels([source.critter(i) for i in range(IMAGES)]))
    minutes = (time.process_time() - begin) / 60
    weights = {k: v.half().contiguous() for k, v in network.state_dict().items()}
    save_file(weights, args.out)
    network.load_state_dict({k: v.float() for k, v in weights.items()})
    shares = ceiling(
        network,
        rendered(unseen, args.work / "judge-test.npy"),
        [unseen.critter(i) for i in range(HELD_OUT)],
    )
    print(json.dumps({"minutes": round(minutes, 1), "images": HELD_OUT, **shares}, indent=1))


if __name__ == "__main__":
    main()
