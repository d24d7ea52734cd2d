"""Damaged files are refused in one way, before memory is taken."""

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffsteer.core.errors import InputError
from diffsteer.generate import recipe as recipes
from diffsteer.hf.lora import require_lora
from diffsteer.hf.offload import file_size
from diffsteer.hf.single_file import require_single_file
from diffsteer.io import strict
from diffsteer.io.images import Pictures
from diffsteer.io.safetensors_header import read_header
from diffsteer.io.seeds import prompts_of
from diffsteer.metrics.statistics import Statistics
from diffsteer.models.adm.files import read as read_adm
from diffsteer.models.edm2.snapshot import read as read_pickle
from diffsteer.train.captioned_images import Shards
from diffsteer.train.settings import Run


def test_json_of_any_damage_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data in (b"", b"{", b"\xff{}", b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a\.json is no JSON"):
            strict.read_object(path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([1]).encode())
    with pytest.raises(InputError, match="holds a JSON list, not an object"):
        strict.read_object(path)


def test_a_large_json_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InputError, match="has 3 bytes, over the limit of 2"):
        strict.read_object(tmp_path / "a.json", limit=2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 70 + "]" * 70, "more than 64 levels deep"),
        ('{"a": ' * 900 + "1" + "}" * 900, "more than 64 levels deep"),
        ("[" + "4" * 400 + "]", "more than 64 bits"),
        ("[" + "4" * 9000 + "]", "4300 digits"),
        (r'{"a": "\ud800"}', "surrogates not allowed"),
    ],
    ids=["deep", "deeper", "400 digits", "9000 digits", "half a character"],
)
def test_json_that_parses_and_breaks_what_comes_after(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"a is no JSON: .*{reason}"):
        strict.parse_json(text, "a")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Reading a pipe or a device might never end, whoever asks for it."""
    os.mkfifo(tmp_path / "pipe")
    recipe = tmp_path / "recipe.json"
    readers: list[Callable[[Path], object]] = [
        *(strict.read_object, strict.read_npz, strict.read_safetensors, prompts_of),
        *(Statistics.load, Shards.at, read_pickle, read_adm, recipes.read, Pictures.at),
        *(read_header, file_size),
        lambda path: Run.named(str(path.with_suffix(".toml"))),
        lambda path: recipes.recipe_of_png(path),
    ]
    (tmp_path / "pipe.toml").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        for read in readers:
            with pytest.raises((InputError, FileNotFoundError)):
                read(path)
    with pytest.raises(InputError, match="is a folder, pipe or device"):
        strict.read_object(tmp_path)
    for name in ("a\0b", "x" * 300):
        with pytest.raises(InputError, match="cannot be opened"):
            strict.read_object(tmp_path / name)
    (tmp_path / "set").mkdir()
    os.mkfifo(tmp_path / "set/a.png")
    with pytest.raises(InputError, match=r"a\.png cannot be read: .*folder, pipe or device"):
        list(Pictures.at(tmp_path / "set"))
    for name, reason in {
        "/dev/zero": "leads out of it",
        "../pipe": "leads out of it",
        "pipe": "folder, pipe or device",
    }.items():
        recipe.write_text(json.dumps({"model": "m", "prompts": name}))
        with pytest.raises(InputError, match=reason):
            recipes.read(recipe)


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
TABLES = {
    "no table": [],
    "no entry": {"x": 1},
    "no dtype": {"x": {k: v for k, v in ENTRY.items() if k != "dtype"}},
    "an offset": {"x": {**ENTRY, "data_offsets": 5}},
    "three offsets": {"x": {**ENTRY, "data_offsets": [0, 4, 4]}},
    "an offset in words": {"x": {**ENTRY, "data_offsets": [0, "4"]}},
    "a shape in words": {"x": {**ENTRY, "shape": "1"}},
    "a shape of shapes": {"x": {**ENTRY, "shape": [[1]]}},
    "another shape": {"x": {**ENTRY, "shape": [2]}},
    "a negative shape": {"x": {**ENTRY, "shape": [-1]}},
    "a dtype of its own": {"x": {**ENTRY, "dtype": ["F32"]}},
    "more than there is": {"x": {**ENTRY, "shape": [2], "data_offsets": [0, 8]}},
    "metadata in a list": {"__metadata__": [1], "x": ENTRY},
}
"""Headers of files of safetensors, after which 4 bytes follow."""


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_header_of_safetensors_is_refused_whoever_reads_it(table, tmp_path: Path) -> None:
    path, header = tmp_path / "lora.safetensors", json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    for read in (
        *(read_header, file_size, lambda path: require_lora(str(path))),
        lambda path: require_single_file(str(path), ""),
    ):
        with pytest.raises(InputError, match="is no file of safetensors"):
            read(path)


HEADERS = {
    "more than there is": "(1152921504606846975,)",
    "a negative number": "(-1,)",
    "fewer than there are": "(1,)",
}


@pytest.mark.parametrize("shape", HEADERS.values(), ids=HEADERS)
def test_an_array_of_another_size_than_its_header_says(tmp_path: Path, shape: str) -> None:
    """A larger one would take memory first; a smaller one would end before its checksum."""
    path = tmp_path / "a.npz"
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        size = len(header).to_bytes(2, "little")
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + size + header + bytes(16))
    with pytest.raises(InputError, match="broken: an array of shape"), strict.refused("broken"):
        strict.read_npz(path)


def test_an_npz_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w") as member:
            for _ in range(300):
                member.write(bytes(2**20))
        archive.writestr("y.npy", b"")
    with pytest.raises(InputError, match="it unpacks to 314572800 bytes, over the limit of"):
        strict.read_npz(path)
    with pytest.raises(InputError, match="no usable file of statistics: it holds nothing"):
        Statistics.load(path)  # which needs neither


def test_arrays_come_back(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.array("a text"), "d": np.zeros((0, 3), np.float32), "e": np.array(3),
    }  # fmt: skip
    np.savez(tmp_path / "a.npz", **arrays)
    found = strict.read_npz(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    assert strict.read_npz(tmp_path / "a.npz", ("e", "z")).keys() == {"e"}


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    count: int
    inner: Inner = Inner()
    on: bool = False
    kind: Literal["a", "b"] = "a"
    pair: tuple[float, float] = (0.0, 1.0)
    maybe: int | None = None


def test_a_table_becomes_a_dataclass() -> None:
    table = {"count": 3, "inner": {"rate": 2, "names": ["x"]}, "pair": [1, 2.5], "maybe": None}
    made = strict.from_table(Outer, table, "t")
    assert made == Outer(3, Inner(2.0, ("x",)), pair=(1.0, 2.5))
    assert type(made.inner.rate) is float


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"count": True}, "count must be a whole number, got True"),
        ({"count": 1.0}, "count must be a whole number, got 1.0"),
        ({"inner": {"rate": True}}, "inner: rate must be a number, got True"),
        ({"inner": {"rate": "1"}}, "inner: rate must be a number"),
        ({"inner": {"rate": 10**400}}, "inner: rate must be a number"),
        ({"inner": {"names": "x"}}, "names must be a list"),
        ({"inner": [1]}, "inner must be a table"),
        ({"on": 1}, "on must be True or False"),
        ({"kind": "c"}, "kind must be one of"),
        ({"kind": []}, "kind must be one of"),
        ({"pair": [1]}, "pair must have 2 values"),
        ({"maybe": False}, "maybe must be a whole number"),
        ({"cuont": 1}, "t has no setting 'cuont': there are count, inner"),
    ],
)
def test_a_table_of_another_type_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        strict.from_table(Outer, {"count": 1, **change}, "t")
    with pytest.raises(InputError, match="t lacks count"):
        strict.from_table(Outer, {}, "t")


def test_safetensors_cut_anywhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.arange(4.0)}, path)
    data = path.read_bytes()
    assert strict.read_safetensors(path)["x"].tolist() == [0, 1, 2, 3]
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        with pytest.raises(InputError, match="no file of safetensors"):
            strict.read_safetensors(path)
        with pytest.raises(InputError, match="part is no file of safetensors"):
            strict.parse_safetensors(data[:end], "part")


def test_refused_lets_a_missing_file_pass_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), strict.refused("broken"):
        strict.read_object(tmp_path / "none")
    with pytest.raises(InputError, match="broken: .*No such file"):  # noqa: SIM117
        with strict.refused("broken", absent=True):
            strict.read_object(tmp_path / "none")
