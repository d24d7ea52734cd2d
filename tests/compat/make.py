"""Makes the files of `data` with version 0.1.0; see make.md. Knows that version's modules."""

import ast
import inspect
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import fabricate
import numpy as np
import test_compat as compat
import tiny
import torch
from PIL import Image

DATA = compat.DATA
EDM2_NETWORK = {
    **{"img_resolution": 8, "img_channels": 3, "label_dim": 10, "model_channels": 4},
    **{"channel_mult": [1], "num_blocks": 1, "attn_resolutions": [8]},
    **{"channels_per_head": 4, "logvar_channels": 4},
}
PROMPTS = ("red square", "blue disc", "une étoile verte")
COLOURS = {"red": (200, 30, 30), "blue": (20, 60, 220), "green": (30, 160, 60)}

TRAINING = """
[training]
images = {images}
batch = {batch}
rate = {rate}
precision = "no"
averages = [0.1]
keep = 0.1
checkpoint = {images}
log = {batch}
"""
VAE = """
about = "the smallest autoencoder"
task = "autoencoder"
[settings.network]
block_out_channels = [2, 2]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D"]
latent_channels = 2
layers_per_block = 1
norm_num_groups = 1
sample_size = 16
[data]
source = "train"
size = 16
"""
WORDS = """
about = "the smallest Stable Diffusion"
task = "text-to-image"
[settings]
start = "runs/vae/model"
cache = true
[settings.scheduler]
prediction_type = "epsilon"
beta_schedule = "scaled_linear"
beta_start = 0.00085
beta_end = 0.012
timestep_spacing = "trailing"
clip_sample = false
[settings.unet]
sample_size = 8
in_channels = 2
out_channels = 2
block_out_channels = [4]
down_block_types = ["DownBlock2D"]
up_block_types = ["UpBlock2D"]
layers_per_block = 1
cross_attention_dim = 4
attention_head_dim = 2
norm_num_groups = 2
[settings.text]
hidden_size = 4
intermediate_size = 4
num_hidden_layers = 1
num_attention_heads = 1
[data]
source = "train"
size = 16
drop = 0.2
"""
BARE = """
about = "a refiner"
task = "refiner"
[settings]
rank = 1
steps = 2
penalty = 0.05
"""
REFINE = BARE + 'start = "runs/words/model"\ntargets = "targets"\n'
TINY = """
about = "the smallest EDM2"
task = "edm2"
[settings]
mean = -0.8
std = 1.6
[settings.network]
img_resolution = 16
img_channels = 3
model_channels = 4
channel_mult = [1]
num_blocks = 1
attn_resolutions = [8]
channels_per_head = 4
logvar_channels = 4
dropout = 0.1
[data]
group = "Smileys & Emotion"
label = "background"
size = 16
drop = 0.2
"""


def main() -> None:
    """Make everything, from an empty folder."""
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    with chdir(DATA):
        pictures()
        texts()
        networks()
        runs()
        samples()
        measured()
        saved()
        lists()
    dump("reprs.json", list(reprs()))
    dump("imports.json", imports())
    dump("blocks.json", blocks())
    dump("flags.json", flags())
    expected()


def dump(name: str, value: Any) -> None:
    """Write JSON, a line for each element."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    rows = [json.dumps(v, ensure_ascii=False) for _, v in inner]
    if isinstance(value, dict):
        keys = map(json.dumps, value)
        rows = [f"{key}: {row}" for key, row in zip(keys, rows, strict=True)]
    ends = "{}" if isinstance(value, dict) else "[]"
    text = f"{ends[0]}\n" + ",\n".join(rows) + f"\n{ends[1]}\n"
    (DATA / name).write_text(text, "utf-8")


# ------------------------------------------------------------------ what is read


def pictures() -> None:
    """Flat halves to measure, and shapes with captions to train on."""
    for name, n, seed in (("real", 16, 0), ("good", 12, 1)):
        rng = np.random.RandomState(seed)
        Path("pictures", name).mkdir(parents=True)
        for i in range(n):
            picture = np.empty((32, 32, 3), dtype=np.uint8)
            picture[:16], picture[16:] = rng.randint(0, 256, (2, 3))
            Image.fromarray(picture).save(f"pictures/{name}/{i:03}.png")
    with zipfile.ZipFile("good.zip", "w") as archive:
        for path in sorted(Path("pictures/good").iterdir()):
            archive.write(path, f"inside/{path.name}")
    Path("train").mkdir()
    y, x = np.mgrid[:16, :16]
    shapes = {"square": abs(x - 8) + 0 * y < 5, "disc": (x - 8) ** 2 + (y - 8) ** 2 < 30}
    for colour, rgb in COLOURS.items():
        for shape, inside in shapes.items():
            picture = np.where(inside[..., None], np.array(rgb), 255).astype(np.uint8)
            Image.fromarray(picture).save(f"train/{colour}-{shape}.png")
            Path(f"train/{colour}-{shape}.txt").write_text(f"{colour} {shape}", "utf-8")


def texts() -> None:
    """Prompts, presets, a score and recipes."""
    Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n", "utf-8")
    Path("judge.py").write_text(JUDGE, "utf-8")
    Path("presets").mkdir()
    for name, text, images, batch, rate in (
        *(("vae", VAE, 8, 4, 1e-2), ("words", WORDS, 8, 4, 5e-2)),
        *(("refine", REFINE, 4, 4, 1e-1), ("bare", BARE, 4, 4, 1e-1)),
        ("edm2", TINY, 2000, 1000, 0.2),
    ):
        training = TRAINING.format(images=images, batch=batch, rate=rate)
        if name == "edm2":
            training += "rows = 500\nsnapshot = 1000\nclip = 0.0\nflat = 1000\n"
        Path(f"presets/{name}.toml").write_text(text.lstrip() + training, "utf-8")
    recipes()


JUDGE = '''"""A score for `--score judge:brightness`."""

from torch import Tensor


def brightness(pictures: Tensor, prompts: list[str]) -> Tensor:
    """Mean of a picture."""
    return pictures.double().mean((1, 2, 3))
'''


def recipes() -> None:
    """Of every kind that the docs know, and with every field."""
    words = {"model": compat.WORDS, "sampler": "DDIM()", "steps": 2}
    said = {
        "plain": {"model": "pocket", "prompt": compat.OWL, "steps": 2},
        "guided": {
            **{"model": "pocket", "prompts": "prompts.txt", "guidance": "Auto(1.5)"},
            **{"guide": "pocket-guide", "sampler": "DDIM(eta=0.5)", "spacing": "logsigma"},
            **{"zero_snr": True, "steps": 4},
        },
        "sizes": {
            **{"model": compat.WORDS, "prompt": "red square", "negative": "blue disc"},
            **{"guidance": "CFG(60)", "width": 32, "height": 16, "steps": 2},
        },
        "list": {**words, "prompts": list(PROMPTS[:2]), "guidance": "CFG(20)"},
        "sweep": {**words, "prompts": list(PROMPTS[:2]), "guidance": "CFG({w}) + SAG(7.5)"},
        "lines": {**words, "prompts": "lines.txt", "guidance": "CFG(20)"},
        "refined": {
            **{**words, "prompt": "blue disc", "refiner": "runs/refine/model"},
            "strength": 0.5,
        },
        "rival": {**words, "sampler": "", "prompt": "blue disc", "refiner": "NLG(1)"},
        "edm2": {
            **{"model": "models/edm2", "guide": "models/weak", "guidance": "Auto(1.7)"},
            "steps": 3,
        },
        "adm": {
            **{"model": "models/adm", "guidance": "AutoNoise(2).clamped()", "steps": 2},
            **{"sampler": "DDIM()", "spacing": "linspace"},
        },
    }
    assert {*said} == {*compat.RECIPES, "sweep"}
    Path("recipes").mkdir()
    for name, recipe in said.items():
        text = json.dumps(recipe, indent=2, ensure_ascii=False)
        Path(f"recipes/{name}.json").write_text(text + "\n", "utf-8")
    shutil.copy("prompts.txt", "recipes/prompts.txt")
    lines = "\n".join(PROMPTS).encode("utf-8-sig")  # with the mark that some editors write
    Path("recipes/lines.txt").write_bytes(lines)


# ------------------------------------------------------------------ networks


def edm2(seed: int, **changes: Any) -> Any:
    """A network whose gains are not 0."""
    from diffsteer.nets.edm2 import EDM2

    torch.manual_seed(seed)
    net = EDM2(**{**EDM2_NETWORK, **changes}).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("_gain"):
                p.fill_(1.0)
    return net


def networks() -> None:
    """Folders and pickles of EDM2, a folder of ADM, snapshots, networks of the toy."""
    Path("models").mkdir()
    edm2(0).save("models/edm2")
    edm2(1).save("models/weak")
    trace = Path("trace")
    Path(f"models/{compat.MAIN}.pkl").write_bytes(fabricate.snapshot(edm2(2).half(), trace))
    compat.cli("convert", "edm2", f"models/{compat.MAIN}.pkl", "models/converted")
    pickled("guide.pkl", fabricate.snapshot(edm2(3).half(), trace), f"models/{compat.GUIDE}")
    latent = fabricate.snapshot(edm2(4, img_channels=2, label_dim=0).half(), trace, latent=True)
    pickled("latent.pkl", latent, "models/latent")
    adm()
    snapshots()
    toy()


def pickled(name: str, data: bytes, out: str) -> None:
    """Convert a pickle that is not kept."""
    Path(name).write_bytes(data)
    compat.cli("convert", "edm2", name, out)
    Path(name).unlink()


def adm() -> None:
    """In float16, as the official code may write it."""
    from diffsteer.nets.adm import ADM
    from diffsteer.nets.adm_flags import Flags

    net = tiny.random_weights(ADM(Flags.parse(compat.FLAGS)))
    torch.save(net.half().state_dict(), "mine.pt")
    compat.cli("convert", "adm", "mine.pt", "models/adm", f"--flags={compat.FLAGS}")
    Path("mine.pt").unlink()


def snapshots() -> None:
    """Two times and widths of one training, without the last; bare files of another network."""
    from safetensors.torch import save_file

    Path("snapshots").mkdir()
    Path("bare").mkdir()
    for i, (kimg, width) in enumerate((k, w) for k in (1073, 2147) for w in (0.05, 0.1)):
        name = f"network-snapshot-{kimg:07d}-{width:.3f}"
        if i < 3:
            edm2(10 + i).half().save(f"snapshots/{name}")
        w = {"w": torch.full((3,), i + 1.0), "b": torch.arange(2.0) - i}
        save_file(w, f"bare/{name}.safetensors", {"images": str(kimg * 1000 + 500)})


def toy() -> None:
    """Written as trained networks are, after two steps: training takes a quarter of an hour."""
    from diffsteer.toy.study import NETS

    for role, how in NETS.items():
        net = replace(how, steps=2, batch=512).run()
        how.keep(net, Path("toy/networks") / f"{role}-0")


# ------------------------------------------------------------------ what commands write


def runs() -> None:
    """Training runs that can go on, and targets."""
    for run in ("vae", "words"):
        compat.cli("train", f"presets/{run}.toml", "--out", f"runs/{run}")
    shutil.copytree("runs/vae/model", "models/sd-vae-ft-mse")
    compat.cli(*compat.TARGETS, "--seeds", "0-2", "--out", "targets")
    compat.cli(*compat.TARGETS, "--seeds", "0-4", "--out", "targets")
    score = ("--score", "judge:brightness")
    compat.cli(*compat.TARGETS, *score, "--seeds", "0-4", "--out", "scored")
    for run in ("refine", "edm2"):
        compat.cli("train", f"presets/{run}.toml", "--out", f"runs/{run}")


def samples() -> None:
    """Pictures."""
    for name, options in compat.SAMPLES.items():
        compat.cli("sample", *options, *compat.CPU, "--out", f"samples/{name}")


def measured() -> None:
    """Statistics, and features of the samples of recipes."""
    compat.cli("stats", "pictures/real", "--out", "reference.npz", *compat.CPU)
    for recipe in (*(f"recipes/{n}.json" for n in compat.RECIPES), "samples/words/000001.png"):
        compat.figures(recipe, *compat.REFERENCE, "--seeds", "0-3", "--resamples", "0")
    Path("figures.json").unlink()
    compat.cli(*compat.COMPARE)
    for name in ("report.json", "report.html"):
        Path("compared", name).unlink()
    compat.measured_in_python(range(5))


def saved() -> None:
    """What diffusers writes of our classes."""
    from diffsteer.hf.guiders import SteerGuider

    from diffsteer.hf.scheduler import SteerScheduler

    pipe = compat.pipeline(compat.WORDS)
    changes = {"sampler": "UniPC()", "timestep_spacing": "logsigma"}
    pipe.scheduler = SteerScheduler.from_config(pipe.scheduler.config, **changes)
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        for name in ("model_index.json", "scheduler/scheduler_config.json"):
            to = Path("saved/pipeline", name)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder, name), to)
    SteerGuider("CFG(5) + 2 * PAG(3.0)", pipe.scheduler, max_rows=2).save_pretrained("saved/guider")


def lists() -> None:
    """Names of presets."""
    from diffsteer.presets.edm2 import presets

    dump("presets.json", list(presets()))


def expected() -> None:
    """What the old version gives, each in a copy of the files."""
    compat.REPRS[:] = compat.read("reprs.json")
    found = {}
    for name, (run, _) in compat.SCENES.items():
        with tempfile.TemporaryDirectory() as folder:
            compat.copied(Path(folder, "data"))
            with chdir(Path(folder, "data")):
                found[name] = rounded(json.loads(json.dumps(run())))
    dump("expected.json", found)


def rounded(value: Any) -> Any:
    """Numbers with eight digits."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


# ------------------------------------------------------------------ lists of what there is


INSTANCES = {
    "Guidance": """
        CFG(6); CFG(2.5); APG(4); APG(4, parallel=0.5, norm=2.0); CFGZero(3); CFGZero(3.5, zero=2)
        PAG(3); PAG(2.0, layer="transformer_blocks.9"); PAG(3, on="null"); SEG(2)
        SEG(2.0, sigma=3.0, layer="8x8_in0", on="null"); SAG(0.75); SAG(0.5, "output_blocks.2")
        SAG(0.5, "output_blocks.2", 1.1, 9.0, 31, "cond", 1.0); Auto(1.7); AutoDropout(2)
        Auto(2.0, net="uncond", on="null"); AutoDropout(2.0, p=0.2, on="null"); AutoNoise(2)
        AutoNoise(2.0, noise=0.3, on="null"); Classifier(1); Classifier(0.5, net="b", on="null")
        Clamped(); Clamped(limit=0.5); CFG(6).clamped(); CFG(6).clamped(2.0)
        CFG(6).within(0.28, 5.4); CFG(6).within(0.5); CFG(6).over(1, 3); CFG(6).rescaled()
        CFG(6).rescaled(0.5, centred=True); CFG(6) + PAG(3); 2 * CFG(6); -1.5 * SAG(0.5)
        CFG(6) + PAG(3) + 0.5 * SAG(0.75)
        (CFG(6).rescaled(0.7).within(0.28, 5.4) + PAG(3)).clamped() + 0.5 * SAG(0.75)""",
    "Sampler": """
        Ancestral(); Ancestral(classifier=0.5); DDIM(); DDIM(eta=0.5); Heun(); DPMpp2M(); UniPC()
        Heun(gamma=0.1, lo=0.05, hi=50.0, swell=1.003, schedule=EDM(0.01, 40.0))
        Euler; DDPM; EulerAncestral""",
    "Kind": "Eps(); X0(); V(); Velocity(); Preconditioned(); Preconditioned(sigma_data=1.0)",
    "Weight": """
        Uniform(); MinSNR(); MinSNR(gamma=1.0); SoftMinSNR(); SoftMinSNR(gamma=2.0); EDMWeight()
        EDMWeight(sigma_data=1.0)""",
    "Schedule": "Cosine(); EDM(); EDM(0.01, 40.0); Flow(); Flow(shift=3.0)",
    "Edit": "Identity(); BlurQuery(1.0); BlurQuery(inf)",
    "Karras": "Karras(); Karras(rho=3.0)",
    "Dropout": "Dropout(0.1, (1, 2))",
}
"""How values of every registered class are made, with and without defaults."""


def reprs() -> Iterator[dict[str, Any]]:
    """Texts of these values, with their fields."""
    from diffsteer.attention import Edit
    from diffsteer.text import subclasses

    import diffsteer as d

    roots = {"Edit": Edit}
    for kind, said in INSTANCES.items():
        made = [one.strip() for line in said.splitlines() for one in line.split(";")]
        made = [one for one in made if one]
        named = {type(compat.value_of(one)).__name__ for one in made}
        below = {c.__name__ for c in subclasses(roots.get(kind) or getattr(d, kind))}
        assert below - named <= {"Discrete"}, below - named
        yield from (entry(kind, one) for one in made)


def entry(kind: str, made: str) -> dict[str, Any]:
    """Text of a value and of its fields."""
    import diffsteer

    parses = kind not in ("Karras", "Dropout", "Edit")
    value = compat.value_of(made)
    text = repr(value)
    if parses:
        root = getattr(diffsteer, kind)
        assert diffsteer.parse(text, root, diffsteer.Schedule) == value
    assert is_dataclass(value)
    of = {f.name: repr(getattr(value, f.name)) for f in fields(value)}
    return {
        **{"kind": kind, "made": made, "text": text, "type": type(value).__name__},
        **{"parses": parses, "fields": of},
    }


def pages() -> list[Path]:
    """README and docs."""
    root = Path.cwd()
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def blocks() -> list[dict[str, str]]:
    """Every Python block of README and docs."""
    return [
        {"where": f"{page.name}:{text[: match.start()].count(chr(10)) + 1}", "code": match[1]}
        for page in pages()
        for text in [page.read_text("utf-8")]
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    ]


def imports() -> list[dict[str, Any]]:
    """Every import of README, docs, docstrings, tests and benchmarks, and public names."""
    import diffsteer

    found: dict[tuple[str, str], set[str]] = {}

    def add(module: str, name: str, where: str) -> None:
        found.setdefault((module, name), set()).add(where)

    for name in diffsteer.__all__:
        add("diffsteer", name, "__init__.pyi")
    for page in pages():
        text = page.read_text("utf-8")
        for block in re.findall(r"^```(?:python|text)\n(.*?)^```", text, re.M | re.S):
            for module, name in from_lines(block):
                add(module, name, page.name)
        for path in re.findall(r"`(diffsteer(?:\.\w+)+)[(`]", text):
            add(*path.rpartition(".")[::2], page.name)
        for path in re.findall(r"-m (diffsteer(?:\.\w+)+)", text):
            add(path, "", page.name)
    for path in [*Path("src").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                said = ast.get_docstring(node) or ""
                for dotted in re.findall(r"`(diffsteer(?:\.\w+)+)`", said):
                    add(*dotted.rpartition(".")[::2], "docstrings")
    for path in [*Path("tests").glob("*.py"), *Path("benchmarks").glob("*.py")]:
        for module, name in imported(path.read_text("utf-8")):
            add(module, name, path.parent.name)
    return [described(*key, sorted(where)) for key, where in sorted(found.items())]


def from_lines(block: str) -> list[tuple[str, str]]:
    """Imports of a block that may be no whole program."""
    lines = [line for line in block.splitlines() if re.match(r"(from|import) diffsteer", line)]
    return [pair for line in lines for pair in imported(line.split("#")[0])]


def imported(code: str) -> list[tuple[str, str]]:
    """Modules and names of ours that a program imports."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffsteer"):
            found += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found += [(name, "") for name in names if name.startswith("diffsteer")]
    return found


def described(module: str, name: str, where: list[str]) -> dict[str, Any]:
    """What an import gives, or of one that no page shows, that there is one."""
    home = __import__(module, fromlist=["_"])
    thing: Any = home
    if name:
        try:
            thing = getattr(home, name)
        except AttributeError:
            thing = __import__(f"{module}.{name}", fromlist=["_"])
    documented = bool(set(where) - {"docstrings", "tests", "benchmarks"})
    found = {"module": module, "name": name, "documented": documented, "where": where}
    more = {"kind": compat.kind_of(thing), "parameters": compat.parameters(thing)}
    return found | more if documented else found


COMMANDS = (
    *("", "schedule", "plan", "sample", "stats", "evaluate", "compare", "train", "demo", "toy"),
    *("ema", "convert", "convert edm2", "convert adm", "refine", "refine targets"),
    "refine analyse",
)
EXAMPLES = {"INT": "1", "FLOAT": "1", "IMAGES": "1"}


def flags() -> dict[str, Any]:
    """Flags of every command, from its help, which is kept as well."""
    (DATA / "help").mkdir()
    found = {}
    for command in COMMANDS:
        text = help_of(command)
        (DATA / "help" / f"{command.replace(' ', '-') or 'diffsteer'}.txt").write_text(
            text, "utf-8"
        )
        said = re.findall(r"(?:^|\s)\s(?:-\w, )?(--[a-z][\w-]*)(?: (\S+))?", text, re.M)
        found[command] = {
            "flags": {flag: takes(value) for flag, value in said if flag != "--help"},
            "commands": re.findall(r"^\s+• (\w+)", text, re.M),
        }
        assert said or found[command]["commands"], f"nothing was found in the help of {command}"
    return found


def takes(value: str) -> dict[str, list[str]]:
    """A value that a flag takes, and words to choose from."""
    words = re.fullmatch(r"\{(.*)\}", value.removeprefix("{None}|"))
    choices = [word for word in words[1].split(",") if word] if words else []
    kind = value.removeprefix("{None}|")
    given = choices[:1] or ([EXAMPLES.get(kind, "x=1")] if kind else [])
    return {"values": given, "choices": choices}


def help_of(command: str) -> str:
    """Text of `--help` at 200 columns, without spaces at ends of lines."""
    with mock.patch.dict(os.environ, COLUMNS="200"):
        shown = compat.cli(*command.split(), "--help")
    return "\n".join(line.rstrip() for line in shown.splitlines()) + "\n"


if __name__ == "__main__":
    assert "326dc5b" in (sys.argv + [""])[1], "name the commit of the code that runs"
    assert inspect.getfile(fabricate) == str(Path("tests/fabricate.py").absolute())
    main()
