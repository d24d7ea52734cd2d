"""Averages from folders of snapshots: the sums that the profiles ask for, in users' file names."""

import math
from pathlib import Path

import fabricate
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffsteer.cli.convert import widths_of
from diffsteer.core.power_ema import gamma, weights
from diffsteer.models.edm2.model import EDM2
from diffsteer.models.edm2.posthoc import find, images, name, reconstruct

TINY = {
    **{"img_resolution": 4, "img_channels": 1, "label_dim": 2, "model_channels": 2},
    **{"channel_mult": [1], "num_blocks": 1, "attn_resolutions": [4]},
    **{"channels_per_head": 1, "logvar_channels": 2},
}
TIMES = (8 * 2**20, 16 * 2**20, 24 * 2**20)
WIDTHS = (0.05, 0.10)


def nets() -> dict[tuple[int, float], EDM2]:
    """Snapshots of one training: equal features, other weights."""
    found, features = {}, None
    for i, key in enumerate((t, w) for t in TIMES for w in WIDTHS):
        torch.manual_seed(i)
        found[key] = EDM2(**TINY).half()
        buffers = {n: b for n, b in found[key].state_dict().items() if "fourier" in n}
        features = features or buffers
        found[key].load_state_dict(features, strict=False)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Snapshots as pickles, one of them converted."""
    for (count, width), net in nets().items():
        path = tmp_path / "raw" / name("network-snapshot", count // 1000, width)
        if count == TIMES[1]:
            net.save(path)
        else:
            path.parent.mkdir(exist_ok=True)
            content = fabricate.snapshot(net, tmp_path / "trace")
            path.with_name(path.name + ".pkl").write_bytes(content)
    (tmp_path / "raw" / "network-snapshot-0000000-0.050.pkl").write_bytes(b"never read")
    return tmp_path / "raw"


def test_names_are_those_that_users_know() -> None:
    assert name("phema", 2147483, 0.13) == "phema-2147483-0.130"
    for kimg, count in ((2147483, 2**31), (134217, 2**27), (939524, 896 * 2**20)):
        assert images(kimg) == count
    assert all(images(kimg) // 1000 == kimg for kimg in range(1, 3000))
    assert images(2.5) == 2500 and name("phema", 2.5, 0.13) == "phema-0000002.500-0.130"


def test_times_are_those_of_the_names(tmp_path: Path) -> None:
    """No multiple of 1024 lies between 42,000 and 43,000, but there is a snapshot of that name."""
    for kimg, said in ((21, None), (42, None), (43, {"images": "43200"})):
        save_file(
            {"w": torch.full((2,), kimg * 1.0)},
            tmp_path / f"net-{kimg:07d}-0.100.safetensors",
            said,
        )
    assert [(s.kimg, s.count) for s in find(tmp_path, "net")] == [
        *((21, 21504), (42, 42000), (43, 43200))
    ]
    (path,) = reconstruct(tmp_path, tmp_path / "out", [0.1], kimg=42, prefix="net")
    assert path.name == "phema-0000042-0.100.safetensors"
    (path,) = reconstruct(tmp_path, tmp_path / "out", [0.1], prefix="net")
    assert path.name == "phema-0000043-0.100.safetensors"
    with pytest.raises(FileNotFoundError, match="no snapshot at 44 .* there are 21, 42, 43"):
        reconstruct(tmp_path, tmp_path / "out", [0.1], kimg=44, prefix="net")


def test_find(folder: Path) -> None:
    found = find(folder, "network-snapshot")
    assert [(s.count, s.width) for s in found] == [(t, w) for t in TIMES for w in WIDTHS]
    with pytest.raises(FileNotFoundError, match="holds no phema-KIMG-WIDTH"):
        find(folder, "phema")
    (folder / f"{name('network-snapshot', TIMES[1] // 1000, 0.05)}.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="twice"):
        find(folder, "network-snapshot")


@pytest.mark.parametrize("batch", [1, 8])
def test_a_result_is_the_weighted_sum(folder: Path, tmp_path: Path, batch: int) -> None:
    wanted = [0.05, 0.075, 0.15]
    paths = reconstruct(str(folder), str(tmp_path / "out"), wanted, batch=batch)
    assert [p.name for p in paths] == [f"phema-0025165-{w:.3f}" for w in wanted]
    all_nets = nets()
    for path, width in zip(paths, wanted, strict=True):
        share = weights([(t, gamma(w)) for t, w in all_nets], (TIMES[-1], gamma(width)))
        made = EDM2.load(path, "official-bit").state_dict()
        last = all_nets[TIMES[-1], 0.10].state_dict()
        for n, t in made.items():
            parts = torch.stack([net.state_dict()[n].double() for net in all_nets.values()])
            want = last[n].double() if "fourier" in n else torch.tensordot(share, parts, 1)
            # stored in float16, relative 2^-11, after float32 sums
            torch.testing.assert_close(t.double(), want, atol=1e-6, rtol=2**-11 + 1e-6)
    own = all_nets[TIMES[-1], 0.05].state_dict()  # asked for what is stored: bit for bit that
    assert all(torch.equal(EDM2.load(paths[0], "official-bit").state_dict()[n], t)
               for n, t in own.items())  # fmt: skip


def test_an_earlier_time(folder: Path, tmp_path: Path) -> None:
    (path,) = reconstruct(folder, tmp_path / "out", [0.1], kimg=16777, out_prefix="mine")
    assert path.name == "mine-0016777-0.100"
    want = nets()[TIMES[1], 0.10].state_dict()
    assert all(torch.equal(EDM2.load(path, "official-bit").state_dict()[n], t)
               for n, t in want.items())  # fmt: skip
    with pytest.raises(FileNotFoundError, match="no snapshot at 10000 thousand"):
        reconstruct(folder, tmp_path / "out", [0.1], kimg=10000)


def test_what_is_there_is_left_alone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reconstruct(folder, out, [0.1])
    with pytest.raises(FileExistsError, match="is there already"):
        reconstruct(folder, out, [0.1, 0.2])
    with pytest.raises(ValueError, match="batch=0 makes nothing: give at least 1"):
        reconstruct(folder, out, [0.2], batch=0)
    assert [p.name for p in reconstruct(folder, out, [0.1, 0.2], skip=True)] == [
        "phema-0025165-0.200"
    ]


def test_any_network_in_safetensors(tmp_path: Path) -> None:
    for i, count in enumerate(TIMES):
        state = {"w": torch.full((2,), float(i)), "steps": torch.tensor(i)}
        save_file(state, tmp_path / f"{name('snap', count // 1000, 0.1)}.safetensors")
    (path,) = reconstruct(tmp_path, tmp_path / "out", [0.2], prefix="snap", out_prefix="avg")
    assert path.name == "avg-0025165-0.200.safetensors"
    share = weights([(t, gamma(0.1)) for t in TIMES], (TIMES[-1], gamma(0.2)))
    made = load_file(path)
    assert made["w"][0].item() == pytest.approx((share[1] + 2 * share[2]).item(), rel=1e-3)
    assert made["steps"] == 2
    save_file(
        {"v": torch.zeros(2)}, tmp_path / f"{name('snap', TIMES[0] // 1000, 0.05)}.safetensors"
    )
    with pytest.raises(ValueError, match="of another network"):
        reconstruct(tmp_path, tmp_path / "other", [0.2], prefix="snap")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("value", [1e5, math.nan])
def test_a_result_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    """1e5 is a number of float32 and not of float16, in which results are written."""
    for i, count in enumerate(TIMES):
        path = tmp_path / f"{name('snap', count // 1000, 0.1)}.safetensors"
        save_file({"w": torch.full((2,), value if i else 1.0)}, path)
    with pytest.raises(ValueError, match="w of avg-0025165-0.200.safetensors holds NaN or what"):
        reconstruct(tmp_path, tmp_path / "out", [0.2], prefix="snap", out_prefix="avg")
    assert not (tmp_path / "out").exists()


def test_widths() -> None:
    assert widths_of("0.05,0.1") == [0.05, 0.1]
    assert widths_of("0.010,0.015,...,0.250") == [round(0.005 * i, 3) for i in range(2, 51)]
    for text in ("", "a", "0.1,...,0.2", "0.1,0.2,...,0.35", "0.1,0.1"):
        with pytest.raises(ValueError, match="width"):
            widths_of(text)
