"""Damaged files are refused in one way, before memory is taken."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffsteer.core.errors import InputError
from diffsteer.io import strict


def test_json_of_any_damage_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data in (b"", b"{", b"\xff{}", b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a\.json is no JSON"):
            strict.read_json(path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([1]).encode())
    assert strict.read_json(path) == [1]
    with pytest.raises(InputError, match="holds a JSON list, not an object"):
        strict.read_object(path)


def test_a_large_json_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict, "MAX_JSON", 2)
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InputError, match="has 3 bytes, over the limit of 2"):
        strict.read_json(tmp_path / "a.json")


def test_an_array_that_claims_more_than_there_is(tmp_path: Path) -> None:
    """A header of 2^60 numbers is a MemoryError of numpy, and a member may unpack to anything."""
    path = tmp_path / "a.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846975,), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InputError, match="broken"), strict.refused("broken"):  # noqa: SIM117
        with strict.open_npz(path) as arrays:
            arrays["x"]


def test_the_limit_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000))
    monkeypatch.setattr(strict, "MAX_ARRAY", 10_000)
    with pytest.raises(InputError, match=r"x\.npy unpacks to 800128 bytes"):  # noqa: SIM117
        with strict.open_npz(tmp_path / "a.npz"):
            pass


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
        strict.read_json(tmp_path / "none")
    with pytest.raises(InputError, match="broken: .*No such file"):  # noqa: SIM117
        with strict.refused("broken", absent=True):
            strict.read_json(tmp_path / "none")
