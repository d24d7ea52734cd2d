"""Sampling and measuring in one pass: resumed after kill -9, shared, bound to a key."""

import os
import random
import shutil
import signal
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupt import launched
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io import distributed
from diffsteer.io.atomic import owned
from diffsteer.io.shards import ShardFolder
from diffsteer.metrics import sampled as sampling
from diffsteer.metrics.best_of_n import BestOf
from diffsteer.metrics.features import Custom, Origin
from diffsteer.metrics.frechet import Gaussian
from diffsteer.metrics.sampled import Sampled, sampled
from diffsteer.metrics.statistics import measure

MEAN = Custom(lambda x: x.float().mean(dim=(2, 3)), Origin("mean", "rgb", "none", "0"))
KEY = {"what": "uniform noise", "steps": 3}


def noise(seeds: list[int]) -> Tensor:
    draws = (torch.Generator().manual_seed(seed) for seed in seeds)
    return torch.stack([torch.randint(256, (3, 8, 8), generator=g).to(torch.uint8) for g in draws])


def same(a: Sampled, b: Sampled, rtol: float = 1e-12) -> None:
    """Sums differ in order only, so moments agree to a few units of float64; rows are the same."""
    assert a.seeds == b.seeds and a.statistics.n == b.statistics.n == len(a.seeds)
    assert torch.equal(a.statistics.features, b.statistics.features)
    for x, y in ((a.statistics.gaussian, b.statistics.gaussian),):
        torch.testing.assert_close(x.mean, y.mean, rtol=rtol, atol=0)
        torch.testing.assert_close(x.cov, y.cov, rtol=0, atol=rtol * float(x.cov.trace()))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ROWS", 8)


def test_equals_measuring_the_pictures_as_a_stream() -> None:
    """One pass over seeds and one over stacked images keep the same rows and moments."""
    seeds = list(range(50))
    stream = measure(noise(seeds).split(7), 50, MEAN, keep=20)
    found = sampled(noise, seeds, MEAN, keep=20).statistics
    assert torch.equal(found.features, stream.features) and len(found.features) == 20
    torch.testing.assert_close(found.gaussian.cov, stream.gaussian.cov, rtol=1e-12, atol=1e-9)


@pytest.mark.usefixtures("small_chunks")
def test_batch_order_and_resuming_change_nothing(tmp_path: Path) -> None:
    whole = sampled(noise, range(40), MEAN)
    asked: list[int] = []

    def watched(seeds: list[int]) -> Tensor:
        asked.extend(seeds)
        return noise(seeds)

    sampled(watched, [3, 17, 39], MEAN, tmp_path, KEY)
    same(whole, sampled(watched, range(39, -1, -1), MEAN, tmp_path, KEY, batch=3))
    assert sorted(asked) == list(range(40))
    part = sampled(watched, torch.arange(10), MEAN, str(tmp_path), KEY)
    assert len(asked) == 40
    same(part, sampled(noise, range(10), MEAN))


@pytest.mark.usefixtures("small_chunks")
def test_costs_are_kept_with_their_samples(tmp_path: Path) -> None:
    def half(seeds: list[int]) -> Tensor:
        half.rows += sum(seeds)  # type: ignore[attr-defined]
        return noise(seeds)

    half.rows = 0.0  # type: ignore[attr-defined]

    def rows() -> dict[str, float]:
        spent, half.rows = half.rows, 0.0  # type: ignore[attr-defined]
        return {"rows": spent}

    sampled(half, [3, 17], MEAN, tmp_path, KEY, batch=1, costs=rows)
    for _ in range(2):
        found = sampled(half, range(20), MEAN, tmp_path, KEY, batch=1, costs=rows)
        assert found.costs["rows"].tolist() == list(range(20))
        assert (found.costs["seconds"] > 0).all()


@pytest.mark.usefixtures("small_chunks")
def test_a_cost_of_some_samples_is_refused(tmp_path: Path) -> None:
    """Of one run, in one chunk or in two, and of a folder that another program began."""
    calls: list[float] = []

    def rows() -> dict[str, float]:
        calls.append(1)
        return {"rows": 1.0} if len(calls) % 2 else {}

    for batch in (2, 8):
        with pytest.raises(ValueError, match="measure the same of each"):
            sampled(noise, range(16), MEAN, batch=batch, costs=rows)
    sampled(noise, range(8), MEAN, tmp_path, KEY)
    with pytest.raises(ValueError, match="seeds 0-7 have seconds, others rows, seconds: measure"):
        sampled(noise, range(16), MEAN, tmp_path, KEY, costs=lambda: {"rows": 1.0})
    next(tmp_path.glob("chunk-*00.npz")).unlink()
    found = sampled(noise, range(16), MEAN, tmp_path, KEY, costs=lambda: {"rows": 1.0})
    assert found.costs.keys() == {"rows", "seconds"}


def test_another_key_or_extractor_is_refused(tmp_path: Path) -> None:
    sampled(noise, range(4), MEAN, tmp_path, KEY)
    with pytest.raises(ValueError, match="something else: steps was 3 and is 4. Take another"):
        sampled(noise, range(4), MEAN, tmp_path, {**KEY, "steps": 4})
    other = Custom(MEAN.function, Origin("mean", "rgb", "none", "1"))
    with pytest.raises(ValueError, match="else: features.weights was '0' and is '1'. Take"):
        sampled(noise, range(4), other, tmp_path, KEY)
    with pytest.raises(ValueError, match="without a key"):
        sampled(noise, range(4), MEAN, tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="has samples, but no manifest"):
        sampled(noise, range(4), MEAN, tmp_path, KEY)


@pytest.mark.usefixtures("small_chunks")
def test_a_foreign_or_doubled_chunk_is_refused(tmp_path: Path) -> None:
    sampled(noise, range(16), MEAN, tmp_path / "a", KEY)
    sampled(noise, range(16), MEAN, tmp_path / "b", {"other": 1})
    first, *_ = sorted((tmp_path / "a").glob("*.npz"))
    (tmp_path / "a" / "chunk-9.npz").write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="both hold seed 0: remove one"):
        sampled(noise, range(16), MEAN, tmp_path / "a", KEY)
    (tmp_path / "a" / "chunk-9.npz").write_bytes((tmp_path / "b" / first.name).read_bytes())
    with pytest.raises(ValueError, match="chunk-9.npz belongs to another folder"):
        sampled(noise, range(16), MEAN, tmp_path / "a", KEY)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("harm", ["cut", "bit", "junk", "empty"])
def test_a_broken_chunk_is_named_set_aside_and_measured_again(tmp_path: Path, harm: str) -> None:
    whole = sampled(noise, range(24), MEAN, tmp_path, KEY)
    path = sorted(tmp_path.glob("*.npz"))[1]
    data = bytearray(path.read_bytes())
    at = data.index(b"features.npy") + 200  # inside of the numbers, after 160 bytes of headers
    data[at] ^= 1
    harmed = {"cut": data[:at], "bit": data, "junk": b"no zip file at all", "empty": b""}
    path.write_bytes(harmed[harm])
    asked: list[int] = []

    def watched(seeds: list[int]) -> Tensor:
        asked.extend(seeds)
        return noise(seeds)

    with pytest.warns(UserWarning, match=rf"{path.name} is broken .*set aside"):
        same(whole, sampled(watched, range(24), MEAN, tmp_path, KEY))
    assert asked == list(range(8, 16))
    assert path.with_suffix(".npz.broken").exists()


@pytest.mark.usefixtures("small_chunks")
def test_any_flipped_bit_of_a_chunk_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """In its numbers, checksums, names, lengths, offsets: no wrong or missing array, no error."""
    sampled(noise, range(8), MEAN, tmp_path, KEY)
    (path,) = tmp_path.glob("*.npz")
    folder, data, draw = ShardFolder(tmp_path, whole_key()), path.read_bytes(), random.Random(0)
    whole, aside = folder.read(path.name), 0
    directory = range(data.index(b"PK\x01\x02"), len(data))
    for place in [*draw.sample(range(len(data)), 150), *directory]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept = folder.done()
        if not kept:
            path.with_suffix(".npz.broken").unlink()
            aside += 1
            continue
        shard = folder.read(path.name)
        assert shard.seeds == whole.seeds and shard.arrays.keys() == whole.arrays.keys()
        assert all(torch.equal(shard.arrays[name], array) for name, array in whole.arrays.items())
    assert aside > 150


def test_two_programs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        owned(tmp_path),
        pytest.raises(ValueError, match="is in use: another program"),
    ):
        sampled(noise, range(4), MEAN, tmp_path, KEY)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 different seeds of 2"):
        sampled(noise, [1, 1], MEAN)
    with pytest.raises(ValueError, match="1 images came for 2 seeds"):
        sampled(lambda seeds: noise(seeds[:1]), [1, 2], MEAN)
    for wrong in (lambda seeds: noise(seeds).numpy(), lambda seeds: [*noise(seeds)]):
        with pytest.raises(InputError, match="images are a (ndarray|list): give a tensor"):
            sampled(wrong, [1, 2], MEAN)
    for key in ({"path": tmp_path}, "text", {"score": len}):
        with pytest.raises(InputError, match="key must be a table of plain values"):
            sampled(noise, [1, 2], MEAN, tmp_path / "key", key)
    with pytest.raises(InputError, match="prompts must be a list of texts"):
        BestOf(noise, len, 2, "a cat")
    assert BestOf(noise, len, np.int64(2), ["a cat"]).n == 2
    with pytest.raises(ValueError, match="images have dtype"):
        sampled(lambda seeds: noise(seeds).float(), [1, 2], MEAN)

    def exchanged(seeds: list[int]) -> Tensor:
        shutil.copy(next((tmp_path / "fewer").glob("*.npz")), tmp_path / "all")
        return noise(seeds)

    sampled(noise, range(2), MEAN, tmp_path / "fewer", KEY)
    sampled(noise, range(4), MEAN, tmp_path / "all", KEY)
    with pytest.raises(ValueError, match="4 samples are there of 6: was the folder changed"):
        sampled(exchanged, range(6), MEAN, tmp_path / "all", KEY)


def started(tmp_path: Path, processes: int) -> list[int]:
    """Start processes that note the seeds that they make; returns their pids."""

    def images(seeds: list[int]) -> Tensor:
        with (tmp_path / "log").open("a") as file:
            file.write("".join(f"{seed}\n" for seed in seeds))
        time.sleep(0.01)
        return noise(seeds)

    def act() -> None:
        sampling.ROWS = 8
        with distributed.launched():
            sampled(images, range(400), MEAN, tmp_path / "out", KEY, batch=2)

    return launched(processes, act)


def measured(tmp_path: Path) -> int:
    log = tmp_path / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def free(folder: Path) -> bool:
    with suppress(ValueError), owned(folder):
        return True
    return False


def test_kill_9_loses_at_most_the_chunks_in_progress(tmp_path: Path) -> None:
    """Killed at random moments, with one process and with two; then it ends as if never killed."""
    moments, kills = random.Random(0), (1, 2, 1)
    for processes in kills:
        pids = started(tmp_path, processes)
        target = measured(tmp_path) + moments.randrange(10, 120)
        limit = time.monotonic() + 600  # a busy machine takes minutes to start one
        while measured(tmp_path) < target:
            assert time.monotonic() < limit
            assert all(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in pids)
            time.sleep(0.005)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        while not free(tmp_path / "out"):  # its last process is gone
            assert time.monotonic() < limit
            time.sleep(0.005)
    asked = measured(tmp_path)
    before = {seed for path in tmp_path.glob("out/*.npz") for seed in
              ShardFolder(tmp_path / "out", whole_key()).read(path.name).seeds}  # fmt: skip
    # lost: one chunk of 8 samples a process, and the two samples being made
    assert asked - sum(kills) * (8 + 2) <= len(before) <= asked
    again: list[int] = []

    def watched(seeds: list[int]) -> Tensor:
        again.extend(seeds)
        return noise(seeds)

    found = sampled(watched, range(400), MEAN, tmp_path / "out", KEY)
    assert set(again).isdisjoint(before) and len(again) + len(before) == 400
    same(found, sampled(noise, range(400), MEAN))
    assert not list((tmp_path / "out").glob(".*.part"))


def whole_key() -> dict[str, object]:
    return {**KEY, **{f"features.{name}": value for name, value in vars(MEAN.origin).items()}}


def test_a_write_that_is_cut_leaves_no_chunk(tmp_path: Path, monkeypatch) -> None:
    """The draft exists when the program dies before its rename; it is dropped later."""

    class Dead(BaseException):
        pass

    def dies(*_: object) -> None:
        raise Dead

    sampled(noise, range(4), MEAN, tmp_path, KEY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dies)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # kill -9 runs no `finally`
        with pytest.raises(Dead):
            sampled(noise, range(8), MEAN, tmp_path, KEY)
    assert len(list(tmp_path.glob(".*.part"))) == 1
    same(sampled(noise, range(8), MEAN, tmp_path, KEY), sampled(noise, range(8), MEAN))
    assert not list(tmp_path.glob(".*.part"))


def test_moments_of_a_known_set() -> None:
    """The images of seeds 0 to n-1 are flat in grey 0 to n-1: mean and variance are exact."""

    def flat(seeds: list[int]) -> Tensor:
        return torch.tensor(seeds, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)

    found: Gaussian = sampled(flat, range(100), MEAN, batch=7).statistics.gaussian
    assert found.mean.tolist() == [49.5] * 3
    torch.testing.assert_close(found.cov, torch.full_like(found.cov, (100**2 - 1) / 12 * 100 / 99))
