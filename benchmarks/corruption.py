"""Do the metrics rank known damage? Blur, noise and lost variety on real images.

    python benchmarks/corruption.py [--splits 5] [--size 64] [--pictures DIR]

On the Noto emoji that ship, each once and on white, or on the images of a folder. Half of them
are the reference; the other half, untouched and damaged, is measured against it.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffsteer_lab.emoji import Emoji
from torch import Tensor

from diffsteer.io.images import Pictures, stacked
from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.kernels import kid, scaled
from diffsteer.metrics.manifold import manifold
from diffsteer.metrics.moments import Moments

CURVES = {
    "blur": ("held out", "blur 0.5", "blur 1", "blur 2"),
    "noise": ("held out", "noise 0.02", "noise 0.05", "noise 0.15"),
    "collapse": ("held out", "1 in 2", "1 in 10", "1 in 50"),
}
BETTER_IS_LESS = ("FD", "KID")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    images = _read(options.pictures) if options.pictures else _emoji()
    for layer in ("block10", "head"):
        extractor = EfficientNetLite0(layer, options.size)
        features = {name: _features(extractor, x) for name, x in _damaged(images)}
        n = len(images) // 2
        print(f"\n{extractor.origin}\nN={n}, reference N={n}, mean over {options.splits} splits")
        _report([_split(features, n, seed) for seed in range(options.splits)])


def _emoji() -> Tensor:
    source = Emoji("all", styles=("noto",), backgrounds=("white",))
    return torch.stack([source[i].pixels for i in range(len(source))])


def _read(folder: Path) -> Tensor:
    return torch.cat([stacked(batch) for batch in Pictures.at(folder).batches(256)])


def _damaged(images: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "held out", images
    x = images / 255
    for sigma in (0.5, 1.0, 2.0):
        yield f"blur {sigma:g}", (_blurred(x, sigma) * 255).round().to(torch.uint8)
    generator = torch.Generator().manual_seed(0)
    for std in (0.02, 0.05, 0.15):
        noisy = x + std * torch.randn(x.shape, generator=generator)
        yield f"noise {std:g}", (noisy.clamp(0, 1) * 255).round().to(torch.uint8)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    reach = int(4 * sigma + 0.5)
    line = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    row = (line / line.sum()).reshape(1, 1, 1, -1).expand(3, 1, 1, -1)
    x = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(x, row, groups=3), row.mT, groups=3)


def _features(extractor: EfficientNetLite0, images: Tensor) -> Tensor:
    return torch.cat([extractor(images[i : i + 64]) for i in range(0, len(images), 64)])


def _split(features: dict[str, Tensor], n: int, seed: int) -> dict[str, dict[str, float]]:
    order = torch.randperm(2 * n, generator=torch.Generator().manual_seed(seed))
    real = features["held out"][order[:n]]
    sets = {name: x[order[n:]] for name, x in features.items()}
    for share in (2, 10, 50):
        part = sets["held out"][: n // share]
        sets[f"1 in {share}"] = part[torch.arange(n) % len(part)]
    return {name: _metrics(x, real) for name, x in sets.items()}


def _metrics(fake: Tensor, real: Tensor) -> dict[str, float]:
    fd = frechet(*(Gaussian.of(Moments.of(x)) for x in (fake, real)))
    value = kid(*scaled(fake, real), subsets=20, size=len(fake) // 2).value
    return {"FD": fd, "KID": value, **manifold(fake, real)._asdict()}


def _report(splits: list[dict[str, dict[str, float]]]) -> None:
    metrics = list(splits[0]["held out"])
    print(f"{'':12}" + "".join(f"{m:>22}" for m in metrics))
    for name in splits[0]:
        every = {m: [s[name][m] for s in splits] for m in metrics}
        cells = (f"{statistics.mean(v):.4g} +- {statistics.pstdev(v):.2g}" for v in every.values())
        print(f"{name:12}" + "".join(f"{cell:>22}" for cell in cells))
    for curve, names in CURVES.items():
        right = {m: sum(_ranks(s, m, names) for s in splits) for m in metrics}
        shares = ", ".join(f"{m} {count}/{len(splits)}" for m, count in right.items())
        print(f"{curve}: splits in which every step ranks as worse: {shares}")


def _ranks(split: dict[str, dict[str, float]], metric: str, names: tuple[str, ...]) -> bool:
    values = [split[name][metric] for name in names]
    order = values if metric in BETTER_IS_LESS else [-v for v in values]
    return all(a < b for a, b in zip(order, order[1:], strict=False))


if __name__ == "__main__":
    main()
