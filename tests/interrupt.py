"""Ends of programs, before a write or by kill -9, and what a folder holds after them."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open


class Dead(BaseException):
    """An end that no handler sees, as by kill -9."""


@contextmanager
def dies(at: int) -> Iterator[None]:
    """End before write number `at` takes its name, without any clean-up."""
    replace, writes = Path.replace, list[Path]()

    def counted(path: Path, target: Path) -> Path:
        writes.append(path)
        if len(writes) > at:
            raise Dead
        return replace(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", counted)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        yield


def killed(act: Callable[[], None], seconds: float) -> bool:
    """Call a function in a child, and kill it after some time; return whether it was at work."""
    sys.stdout.flush()
    if not (child := os.fork()):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        try:
            act()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def contents(out: Path) -> dict[str, Any]:
    """Files of a folder, which is removed, without what a clock decides."""
    files = {p.relative_to(out).as_posix(): content(p) for p in out.rglob("*") if p.is_file()}
    shutil.rmtree(out)
    return files


def content(path: Path) -> Any:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tolist() for name in arrays if name != "seconds"}
    if path.suffix == ".safetensors":  # whose metadata safetensors writes in any order
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name).tobytes() for name in list(file.keys())}
            return file.metadata(), tensors
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]
    return None if path.stem == "report" else path.read_bytes()
