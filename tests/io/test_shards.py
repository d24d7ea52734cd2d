"""Shards of a resumable run: whatever a disk does to one, it is read right or set aside."""

import warnings
from pathlib import Path

import pytest
import torch

from diffsteer.core.errors import InputError
from diffsteer.io.shards import Shard, ShardFolder

SHARD = Shard((1, 2, 5), {"features": torch.arange(6.0).reshape(3, 2), "seconds": torch.ones(3)})


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    folder = ShardFolder(tmp_path, {"what": 1})
    folder.bind()
    return folder


def test_any_flipped_bit_is_harmless_or_sets_the_shard_aside(folder: ShardFolder) -> None:
    name = folder.add(SHARD)
    path = folder.path / name
    whole, aside = path.read_bytes(), 0
    for bit in range(0, 8 * len(whole), 5):
        harmed = bytearray(whole)
        harmed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(harmed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = folder.done()
        if name in done:
            found = folder.read(name)
            assert done[name] == found.seeds == SHARD.seeds
            assert all(torch.equal(found.arrays[n], array) for n, array in SHARD.arrays.items())
        else:
            (broken,) = folder.path.glob("*.broken")
            broken.unlink()
            aside += 1
    assert aside > len(whole) * 8 / 5 * 0.7


def test_arrays_without_a_row_for_each_seed_are_set_aside(folder: ShardFolder) -> None:
    name = folder.add(Shard((1, 2, 5), {"features": torch.zeros(2, 2)}))
    with pytest.warns(UserWarning, match="no row for each seed"):
        assert not folder.done()
    assert (folder.path / f"{name}.broken").exists()


@pytest.mark.parametrize("text", ["[", "[1]", "{}", '{"key": 3, "version": 1}', "[" * 9000])
def test_a_manifest_that_is_none_is_refused(folder: ShardFolder, text: str) -> None:
    (folder.path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json is no manifest of ours"):
        folder.bind()


def test_a_shard_without_an_array_is_set_aside(folder: ShardFolder) -> None:
    folder.add(Shard((1, 2), {"seconds": torch.ones(2)}))
    with pytest.warns(UserWarning, match="it lacks features"):
        assert not folder.done()
