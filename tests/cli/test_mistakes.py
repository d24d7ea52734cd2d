"""Malformed input ends in one line that names it, whichever library first noticed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffsteer.cli.main import app, main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    return tmp_path


def prepare(tmp_path: Path) -> None:
    """Write the files that the mistakes name."""
    np.save(tmp_path / "plain.npy", np.zeros((4, 32, 32, 3), np.uint8))
    (tmp_path / "cut.toml").write_text("a = [", "utf-8")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "file.txt").write_text("x", "utf-8")
    (tmp_path / "p.txt").write_text("a red critter\n", "utf-8")
    for name in ("model", "empty", "real", "outer/inner"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "outer/inner/model_index.json").write_text("{}", "utf-8")
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"real/{name}.bmp")
    recipe = {"model": "critters", "prompt": "a red critter"}
    save_file({"a": torch.zeros(1)}, tmp_path / "whole.safetensors")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), "utf-8")
    (tmp_path / "wrong.json").write_text(json.dumps(recipe | {"guidance": "Cfg(2)"}), "utf-8")
    (tmp_path / "model/model_index.json").write_text('{"_class_name": 3}', "utf-8")


MISTAKES = [
    ("sampel critters", r"no command 'sampel' .did you mean 'sample'.*; there are schedule, plan"),
    ("train cut.toml", "cut.toml is no preset in TOML"),
    ("train binary.toml", "binary.toml cannot be read"),
    ("train absent.toml", "absent.toml"),
    ("train fast-model", "'fast-model' is no preset: there are "),
    ("train critters --set training.imagse=3", "has no setting 'imagse'"),
    ("train critters --out file.txt", "file.txt is a file where a folder is to be"),
    ("sample a/b/c --prompt x", "no model 'a/b/c': there is no such folder"),
    ("sample critter --prompt x", "no model 'critter' .did you mean 'critters'"),
    ("sample Critters --prompt x", "did you mean 'critters'"),
    ("sample file.txt --prompt x", "file.txt is a file, and models are folders"),
    ("sample empty --prompt x", "empty is a folder without model_index.json: give one"),
    ("sample outer --prompt x", "outer is a folder without model_index.json: give outer/inner"),
    ("sample --prompt x", "name a model"),
    ("sample critters --device cudas", "device='cudas' cannot be used here"),
    ("sample critters --device meta:-1", "device='meta:-1' cannot be used here"),
    ("sample critters --device meta", "device='meta' cannot be used here .it holds no numbers"),
    ("sample critters --seeds 1_0", "'1_0' are no seeds: write"),
    ("sample critters --save recipe.txt", "--save writes JSON, and recipe.txt does not end in"),
    ("sample critters --frames", "--frames is of videos, and critters makes image: leave it out"),
    ("sample critters --fps 8", "makes no videos: leave --fps out"),
    ("sample critters --fps -1", r"fps must be in \[1, 1000\], or 0 by default, got -1"),
    ("sample critters --num-frames -5", "num_frames=-5 are no video"),
    ("sample critters --audio-seconds nan", "audio_seconds=nan are no length"),
    ("sample critters --set eta=abc", "eta=abc: StableDiffusionPipeline takes float .0.0 by def"),
    ("sample critters --image real/a.bmp --strength 0.1 --steps 4", "none to sample: .*--steps 10"),
    ("evaluate real --reference real --extractor CLIP", "CLIP has many weights: .*--checkpoint"),
    ("sample critters --guidance cfg(5)", "unknown Guidance 'cfg' .did you mean 'CFG'"),
    ("sample critters --guidance CFG(weight=5)", r"argument 'weight'; it is CFG\(scale\)"),
    ("sample critters --guidance CFG", r"missing .*'scale'; it is CFG\(scale\)"),
    ("sample critters --guidance CFG(5).witin(1)", "unknown .witin .did you mean 'within'"),
    ("sample critters --guidance CFG({w})", "--weights. fills it"),
    ("sample critters-eps --guidance Auto(2)", "evaluates a weaker network: name it, --guide"),
    (
        "sample critters --guidance Auto(2,adapter='x')",
        "asks for the adapter 'x': give its file by",
    ),
    ("sample critters --guide critters-guide", "guide=critters-guide does nothing"),
    ("sample critters --guidance Auto(2) --guide critters-gide", "did you mean 'critters-guide'"),
    ("sample critters --sampler ddim", "unknown Sampler 'ddim' .did you mean 'DDIM'"),
    ("sample critters --sampler DDPM()", r"DDPM is DDIM\(eta=1.0\) and takes no arguments"),
    ("sample critters --sampler DDIM() --spacing traling", "'traling' .did you mean 'trailing'"),
    ("sample critters --zero-snr", "spacing and zero SNR belong to a sampler of ours"),
    ("sample critters --guidnace CFG(2)", "unrecognized options: --guidnace, .*mean '--guidance'"),
    ("sample critters --zero-snrr", "did you mean '--zero-snr'.*see `diffsteer sample --help`"),
    ("sample critters --offload disk", "--offload must be one of none, model, .*, got 'disk'"),
    ("sample critters --dtype float23", "--dtype must be one of .*got 'float23' .did you mean"),
    ("sample critters --dtype", "--dtype needs a value: {auto,float32"),
    ("sample critters --steps many", "--steps takes INT, got 'many'"),
    ("sample critters --strength much", "--strength takes FLOAT, got 'much'"),
    ("sample critters --offload model --device cpu", "and device=cpu is none: leave --offload out"),
    (
        "sample critters --lora absent.safetensors",
        "no LoRA 'absent.safetensors', which is not there",
    ),
    ("sample critters --lora empty", "a folder without pytorch_lora_weights.safetensors"),
    ("sample critters --image absent.png", "no image absent.png: give a PNG"),
    ("sample critters --image file.txt", "file.txt is no readable image"),
    ("sample critters --mask real/a.bmp", "of no image: give --image as well"),
    (
        "sample critters --image real/a.bmp --strength 2",
        r"strength must be in \(0, 1\] with an image",
    ),
    (
        "sample critters --image real/a.bmp --refiner critters-refiner",
        "refines pure noise, and --image",
    ),
    ("sample critters --num-frames 9", "StableDiffusionPipeline takes no num_frames"),
    ("sample critters --set eta", "write KEY=VALUE"),
    (
        "sample critters --set gidance_scale=3",
        "takes no gidance_scale .did you mean 'guidance_scale'",
    ),
    ("sample critters --set width=64", "--set width: use --width"),
    (
        "sample critters --config empty",
        "config=empty is of a checkpoint in one file, and critters is",
    ),
    ("sample model.safetensors --prompt x", "no model 'model.safetensors'"),
    ("sample whole.safetensors --prompt x", "give --config FOLDER as well"),
    (
        "sample whole.safetensors --config empty --prompt x",
        "has to be a local folder with model_in",
    ),
    ("sample --recipe absent.json", "absent.json: No such file"),
    ("sample --recipe real/a.bmp", "holds no recipe"),
    ("evaluate recipe.json", "missing: --reference; see `diffsteer evaluate --help`"),
    ("convert", "diffsteer convert needs one of edm2, adm"),
    ("sample critters --steps 0", "0 steps sample nothing: give at least 1"),
    ("sample critters --width -1", "-1 x 0 pixels: give both >= 0"),
    ("sample critters --refiner nowhere", "no model 'nowhere'"),
    ("sample critters --refiner nlg(20)", "did you mean 'NLG'"),
    ("sample critters --strength 2", "strength=2.0 of no refiner"),
    ("sample critters --prompts owl,cat", "no file owl,cat of prompts: give a file .* --prompt"),
    ("sample critters --prompts empty", "empty is a folder, pipe or device"),
    ("sample critters --prompt owl --prompts p.txt", "leave one of them out"),
    ("sample critters --seeds a", "'a' are no seeds"),
    ("sample critters --seeds 5-3", "'5-3' are no seeds"),
    ("sample critters --batch 0", "batch=0"),
    ("sample critters --out file.txt", "file.txt is a file where a folder is to be"),
    ("sample critters --out file.txt/sub", "file.txt is a file where a folder is to be"),
    ("sample --preset nowhere", "no preset is called 'nowhere'"),
    ("sample --preset edm2-img64-s-fid", "is in models: nothing is downloaded"),
    ("sample --from absent.png", "absent.png"),
    ("sample --from file.txt", "file.txt is no readable image"),
    ("stats empty --out x.txt", "x.txt does not end in .npz"),
    ("stats absent --out x.npz", "no folder or zip file absent"),
    ("evaluate empty --reference real", "empty holds no image"),
    ("evaluate absent.json --reference real", "absent.json: No such file"),
    ("evaluate recipe.json --reference absent.npz", "no statistics file absent.npz"),
    ("evaluate recipe.json --reference real --seeds x", "'x' are no seeds"),
    ("evaluate recipe.json --reference real --at-once 0", "at_once=0"),
    ("evaluate recipe.json --reference real --work file.txt", "file.txt is a file where"),
    ("evaluate wrong.json --reference real", "unknown Guidance 'Cfg' .did you mean 'CFG'"),
    ("compare recipe.json --reference real", "one recipe is nothing to compare"),
    ("compare recipe.json absent.json --reference real", "absent.json: No such file"),
    ("compare recipe.json cut.toml --reference real", "cut.toml is no JSON"),
    ("compare recipe.json wrong.json --reference real", "did you mean 'CFG'"),
    ("compare recipe.json wrong.json --reference real --out file.txt", "a folder is to be"),
    ("refine targets critters --guidance CFG(4) --prompts absent.txt", "no file absent.txt"),
    (
        "refine analyse critters --refiner critters-refiner --prompts p.txt --out file.txt",
        "file.txt is a file where a folder is to be",
    ),
    ("toy --out file.txt", "file.txt is a file where a folder is to be"),
    ("demo --out file.txt/sub", "file.txt is a file where a folder is to be"),
    ("refine targets critters --prompts p.txt", "the teacher has no guidance"),
    ("refine targets critters --guidance Cfg(4) --prompts p.txt", "did you mean 'CFG'"),
    ("schedule nowhere", "'nowhere' is neither a schedule"),
    ("plan cfg(2)", "did you mean 'CFG'"),
    ("convert edm2 absent.pkl out", "absent.pkl: No such file"),
    ("convert adm absent.pt out", "absent.pt: No such file"),
    ("ema empty --out x", "empty holds no network-snapshot"),
    ("sample critters owl", "values follow their option .--prompt., and texts with blanks"),
    ("sample critters --cfg 7.5", r'did you mean --guidance "CFG\(7.5\)"'),
    ("sample critters --guidance_scale 7.5", r'did you mean --guidance "CFG\(7.5\)"'),
    ("sample critters --num-images 4", "did you mean --seeds 0-3"),
    ("sample critters --seed 5", "did you mean '--seeds'"),
    ("sample critters --output x", "did you mean '--out'"),
    ("sample critters --guidance 7.5", r"is a float, not a Guidance: write it as CFG\(7.5\)"),
    ("sample critters --guidance CFG7.5,", r"invalid .*: write it as CFG\(7.5\) or CFG\(6\)"),
    ("sample critters --guidance CFG(3", r"never closed: write it as CFG\(7.5\)"),
    ("sample critters --sampler DPM++2M", r"write it as UniPC\(\) or DDIM\(eta=0.5\)"),
    ("sample critters --device gpu", "'gpu' cannot be used here .devices are cpu, cuda, cuda:1,"),
    ("sample critters --seeds 0..7", "'0..7' are no seeds: write"),
    ("sample critters --save real", "real is a folder: name a file in it"),
    ("sample critters --sheet sheet.pdf", "writes a PNG, and sheet.pdf does not end in .png"),
    ("sample model.ckpt --prompt x", "no model 'model.ckpt'"),
    ("evaluate real --refrence x.npz", "missing: --reference .did you mean '--reference'"),
    ("doctor", "missing: MODEL; see `diffsteer doctor --help`"),
    ("doctor critterz", "no model 'critterz' .did you mean 'critters'.*: give a .safetensors file"),
    ("plan 7.5", r"write it as CFG\(7.5\)"),
    ("schedule sd --plot x.foo", r"x.foo cannot be written: images end in .*\.png"),
    ("schedule sd --plot absent/x.png", "absent/x.png cannot be written: give the path"),
    ("doctor critters --plot x.jpg", "x.jpg cannot be written: give a .png in a folder"),
    ("refine targets --prompts p.txt", "name a model .*, and give prompts in a file"),
    ("compare recipe.json wrong.json --reference real --show -1", "give >= 20 resamples, >= 0"),
    ("tune --reference real --space CFG(w),w=1..8", "the recipe names no model: give a hub id"),
    ("sample critters --refiner NLG(20) --strength nan", "strength must be a finite number"),
    ("sample critters --set eta=1 --set eta=0.5", "--set eta is given twice"),
    ("sample critters --guidance Auto(2) --guide file.txt", "file.txt is a file, and models are"),
    ("evaluate real --reference real --score a:b --score a:b", "a score is named twice"),
    ("train edm2-tiny --set data.source=plain.npy --set data.label=folder", "classes of its own"),
    ("schedule sd --spacing karas", "'karas' .did you mean 'karras'"),
    ("models wann", "give a part of its name, such as wan"),
    ("train edm2-tiny --images 100", "did you mean --set training.images=1000"),
    ("train edm2-tiny --lr 1e-4", "did you mean --set training.rate=1e-4"),
    ("train edm2-tiny --data.source=real", "did you mean '--set data.source=VALUE'"),
    ("train edm2-tiny --set data.source=gone", "data.source=gone is not there: name"),
    ("train edm2-tiny --set data.source=real", "a.bmp has no caption: .*data.label=folder"),
    ("train edm2-tiny --set data.source=plain.npy", "--set data.drop=0, or give classes"),
]


def refused(monkeypatch: pytest.MonkeyPatch, command: str) -> str:
    """What a command says when it refuses, in one line."""
    monkeypatch.setattr("sys.argv", ["diffsteer", *command.split()])
    with pytest.raises(SystemExit, match="diffsteer: ") as stop:
        main()
    assert "\n" not in str(stop.value)
    return str(stop.value)


@pytest.mark.parametrize(("command", "message"), MISTAKES)
def test_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    assert re.search(message, refused(monkeypatch, command))
    assert not list(folder.rglob("*.part")) and not list(folder.rglob("*.png"))
    assert not {"out", "compared", "measured", "targets"} & {p.name for p in folder.iterdir()}


def test_a_malformed_model_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "model cannot be loaded" in refused(monkeypatch, "sample model --prompt x").replace(
        "'model'", "model"
    )


def test_none_of_them_waits_for_a_library_of_models(folder: Path) -> None:
    """Torch is the largest that is imported; diffusers and transformers take seconds."""
    code = """if True:
        import sys, warnings
        from diffsteer.cli.main import main
        for command in sys.stdin:
            sys.argv = ["diffsteer", *command.split()]
            try:
                main()
            except SystemExit as stop:
                assert str(stop).startswith("diffsteer: "), (command, stop)
            else:
                raise AssertionError(command)
            assert not {"diffusers", "transformers", "peft"} & set(sys.modules), command
    """
    commands = "\n".join(command for command, _ in MISTAKES if "train" not in command)
    done = subprocess.run(
        [sys.executable, "-c", code], input=commands, text=True, capture_output=True, check=False
    )
    assert not done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "message"), [("sample x", "same command makes the others"), ("stats x", "")]
)
def test_what_is_interrupted_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "cli", interrupted)
    monkeypatch.setattr("sys.argv", ["diffsteer", *command.split()])
    with pytest.raises(SystemExit, match="130"):
        main()
    assert re.fullmatch(f"diffsteer: interrupted.*{message}\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("module", "extra"), [("diffusers.models", "hf"), ("matplotlib", "plot"), ("unknown", "")]
)
def test_a_package_that_is_missing_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(app, "cli", missing)
    monkeypatch.setattr("sys.argv", ["diffsteer", "plan", "CFG(2)"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert (f'"diffsteer[{extra}]"' in str(stop.value)) == bool(extra)


def test_a_parser_that_cannot_be_asked_reports_by_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a version of tyro that keeps its errors elsewhere."""
    monkeypatch.setitem(sys.modules, "tyro._errors", None)
    monkeypatch.setattr("sys.argv", ["diffsteer", "plan", "--nothing"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
