"""Files that are there whole or not at all, whatever ends the program."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

PART = ".part"
"""Ends the names of files that are being written."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside the target; it takes the target's place once it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{os.getpid()}{PART}")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        flush(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def flush(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an `.npz`, in which each array has a checksum."""
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


class atomic_folder:
    """A folder to fill, which takes its name when all went well and vanishes when not.

    Args:
        folder: The name.
        over: Whether it takes the place of what is there, instead of refusing.

    Raises:
        FileExistsError: something is there.
    """

    def __init__(self, folder: Path, over: bool = False) -> None:
        if not over and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is there already: remove it, or name another")
        self.folder = folder

    def __enter__(self) -> Path:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.part = Path(
            tempfile.mkdtemp(dir=self.folder.parent, prefix=f"{self.folder.name}.part")
        )
        self.part.chmod(0o777 & ~umask())
        return self.part

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            if self.folder.is_dir() and any(self.folder.iterdir()):
                shutil.rmtree(self.folder)
            self.part.replace(self.folder)
        else:
            shutil.rmtree(self.part, ignore_errors=True)


def umask() -> int:
    """Permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
