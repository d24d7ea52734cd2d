"""Repair of a checkpoint: what it is, written where every program looks; weights stay as they are.

Goes to a new file or folder, whole or not at all.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from diffsteer.core.errors import InputError
from diffsteer.doctor import marks
from diffsteer.doctor.checkpoint import PICKLES, SCHEDULER, Checkpoint
from diffsteer.doctor.diagnosis import Diagnosis
from diffsteer.doctor.tensors import scan
from diffsteer.io.atomic import PART, atomic_folder, atomic_write, put, write_json
from diffsteer.io.model_folder import INDEX
from diffsteer.io.safetensors_header import Entry, read_header

PIECE = 2**24
"""Bytes that are copied at a time."""


def require_new(inputs: Iterable[Path], out: Path) -> None:
    """Check that `out` is not there, and neither is, holds nor lies in what it is made of.

    Raises:
        InputError: it is, holds or lies in an input.
        FileExistsError: something is there.
    """
    if out.suffix in PICKLES:
        raise InputError(
            f"{out} has the name of a pickle: end it in .safetensors, or name a folder"
        )
    target, places = out.resolve(), {place.resolve() for place in inputs if place.exists()}
    if places & {target, *target.parents} or any(target in place.parents for place in places):
        raise InputError(f"{out} is the checkpoint itself, holds it, or lies in it: name another")
    ends = (".yaml", f".{SCHEDULER}") if out.suffix == ".safetensors" else ()
    for path in (out, *(out.with_suffix(end) for end in ends)):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise FileExistsError(f"{path} is there already: remove it, or name another")


def _require_verdicts(diagnosis: Diagnosis) -> None:
    for verdict, option in (
        (diagnosis.prediction, "--prediction v_prediction"),
        (diagnosis.snr, "--terminal-snr zero"),
    ):
        if not verdict.known:
            why = verdict.disagreement or "no source says it"
            raise InputError(
                f"the {verdict.subject} is unknown ({why}), so --fix cannot write it: measure it "
                f"by --deep, or say it, such as {option}"
            )


def fix(diagnosis: Diagnosis, out: Path) -> list[Path]:
    """Write a checkpoint anew with all marks of its verdicts, and return what was written.

    Args:
        diagnosis: Of the checkpoint.
        out: For a file, a new `.safetensors`, which gets its yaml and scheduler config beside it,
            or a folder for all three; for a folder, a new folder.

    Raises:
        InputError: a verdict is unknown, or `out` is the checkpoint or lies in it.
        FileExistsError: something is there.
    """
    point = diagnosis.checkpoint
    _require_verdicts(diagnosis)
    require_new((point.place, *point.folders), out)
    if point.kind in ("folder", "network"):
        with atomic_folder(out.absolute()) as draft:
            _folder(diagnosis, draft)
        return [out]
    if out.suffix == ".safetensors":
        return _file(diagnosis, out)
    with atomic_folder(out.absolute()) as draft:
        paths = _file(diagnosis, draft / point.place.name)
    return [out / path.name for path in paths]


def _file(diagnosis: Diagnosis, out: Path) -> list[Path]:
    """Write a file and what stands beside it; the weights last, so that they come with all."""
    point, verdicts = diagnosis.checkpoint, (diagnosis.prediction.value, diagnosis.snr.value)
    config, paths = marks.scheduler(point, *verdicts), []
    try:
        if tree := marks.yaml(point, verdicts[0]) if point.kind == "file" else {}:
            import yaml

            paths += [out.with_suffix(".yaml")]
            put(paths[-1], yaml.safe_dump(tree, sort_keys=False).encode())
        paths += [out.with_suffix(f".{SCHEDULER}")]
        write_json(paths[-1], config)
        paths += [out]
        with atomic_write(out) as file:
            keys = marks.keys(*verdicts) if point.kind == "file" else ()
            dropped = marks.dropped(verdicts[0])
            kept = {n: e for n, e in point.entries.items() if n not in dropped}
            _copy(point, file, keys, marks.metadata(point, *verdicts), kept)
            file.flush()
            _require_same(diagnosis, read_header(out.with_name(f".{out.name}{PART}"))[0])
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    return paths[::-1]


def _copy(
    checkpoint: Checkpoint,
    file: BinaryIO,
    keys: tuple[str, ...],
    metadata: Mapping[str, str],
    kept: Mapping[str, Entry],
) -> None:
    """Write a safetensors file with the bytes of another, in the same order."""
    order = sorted(kept, key=lambda name: kept[name].span)
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        entry, start = kept[name], end
        end += entry.span[1] - entry.span[0]
        table[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
    table |= {key: {"dtype": "F32", "shape": [0], "data_offsets": [end, end]} for key in keys}
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    with checkpoint.place.open("rb") as source:
        base = 8 + int.from_bytes(source.read(8), "little")
        for name in order:
            _span(source, base, kept[name], file)


def _span(source: BinaryIO, base: int, entry: Entry, file: BinaryIO) -> None:
    source.seek(base + entry.span[0])
    left = entry.span[1] - entry.span[0]
    while left:
        piece = source.read(min(left, PIECE))
        if not piece:
            raise InputError(f"{entry.file} became shorter while it was read")
        file.write(piece)
        left -= len(piece)


def _require_same(diagnosis: Diagnosis, entries: Mapping[str, Entry]) -> None:
    """Check the hash of what was written before it takes its name."""
    if scan(entries).hash != diagnosis.scan.hash:
        raise InputError(f"{diagnosis.checkpoint.name} changed while it was copied: try again")


def _folder(diagnosis: Diagnosis, draft: Path) -> None:
    """Copy a folder, its files as they are but for the scheduler and what names it."""
    point = diagnosis.checkpoint
    for folder in reversed(point.folders):
        shutil.copytree(folder, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    config = marks.scheduler(point, diagnosis.prediction.value, diagnosis.snr.value)
    write_json(draft / ("scheduler" if point.kind == "folder" else "") / SCHEDULER, config)
    if (draft / INDEX).is_file():
        index = json.loads((draft / INDEX).read_text())
        index["scheduler"] = ["diffusers", config["_class_name"]]
        write_json(draft / INDEX, index)
    entries = {
        name: Entry(draft / _inner(point, entry), entry.dtype, entry.shape, entry.span)
        for name, entry in point.entries.items()
    }
    _require_same(diagnosis, entries)


def _inner(checkpoint: Checkpoint, entry: Entry) -> Path:
    place = next(f for f in checkpoint.folders if entry.file.is_relative_to(f))
    return entry.file.relative_to(place)
