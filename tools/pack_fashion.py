"""Pack Fashion-MNIST as a webdataset tar that `diffsteer train` reads.

    apt-get install dataset-fashion-mnist
    python tools/pack_fashion.py --out fashion.tar [--split t10k]

Images of 28 x 28 grey levels become 32 x 32 RGB PNG, black around; the class is the member `.cls`.
Fashion-MNIST: Copyright Zalando SE, MIT licence.
"""

import argparse
import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = (
    "top",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)
FOLDER = Path("/usr/share/datasets/fashion-mnist")


def read(path: Path, header: int) -> NDArray[np.uint8]:
    """Bytes of a gzipped IDX file after its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member whose header never changes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def main() -> None:
    """Write the tar file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--split", choices=("train", "t10k"), default="train")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    images = read(args.folder / f"{args.split}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = read(args.folder / f"{args.split}-labels-idx1-ubyte.gz", 8)
    with tarfile.open(args.out, "w") as tar:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = io.BytesIO()
            Image.fromarray(np.pad(image, 2)).convert("RGB").save(file, "PNG")
            add(tar, f"{i:05d}.png", file.getvalue())
            add(tar, f"{i:05d}.cls", CLASSES[label].encode())


if __name__ == "__main__":
    main()
