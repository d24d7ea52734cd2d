"""Official snapshots: read exactly, run never, and whatever else is in a file refused by name."""

import io
import json
import os
import pickle
import random
import re
import resource
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fabricate
import numpy as np
import pytest
import torch
from fuzz.mutations import of_bytes
from safetensors.torch import save_file

from diffsteer.models import pickled_tensors as tensors
from diffsteer.models.edm2 import snapshot as edm2
from diffsteer.models.edm2.model import EDM2
from diffsteer.models.restricted_pickle import MOST, Call, CheckpointError

TINY = {
    **{"img_resolution": 4, "img_channels": 1, "label_dim": 2, "model_channels": 2},
    **{"channel_mult": [1], "num_blocks": 1, "attn_resolutions": [4]},
    **{"channels_per_head": 1, "logvar_channels": 2},
}
WATCHED = ("import", "exec", "compile", "os.", "subprocess.", "socket.", "pickle.", "shutil.")


class Watch:
    """Sees imports, executions, processes and the like, while it is open."""

    def __init__(self) -> None:
        self.on, self.seen = False, []
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: Any) -> None:
        if self.on and event.startswith(WATCHED):
            self.seen.append((event, str(args)[:200]))

    def __enter__(self) -> "Watch":
        self.on, self.seen = True, []
        return self

    def __exit__(self, *_: object) -> None:
        self.on = False


WATCH = Watch()


@pytest.fixture(scope="module")
def tiny() -> EDM2:
    torch.manual_seed(0)
    return EDM2(**TINY).half().eval()


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "snapshot.pkl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("protocol", "latent"), [(4, False), (4, True), (5, False)])
def test_bits_of_a_snapshot_come_back_and_its_source_never_runs(
    tiny: EDM2, tmp_path: Path, protocol: int, latent: bool
) -> None:
    trace = tmp_path / "trace"
    path = written(tmp_path, fabricate.snapshot(tiny, trace, latent, protocol))
    edm2.read(path)
    with WATCH:
        found = edm2.read(path)
    assert not WATCH.seen and not trace.exists()
    assert found.config == tiny.config
    assert found.about["loss"] == {"P_mean": -0.4, "P_std": 1.0}
    state = tiny.state_dict()
    assert found.tensors.keys() == state.keys()
    assert all(torch.equal(t, state[n]) and t.dtype == state[n].dtype
               for n, t in found.tensors.items())  # fmt: skip
    said = found.about["encoder"]
    assert said["kind"] == ("vae" if latent else "rgb")
    if latent:
        assert said["scale"] == pytest.approx([0.5 / 4.17])


def test_converts_and_loads_in_both_precisions(tiny: EDM2, tmp_path: Path) -> None:
    path = written(tmp_path, fabricate.snapshot(tiny, tmp_path / "trace"))
    edm2.convert(str(path), str(tmp_path / "net"))
    official = EDM2.load(tmp_path / "net", "official-bit")
    clean = EDM2.load(tmp_path / "net")
    for name, t in tiny.state_dict().items():
        assert torch.equal(official.state_dict()[name], t)
        assert torch.equal(clean.state_dict()[name], t.float())
    assert not clean.training
    with pytest.raises(FileExistsError, match="is there already"):
        edm2.convert(path, tmp_path / "net")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net", "snapshot.pkl"]
    with pytest.raises(ValueError, match='"official-bit" or "f32-clean"'):
        EDM2.load(tmp_path / "net", "exact")


def test_a_broken_folder_says_what_is_wrong(tiny: EDM2, tmp_path: Path) -> None:
    tiny.save(tmp_path / "net")
    config = tmp_path / "net" / "config.json"
    content = json.loads(config.read_text("utf-8"))
    for change, message in (
        ({"num_blocks": 2}, "has shape None in the file"),
        ({"magic": 1}, "config of another network.*magic"),
        ({"img_resolution": -4}, "img_resolution must be .*got -4"),
    ):
        changed = {**content, "config": {**content["config"], **change}}
        config.write_text(json.dumps(changed), "utf-8")
        with pytest.raises(ValueError, match=message):
            EDM2.load(tmp_path / "net")
    config.write_text("{}", "utf-8")
    with pytest.raises(ValueError, match="must have the format"):
        EDM2.load(tmp_path / "net")
    config.write_text(json.dumps(content), "utf-8")
    weights = {name: t.int() for name, t in tiny.state_dict().items()}
    save_file(weights, tmp_path / "net" / "model.safetensors")
    with pytest.raises(ValueError, match="must be floating point, got torch.int32"):
        EDM2.load(tmp_path / "net")
    (tmp_path / "net" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="is no EDM2 network"):
        EDM2.load(tmp_path / "net")


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.said = function, args

    def __reduce__(self):
        return self.said


def pickled(thing: Any, protocol: int = 4) -> bytes:
    with fabricate.named():
        return pickle.dumps(thing, protocol)


def hostile(trace: Path) -> Iterator[tuple[str, bytes, str]]:
    """What it is, the file, and what the refusal has to name."""
    touch = f"touch {trace}"
    yield "os.system", pickled(Calls(os.system, touch)), "posix.system"
    yield "eval", pickled(Calls(eval, f"open({str(trace)!r}, 'w')")), "builtins.eval"
    yield "exec, protocol 2", pickled(Calls(exec, "1"), 2), "__builtin__.exec"
    yield "getattr", pickled(Calls(getattr, "", "exec")), "builtins.getattr"
    yield "a subprocess", pickled(Calls(subprocess.Popen, touch)), "subprocess.Popen"
    yield (
        "a reduce in a reduce",
        pickled(Calls(OrderedDict, [Calls(os.system, touch)])),
        "posix.system",
    )
    yield (
        "a reduce in a state",
        pickled(fabricate.Persistent("Precond", {"a": Calls(os.system, touch)}, trace)),
        "posix.system",
    )
    yield "torch.load", pickled(Calls(torch.load, str(trace))), "torch.serialization.load"
    yield "a dotted name", b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93.", "torch.os.system"
    yield "an object array", pickled(np.array([Calls(os.system, touch)], object)), "dtype 'O8'"
    yield "an array of None", pickled(np.array([None], object)), "dtype 'O8'"
    yield "a persistent id", b"\x80\x04\x8c\x01aQ.", "persistent id"
    yield "an extension", b"\x80\x04\x82\x01.", "EXT1"
    yield "a class of protocol 0", b"(cos\nsystem\no.", "os.system"
    yield "INST", b"(S'" + touch.encode() + b"'\nios\nsystem\n.", "STRING"
    yield "a zip file", zipped(), "zip archive"
    yield "a call of what is allowed", pickled(Calls(OrderedDict, [("a", 1)])), "OrderedDict as no"
    yield "no dictionary", pickled([1, 2]), "no dictionary"
    yield "no network", pickled({"a": 1}), "ema is no module"
    yield "nothing", b"", "0 bytes"
    yield "a text", b"hello world, this is no pickle", "damaged"
    yield "an early end", b"\x80\x04a.", "damaged: IndexError"
    yield "a second state", b"\x80\x04ccollections\nOrderedDict\n)R}b}b.", "set twice"
    yield "a state for a class", b"\x80\x04ccollections\nOrderedDict\n}b.", "damaged: TypeError"
    yield "a memo of 2^32", b"\x80\x04]r\xff\xff\xff\xff.", "no dictionary"
    yield "2^62 bytes", b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc.", "damaged"
    yield "2^31 digits", b"\x80\x04\x8b\xff\xff\xff\x7fabc.", "LONG4 is not allowed"
    yield (
        "a text spread as arguments",
        b"\x80\x04ccollections\nOrderedDict\n\x8c\x01aR.",
        "TypeError",
    )
    yield "a call of a text", b"\x80\x04\x8c\x01a)R.", "damaged: TypeError"
    yield "a class of a number", b"\x80\x04K\x01)\x81.", "damaged: TypeError"
    yield "an item of a list", b"\x80\x04]K\x00as.", "damaged"
    yield "many lists", b"\x80\x04" + b"]" * (MOST + 9) + b".", "more than 1,000,000"
    yield "a deep list", b"\x80\x04" + b"]" * 400000 + b"a" * 399999 + b".", "no dictionary"
    pairs = b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(80))  # each holds the last twice
    yield "a key that takes forever", b"\x80\x04)\x94" + pairs + b"}h\x50Ns.", "tuple is no key"
    yield "something behind", pickled({"a": 1}) + b"more", "4 bytes follow"


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    return file.getvalue()


def test_hostile_files_are_refused_by_name(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    edm2_read_once(tmp_path)
    for what, content, names in list(hostile(trace)):
        path = written(tmp_path, content)
        start = time.process_time()
        with WATCH, pytest.raises(CheckpointError) as refusal:
            edm2.read(path)
        assert names in str(refusal.value), (what, str(refusal.value))
        assert not WATCH.seen and not trace.exists(), what
        assert time.process_time() - start < 20 and len(str(refusal.value)) < 1000, what


def edm2_read_once(tmp_path: Path) -> None:
    """Load all that reading ever imports."""
    "".encode("raw-unicode-escape")  # a codec that pickletools decodes text of protocol 0 with
    with pytest.raises(CheckpointError):
        edm2.read(written(tmp_path, pickled({"a": 1})))


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content and len(old) == len(new)
    return content.replace(old, new)


def test_tensors_beyond_their_data_are_refused(tiny: EDM2, tmp_path: Path) -> None:
    def refused(net: EDM2, match: str) -> None:
        path = written(tmp_path, fabricate.snapshot(net, tmp_path / "trace"))
        with pytest.raises(CheckpointError, match=match):
            edm2.read(path)

    def with_weight(weight: torch.Tensor) -> EDM2:
        net = EDM2(**TINY).half()
        net.unet.out_conv.weight = torch.nn.Parameter(weight)
        return net

    vast = torch.zeros(1, dtype=torch.float16).expand(2**40)
    refused(with_weight(vast), "out_conv.weight asks for 1099511627776 numbers of 1: refused")
    refused(with_weight(torch.zeros(3, dtype=torch.float16)), r"has shape \(3,\) in the file")
    shared = torch.zeros(200_000, dtype=torch.float16)
    net = EDM2(**TINY).half()
    for name in ("freqs", "phases"):
        setattr(net.logvar_fourier, name, shared)
        setattr(net.unet.emb_fourier, name, shared)
    refused(net, "more than the file holds")
    one = torch.zeros(1, dtype=torch.float16)
    good = pickle.dumps(one, 4)
    assert good.count(b"K\x01") > 1
    for old, new in (
        (b"cpuq\x03K\x01", b"cpuq\x03K\x02"),  # a length that lies
        (b"HalfStorage", b"LongStorage"),
        (b"\x01\x00\x00\x00\x00\x00\x00\x00", b"\xff" * 8),
        (b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        (b"ctorch\n", b"ctorhc\n"),
    ):
        inner = inner_of(one)
        assert len(tensors.storage(inner)) == 1
        with pytest.raises(CheckpointError):
            tensors.storage(changed(inner, old, new))
    with pytest.raises(CheckpointError, match="zip archive"):
        tensors.storage(zipped())


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (2**2000,) * 100_000, (1,) * 100_000),  # their product takes hours
        (0, (1,) * 9, (1,) * 9),
        (0, (1,), (2**70,)),
        (2**63, (0,), (1,)),
        (0, (-1,), (1,)),
        (0, (1, 1), (1,)),
        (0, [1], [1]),
        (0, (True,), (1,)),
        (None, (1,), (1,)),
    ],
    ids=["vast", "nine", "wide stride", "far", "negative", "uneven", "lists", "bool", "None"],
)
def test_shapes_that_cannot_be_are_refused_before_they_are_computed_with(
    offset: Any, size: Any, stride: Any
) -> None:
    data = Call(tensors.STORAGE, (inner_of(torch.zeros(4, dtype=torch.float16)),))
    made = tensors.Tensors(1000).made
    assert made(Call(tensors.REBUILD, (data, 1, (3,), (1,), False, None)), "a").tolist() == [0] * 3
    with pytest.raises(CheckpointError, match="unet.weight has no shape that a tensor can have"):
        made(Call(tensors.REBUILD, (data, offset, size, stride, False, None)), "unet.weight")


def inner_of(tensor: torch.Tensor) -> bytes:
    """Data of a tensor as a pickle of it holds them."""
    content = pickle.dumps(tensor, 4)
    return content[content.index(b"\x80\x02") : content.index(b"\x94\x85\x94R")]


def of_modules(tmp_path: Path, state: dict[str, Any]) -> Path:
    trace = tmp_path / "trace"
    top = fabricate.Persistent("Precond", {"_init_kwargs": {}, **state}, trace)
    return written(tmp_path, pickled({"ema": top}))


def children(tmp_path: Path, *states: dict[str, Any]) -> dict[str, Any]:
    parts = [fabricate.Persistent("Part", state, tmp_path / "trace") for state in states]
    return leaf() | {"_modules": {f"m{i}": part for i, part in enumerate(parts)}}


def leaf(parameters: Any = None) -> dict[str, Any]:
    return {"_parameters": parameters or {}, "_buffers": {}, "_modules": {}}


def test_modules_without_end_are_refused(tmp_path: Path) -> None:
    state = leaf()
    for _ in range(edm2.DEEPEST + 1):
        state = children(tmp_path, state)
    with pytest.raises(CheckpointError, match="without end"):
        edm2.read(of_modules(tmp_path, state))
    one = leaf()
    with pytest.raises(CheckpointError, match="the module 'm1.' has another name"):
        edm2.read(of_modules(tmp_path, children(tmp_path, one, one)))
    absent = {f"p{i}": None for i in range(101)}  # repeated by reference, a hundred times
    many = children(tmp_path, *(leaf(absent) for _ in range(100)))
    with pytest.raises(CheckpointError, match="more than 10,000 modules and tensors"):
        edm2.read(of_modules(tmp_path, many))
    long = leaf({"p" * 101: None})
    with pytest.raises(CheckpointError, match="p{100} is no name"):
        edm2.read(of_modules(tmp_path, long))
    with pytest.raises(CheckpointError, match="weight is no tensor with data"):
        edm2.read(of_modules(tmp_path, leaf({"weight": 3})))
    with pytest.raises(CheckpointError, match="the network has arguments without a name"):
        edm2.read(of_modules(tmp_path, leaf() | {"_init_args": (8, 3, 0, 64)}))


def test_repeated_tensors_are_no_cheaper_than_a_files_own(tmp_path: Path) -> None:
    one = torch.zeros(1, dtype=torch.float16)
    path = of_modules(tmp_path, leaf({f"p{i}": one for i in range(2000)}))
    with pytest.raises(CheckpointError, match="tensors take more than the file holds"):
        edm2.read(path)
    with pytest.raises(CheckpointError, match="w asks for 0 numbers of 1"):
        edm2.read(of_modules(tmp_path, leaf({"w": one[:0]})))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"N.", "its data are no storage"),
        (b"(K\x01K\x01K\x01t.", "its data are no storage"),
        (b"N" * 200 + b".", "more than 200 instructions"),
    ],
    ids=["nothing", "a tuple", "a program"],
)
def test_headers_of_data_that_are_none_are_refused(content: bytes, says: str) -> None:
    good = inner_of(torch.zeros(1, dtype=torch.float16))
    storage = [match.start() for match in re.finditer(b"\x80\x02", good)][3]
    with pytest.raises(CheckpointError, match=says):
        tensors.storage(good[:storage] + b"\x80\x02" + content + good[storage:])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scale": [None]}, r"scale must .*of 1 channels, got \[None\]"),
        ({"scale": ["1.5"]}, "scale must"),
        ({"scale": 0.5}, "scale is no array"),
        ({"scale": None}, "scale must .*got None"),
        ({"bias": None}, "bias must .*got None"),
        ({"bias": np.float32([1, 1])}, "bias must .*of 1 channels"),
        ({"scale": np.float32([])}, "scale must"),
        ({"scale": np.float32([0])}, "must be > 0"),
        ({"scale": np.float32([-1])}, "must be > 0"),
        ({"scale": np.float32([np.nan])}, "finite"),
        ({"bias": [np.inf]}, "no plain value"),
        ({"scale": np.int32([1])}, "scale is no array of numbers"),
    ],
    ids=lambda said: str(said)[:30],
)
def test_factors_of_latents_that_cannot_be_are_refused(
    tiny: EDM2, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    content = fabricate.snapshot(tiny, tmp_path / "trace", True, **changes)
    with pytest.raises(CheckpointError, match=says):
        edm2.read(written(tmp_path, content))


def test_an_array_that_is_cut_off_is_refused() -> None:
    state = (1, (2,), Call("numpy.dtype", ("f4",)), False, bytes(7))
    with pytest.raises(CheckpointError, match="encoder scale has 7 bytes of f4"):
        edm2._array(Call(edm2.ARRAYS[0], (), state), "scale")


def test_factors_of_latents_are_checked_in_folders_too(tiny: EDM2, tmp_path: Path) -> None:
    good = edm2.read(written(tmp_path, fabricate.snapshot(tiny, tmp_path / "trace", True)))
    good.save(tmp_path / "net")
    config = tmp_path / "net" / "config.json"
    content = json.loads(config.read_text("utf-8"))
    for change in ({"encoder": "vae"}, {"encoder": {**content["encoder"], "scale": [0.0]}}):
        config.write_text(json.dumps({**content, **change}), "utf-8")
        with pytest.raises(ValueError, match="is no EDM2 network: .*encoder"):
            EDM2.load(tmp_path / "net")
    content["config"]["use_fp16"] = "yes"
    config.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match="use_fp16 must be True or False, got 'yes'"):
        EDM2.load(tmp_path / "net")


def mutations(content: bytes, n: int, seed: int) -> Iterator[bytes]:
    """Files that differ from a good one by flips, cuts, copies, insertions and foreign names."""
    rng = random.Random(seed)
    for _ in range(n):
        yield of_bytes(content, rng)


def fuzz(net: EDM2, tmp_path: Path, n: int, seed: int) -> dict[str, int]:
    trace = tmp_path / "trace"
    content = fabricate.snapshot(net, trace, latent=True)
    edm2.read(written(tmp_path, content))
    edm2_read_once(tmp_path)
    counts, slowest = {"read": 0, "refused": 0}, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for mutated in mutations(content, n, seed):
        path = written(tmp_path, mutated)
        start = time.process_time()
        with WATCH:
            try:
                edm2.read(path)
                counts["read"] += 1
            except CheckpointError as error:
                counts["refused"] += 1
                assert len(str(error)) < 2000
        slowest = max(slowest, time.process_time() - start)
        assert not WATCH.seen, (WATCH.seen, mutated)
    assert not trace.exists() and slowest < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    return counts


def test_mutated_files_are_read_or_refused_and_nothing_else(tiny: EDM2, tmp_path: Path) -> None:
    counts = fuzz(tiny, tmp_path, 400, 0)
    assert counts["refused"] > 200 and counts["read"] > 4  # flips in weights and in unused text


@pytest.mark.slow
def test_twelve_thousand_mutated_files(tiny: EDM2, tmp_path: Path) -> None:
    counts = fuzz(tiny, tmp_path, 12_000, 1)
    print(counts)
    assert sum(counts.values()) == 12_000
