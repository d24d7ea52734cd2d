"""One owner of what is written, and drafts that end with their writer, however that ends."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from interrupt import full

from diffsteer.core.errors import InputError
from diffsteer.io.atomic import (
    InUse,
    atomic_folder,
    atomic_write,
    owned,
    owned_file,
    put,
    require_writable,
)

OWNER = """
import os, sys, time
from pathlib import Path
from diffsteer.io import atomic
with getattr(atomic, sys.argv[1])(Path(sys.argv[2]), *map(int, sys.argv[3:])):
    if (child := os.fork()) == 0:
        time.sleep(60)
    print(child, flush=True)
    time.sleep(60)
"""


def elsewhere(*args: object) -> Iterator[None]:
    """Hold something in another process with a child; kill the one, and in the end the other."""
    command = [sys.executable, "-c", OWNER, *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield
        process.kill()
        process.wait()
        yield
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["owned", "owned_file", "atomic_write", "atomic_folder"])
def test_another_process_is_kept_out_until_the_owner_is_killed(tmp_path: Path, kind: str) -> None:
    """Its child, such as a worker that loads images, lives on and blocks nothing."""
    hold, path = globals()[kind], tmp_path / "out.npz"
    holder = elsewhere(kind, path)
    next(holder)
    with pytest.raises(InUse, match="out.npz is in use: another program writes there"), hold(path):
        pass
    next(holder)
    with hold(path):
        pass
    with suppress(StopIteration):
        next(holder)
    left = [] if kind == "owned_file" else ["out.npz"]
    assert [p.name for p in tmp_path.iterdir()] == left


def test_a_folder_in_the_place_of_a_file_is_told_before_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder where a file is to be"), owned_file(tmp_path):
        raise AssertionError("work was begun")


def test_processes_of_one_launch_share_a_folder(tmp_path: Path) -> None:
    """Rank 1 of a launch that was killed keeps out others, its own number and lone processes."""
    holder = elsewhere("owned", tmp_path, 1, 2)
    next(holder)
    with owned(tmp_path, 0, 2):
        pass
    for place in ((1, 2), (0, 1)):
        with pytest.raises(InUse), owned(tmp_path, *place):
            pass
    next(holder)
    with owned(tmp_path):
        pass
    with suppress(StopIteration):
        next(holder)
    assert list(tmp_path.iterdir()) == []


def test_old_drafts_go_and_those_in_progress_stay(tmp_path: Path) -> None:
    (tmp_path / "averages/.b.part").mkdir(parents=True)
    old = [tmp_path / ".a.png-123.part", tmp_path / "averages/.b.part/c"]
    for path in old:
        path.write_bytes(b"half")
    holder = elsewhere("atomic_write", tmp_path / "d")
    next(holder)
    with owned(tmp_path):
        assert not any(path.exists() for path in old) and (tmp_path / ".d.part").exists()
    with suppress(StopIteration):
        next(holder)
        next(holder)


def test_a_draft_that_took_its_name_is_not_written_again(tmp_path: Path, monkeypatch) -> None:
    """A second writer that opened it before it was renamed begins a draft of its own."""
    import diffsteer.io.atomic as module

    path, lock, files = tmp_path / "a", module.lockf, []

    def late(file: object, *args: object) -> None:
        lock(file, *args)
        files.append(file)
        if len(files) == 1:
            (tmp_path / ".a.part").replace(path)
            path.write_bytes(b"first")

    monkeypatch.setattr(module, "lockf", late)
    with atomic_write(path) as file:
        assert path.read_bytes() == b"first"
        file.write(b"second")
    assert path.read_bytes() == b"second" and len(files) == 2


def test_a_folder_is_whole_at_every_moment_or_is_given_back(tmp_path: Path, monkeypatch) -> None:
    """Killed before each of the renames that change the new folder for the old."""
    target, replace, names = tmp_path / "model", Path.replace, []
    for kill in (0, 1, 2):
        with atomic_folder(target, over=True) as draft:
            (draft / "v").write_text("old")
        names.clear()

        def counted(path: Path, other: Path, kill: int = kill) -> Path:
            names.append(path)
            if len(names) > kill:
                raise KeyboardInterrupt
            return replace(path, other)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", counted)
            patch.setattr("shutil.rmtree", lambda *_, **__: None)  # kill -9 runs no `finally`
            with suppress(KeyboardInterrupt), atomic_folder(target, over=True) as draft:
                (draft / "v").write_text("new")
        with owned(tmp_path):
            pass
        assert (target / "v").read_text() == ("new" if kill == 2 else "old")
        assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    with suppress(OSError), atomic_write(tmp_path / "a"):
        raise OSError("no space")
    with suppress(OSError), atomic_folder(tmp_path / "b") as draft:
        (draft / "half").write_bytes(b"")
        raise OSError("no space")
    with suppress(OSError), owned(tmp_path / "c"), owned_file(tmp_path / "d"):
        raise OSError("no space")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileExistsError, match="is there already"), atomic_folder(tmp_path.parent):
        pass


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with (
        full(10),
        pytest.raises(OSError, match="a.png") as error,
        atomic_write(tmp_path / "a.png") as f,
    ):
        f.write(bytes(11))
    assert error.value.filename == str(tmp_path / "a.png") and not [*tmp_path.iterdir()]


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_links_that_lead_nowhere_are_no_folders(tmp_path: Path, target: str) -> None:
    """Also one that leads to itself, of which Python's own `resolve` raises no OSError."""
    (tmp_path / "link").symlink_to(tmp_path / target)
    for path in (tmp_path / "link", tmp_path / "link/out"):
        with pytest.raises(FileNotFoundError, match="link is a link to nothing"):
            require_writable(path)
    with pytest.raises(OSError, match="link"), owned(tmp_path / "link"):
        pass


def test_a_file_system_without_locks_is_told_once_a_folder(tmp_path: Path, monkeypatch) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("diffsteer.io.atomic.lockf", without)
    with pytest.warns(UserWarning) as told:
        for name in "ab":
            put(tmp_path / name, b"x")
    said = f"{tmp_path} is on a file system without locks (No locks available): start no other "
    assert {str(warning.message) for warning in told} == {said + "program that writes there"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
