"""Files and folders that are there whole or not at all, and one owner of what is written.

A file is written as the draft `.NAME.part` beside it, a folder in `.NAME.part/`, and renamed last.
Whoever writes holds a lock that the kernel drops when its process ends, however that happens, so
that drafts of killed processes are told from those in progress.
"""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, lockf
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError

from diffsteer.core.errors import InputError

PART = ".part"
"""Ends the names of drafts."""
LOCK = ".owner"
"""Name of the lock of a folder, and end of that of a file; `.lock` was that of version 0.1."""

_held: set[Path] = set()
"""Lock files of this process: the kernel's locks keep out other processes only."""


class InUse(InputError):
    """Another program writes there."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a draft of a file; it takes the file's place once it is on the disk.

    Raises:
        InUse: another program writes this file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}{PART}")
    with _named(path), _locked(draft, path) as file:
        try:
            file.truncate()
            yield file
            file.flush()
            os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        flush(path.parent)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file that could not be written, of which the system says nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # of the system; others say it in words of their own
            error.filename = error.filename or str(path)
        raise


def put(path: Path, data: bytes) -> None:
    """Write a file."""
    with atomic_write(path) as file:
        file.write(data)


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


@contextmanager
def atomic_folder(folder: Path, over: bool = False) -> Iterator[Path]:
    """Make a folder to fill, which takes its name when all went well and vanishes when not.

    Args:
        folder: The name.
        over: Whether it takes the place of what is there, instead of refusing.

    Raises:
        FileExistsError: something is there.
        InUse: another program fills it.
    """
    if not over and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: remove it, or name another")
    draft = folder.with_name(f".{folder.name}{PART}")
    with _claimed(draft / LOCK, folder):
        try:
            _restore(draft)
            shutil.rmtree(draft / "new", ignore_errors=True)
            (draft / "new").mkdir()
            try:
                yield draft / "new"
            except SafetensorError as error:  # as everything else says that a disk is full
                raise OSError(f"weights cannot be written: {error}") from error
            if folder.is_dir():
                folder.replace(draft / "old")
            (draft / "new").replace(folder)
            flush(folder.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def owned(folder: Path, rank: int = 0, world: int = 1) -> Iterator[None]:
    """Keep other programs out of a folder until closed, however this one ends; drop old drafts.

    Args:
        folder: Made where it is missing.
        rank: Number of this process among those that share the folder.
        world: How many share it.

    Raises:
        InUse: another program, or a process that a killed one left, is at work there.
    """
    new = not folder.exists()
    try:
        with _claimed(folder / LOCK, folder, rank, world):
            _sweep(folder)
            yield
    finally:
        if new:
            with suppress(OSError):
                folder.rmdir()  # nothing was made


@contextmanager
def owned_file(path: Path) -> Iterator[None]:
    """Keep other programs from making a file until closed, however this one ends.

    Raises:
        InUse: another program makes it.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder where a file is to be: name another")
    with _claimed(path.with_name(f".{path.name}{LOCK}"), path):
        yield


@contextmanager
def _claimed(lock: Path, target: Path, rank: int = 0, world: int = 1) -> Iterator[None]:
    """Hold a lock file, and remove it when none of those that share it is left."""
    with _locked(lock, target, rank, world) as file:
        try:
            yield
        finally:
            with suppress(OSError):
                lockf(file, LOCK_EX | LOCK_NB)
                lock.unlink()


@contextmanager
def _locked(path: Path, target: Path, rank: int = 0, world: int = 1) -> Iterator[BinaryIO]:
    """Open a file, made where it is missing, that no other process has locked.

    Processes that share it lock a byte each, others all bytes.
    """
    key = Path(os.path.realpath(path.parent), path.name)  # resolve() raises where links loop
    if key in _held:
        raise _in_use(target)
    file = _opened(path, target, rank, world)
    _held.add(key)
    try:
        with file:
            yield file
    finally:
        _held.discard(key)


def _opened(path: Path, target: Path, rank: int, world: int) -> BinaryIO:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            lockf(file, LOCK_EX | LOCK_NB, 1 if world > 1 else 0, rank)  # 0 bytes are all
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                raise _in_use(target) from error
            warnings.warn(
                f"{path.parent} is on a file system without locks ({error.strerror}): start no "
                "other program that writes there",
                stacklevel=2,
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # its owner removed or renamed it meanwhile


def _in_use(target: Path) -> InUse:
    return InUse(
        f"{target} is in use: another program writes there, or a process that a killed one left; "
        "wait for it, end it, or name another"
    )


def _sweep(folder: Path) -> None:
    """Remove drafts of killed processes from a folder and those in it."""
    for draft in (*folder.glob(f".*{PART}"), *folder.glob(f"*/.*{PART}")):
        with suppress(InUse, FileNotFoundError):
            if draft.is_dir():
                with owned(draft):
                    _restore(draft)
                    shutil.rmtree(draft)
            else:
                with _locked(draft, draft):
                    draft.unlink()


def remove_folder(folder: Path) -> None:
    """Delete a folder, which loses its name first: it is never there in part."""
    draft = folder.with_name(f".{folder.name}{PART}")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(folder.replace(draft))


def _restore(draft: Path) -> None:
    """Give back the old folder of one that was killed while it changed the names."""
    target = draft.with_name(draft.name[1 : -len(PART)])
    if (draft / "old").exists() and not target.exists():
        (draft / "old").replace(target)


def umask() -> int:
    """Permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_writable(path: Path) -> None:
    """Check, before work begins, that a folder is there or can be made.

    Raises:
        OSError: a file or a dead link stands in its way, or it cannot be written.
    """
    place = path.absolute()
    while not place.exists():
        if place.is_symlink():
            raise FileNotFoundError(f"{place} is a link to nothing: name another folder")
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file where a folder is to be: name another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{place} cannot be written to: name another folder")


def write_json(path: Path, content: object) -> None:
    """Write a value as JSON."""
    put(path, (json.dumps(content, indent=2) + "\n").encode())
