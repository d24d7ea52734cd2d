"""Sensitivity of metrics to damage that nobody sees, and to damage that matters.

    python benchmarks/corruption.py --extractors block10 block10+16 head
    python benchmarks/corruption.py --data critters
    python benchmarks/corruption.py --data fashion.tar --label cls [--vae FOLDER]

On real images alone: half of them are the reference; the other half, untouched and damaged, is
measured against it. `block10+16` is EfficientNet-Lite0's block10 with mask 16. Fréchet distances
are divided by that of untouched images.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffsteer_lab.critters.images import Critters
from diffsteer_lab.emoji import Emoji
from torch import Tensor

from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.kernels import kid, scaled
from diffsteer.metrics.manifold import manifold
from diffsteer.metrics.moments import Moments
from diffsteer.train.captioned_images import open_images
from diffsteer.train.stream import Source, caption

HELD_OUT = "held out"
GRAIN, BLUR, FEWER = (1, 2, 4, 8), (0.5, 1.0), (2, 10)
"""Standard deviations in grey levels and pixels, and how often each image is repeated."""
Features = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="emoji", help="emoji, critters, a folder or a tar file")
    parser.add_argument("--label", default="", help="class of the images of a folder or tar file")
    parser.add_argument("--extractors", nargs="+", default=["block10", "block10+16", "head"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--n", type=int, default=400, help="images of each half, at most")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--vae", type=Path, help="folder of an AutoencoderKL: a round trip")
    options = parser.parse_args()
    source = opened(options.data, options.label, options.n)
    step = max(1, len(source) // (2 * options.n))
    numbers = range(0, step * min(2 * options.n, len(source) // 2 * 2), step)
    images = torch.stack([source[i].pixels for i in numbers])
    classes = [caption(source, i) for i in numbers] if options.label else []
    damage = dict(damaged(images, options.vae))
    for name in options.extractors:
        features = extractor(name, options.size)
        tables = {key: batched(features, x) for key, x in damage.items()}
        splits = [split(tables, classes, seed) for seed in range(options.splits)]
        print(f"\n{options.data}, {name}, N = reference N = {len(images) // 2}")
        report(splits)


def opened(data: str, label: str, n: int) -> Source:
    if data == "emoji":
        return Emoji("all", styles=("noto",), backgrounds=("white",))
    if data == "critters":
        return Critters("all", 2 * n, label=label)
    return open_images(Path(data), label=label)


def extractor(name: str, size: int) -> Features:
    layer, _, mask = name.partition("+")
    return EfficientNetLite0(layer, size, mask=float(mask or 0))


def batched(features: Features, images: Tensor) -> Tensor:
    return torch.cat([features(part) for part in torch.split(images, 64)])


def damaged(images: Tensor, vae: Path | None) -> Iterator[tuple[str, Tensor]]:
    yield HELD_OUT, images
    x, draw = images.float(), torch.Generator().manual_seed(0)
    for std in GRAIN:
        yield f"grain {std}", whole(x + std * torch.randn(x.shape, generator=draw))
    for sigma in BLUR:
        yield f"blur {sigma:g}", whole(blurred(x, sigma))
    yield "ghost 1/4", whole(0.75 * x + 0.25 * x[torch.randperm(len(x), generator=draw)])
    if vae is not None:
        yield "VAE", round_trip(images, vae)


def whole(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


def blurred(x: Tensor, sigma: float) -> Tensor:
    reach = int(4 * sigma + 0.5)
    line = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    row = (line / line.sum()).reshape(1, 1, 1, -1).expand(3, 1, 1, -1)
    x = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(x, row, groups=3), row.mT, groups=3)


@torch.inference_mode()
def round_trip(images: Tensor, folder: Path) -> Tensor:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder)
    latents = (vae.encode(part / 127.5 - 1).latent_dist.mean for part in torch.split(images, 64))
    return torch.cat([whole(vae.decode(z).sample * 127.5 + 127.5) for z in latents])


def split(tables: dict[str, Tensor], classes: list[str], seed: int) -> dict[str, dict[str, float]]:
    order = torch.randperm(len(tables[HELD_OUT]), generator=torch.Generator().manual_seed(seed))
    first, second = order.chunk(2)
    real, n = tables[HELD_OUT][first], len(second)
    sets = {name: x[second] for name, x in tables.items()}
    for times in FEWER:
        sets[f"1 in {times}"] = repeated(sets[HELD_OUT][: n // times], n)
    if classes:
        half = sorted(set(classes))[::2]
        kept = torch.tensor([classes[i] in half for i in second.tolist()])
        sets["half of classes"] = repeated(sets[HELD_OUT][kept], n)
    return {name: metrics(x, real) for name, x in sets.items()}


def repeated(x: Tensor, n: int) -> Tensor:
    return x[torch.arange(n) % len(x)]


def metrics(fake: Tensor, real: Tensor) -> dict[str, float]:
    fd = frechet(*(Gaussian.of(Moments.of(x)) for x in (fake, real)))
    value = kid(*scaled(fake, real), subsets=20, size=len(fake) // 2).value
    return {"FD": fd, "KID": value, **manifold(fake, real)._asdict()}


def report(splits: list[dict[str, dict[str, float]]]) -> None:
    names = list(splits[0][HELD_OUT])
    print(f"{'':16}{'FD / held out':>18}" + "".join(f"{name:>18}" for name in names))
    for damage in splits[0]:
        ratios = [s[damage]["FD"] / s[HELD_OUT]["FD"] for s in splits]
        columns = [ratios, *([s[damage][name] for s in splits] for name in names)]
        cells = (f"{statistics.mean(v):.3g} +- {statistics.pstdev(v):.2g}" for v in columns)
        print(f"{damage:16}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
