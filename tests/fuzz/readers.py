"""Good files of every format that is read, and the readers that a command would call.

`PYTHONPATH=tests python tests/fuzz/readers.py N [NAME ...]` tries N variants of each. What comes of
one has to be a right result or an InputError, within the time and memory below.
"""

import io
import json
import math
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import fabricate
import mutations as m
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save

from diffsteer import Guidance, Sampler, Schedule, parse
from diffsteer.core.errors import InputError
from diffsteer.core.sampler import NAMED

SECONDS, MEMORY = 5, 2**30
"""What one file may take; an image of 64 megapixels takes the most."""
FEW = 1000
"""Variants of which some are as good as the file that they were made of."""
Case = Callable[[random.Random], Callable[[], object]]
"""Writes a variant, and returns what reads it."""


class Hang(BaseException):
    """A reader did not end."""


# ------------------------------------------------------------------------------- good files

RNG = np.random.RandomState(0)
PIXELS = RNG.randint(0, 256, (9, 7, 3), dtype=np.uint8)
RECIPE = {
    "model": "some/model", "prompt": "a cat", "prompts": [], "negative": "", "guidance": "CFG(5)",
    "sampler": "UniPC()", "spacing": "trailing", "zero_snr": False, "steps": 5, "width": 8,
    "height": 8, "guide": "", "refiner": "NLG(20)", "strength": 0.5,
}  # fmt: skip
SCHEDULERS = [
    {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
     "beta_schedule": "scaled_linear", "num_train_timesteps": 100, "clip_sample": False,
     "clip_sample_range": 1.0, "prediction_type": "v_prediction", "timestep_spacing": "leading",
     "trained_betas": None, "rescale_betas_zero_snr": True, "use_karras_sigmas": False},
    {"_class_name": "DDPMScheduler", "trained_betas": [0.1, 0.2], "num_train_timesteps": 2},
    {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": False},
]  # fmt: skip
EDM2_CONFIG = {
    "img_resolution": 4, "img_channels": 1, "label_dim": 2, "model_channels": 2,
    "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 1,
    "logvar_channels": 2,
}  # fmt: skip
PRESET = """
task = "edm2"
about = "a run"
[training]
images = 100
batch = 4
rate = 1e-3
betas = [0.9, 0.99]
averages = [0.05, 0.1]
keep = 0.05
precision = "no"
[data]
source = "folder"
size = 64
drop = 0.1
[pictures]
every = 0
prompts = ["a", "b"]
[settings]
sigma_data = 0.5
"""
GUIDANCES = [
    "CFG(5)", "CFG(5).within(0.3, 5) + 2 * PAG(3)", "SAG(0.75, layer='mid', sigma=1.0, kernel=9)",
    "(CFG(3) + PAG(1)).rescaled(0.7, centred=True)", "CFG(6) + SAG(0.75).over(0, 5)", "Auto(2)",
    "APG(5, parallel=0.5, norm=2.5)", "CFGZero(4, zero=2)", "0.5 * (CFG(2) + SEG(3))",
    "Clamped(limit=1.0)", "CFG(3).clamped(1)", "AutoNoise(2)", "AutoDropout(2)", "Classifier(1)",
]  # fmt: skip
SAMPLERS = ["UniPC()", "DDIM(eta=0.5)", "Heun(0.1, s_min=0.05, schedule=EDM(0.01))", "DDPM",
            "Ancestral(classifier=1.0)", "DPMpp2M()", "Euler"]  # fmt: skip
WORDS = [
    *"()+-*/.,=[]{}'\"\\ 0123456789", "inf", "-inf", "nan", "None", "True", "1e999",
    "0x" + "f" * 99,
    "9" * 400, "1j", "b'a'", "...", ".within(0, 5)", ".over(0, 9)", ".rescaled()", ".clamped()",
    " + CFG(2)", "2 * ", "CFG", "PAG(3)", "UniPC()", "Heun(", "EDM(", "layer=", "\n", "\t", "#",
    "\0", "\ud800", "__class__", "lambda: 0", "if 1 else 2", "**", "*", "9**9", "'x'", "Flow(3)",
]  # fmt: skip
SEEDS = ["0", "0-63", "1,5,7-9", "18446744073709551615"]
SEED_WORDS = [*"0123456789-, _+", "0-18446744073709551615", "9" * 400, "9" * 5000, "1-0", "\0", "٣",
              "0-9999999999", "18446744073709551616"]  # fmt: skip


def encoded(kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def png(recipe: bytes) -> bytes:
    info = PngInfo()
    info.add_text("diffsteer", recipe.decode("latin-1"))
    return encoded(pnginfo=info)


def resealed(data: bytes, rng: random.Random) -> bytes:
    """A PNG whose damaged chunk has a right checksum, and now and then claims a vast size."""
    made, at, chunks = bytearray(data), 8, []
    while at + 12 <= len(made):
        size = int.from_bytes(made[at : at + 4], "big")
        chunks.append((at, size))
        at += size + 12
    at, size = rng.choice(chunks)
    if rng.random() < 0.3:
        at, size = chunks[0]
        made[16:24] = struct.pack(
            ">II", rng.choice((0, 1, 10**5, 2**31 - 1)), rng.choice((7, 10**5))
        )
    elif size:
        made[at + 8 + rng.randrange(size)] ^= 1 << rng.randrange(8)
    code = zlib.crc32(made[at + 4 : at + 8 + size])
    made[at + 8 + size : at + 12 + size] = struct.pack(">I", code)
    return bytes(made)


def zipped(members: dict[str, bytes], kind: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@cache
def image_set(kind: int, large: bool) -> bytes:
    members = {"a.png": encoded(), "b.json": b"{}"}
    return zipped(members | ({"c.png": bytes(30_000_000)} if large else {}), kind)


@cache
def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in {"a.png": encoded(), "a.txt": b"a cat", "é" * 60 + ".png": encoded(),
                           "é" * 60 + ".json": b'{"text": "a dog"}'}.items():  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def npz(arrays: dict[str, Any], rng: random.Random) -> bytes:
    """An npz with the bytes of one array changed under a right checksum."""
    members = {}
    for name, array in arrays.items():
        file = io.BytesIO()
        np.save(file, array)
        members[f"{name}.npy"] = file.getvalue()
    name = rng.choice(list(members))
    match rng.randrange(5):
        case 0:
            members[name] = m.of_bytes(members[name], rng)
        case 1:
            head = members[name][:128].replace(b"(", b"(%d, " % rng.choice((0, 2**60, 2**33, 3)), 1)
            members[name] = head[:128] + members[name][128:]
        case 2:
            del members[name]
        case 3:
            members[name] = bytes(members[name][:10]) + bytes(1_000_000)
    kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    return zipped(members, kind)


def safetensors(tensors: dict[str, torch.Tensor], rng: random.Random) -> bytes:
    """A safetensors file with a changed header of the right length."""
    data = save(tensors)
    if rng.random() < 0.5:
        return m.of_bytes(data, rng)
    size = int.from_bytes(data[:8], "little")
    head = m.json_bytes(json.loads(data[8 : 8 + size]), rng)
    return len(head).to_bytes(8, "little") + head + data[8 + size :]


# ------------------------------------------------------------------------------- readers


def usable(recipe: Any) -> None:
    """Everything that a command does with a recipe before it loads a model."""
    from diffsteer.generate.recipe_checks import require_consistent

    for one in recipe.sweep([1.0]):
        require_consistent(one)
        for text in (one.hash, repr(one), json.dumps(one.for_seed(3).to_dict()), str(one.size)):
            text.encode()


def cases(root: Path) -> dict[str, Case]:
    """Every reader by name."""
    from diffsteer.generate import recipe as recipes
    from diffsteer.io.images import Pictures, decode, header_of
    from diffsteer.io.safetensors_header import read_header
    from diffsteer.io.seeds import parse_seeds, prompts_of
    from diffsteer.io.shards import Shard, ShardFolder
    from diffsteer.io.strict import read_object, read_safetensors
    from diffsteer.metrics.features import Origin
    from diffsteer.metrics.frechet import Gaussian
    from diffsteer.metrics.moments import Moments
    from diffsteer.metrics.statistics import Statistics
    from diffsteer.models.edm2 import snapshot
    from diffsteer.models.edm2.model import EDM2

    made: dict[str, Case] = {}

    def reader(case: Case) -> Case:
        made[case.__name__] = case
        return case

    def put(name: str, data: bytes) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    @reader
    def json_file(rng: random.Random) -> Callable[[], object]:
        path = put("a.json", m.json_bytes({"a": [1, 2.5, "x"], "b": {"c": None}}, rng))
        return lambda: json.dumps(read_object(path), ensure_ascii=False).encode()

    @reader
    def recipe_json(rng: random.Random) -> Callable[[], object]:
        put("recipe/prompts.txt", b"a cat\na dog\n")
        tree = {**RECIPE, **rng.choice([{}, {"prompts": "prompts.txt", "prompt": ""}])}
        path = put("recipe/a.json", m.json_bytes(tree, rng))
        return lambda: usable(recipes.read(path))

    @reader
    def recipe_png(rng: random.Random) -> Callable[[], object]:
        tree = {"seed": 3, "recipe": RECIPE, "options": {}, "weights": "ab"}
        data = (
            png(m.json_bytes(tree, rng)) if rng.random() < 0.6 else png(json.dumps(tree).encode())
        )
        path = put("a.png", rng.choice((m.of_bytes, resealed, lambda d, _: d))(data, rng))
        return lambda: usable(recipes.read(path))

    @reader
    def recipe_options(rng: random.Random) -> Callable[[], object]:
        kind = rng.choice(("diffsteer.EDM2", "diffsteer adm 1"))
        folder = put("net/config.json", json.dumps({"format": kind}).encode()).parent
        options = {"class": 3, "sigma_max": 80, "s_churn": 1.0, "precision": "official-bit"}
        if "adm" in kind:
            options = {"class": 3, "respacing": "ddim25", "official_head_split": True}
        tree = {"model": str(folder), "options": options}
        path = put("a.json", m.json_bytes(tree, rng).replace(b"%s", str(folder).encode()))
        return lambda: usable(recipes.read(path))

    @reader
    def image(rng: random.Random) -> Callable[[], object]:
        kind = rng.choice(("PNG", "JPEG", "WEBP", "BMP"))
        data = encoded(kind, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
        change = resealed if kind == "PNG" and rng.random() < 0.5 else m.of_bytes
        changed = change(data, rng)

        def read() -> None:
            size = header_of("a", io.BytesIO(changed))[0]
            shape = decode("a", changed, upright=True).pixels.shape
            assert shape[1:] == size[::-1]

        return read

    @reader
    def image_zip(rng: random.Random) -> Callable[[], object]:
        kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2,
                           zipfile.ZIP_LZMA))  # fmt: skip
        path = put("set.zip", m.of_bytes(image_set(kind, rng.random() < 0.05), rng))

        def read() -> None:
            for picture in Pictures.at(path):
                expected = PIXELS if picture.name == "a.png" else None
                assert expected is None or np.array_equal(picture.pixels.permute(1, 2, 0), expected)
            list(Pictures.at(path).texts("diffsteer"))

        return read

    @reader
    def tar_shard(rng: random.Random) -> Callable[[], object]:
        from diffsteer.train.captioned_images import open_images

        path = put("a.tar", m.of_bytes(tar(), rng))

        def read() -> None:
            images = open_images(path)
            images.fingerprint.require(None, 1)
            for i in range(len(images)):
                assert images[i].caption

        return read

    @reader
    def array_files(rng: random.Random) -> Callable[[], object]:
        from diffsteer.train.captioned_images import open_images

        images, file = np.arange(192, dtype=np.uint8).reshape(3, 8, 8), io.BytesIO()
        kind = rng.choice(("a.npz", "a.npy", "train-images-idx3-ubyte", "metadata.csv"))
        if kind == "metadata.csv":
            put("table/a.png", encoded())
            put("table/metadata.csv", m.of_bytes(b"file_name,text\na.png,a cat\n", rng))
            return lambda: open_images(root / "table")[0]
        if kind == "a.npz":
            np.savez(file, images=images, labels=np.arange(3))
        elif kind == "a.npy":
            np.save(file, images)
        else:
            file.write(b"\0\0\x08\3\0\0\0\3\0\0\0\x08\0\0\0\x08" + images.tobytes())
        path = put(f"arrays/{kind}", m.of_bytes(file.getvalue(), rng))
        return lambda: open_images(path)[0]

    @reader
    def captions(rng: random.Random) -> Callable[[], object]:
        from diffsteer.train.captioned_images import open_images

        shutil.rmtree(root / "own", ignore_errors=True)
        put("own/a.png", encoded())
        match rng.randrange(3):
            case 0:
                put("own/metadata.jsonl", m.json_bytes({"file_name": "a.png", "text": "a"}, rng))
            case 1:
                put("own/dataset.json", m.json_bytes({"labels": [["a.png", 3]]}, rng))
                return lambda: open_images(root / "own", label="dataset.json")[0]
            case 2:
                put("own/a.txt", m.of_bytes("a cät".encode(), rng))
        return lambda: open_images(root / "own")[0]

    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    stored = Statistics(Origin("Mean", "rgb", "none", "ab"), Gaussian.of(Moments.of(x)), 8, x)
    arrays = {"mu": stored.gaussian.mean.numpy(), "sigma": stored.gaussian.cov.numpy(),
              "n": np.array(8), "features": x.numpy(), "version": np.array(1),
              **{k: np.array(v) for k, v in vars(stored.origin).items()}}  # fmt: skip
    stored.save(root / "good.npz")
    good = (root / "good.npz").read_bytes()

    @reader
    def statistics(rng: random.Random) -> Callable[[], object]:
        plain = rng.random() < 0.5
        path = put("a.npz", m.of_bytes(good, rng) if plain else npz(arrays, rng))

        def read() -> None:
            found = Statistics.load(path)
            if plain and found.n is not None:
                assert torch.equal(found.gaussian.cov, stored.gaussian.cov)

        return read

    folder = ShardFolder(root / "shards", {"what": 1})
    folder.path.mkdir()
    folder.bind()
    first = folder.add(Shard((1, 2, 5), {"features": x[:3], "seconds": torch.ones(3)}))
    shard = (folder.path / first).read_bytes()
    manifest = json.loads((folder.path / "manifest.json").read_text())

    @reader
    def shard_file(rng: random.Random) -> Callable[[], object]:
        for path in folder.path.glob("chunk*"):
            path.unlink()
        (folder.path / first).write_bytes(m.of_bytes(shard, rng))

        def read() -> None:
            done = folder.done()
            if not done:
                assert (folder.path / f"{first}.broken").exists()
                raise InputError("set aside")
            found = folder.read(first)
            assert done[first] == found.seeds == (1, 2, 5)
            assert torch.equal(found.arrays["features"], x[:3])
            assert found.arrays["seconds"].tolist() == [1, 1, 1]

        return read

    @reader
    def shard_manifest(rng: random.Random) -> Callable[[], object]:
        path = folder.path / "manifest.json"
        path.write_bytes(m.json_bytes(manifest, rng))
        return folder.bind

    @reader
    def safetensors_file(rng: random.Random) -> Callable[[], object]:
        path = put("a.safetensors", safetensors({"x": torch.arange(4.0), "y": torch.ones(2)}, rng))
        return lambda: (read_header(path), read_safetensors(path))

    lora = {"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.ones(3, 2)}
    about = {
        "version": 1, "head": "plain", "rank": 2, "alpha": 4, "network": "UNet", "kind": "Eps()",
        "weights": {"float32": "ab"}, "terminal": {"t": 999, "alpha": 0.07}, "made": {"steps": 3},
        "sha256": "",
    }  # fmt: skip

    @reader
    def refiner(rng: random.Random) -> Callable[[], object]:
        from diffsteer.io.hashing import bytes_hash
        from diffsteer.refine import metadata

        weights = save(lora) if rng.random() < 0.6 else safetensors(lora, rng)
        put("refiner/refiner.safetensors", weights)
        tree = {**about, "sha256": bytes_hash(weights)}
        put("refiner/refiner.json", m.json_bytes(tree, rng) if rng.random() < 0.7
            else json.dumps(tree).encode())  # fmt: skip

        def read() -> None:
            said, _ = metadata.read(root / "refiner")
            assert math.isfinite(said.terminal["t"] + said.alpha / said.rank)
            json.dumps(vars(said), ensure_ascii=False).encode()

        return read

    @reader
    def preset(rng: random.Random) -> Callable[[], object]:
        from diffsteer.io.strict import from_table
        from diffsteer.train.registry import TASKS
        from diffsteer.train.settings import Run

        text, changes = PRESET.encode(), []
        if rng.random() < 0.5:
            text = m.of_bytes(text, rng) if rng.random() < 0.7 else text.replace(
                rng.choice((b"100", b"1e-3", b'"no"', b"64")),
                rng.choice((b"9" * 400, b"nan", b"-inf", b"[" * 500 + b"]" * 500, b"true",
                            b"1979-05-27", b"{a.a.a = 1}", b"a" + b".a" * 2000)))  # fmt: skip
        else:
            name = rng.choice(
                [
                    "training.images",
                    "training.rate",
                    "data.drop",
                    "task",
                    "images",
                    "settings.x",
                    "training",
                    "a.b.c",
                    "",
                    "settings",
                    "pictures.prompts",
                ]
            )
            changes = [f"{name}={json.dumps(m.of_tree([1], rng))[1:-1]}", f"{name}=" + "[" * 5000]
            changes = [rng.choice(changes)]
        path = put("a.toml", text)

        def read() -> None:
            run = Run.named(str(path), *changes)
            if run.task in TASKS:
                from_table(TASKS[run.task][0], run.settings, "settings")
            json.dumps(run.binds()).encode()

        return read

    @reader
    def guidance(rng: random.Random) -> Callable[[], object]:
        text = m.of_text(WORDS, GUIDANCES, rng)

        def read() -> None:
            value = parse(text, Guidance)
            assert parse(repr(value), Guidance) == value
            hash(value), list(value.parts())

        return read

    @reader
    def sampler(rng: random.Random) -> Callable[[], object]:
        text = m.of_text(WORDS, SAMPLERS, rng)

        def read() -> None:
            value = parse(text, Sampler, Schedule, named=NAMED)
            assert parse(repr(value), Sampler, Schedule) == value

        return read

    @reader
    def seeds(rng: random.Random) -> Callable[[], object]:
        text = m.of_text(SEED_WORDS, SEEDS, rng)
        return lambda: len(parse_seeds(text))

    @reader
    def prompts(rng: random.Random) -> Callable[[], object]:
        path = put("prompts.txt", m.of_bytes("a cät\r\na dog\n".encode(), rng))
        return lambda: [text.encode() for text in prompts_of(path)]

    @reader
    def scheduler(rng: random.Random) -> Callable[[], object]:
        from diffsteer.hf import scheduler_config as configs
        from diffsteer.hf.scheduler import SteerScheduler

        path = put("scheduler_config.json", m.json_bytes(rng.choice(SCHEDULERS), rng))

        def read() -> None:
            config = configs.read(path)
            schedule = configs.schedule_of(config)
            assert schedule.at(schedule.last).sigma.isfinite()
            repr(configs.kind_of(config)), configs.spacing_of(config)
            SteerScheduler.from_config(config).set_timesteps(2)

        return read

    @reader
    def flags(rng: random.Random) -> Callable[[], object]:
        from diffsteer.models.adm.checkpoint import shapes_of
        from diffsteer.models.adm.flags import Flags

        good = "--image_size 32 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2"
        words = [*" -=,'\"0123456789", "--", "class_cond True", "1e999", "nan", "9" * 400, "-1",
                 "\0",
                 "--diffusion_steps 10", "--num_heads 0", "--num_head_channels 0",
                 "--attention_resolutions 0", "--num_res_blocks 999999999"]  # fmt: skip
        text = m.of_text(words, [good], rng)
        return lambda: shapes_of(Flags.parse(text))

    @reader
    def adm_file(rng: random.Random) -> Callable[[], object]:
        from diffsteer.models.adm.checkpoint import load
        from diffsteer.models.adm.flags import Flags

        small = Flags(**ADM_FLAGS)
        path = put("a.pt", m.of_bytes(adm_bytes(rng.random() < 0.5), rng))
        return lambda: load(path, small)

    @reader
    def adm_folder(rng: random.Random) -> Callable[[], object]:
        from diffsteer.models.adm.checkpoint import load

        flags = {**ADM_FLAGS, "class_cond": False, "dropout": 0.0}
        tree = {"format": "diffsteer adm 1", "flags": flags}
        path = put("adm/config.json", m.json_bytes(tree, rng)).parent
        put("adm/model.safetensors", save(adm_state()))
        return lambda: load(path)

    torch.manual_seed(0)
    net = EDM2(**EDM2_CONFIG).half().eval()
    net.save(root / "edm2")
    edm2_config = json.loads((root / "edm2/config.json").read_text())
    edm2_config["encoder"] = {"kind": "vae", "scale": [0.5], "bias": [0.0]}
    edm2_weights = (root / "edm2/model.safetensors").read_bytes()

    @reader
    def edm2_folder(rng: random.Random) -> Callable[[], object]:
        put("edm2/config.json", m.json_bytes(edm2_config, rng))
        changed = rng.random() < 0.2
        put("edm2/model.safetensors", m.of_bytes(edm2_weights, rng) if changed else edm2_weights)
        return lambda: EDM2.load(root / "edm2")

    pickled = fabricate.snapshot(net, root / "trace", latent=True)

    @reader
    def edm2_pickle(rng: random.Random) -> Callable[[], object]:
        path = put("snapshot.pkl", m.of_bytes(pickled, rng))

        def read() -> None:
            try:
                snapshot.read(path)
            finally:
                assert not (root / "trace").exists()

        return read

    @reader
    def trainer_state(rng: random.Random) -> Callable[[], object]:
        from diffsteer.train.settings import Run
        from diffsteer.train.state import claim

        run = Run.named(str(put("good.toml", PRESET.encode())))
        put("run/run.json", m.json_bytes(run.binds(), rng))
        return lambda: claim(root / "run", run, {})

    return made


ADM_FLAGS = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1"}


@cache
def adm_state() -> dict[str, torch.Tensor]:
    from diffsteer.models.adm.flags import Flags
    from diffsteer.models.adm.unet import ADM

    return ADM(Flags(**ADM_FLAGS)).state_dict()


@cache
def adm_bytes(zip_file: bool) -> bytes:
    file = io.BytesIO()
    torch.save(adm_state(), file, _use_new_zipfile_serialization=zip_file)
    return file.getvalue()


def pipelines(root: Path) -> dict[str, Case]:
    """Readers that load diffusers: tens of milliseconds each."""
    import tiny

    from diffsteer.hf.load import load

    folder = Path(tiny.saved(root / "made"))
    names = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
             "vae/config.json", "text_encoder/config.json"]  # fmt: skip
    good = {name: (folder / name).read_bytes() for name in names}

    def pipeline(rng: random.Random) -> Callable[[], object]:
        for name, data in good.items():
            (folder / name).write_bytes(data)
        name = rng.choice(names[:2] * 3 + names)
        (folder / name).write_bytes(m.json_bytes(json.loads(good[name]), rng))
        return lambda: load(str(folder))

    return {"pipeline": pipeline}


# ------------------------------------------------------------------------------- the trial


@contextmanager
def alarm() -> Iterator[None]:
    """Interrupt what takes long: of the processor, or, on a busy machine, by the clock."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(f"longer than {SECONDS} s")

    timers = {signal.ITIMER_PROF: SECONDS, signal.ITIMER_REAL: 20 * SECONDS}
    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    for timer, seconds in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def tried(read: Callable[[], object]) -> tuple[str, str]:
    """Read a variant: "read", "refused", or "fault" with its traceback."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with (
            alarm(),
            warnings.catch_warnings(),
            redirect_stderr(io.StringIO()),
            redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            read()
        outcome, text = "read", ""
    except (InputError, OSError) as error:  # one line each
        outcome, text = "refused", ""
        str(error).encode("utf-8", "backslashreplace")
    except (Exception, Hang):
        outcome, text = "fault", traceback.format_exc()[-3000:]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MEMORY:
        return "fault", f"{grown / 2**20:.0f} MB: {text}"
    return outcome, text


def main(count: int, names: list[str], seed: int = 0) -> int:
    """Try all and print counts, and the first faults of each reader."""
    resource.setrlimit(resource.RLIMIT_AS, (24 * 2**30, resource.RLIM_INFINITY))
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        table = cases(Path(folder))
        if not names or "pipeline" in names:
            table |= pipelines(Path(folder))
        for name in names or list(table):
            counts = {"read": 0, "refused": 0, "fault": 0}
            seen: set[str] = set()
            for i in range(count if name != "pipeline" else max(count // 10, 3)):
                rng = random.Random(f"{seed} {name} {i}")
                outcome, text = tried(table[name](rng))
                counts[outcome] += 1
                last = text.strip().splitlines()[-1][:120] if text.strip() else ""
                if outcome == "fault" and last not in seen and len(seen) < 8:
                    seen.add(last)
                    print(f"--- {name} {i}: {text[-700:]}", flush=True)
            faults += counts["fault"]
            if count >= FEW and not counts["read"]:
                print(f"--- {name}: nothing is read, so that what reading leads to is not tried")
                faults += 1
            print(json.dumps({name: counts}), flush=True)
    return faults


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), sys.argv[2:])))
