"""Checkpoints that are complete or absent, whatever kills the process.

A checkpoint is a folder named after the count of images: safetensors files, and `state.json` with
the values that are no tensors and the SHA-256 of each file.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io.atomic import atomic_folder, put, remove_folder
from diffsteer.io.hashing import bytes_hash, digest
from diffsteer.io.strict import inner_path, parse_safetensors, read_bytes, read_object, refused

MAX_BYTES = 2**40
"""Of a file of a checkpoint, which is read whole."""
State = dict[str, Any]
Groups = Mapping[str, Mapping[str, Tensor]]


class BrokenCheckpoint(InputError):
    """A checkpoint that is not what was written."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Folder that holds them.
        keep: Number of the latest that are kept, >= 1.
    """

    folder: Path
    keep: int = 2

    def counts(self) -> list[int]:
        """Counts of images at which there are checkpoints, from first to last."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def last(self) -> str:
        """Say which checkpoint a run that ends now resumes from."""
        counts = self.counts()
        return f"the checkpoint at {counts[-1]} images is whole" if counts else "no checkpoint yet"

    def path(self, images: int) -> Path:
        """Folder of the checkpoint at a count."""
        return self.folder / f"{images:010d}"

    def save(self, images: int, groups: Groups, state: State) -> None:
        """Write a checkpoint, then delete those that are not kept."""
        from safetensors.torch import save

        with atomic_folder(self.path(images), over=True) as part:
            digests = {}
            for name, tensors in groups.items():
                data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
                digests[name] = bytes_hash(data)
                put(part / f"{name}.safetensors", data)
            table = {**state, "files": digests, "sha256": digest(state)}
            put(part / "state.json", json.dumps(table, indent=1).encode())
        self.prune()

    def prune(self) -> None:
        """Delete those that are not kept; each is whole or under the name of a draft."""
        for old in self.counts()[: -self.keep]:
            remove_folder(self.path(old))

    def to_resume(self, start: int | None, end: int) -> int:
        """Count of images of the checkpoint that a run goes on from; 0 for none.

        Args:
            start: The one asked for; None for the latest.
            end: Count of images at which the run ends, beyond which it cannot go on.
        """
        counts = self.counts()
        if start is not None and start not in counts:
            raise InputError(f"no checkpoint at {start} images: there are {counts or 'none'}")
        if counts and start is None and counts[0] > end:
            raise InputError(
                f"training.images={end}, and the run has gone on to {counts}, of which none is "
                "left that is not beyond: give the count of one"
            )
        return start or max((count for count in counts if count <= end), default=0)

    def load(self, images: int) -> tuple[dict[str, dict[str, Tensor]], State]:
        """Read a checkpoint; one that is cut short or changed is a BrokenCheckpoint."""
        try:
            with refused(f"{self.path(images)} is broken", absent=True):
                return self._read(self.path(images))
        except InputError as error:
            raise BrokenCheckpoint(f"{error}. {self._other(images)}") from error

    def _read(self, folder: Path) -> tuple[dict[str, dict[str, Tensor]], State]:
        state, groups = read_object(folder / "state.json"), {}
        for name, expected in state.pop("files").items():
            data = read_bytes(folder / f"{inner_path('state.json', name)}.safetensors", MAX_BYTES)
            if bytes_hash(data) != expected:
                raise InputError(f"{name}.safetensors is not what was written")
            groups[name] = parse_safetensors(data, f"{name}.safetensors")
        if state.pop("sha256") != digest(state):
            raise InputError("state.json is not what was written")
        return groups, state

    def set_aside(self, images: float) -> None:
        """Take checkpoints beyond a count out of the way, under names that are not read again."""
        for count in self.counts():
            if count > images:
                aside = self.folder / f"{count:010d}.aside"
                shutil.rmtree(aside, ignore_errors=True)
                self.path(count).rename(aside)

    def _other(self, images: int) -> str:
        for count in reversed([c for c in self.counts() if c < images]):
            try:
                self.load(count)
            except BrokenCheckpoint:
                continue
            return f"The one at {count} images is whole: go on from it with --from {count}"
        return "No other is whole: begin in another folder"
