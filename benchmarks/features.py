"""CPU seconds, in the program and in the kernel, and page faults, of features of 64 images.

python benchmarks/features.py [--size 224]   # one thread, two batches of 32 images

"at once" gives the network each batch whole, as before version 0.2; "in parts" is the extractor.
"""

import argparse
import resource

import torch

from diffsteer.metrics import efficientnet


def spent(size: int, buffer: int) -> torch.Tensor:
    """Print what features take where activations have at most so many bytes."""
    efficientnet.BUFFER = buffer
    extractor = efficientnet.EfficientNetLite0(size=size)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 64, 64), generator=draw, dtype=torch.uint8)
    extractor(images[:1])
    start = resource.getrusage(resource.RUSAGE_SELF)
    features = torch.cat([extractor(part) for part in torch.split(images, 32)])
    end = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"user {end.ru_utime - start.ru_utime:.2f} s, kernel {end.ru_stime - start.ru_stime:.2f} s,"
        f" {end.ru_minflt - start.ru_minflt} page faults"
    )
    return features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    size = parser.parse_args().size
    torch.set_num_threads(1)
    buffer = efficientnet.BUFFER
    for _ in range(3):
        print("at once: ", end="")
        whole = spent(size, 1 << 40)
        print("in parts: ", end="")
        parts = spent(size, buffer)
    print(f"largest difference {(whole - parts).abs().max():.1e} of {whole.abs().max():.1f}")


if __name__ == "__main__":
    main()
