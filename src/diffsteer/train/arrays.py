"""Images in arrays with whole numbers as classes: npy, npz and idx files, as data sets come.

| source | images | classes |
|---|---|---|
| `NAME.npz` | its array of uint8 with 3 or 4 dimensions | its array of as many whole numbers |
| `NAME.npy` | all of it | `NAME-labels.npy` beside it |
| `train-images-idx3-ubyte`, maybe `.gz` | all of it | `train-labels-idx1-ubyte` beside it |

Of several arrays in an npz, such as `x_train` and `x_test`, that with "train" in its name counts.
Shapes are `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)` with 1 or 3 channels. Without classes every
caption is empty; with them their shape is `(N,)` or `(N, 1)`.
"""

import gzip
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffsteer.core.errors import InputError
from diffsteer.io.hashing import parts_hash
from diffsteer.io.strict import open_file, read_npz, refused
from diffsteer.train.fingerprint import Fingerprint
from diffsteer.train.stream import Sample

Array = NDArray[Any]
MOST = 2**34
"""Bytes that an idx file may unpack to."""
IDX = "-images-idx3-ubyte"


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images in memory, with the numbers of their classes as captions.

    Attributes:
        path: File that they are from.
        pixels: uint8, `(N, C, H, W)`, of 3 channels or of one, which is copied to three.
        labels: Whole numbers, `(N,)`; None for no classes.
        size: Height and width that they must have; None allows any.
    """

    path: Path
    pixels: Array
    labels: Array | None = None
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def caption(self, index: int) -> str:
        """Class of an image as text; empty without classes."""
        return "" if self.labels is None else str(self.labels[index])

    def __getitem__(self, index: int) -> Sample:
        """Return one image and its class."""
        pixels = torch.from_numpy(self.pixels[index].copy())
        return Sample(pixels.expand(3, -1, -1).contiguous(), self.caption(index))

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Size and digests of the images and their classes."""
        _, channels, height, width = self.pixels.shape
        digests: dict[str, str | int] = {
            "pictures": parts_hash(image.tobytes() for image in self.pixels)[:16]
        }
        if self.labels is not None:
            digests["captions"] = parts_hash([self.labels.tobytes()])[:16]
        sizes, values = {(width, height): str(self.path)}, {"samples": len(self), **digests}
        return Fingerprint(sizes, values, channels == 1)


def is_arrays(path: Path) -> bool:
    """Whether a path is one of an array file."""
    return path.suffix in (".npy", ".npz") or IDX in path.name


def open_arrays(path: Path, size: tuple[int, int] | None = None) -> ArrayImages:
    """Read the images of a file, and their classes where there are some.

    Args:
        path: An npy, npz or idx file.
        size: Height and width that the images must have; None allows any.
    """
    with refused(f"{path} holds no images in arrays"):
        if path.suffix == ".npz":
            images, labels = _of_npz(path)
        elif path.suffix == ".npy":
            images, beside = _npy(path), path.with_name(f"{path.stem}-labels.npy")
            labels = _npy(beside) if beside.exists() else None
        else:
            images = _idx(path)
            beside = path.with_name(path.name.replace(IDX, "-labels-idx1-ubyte"))
            labels = _idx(beside) if beside.exists() else None
        pixels = _channels_first(images)
        if labels is None:
            return ArrayImages(path, pixels, None, size)
        if _is_column(labels):
            labels = labels.reshape(-1)
        if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise InputError(
                f"classes must be {len(pixels)} whole numbers >= 0, got {labels.dtype} of shape "
                f"{labels.shape}"
            )
        return ArrayImages(path, pixels, labels.astype(np.int64), size)


def _of_npz(path: Path) -> tuple[Array, Array | None]:
    arrays = read_npz(path)
    images = {n: a for n, a in arrays.items() if a.dtype == np.uint8 and a.ndim in (3, 4)}
    chosen = _one(images, "images")
    if chosen is None:
        raise InputError("it has no array of uint8 with 3 or 4 dimensions")
    whole = {n: a for n, a in arrays.items() if a.dtype.kind in "iu"}
    labels = {n: a for n, a in whole.items() if a.ndim == 1}
    columns = {n: a for n, a in whole.items() if a.shape == (len(chosen), 1)}
    return chosen, _one(labels or columns, "classes")


def _is_column(labels: Array) -> bool:
    """Whether an array has the shape of classes: `(N,)`, or `(N, 1)` as many data sets have it."""
    return labels.shape[1:] in ((), (1,))


def _one(arrays: dict[str, Array], what: str) -> Array | None:
    """The only array, or the only one for training."""
    names = [n for n in arrays if "train" in n] if len(arrays) > 1 else list(arrays)
    if len(arrays) > 1 and len(names) != 1:
        raise InputError(f"{', '.join(arrays)} may all be {what}: keep one, or name one train")
    return arrays[names[0]] if names else None


def _npy(path: Path) -> Array:
    with open_file(path):
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _idx(path: Path) -> Array:
    """Read an idx file: two zeros, the type (8 is uint8), dimensions, sizes of four bytes."""
    with (
        open_file(path) as raw,
        gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw as file,
    ):
        zeros, kind, dims = file.read(2), *file.read(2)
        if zeros != b"\0\0" or kind != 8 or not 1 <= dims <= 4:
            raise InputError("it is no idx file of uint8")
        shape = tuple(np.frombuffer(file.read(4 * dims), ">u4").tolist())
        if (count := math.prod(shape)) > MOST:
            raise InputError(f"an array of shape {shape} is over the limit of {MOST} bytes")
        data = file.read(count + 1)
        if len(data) != count:
            raise InputError(f"an array of shape {shape} has {len(data)} bytes, not {count}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _channels_first(images: Array) -> Array:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise InputError(
            f"images must be uint8 of shape (N, H, W) or (N, H, W, C), got {images.dtype} of shape "
            f"{images.shape}"
        )
    if images.ndim == 3:
        return images[:, None]
    if images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if images.shape[1] not in (1, 3):
        raise InputError(f"images must have 1 or 3 channels, got the shape {images.shape}")
    return images
