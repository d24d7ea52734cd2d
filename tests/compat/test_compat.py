"""What version 0.1.0 wrote is read as that version read it; its commands and imports still work.

`make.md` says how the files in `data` were made. Everything here goes through the command line and
documented imports, so that it does not matter where the code behind them lies.
"""

import importlib
import inspect
import io
import json
import math
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import diffsteer

torch.set_num_threads(1)

DATA = Path(__file__).parent / "data"
CPU = ("--device", "cpu")
REFERENCE = ("--reference", "reference.npz", *CPU)
EXACT = {"rel": 1e-6, "abs": 1e-9}
"""For what is computed from numbers in files."""
MEASURED = {"rel": 5e-5, "abs": 1e-8}
"""For features of pictures that are there, which other machines round otherwise."""
SAMPLED = {"rel": 2e-3, "abs": 1e-4}
"""For what networks compute anew, which other machines round otherwise."""
HALF = {"rel": 2e-3, "abs": 1e-3}
"""For the same in half precision, of numbers up to 57."""
TRAINED = {"rel": 1e-2, "abs": 1e-3}
"""For weights after more steps."""
AVERAGED = {"rel": 1e-3, "abs": 1e-3}
"""For sums in float16."""
SAG = "SAG(0.8, 'middle_block', sigma=2, kernel=9, clamp=1, on='cond').clamped()"
FLAGS = (
    "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1 "
    "--attention_resolutions 1 --class_cond True --num_classes 4 --learn_sigma True "
    "--num_head_channels 16"
)
OWL = "owl, noto style, on a red background"
WORDS = "runs/words/model"
MAIN, GUIDE = "edm2-img64-s-1073741-0.045", "edm2-img64-xs-0134217-0.110"

SAMPLES: dict[str, tuple[str, ...]] = {
    "pocket": (
        *("pocket", "--prompt", OWL, "--guidance", "CFG(3) + SAG(0.5).within(0, 2)"),
        *("--sampler", "UniPC()", "--steps", "3", "--seeds", "0,7"),
    ),
    "guided": (
        *("pocket", "--prompts", "prompts.txt", "--guidance", "Auto(1.5)", "--guide"),
        *("pocket-guide", "--sampler", "DDIM(eta=0.5)", "--spacing", "logsigma", "--zero-snr"),
        *("--steps", "4", "--seeds", "0-2"),
    ),
    "eps": (
        *("pocket-eps", "--prompt", "a cat", "--negative", "a dog", "--guidance"),
        *("CFG(4).rescaled(0.7)", "--steps", "2", "--width", "32", "--height", "48"),
    ),
    "words": (
        *(WORDS, "--prompt", "red square", "--guidance", "CFG(30) + PAG(20) + 0.5 * SEG(20)"),
        *("--sampler", "DPMpp2M()", "--spacing", "karras", "--steps", "4", "--seeds", "1"),
    ),
    "rival": (
        *(WORDS, "--prompt", "red square", "--refiner", "NLG(rounds=2, scale=9.0)"),
        *("--steps", "3", "--seeds", "2"),
    ),
    "own": (
        *(WORDS, "--prompt", "blue disc", "--refiner", "runs/refine/model", "--sampler"),
        *("DDIM()", "--steps", "3", "--seeds", "3", "--guidance", "CFG(20).over(0, 2)"),
    ),
    "edm2": (
        *("models/edm2", "--guide", "models/weak", "--guidance", "Auto(1.7)", "--steps", "5"),
        *("--class", "3", "--precision", "official-bit", "--sigma-min", "0.01", "--sigma-max"),
        *("40", "--rho", "5", "--s-churn", "2", "--s-min", "0.05", "--s-max", "50", "--s-noise"),
        *("1.003", "--seeds", "0,5"),
    ),
    "classes": ("models/edm2", "--steps", "4", "--seeds", "0-3,3000000000", "--subdirs"),
    "latent": ("models/latent", "--steps", "4", "--seeds", "6"),
    "trained": ("runs/edm2/model", "--guidance", "CFG(1.5)", "--steps", "4", "--seeds", "1-2"),
    "adm": (
        *("models/adm", "--guidance", SAG, "--respacing", "4", "--class", "3"),
        *("--official-head-split", "--seeds", "0-1"),
    ),
    "ddim": (
        *("models/adm", "--guidance", "AutoNoise(1.5).clamped()", "--sampler", "DDIM()"),
        *("--spacing", "leading", "--steps", "4", "--seeds", "8"),
    ),
    "preset": (
        *("--preset", "edm2-img64-s-autog-fid", "--models", "models", "--weight", "1.5"),
        *("--class", "2", "--seeds", "0,9"),
    ),
}
"""Options of `diffsteer sample`; each line of them made `samples/NAME`."""

RECIPES = ("plain", "guided", "sizes", "list", "lines", "refined", "rival", "edm2", "adm")
"""Of `recipes/NAME.json`; features of their seeds 0 to 3 are in `measured`."""

TARGETS = (
    *("refine", "targets", WORDS, "--prompts", "prompts.txt", "--guidance", "CFG(20)"),
    *("--sampler", "DDIM()", "--steps", "3", *CPU),
)
COMPARE = (
    *("compare", "recipes/list.json", "recipes/sweep.json", *REFERENCE, "--weights", "1.5,30"),
    *("--seeds", "0-3", "--show", "2", "--resamples", "40", "--out", "compared"),
)
TOY = ("toy", "--out", "toy", "--guides", "0", "--samples", "100")


# ------------------------------------------------------------------ helpers


def cli(*args: object) -> str:
    """Run a command in this process; return what it printed.

    Raises:
        AssertionError: it failed.
    """
    from diffsteer.cli import main

    out, errors = io.StringIO(), io.StringIO()
    argv = ["diffsteer", *map(str, args)]
    try:
        with (
            warnings.catch_warnings(),
            mock.patch.object(sys, "argv", argv),
            redirect_stdout(out),
            redirect_stderr(errors),
        ):
            main()
    except SystemExit as end:
        if end.code not in (None, 0):
            raise AssertionError(
                f"{argv}: {end.code}\n{out.getvalue()}{errors.getvalue()}"
            ) from end
    return out.getvalue()


def failure(*args: object) -> str:
    """Run a command that fails; return all that it said."""
    with pytest.raises(AssertionError) as caught:
        cli(*args)
    return str(caught.value)


def copied(to: Path) -> None:
    """Copy the files of the old version."""
    shutil.copytree(DATA, to, dirs_exist_ok=True)


def held(*folders: str | Path) -> dict[str, bytes]:
    """Bytes of all files of folders."""
    paths = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in sorted(paths)}


def added(before: Mapping[str, bytes], *folders: str | Path) -> list[str]:
    """Names of the files that came to folders, in which nothing else changed."""
    now = held(*folders)
    changed = [name for name, data in before.items() if now.get(name) != data]
    assert not changed, f"changed or gone: {changed}"
    return [name for name in now if name not in before]


def pixels(path: Path) -> np.ndarray:
    """Of a picture, signed."""
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=int)


def said(path: Path) -> dict[str, Any]:
    """What a picture says of itself, but for versions of libraries."""
    with Image.open(path) as picture:
        found = json.loads(picture.info["diffsteer"])
    return {name: value for name, value in found.items() if name != "versions"}


def alike(was: Any, now: Any, rel: float, abs: float, at: str = "") -> None:
    """Require that all that was there is there, numbers within a tolerance; more may be."""
    if isinstance(was, dict):
        assert isinstance(now, dict) and was.keys() <= now.keys(), f"{at}: {now}"
        for name, value in was.items():
            alike(value, now[name], rel, abs, f"{at}/{name}")
    elif isinstance(was, list) and was and all(isinstance(v, dict) and "name" in v for v in was):
        alike(*({f"{v['name']} {v.get('detail')}": v for v in x} for x in (was, now)), rel, abs, at)
    elif isinstance(was, list):
        assert isinstance(now, list | tuple) and len(was) == len(now), f"{at}: {now}"
        for i, (a, b) in enumerate(zip(was, now, strict=True)):
            alike(a, b, rel, abs, f"{at}/{i}")
    elif isinstance(was, float | int) and not isinstance(was, bool):
        assert now == pytest.approx(was, rel=rel, abs=abs, nan_ok=True), f"{at}: {was} {now}"
    else:
        assert was == now, f"{at}: {was!r} {now!r}"


def figures(*args: object) -> Any:
    """Run `diffsteer evaluate`; return its figures."""
    cli("evaluate", *args, "--out", "figures.json")
    return json.loads(Path("figures.json").read_text("utf-8"))["figures"]


def tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Of a file of safetensors, in float32."""
    from safetensors.torch import load_file

    return {name: value.float() for name, value in load_file(path).items()}


def same_tensors(a: Path, b: Path) -> None:
    """Require equal names and values; published weights have float16."""
    was, now = tensors(a), tensors(b)
    assert was.keys() == now.keys()
    for name, value in was.items():
        torch.testing.assert_close(now[name], value, atol=2e-3, rtol=2e-3, msg=f"{b}: {name}")


def sizes(folder: Path) -> dict[str, list[float]]:
    """Sum and mean size of the numbers of each file of weights below a folder."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        values = torch.cat([value.flatten() for value in tensors(path).values()]).double()
        name = path.relative_to(folder).as_posix()
        found[name] = [values.numel(), values.sum().item(), values.abs().mean().item()]
    return found


def plain(x: Any) -> Any:
    """Numbers of a tensor, in a list."""
    return x.detach().double().flatten().tolist()


def noise(*shape: int) -> torch.Tensor:
    """The same noise at each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def brightness(pictures: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A score."""
    return pictures.double().mean((1, 2, 3))


# ------------------------------------------------------------------ scenes
# Each runs in a copy of the files and returns what `expected.json` has from the old version.

Scene = Callable[[], Any]
SCENES: dict[str, tuple[Scene, Mapping[str, float]]] = {}


def scene(tolerance: Mapping[str, float], *args: object) -> Callable[[Any], Any]:
    """Register a function as a scene, with arguments as one more of it."""

    def register(function: Any) -> Any:
        name = " ".join(map(str, (function.__name__, *args)))
        SCENES[name] = (partial(function, *args), tolerance)
        return function

    return register


@scene(EXACT, "recipes/adm.json")
@scene(EXACT, "recipes/edm2.json")
@scene(EXACT, "recipes/rival.json")
@scene(EXACT, "recipes/refined.json")
@scene(EXACT, "recipes/sizes.json")
@scene(EXACT, "recipes/list.json")
@scene(EXACT, "recipes/lines.json")
@scene(EXACT, "samples/words/000001.png")
@scene(EXACT, "recipes/guided.json")
@scene(EXACT, "recipes/plain.json")
def measured_before(recipe: str) -> Any:
    """All that a recipe asks for is there: nothing is sampled."""
    before = held("measured")
    found = figures(recipe, *REFERENCE, "--seeds", "0-3", "--resamples", "40")
    assert not added(before, "measured"), "sampled again"
    return found


@scene(SAMPLED, "recipes/adm.json")
@scene(SAMPLED, "recipes/edm2.json")
@scene(SAMPLED, "recipes/list.json")
@scene(SAMPLED, "recipes/plain.json")
def half_measured(recipe: str) -> Any:
    """What is there of a recipe stays, and only the rest is sampled."""
    before = held("measured")
    found = figures(recipe, *REFERENCE, "--seeds", "0-5", "--resamples", "0")
    seeds, features = chunks(added(before, "measured"))
    assert seeds == [4, 5], f"sampled {seeds}"
    (distance,) = [f["value"] for f in found if f["name"].startswith("FD-")]
    return {"distance": distance, "features": [abs(row).mean().item() for row in features]}


def chunks(names: Iterable[str]) -> tuple[list[int], list[Any]]:
    """Seeds of chunk files, and the row of each."""
    found: dict[int, Any] = {}
    for name in names:
        with np.load(name, allow_pickle=False) as arrays:
            found |= dict(zip(arrays["seeds"].tolist(), arrays["features"], strict=True))
    return sorted(found), [found[seed] for seed in sorted(found)]


@scene(EXACT)
def compared() -> Any:
    """The page of a comparison, with costs that were measured with the samples."""
    before = held("measured", "compared/pictures")
    cli(*COMPARE)
    assert not added(before, "measured", "compared/pictures"), "sampled again"
    assert "<html" in Path("compared/report.html").read_text("utf-8")
    found = json.loads(Path("compared/report.json").read_text("utf-8"))
    return {name: found[name] for name in ("reference", "resamples", "recipes")}


def measured_in_python(seeds: range) -> Any:
    """A store of one's own pictures."""
    from diffsteer.eval.features import Custom, Origin
    from diffsteer.eval.sampling import sampled

    asked: list[int] = []

    def images(part: list[int]) -> torch.Tensor:
        asked.extend(part)
        draws = [torch.Generator().manual_seed(seed) for seed in part]
        return torch.stack([torch.randint(256, (3, 8, 8), generator=g) for g in draws]).byte()

    mean = Custom(lambda x: x.float().mean(dim=(2, 3)), Origin("mean", "rgb", "none", "none"))
    key = {"made by": "uniform bytes", "size": [8, 8], "é": None}
    found = sampled(images, seeds, mean, out=Path("measured/python"), key=key, batch=4)
    gaussian = found.statistics.gaussian
    moments = {"mean": plain(gaussian.mean), "cov": plain(gaussian.cov)}
    return {"asked": asked, "n": found.statistics.n, **moments, "seeds": list(found.seeds)}


@scene(EXACT)
def half_measured_in_python() -> Any:
    """The functions are asked for what is not there, and for nothing else."""
    before = held("measured/python")
    found = measured_in_python(range(8))
    assert found["asked"] == [5, 6, 7]
    added(before, "measured/python")
    return found


@scene(SAMPLED, "scored", "--score", "judge:brightness")
@scene(SAMPLED, "targets")
def half_targets(out: str, *more: str) -> Any:
    """Targets that are there stay, and only the rest is sampled."""
    before = held(out)
    cli(*TARGETS, *more, "--seeds", "0-6", "--out", out)
    seeds, latents = chunks(added(before, out))
    assert seeds == [5, 6], f"sampled {seeds}"
    return [row.tolist() for row in latents]


@scene(MEASURED, "pictures/good")
@scene(MEASURED, "good.zip")
@scene(MEASURED, "good.zip", "--mixed", "--resamples", "0")
@scene(MEASURED, "samples/classes")
@scene(MEASURED, "samples/preset")
@scene(MEASURED, "samples/guided", "--recipe", "recipes/guided.json")
def evaluated(pictures: str, *more: str) -> Any:
    """Pictures against statistics of the old version."""
    return figures(pictures, *REFERENCE, *more)


@scene(MEASURED)
def evaluated_by_moments() -> Any:
    """Against statistics that hold no features, as after --keep 0."""
    with np.load("reference.npz", allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    np.savez("moments.npz", **{**found, "features": found["features"][:0]})
    return figures("pictures/good", "--reference", "moments.npz", *CPU)


@scene(EXACT)
def counted() -> Any:
    """Statistics of the same pictures hold what they held, under the same names."""
    cli("stats", "pictures/real", "--out", "again.npz", *CPU)
    found = []
    for name in ("reference.npz", "again.npz"):
        with np.load(name, allow_pickle=False) as arrays:
            found.append({key: arrays[key].tolist() for key in arrays.files})
    alike(found[0], found[1], rel=1e-4, abs=1e-4)
    return dict.fromkeys(found[1], True)


@scene(TRAINED, "vae", "presets/vae.toml", 12)
@scene(TRAINED, "words", "presets/words.toml", 12)
@scene(TRAINED, "refine", "presets/refine.toml", 8)
@scene(TRAINED, "edm2", "presets/edm2.toml", 3000)
def continued(run: str, preset: str, images: int) -> Any:
    """A run goes on from its checkpoint, and its first part stays."""
    out = Path("runs") / run
    kept = held(*out.glob("checkpoints/*[0-9]"), *out.glob("latents-*"), *out.glob("averages/*"))
    lines = (out / "metrics.jsonl").read_text("utf-8")
    assert kept and lines
    cli("train", preset, "--out", out, "--set", f"training.images={images}")
    now = (out / "metrics.jsonl").read_text("utf-8")
    assert now.startswith(lines), "trained again"
    added(kept, out)
    new = [json.loads(line) for line in now[len(lines) :].splitlines()]
    timeless = [{k: v for k, v in line.items() if k != "images_per_second"} for line in new]
    return {"metrics": timeless, "weights": sizes(out / "model")}


@scene(TRAINED)
def trained_with_options() -> Any:
    """The same by --model and --targets, and with --from."""
    run = ("train", "presets/bare.toml", "--model", WORDS, "--targets", "targets")
    cli(*run, "--out", "runs/refine", "--from", "4", "--set", "training.images=8")
    return sizes(Path("runs/refine/model"))


@scene(AVERAGED, "snapshots", "--kimg", "2147")
@scene(AVERAGED, "bare")
@scene(AVERAGED, "runs/edm2/averages")
def averaged(snapshots: str, *more: str) -> Any:
    """Averages of other lengths are what they were, of folders, a pickle and bare files."""
    if snapshots == "snapshots":
        shutil.copy(f"models/{MAIN}.pkl", "snapshots/network-snapshot-0002147-0.100.pkl")
    printed = cli("ema", snapshots, "--out", "new", "--std", "0.06,0.080", *more)
    configs = [json.loads(path.read_text("utf-8")) for path in sorted(Path("new").glob("*/*.json"))]
    assert not Path("trace").exists(), "source text of a pickle was run"
    assert all(
        str(path.parent if configs else path) in printed for path in Path("new").rglob("*.s*")
    )
    return {"weights": sizes(Path("new")), "configs": configs}


@scene(EXACT)
def converted_edm2() -> Any:
    """A pickle becomes the folder that it became."""
    cli("convert", "edm2", f"models/{MAIN}.pkl", "new")
    same_tensors(Path("models/converted/model.safetensors"), Path("new/model.safetensors"))
    assert not Path("trace").exists(), "source text of a pickle was run"
    return json.loads(Path("new/config.json").read_text("utf-8"))


@scene(EXACT)
def converted_adm() -> Any:
    """The same of a file as the official code writes it."""
    from safetensors.torch import load_file

    torch.save(load_file("models/adm/model.safetensors"), "mine.pt")
    cli("convert", "adm", "mine.pt", "new", f"--flags={FLAGS}")
    same_tensors(Path("models/adm/model.safetensors"), Path("new/model.safetensors"))
    was, now = (json.loads(Path(f"{f}/config.json").read_text()) for f in ("models/adm", "new"))
    return {k: v for k, v in now.items() if was[k] == v}


@scene(HALF)
def loaded_edm2() -> Any:
    """Folders of networks in Python."""
    from diffsteer.nets.edm2 import EDM2
    from diffsteer.nets.edm2_sample import Loop, generate

    from diffsteer import Auto

    main = EDM2.load("models/edm2", precision="official-bit")
    guide = EDM2.load("models/weak", precision="official-bit")
    found = generate(main, seeds=[0, 1], guidance=Auto(1.7), guide=guide, loop=Loop(steps=3))
    return plain(found)


@scene(SAMPLED)
def loaded_adm() -> Any:
    """The same of ADM."""
    from diffsteer.checkpoints.adm import load

    from diffsteer import SAG, Ancestral, respaced, sample

    adm = load("models/adm")
    guidance = SAG(0.8, "middle_block", sigma=2, kernel=9, clamp=1, on="cond").clamped()
    denoise = adm.denoiser(guidance, classes=torch.tensor([3, 1]))
    with torch.no_grad():
        levels = respaced(adm.schedule, "2,1")
        *_, step = sample(denoise, levels, (3, 8, 8), [0, 1], Ancestral())
    return plain(step.x)


def pipeline(folder: str) -> Any:
    """A diffusers pipeline."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@scene(SAMPLED)
def steered() -> Any:
    """A pipeline with a refiner of the old version, and without."""
    from diffsteer.hf.steer import steer
    from diffsteer.refine.pipeline import refine

    from diffsteer.refine.refiner import NoiseRefiner

    pipe, found = pipeline(WORDS), {}
    call = {"num_inference_steps": 3, "output_type": "latent"}
    prompts = ["red square", "blue disc"]
    for guidance in ("CFG(30) + PAG(20) + SAG(5)", "CFG(3)"):
        more = {"refiner": "runs/refine/model", "strength": 0.5} if guidance == "CFG(3)" else {}
        with steer(pipe, guidance, **more):
            found[guidance] = plain(pipe(prompts, latents=noise(2, 2, 8, 8), **call).images)
    refiner = NoiseRefiner.load("runs/refine/model", pipe)
    found["refined"] = plain(refine(pipe, noise(2, 2, 8, 8), prompts, refiner))
    return found


@scene(SAMPLED)
def pipeline_with_our_scheduler() -> Any:
    """A pipeline that was saved with the scheduler and names its module."""
    from diffsteer.hf.scheduler import SteerScheduler

    shutil.copytree("saved/pipeline", WORDS, dirs_exist_ok=True)
    pipe = pipeline(WORDS)
    assert isinstance(pipe.scheduler, SteerScheduler)
    call = {"num_inference_steps": 4, "output_type": "latent"}
    return plain(pipe("red square", latents=noise(1, 2, 8, 8), **call).images)


@scene(EXACT)
def saved_guider() -> Any:
    """A guider that was saved."""
    from diffsteer.hf.guiders import SteerGuider

    from diffsteer import Guidance, parse

    guider = SteerGuider.from_pretrained("saved/guider")
    assert guider.guidance == parse("CFG(5) + 2 * PAG(3.0)", Guidance)
    return {"max_rows": guider.max_rows}


@scene(EXACT)
def best_of_two() -> Any:
    """Pictures of a recipe in Python, and the best of them."""
    from diffsteer.recipe import Recipe
    from diffsteer.refine.best import BestOf
    from diffsteer.render import rendering

    prompts = ("red square", "blue disc")
    with rendering(Recipe(WORDS, prompts=prompts, steps=2)) as images:
        best = BestOf(images, brightness, n=2, prompts=prompts)
        return best.chosen([0, 1, 2, 3])


@scene(SAMPLED)
def toy() -> Any:
    """Networks of the toy are found, and measured as they were; the picture is left out."""
    before = held("toy/networks")
    figure = "matplotlib.figure.Figure.__init__"
    with mock.patch(figure, side_effect=OSError("no figure")):
        assert "no figure" in failure(*TOY)
    if not Path("toy/toy.json").exists():  # where the figure comes first
        cli(*TOY)
    assert not added(before, "toy/networks"), "trained again"
    return json.loads(Path("toy/toy.json").read_text("utf-8"))["rows"]


def numerals(text: str, rows: bool) -> list[list[float]]:
    """Numbers of each line of a text, or of those of a table of steps."""
    number = r"(?<![\w.])-?(?:inf|\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?!\w)"
    lines = [line for line in text.splitlines() if not rows or re.match(r" *(\d+|end) ", line)]
    found = [[float(n.replace("inf", "1e300")) for n in re.findall(number, one)] for one in lines]
    return [line for line in found if line]


@scene(EXACT)
def shown() -> Any:
    """Numbers that `schedule` and `plan` print."""
    asked = [f"{name} --steps 7" for name in ("linear", "cosine", "edm", "flow", "sd3")]
    asked += ["sd --zero-snr --spacing logsigma", "continuous-cosine --spacing linspace"]
    asked += [f"{WORDS} --steps 3", f"{WORDS}/scheduler --steps 2"]
    found = {f"schedule {said}": numerals(cli("schedule", *said.split()), True) for said in asked}
    guidance = "CFG(6) + PAG(3) + SAG(0.75).within(0, 2)"
    for more in ((), ("--steps", "10"), ("--schedule", "edm", "--spacing", "trailing")):
        found[f"plan {' '.join(more)}"] = numerals(cli("plan", guidance, *more), False)
    return found


@scene(EXACT)
def presets() -> Any:
    """Presets of training, and of published networks with the files that they ask for."""
    listed = {line.split()[0]: True for line in cli("train").splitlines() if line.strip()}
    asked = {}
    for name in read("presets.json"):
        message = failure("sample", "--preset", name, "--models", "nowhere", *CPU)
        asked[name] = (re.findall(r"edm2-[\w-]+-\d{7}-\d\.\d{3}", message) or ["?"])[0]
    return {"train": listed, "published": asked}


@scene({"rel": 1e-5, "abs": 1e-7})
def numbers() -> Any:
    """Small results of what README and docs show, without files."""
    from diffsteer.ema import gamma, weights

    from diffsteer import SPACINGS, Discrete, Flow, Karras, V, grid, respaced

    zero, found = Discrete.scaled_linear().zero_snr(), {}
    for name in SPACINGS:
        for label, schedule in (("zero", zero), ("flow", Flow(3.0))):
            levels = grid(schedule, 5, name)
            found[f"grid {label} {name}"] = [v for one in levels for v in map(float, one)]
    found["karras"] = [float(one.sigma) for one in grid(Discrete.linear(), 4, Karras(3.0))]
    for text in ("7", "ddim25", "2,0,3", "1,1"):
        found[f"respaced {text}"] = [float(one.t) for one in respaced(Discrete.cosine(), text)]
    stored = [(t * 2**20, gamma(width)) for t in (8, 16) for width in (0.05, 0.1)]
    found["ema"] = plain(weights(stored, target=(16 * 2**20, gamma(0.075))))
    return found | sampled_numbers(zero, V()) | weighed_numbers(zero)


def sampled_numbers(schedule: Any, kind: Any) -> dict[str, list[float]]:
    """Samples by every sampler, and by guidances that need no network of layers."""
    from diffsteer.oracle import Mixture

    from diffsteer import (
        DDIM,
        EDM,
        Denoiser,
        Guidance,
        Network,
        Sampler,
        Schedule,
        grid,
        parse,
        sample,
    )

    found, levels = {}, grid(schedule, 5)
    for text in [e["text"] for e in REPRS if e["kind"] == "Sampler" and e["type"] != "Ancestral"]:
        at = grid(EDM(0.01, 40), 5) if "gamma=0.1" in text else levels
        *_, step = sample(Mixture(), at, (1, 2, 2), [0, 3], parse(text, Sampler, Schedule))
        found[f"sample {text}"] = plain(step.x)

    def call(x: torch.Tensor, level: Any, cond: Any) -> torch.Tensor:
        return 0.3 * torch.tanh(x) - cond["bias"][:, None, None, None]

    def guide(x: torch.Tensor, level: Any, cond: Any) -> torch.Tensor:
        return 0.1 * x - 0.5 * cond["bias"][:, None, None, None]

    nets = {"main": Network(call), "guide": Network(guide)}
    conds = {"cond": {"bias": torch.ones(2)}, "null": {"bias": torch.zeros(2)}}
    for text in GUIDANCES:
        told = {"schedule": schedule, "seeds": [0, 3]}
        denoise = Denoiser(nets, conds, kind, parse(text, Guidance), **told)
        *_, step = sample(denoise, levels, (1, 2, 2), [0, 3], DDIM())
        found[f"guided {text}"] = plain(step.x)
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":  # both standard deviations are of
        text = "guided CFG(6).rescaled(0.7)"  # values near 1 alike to 1e-6, whose rounding decides
        found[text] = EXPECTED["numbers"][text]
    return found


GUIDANCES = (
    *("CFG(3)", "APG(4, parallel=0.5, norm=2)", "CFGZero(3, zero=2)", "CFG(6).rescaled(0.7)"),
    *("CFG(6).rescaled(0.5, centred=True)", "CFG(6).clamped(0.5)", "CFG(3).within(0.3, 5)"),
    *("CFG(3).over(1, 3) + 0.5 * Auto(2)", "Auto(1.7, on='null')", "AutoNoise(2, noise=0.2)"),
    "Clamped(limit=0.4)",
)


def weighed_numbers(schedule: Any) -> dict[str, list[float]]:
    """Of training: targets, conversions and weights by every kind; and rescaling."""
    from diffsteer import EDM, Kind, Level, Weight, parse, rescale, rescale_centred

    def values(kind: Any, level: Level) -> list[Any]:
        x0, eps = noise(2, 3), noise(3, 3)[1:]
        x, target = level.mix(x0, eps), kind.target(x0, eps, level)
        return plain(torch.cat([x, target, kind.x0(x, target, level)]))

    found = {}
    texts = {name: [e["text"] for e in REPRS if e["kind"] == name] for name in ("Kind", "Weight")}
    for text in texts["Kind"]:
        kind = parse(text, Kind)
        level = EDM().at(0.5) if "Preconditioned" in text else schedule.at(500)
        found[f"kind {text}"] = values(kind, level)
        for weight in texts["Weight"]:
            found[f"{weight} of {text}"] = plain(parse(weight, Weight).at(level, kind))
    found["rescale"] = plain(rescale(noise(2, 3) * 3, noise(2, 3) + 1, 0.7))
    found["centred"] = plain(rescale_centred(noise(2, 3) * 3, noise(2, 3) + 1, 0.7))
    return found


def read(name: str) -> Any:
    """One of the JSON files."""
    path = DATA / name
    return json.loads(path.read_text("utf-8")) if path.exists() else []


REPRS, EXPECTED, IMPORTS = read("reprs.json"), read("expected.json"), read("imports.json")
COMMANDS, BLOCKS = read("flags.json"), read("blocks.json")


# ------------------------------------------------------------------ tests


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the folder at work."""
    copied(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    return tmp_path / "data"


def test_there_are_files() -> None:
    """An empty folder must not pass."""
    assert all((REPRS, EXPECTED, IMPORTS, COMMANDS, BLOCKS))
    assert EXPECTED.keys() == SCENES.keys()
    assert {path.name for path in (DATA / "samples").iterdir()} == SAMPLES.keys()


@pytest.mark.parametrize("name", SCENES)
def test_scene(name: str, here: Path) -> None:
    """What the old version gave."""
    run, tolerance = SCENES[name]
    alike(EXPECTED[name], json.loads(json.dumps(run())), **tolerance)


@pytest.mark.parametrize("name", SAMPLES)
def test_pictures(name: str, here: Path) -> None:
    """Pictures are known to the command that made them, and made again by it and by --from."""
    folder, options = Path("samples") / name, SAMPLES[name]
    old = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    before = held(folder)
    cli("sample", *options, *CPU, "--out", folder)
    assert not added(before, folder), "made again"
    more = [flag for flag in ("--subdirs",) if flag in options]
    again = ("sample", "--from", folder / old[-1], *more)
    if name == "preset":
        again = ("sample", *options)
    cli(*again, *CPU, "--out", "again")
    assert (Path("again") / old[-1]).exists()
    for path in Path("again").rglob("*.png"):
        was = folder / path.relative_to("again")
        if name not in ("ddim", "rival"):  # AutoNoise and NLG draw other noise than in 0.1.0
            assert abs(pixels(path) - pixels(was)).max() <= 1
        known = said(was)
        if "--prompts" in options:
            del known["made_by"]  # the hash of all prompts, of which --from knows one
        alike(known, said(path), **EXACT)


def test_a_folder_of_both_versions_is_of_one_recipe(here: Path) -> None:
    """More seeds join the pictures that are there."""
    before = held("samples/classes")
    options = [*SAMPLES["classes"]]
    options[options.index("--seeds") + 1] = "0-5,3000000000"
    cli("sample", *options, *CPU, "--out", "samples/classes")
    assert len(added(before, "samples/classes")) == 2
    assert figures("samples/classes", *REFERENCE, "--resamples", "0")


def test_another_recipe_is_still_refused(here: Path) -> None:
    """The tests above must not pass because nothing is compared."""
    options = [*SAMPLES["classes"]]
    options[options.index("--steps") + 1] = "5"
    assert "steps" in failure("sample", *options, *CPU, "--out", "samples/classes")
    found = failure("train", "presets/vae.toml", "--out", "runs/vae", "--set", "training.rate=0.5")
    assert "training.rate" in found


def test_scores_by_their_text(here: Path) -> None:
    """They are known, and fail only where they look for weights."""
    for text in ("CLIPScore('./nowhere')", "Aesthetic('./nowhere', clip='./nowhere')"):
        found = failure(*TARGETS, "--seeds", "0", "--out", "new", "--score", text)
        assert "nowhere" in found and "unknown" not in found


RENAMED = {("Heun", "lo"): "s_min", ("Heun", "hi"): "s_max", ("Heun", "swell"): "s_noise"}
"""Fields that have another name; texts with the old one still parse."""
CONSTRUCTORS = frozenset({"Folder.at", "Shards.at"})
"""How the documentation makes these; their fields are their own affair."""


def value_of(text: str) -> Any:
    """What a text says in Python, with the names of the package."""
    import diffsteer

    names = {name: getattr(diffsteer, name) for name in diffsteer.__all__}
    return eval(text, names | {"inf": math.inf})


@pytest.mark.parametrize("kind", sorted({entry["kind"] for entry in REPRS}))
def test_reprs(kind: str) -> None:
    """Texts of values parse to equal values, whose defaults are what they were."""
    import diffsteer
    from diffsteer import Schedule, parse

    for entry in (entry for entry in REPRS if entry["kind"] == kind):
        text = entry["text"]
        value = value_of(text)
        assert value_of(entry["made"]) == value, f"{entry['made']} is no {text}"
        if entry["parses"]:
            root = getattr(diffsteer, kind)
            parsed = parse(text, root, Schedule)
            assert parsed == value and parse(repr(value), root, Schedule) == value, text
        assert type(value).__name__ == entry["type"]
        for name, was in entry["fields"].items():
            assert getattr(value, RENAMED.get((text.split("(")[0], name), name)) == value_of(was), (
                f"{text}: {name}"
            )


NEEDED = {
    **{"schedule": ("sd",), "plan": ("CFG(2)",), "stats": ("x", "--out", "y")},
    **{"evaluate": ("x", "--reference", "y"), "compare": ("x", "--reference", "y")},
    **{"ema": ("x", "--out", "y"), "convert edm2": ("x", "y"), "convert adm": ("x", "y")},
}
"""Without which a command says nothing of flags that it does not know."""


@pytest.mark.parametrize("command", COMMANDS)
def test_flags(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flag is in the help, or is taken though it is not; so are words to choose from."""
    monkeypatch.setenv("COLUMNS", "200")
    shown = cli(*command.split(), "--help")
    there = set(re.findall(r"(?:^|│|,|\s)\s(--[a-z][\w-]*)", shown, re.M))
    for flag, takes in COMMANDS[command]["flags"].items():
        values = takes["values"]
        if flag not in there:
            needed = NEEDED.get(command, ())
            found = failure(*command.split(), *needed, flag, *values, "--no-such-flag")
            unknown = re.search(r"(?i)unrecognized \w+: ([^\n]*)", found)
            assert unknown and "--no-such-flag" in unknown[1], found
            assert not re.search(rf"{flag}(?![\w-])", unknown[1]), f"{command}: no {flag}"
        for word in takes["choices"]:
            assert word in shown, f"{command} {flag} {word}"
    for name in COMMANDS[command]["commands"]:
        assert re.search(rf"\b{name}\b", shown)


def test_the_module_is_a_program() -> None:
    """As torchrun and accelerate start it."""
    run = [sys.executable, "-m", "diffsteer.cli", "--help"]
    found = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert all(name in found for name in COMMANDS[""]["commands"])


DOCUMENTED = [entry for entry in IMPORTS if entry["documented"]]


@pytest.mark.parametrize("module", sorted({entry["module"] for entry in DOCUMENTED}))
def test_imports(module: str) -> None:
    """Documented names are where they were, of the same kind, and take the same arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        home = importlib.import_module(module)
        for entry in (entry for entry in DOCUMENTED if entry["module"] == module):
            thing = getattr(home, entry["name"]) if entry["name"] else home
            assert kind_of(thing) == entry["kind"], f"{module}.{entry['name']}"
            made = entry["name"] if f"{entry['name']}.at" in CONSTRUCTORS else ""
            missing = [] if made else lacking(thing, entry["parameters"])
            assert not missing, f"{module}.{entry['name']} takes no {missing}"


def test_costs_are_where_they_were() -> None:
    with pytest.deprecated_call():
        from diffsteer.branch import Plan, plan
    assert (Plan, plan) == (diffsteer.guidance.Plan, diffsteer.plan)


def kind_of(thing: Any) -> str:
    """Class, function, module, or the type of a value."""
    if inspect.isclass(thing):
        return "class"
    if inspect.ismodule(thing):
        return "module"
    return "function" if callable(thing) and hasattr(thing, "__name__") else type(thing).__name__


def parameters(thing: Any) -> list[str]:
    """Names of what it is called with."""
    try:
        return list(inspect.signature(thing).parameters) if callable(thing) else []
    except ValueError:
        return []


def lacking(thing: Any, names: list[str]) -> list[str]:
    """Arguments that it took and takes no more."""
    if not names:
        return []
    kinds = [p.kind for p in inspect.signature(thing).parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return []
    return [name for name in names if name not in parameters(thing)]


@pytest.mark.parametrize("where", [block["where"] for block in BLOCKS])
def test_documented_code(where: str) -> None:
    """Code of README and docs of the old version runs."""
    (code,) = [block["code"] for block in BLOCKS if block["where"] == where]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        exec(compile(code, where, "exec"), {"__name__": "docs"})
