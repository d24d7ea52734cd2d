"""Ends of programs, before a write or by kill -9, and what a folder holds after them."""

import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
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


def child(act: Callable[[], object], **environment: str) -> int:
    """Call a function in a fork of this process, which has all libraries loaded; return its pid."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.environ.update(environment)
        if "accelerate" in sys.modules:  # which keeps what it once read of the environment
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state(reset_partial_state=True)
        act()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def launched(world: int, act: Callable[[], object]) -> list[int]:
    """Call a function in so many processes, with what torchrun tells them; return their pids."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_PORT": str(port)}
    shared |= {"MASTER_ADDR": "localhost", "GLOO_SOCKET_IFNAME": "lo"}
    return [child(act, **shared, RANK=str(i), LOCAL_RANK=str(i)) for i in range(world)]


def together(world: int, act: Callable[[], object]) -> None:
    """Call a function in so many processes, and wait until all are done."""
    for pid in launched(world, act):
        assert os.waitpid(pid, 0)[1] == 0


def command(*words: str) -> None:
    """Run a command of diffsteer in this process; its error is a SystemExit."""
    from diffsteer.cli.main import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["diffsteer", *words])
        main()


def killed(act: Callable[[], None], seconds: float) -> bool:
    """Call a function in a child, and kill it after some time; return whether it was at work."""

    def quietly() -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        act()

    pid, end = child(quietly), time.monotonic() + seconds
    while time.monotonic() < end:  # a child that is done is not waited for
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.WIFSIGNALED(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@contextmanager
def full(size: int) -> Iterator[None]:
    """Let the kernel write no more than so many bytes to a file."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


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
