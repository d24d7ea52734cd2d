"""`diffsteer sample` of folders of EDM2 and ADM networks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from diffsteer import DDIM, Ancestral, grid, respaced
from diffsteer import sample as steps
from diffsteer.cli.evaluate import measured
from diffsteer.cli.main import app
from diffsteer.cli.options import Features, Samples
from diffsteer.core.parse import parse
from diffsteer.generate.generator import rehearse
from diffsteer.generate.options import EDM2Options, class_number, format_of
from diffsteer.generate.recipe import Recipe, read
from diffsteer.guidance import Auto, Guidance
from diffsteer.io.images import Pictures
from diffsteer.metrics.image_sets import seeds_in
from diffsteer.models.adm.checkpoint import convert, load, load_classifier
from diffsteer.models.adm.flags import Flags
from diffsteer.models.adm.unet import ADM, ADMClassifier
from diffsteer.models.edm2.generate import Loop, generate, pixels
from diffsteer.models.edm2.model import EDM2, Checkpoint
from diffsteer.models.edm2.presets import preset

FLAGS = (
    "--image_size 16 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 "
    "--attention_resolutions 8 --num_classes 10"
)
SAG = "SAG(0.8, 'output_blocks.0', sigma=2, kernel=9, clamp=1, on='cond').clamped()"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ADM with classes and without, its classifier, and two EDM2 networks."""
    folder = tmp_path_factory.mktemp("models")
    classed = "--class_cond True --learn_sigma True"
    made = {"adm": (ADM, classed), "weak": (ADM, classed), "plain": (ADM, "--learn_sigma True")}
    made |= {"classifier": (ADMClassifier, "--classifier True --num_head_channels 16")}
    for i, (name, (kind, more)) in enumerate(made.items()):
        torch.manual_seed(i)
        flags = Flags.parse(f"{FLAGS} {more}")
        net = kind(flags)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.05)
        torch.save(net.state_dict(), folder / f"{name}.pt")
        convert(folder / f"{name}.pt", folder / name, flags)
    for i, name in enumerate(("edm2", "guide")):
        torch.manual_seed(i)
        network = {"channel_mult": [1], "num_blocks": 1, "channels_per_head": 8}
        edm2 = EDM2(8, 3, 10, model_channels=8, logvar_channels=8, **network)
        with torch.no_grad():
            edm2.unet.out_gain.fill_(1.0)
        edm2.save(folder / name)
    return folder


def run(*args: object) -> None:
    app.cli(prog="diffsteer", args=["sample", *(str(arg) for arg in args)])


def shown(path: Path) -> torch.Tensor:
    picture = Image.open(path)
    found = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return found.view(picture.height, picture.width, 3).permute(2, 0, 1).int()


def close(path: Path, x: torch.Tensor) -> None:
    """Batches of other sizes take other kernels, which tells in the last bit."""
    want = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8).int()
    assert (shown(path) - want).abs().max() <= 1 and want.float().std() > 5


def test_adm_with_guidance_of_the_tables(models: Path, tmp_path: Path, capsys) -> None:
    command = (models / "adm", "--guidance", SAG, "--respacing", "4", "--out", tmp_path)
    run(*command, "--seeds", "0-2", "--class", "3", "--batch", "2")
    adm, seeds = load(models / "adm"), [0, 1, 2]
    denoise = adm.denoiser(parse(SAG, Guidance), torch.full((3,), 3))
    with torch.no_grad():
        *_, last = steps(denoise, respaced(adm.schedule, "4"), (3, 16, 16), seeds, Ancestral())
    for seed in seeds:
        close(tmp_path / f"{seed:06d}.png", last.x[seed])
    said = json.loads(Image.open(tmp_path / "000001.png").info["diffsteer"])
    assert said["seed"] == 1 and said["recipe"]["guidance"] == SAG
    assert said["options"] == {"class": 3, "respacing": "4"}
    run(*command, "--seeds", "1-3", "--class", "3")
    assert "2 of 3 images were there, 1 made" in capsys.readouterr().out
    with pytest.raises(ValueError, match="class was 3 and is 4.*Give another --out"):
        run(*command, "--seeds", "1", "--class", "4")


def test_adm_draws_classes_after_the_noise_and_takes_other_samplers(
    models: Path, tmp_path: Path
) -> None:
    weak = ("--guide", models / "weak", "--guidance", "Auto(1.5).clamped()")
    run(
        models / "adm",
        *weak,
        "--sampler",
        "DDIM()",
        "--steps",
        "3",
        "--seeds",
        "7,8",
        "--out",
        tmp_path,
    )
    draws = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    start = torch.stack([torch.randn(3, 16, 16, generator=g) for g in draws])
    classes = torch.stack([torch.randint(10, (), generator=g) for g in draws])
    adm, levels = load(models / "adm"), grid(load(models / "adm").schedule, 3, "trailing")
    denoise = adm.denoiser(Auto(1.5).clamped(), classes, guide=load(models / "weak"))
    with torch.no_grad():
        *_, x = DDIM()(levels[0].sigma * start, levels, denoise)
    for i, seed in enumerate((7, 8)):
        close(tmp_path / f"{seed:06d}.png", x[i])


def test_a_classifier_steers_a_network_without_classes(models: Path, tmp_path: Path) -> None:
    more = (
        "--classifier",
        models / "classifier",
        "--class",
        "2",
        "--sampler",
        "Ancestral(classifier=1e4)",
    )
    for name, args in {"free": (), "classed": more}.items():
        run(models / "plain", *args, "--respacing", "3", "--out", tmp_path / name, "--subdirs")
    plain, classifier = load(models / "plain"), load_classifier(models / "classifier")
    denoise = plain.denoiser(classes=torch.tensor([2]), classifier=classifier)
    with torch.no_grad():
        *_, last = steps(
            denoise, respaced(plain.schedule, "3"), (3, 16, 16), [0], Ancestral(classifier=1e4)
        )
    close(tmp_path / "classed/000000/000000.png", last.x[0])
    assert not torch.equal(
        *(shown(tmp_path / n / "000000/000000.png") for n in ("free", "classed"))
    )


@pytest.mark.parametrize("precision", ["", "official-bit"])
def test_edm2_with_a_guide(models: Path, tmp_path: Path, precision: str) -> None:
    more = ("--precision", precision) if precision else ()
    auto = ("--guide", models / "guide", "--guidance", "Auto(1.7)", "--steps", "3", *more)
    run(models / "edm2", *auto, "--seeds", "0-1", "--class", "4", "--out", tmp_path)
    main, guide = (EDM2.load(models / n, precision or "f32-clean") for n in ("edm2", "guide"))
    want = pixels(generate(main, [0, 1], Auto(1.7), guide, Loop(3), label=4))
    for seed in (0, 1):
        found = shown(tmp_path / f"{seed:06d}.png")
        assert (found - want[seed].int()).abs().max() <= 1
    said = json.loads(Image.open(tmp_path / "000000.png").info["diffsteer"])["options"]
    assert said == {"class": 4} | ({"precision": precision} if precision else {})


def test_classes_named_by_whole_numbers_are_asked_for_by_name() -> None:
    assert class_number(5, ["3", "5"], "m") == class_number("5", ["3", "5"], "m") == 1
    assert class_number(1, ["cat", "dog"], "m") == class_number("dog", ["cat", "dog"], "m") == 1
    assert class_number(7, [], "m") == 7
    for label in (0, "cat"):
        with pytest.raises(ValueError, match="m has no class .*: there are 3, 5"):
            class_number(label, ["3", "5"], "m")


@pytest.mark.parametrize(
    ("model", "args", "said"),
    [
        ("adm", ("--prompt", "a cat"), "is an ADM network, which takes no prompt"),
        ("adm", ("--precision", "f32-clean"), "takes no precision"),
        ("adm", ("--weight", "2"), "takes no weight"),
        ("adm", ("--respacing", "4", "--steps", "9"), "no steps and spacing beside respacing"),
        ("edm2", ("--sampler", "DDIM()"), "is an EDM2 network, which takes no sampler"),
        ("edm2", ("--respacing", "4"), "takes no respacing"),
        ("edm2", ("--preset", "edm2-img64-s-fid"), "takes no preset"),
        ("plain", ("--class", "2"), "knows no classes"),
        ("edm2", ("--class", "10"), "class 10 of a network that knows 10"),
        ("", ("--respacing", "4"), "name a folder of `diffsteer convert adm`"),
        ("adm", ("--s-churn", "4"), "is an ADM network, which takes no s_churn"),
        ("adm", ("--guide", "weak"), "guide=weak does nothing with guidance=''"),
        ("edm2", ("--guide", "weak"), "guide=weak does nothing with guidance=''"),
        ("edm2", ("--guide", "weak", "--guidance", "CFG(2)"), "guide=weak does nothing"),
        ("edm2", ("--s-max", "9"), "takes no s_max without s_churn"),
        ("edm2", ("--models", "elsewhere"), "samples pixels: --models"),
        ("adm", ("--official-head-split",), "official_head_split does nothing with"),
        ("plain", ("--classifier", "c", "--sampler", "Ancestral()"), "classifier=c does nothing"),
        ("plain", ("--guidance", "Classifier(1)", "--sampler", "DDIM"), "name one, --classifier"),
    ],
)
def test_options_of_other_models_are_refused(
    models: Path, tmp_path: Path, model: str, args: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run(models / model if model else "some/pipeline", *args, "--out", tmp_path)
    assert not list(tmp_path.rglob("*.png"))


def test_only_folders_of_ours_are_taken(models: Path, tmp_path: Path) -> None:
    assert format_of(str(models / "adm")) == "diffsteer adm 1"
    assert format_of(str(models / "edm2")) == "diffsteer.EDM2"
    for text in ('{"_class_name": "UNet2DModel"}', "[1]", "broken"):
        (tmp_path / "config.json").write_text(text)
        assert format_of(str(tmp_path)) == ""
    assert format_of("") == format_of("some/pipeline") == ""


@pytest.mark.parametrize(
    ("name", "said", "rows"),
    [
        ("edm2", {"guidance": "Auto(1.5)", "guide": "guide"}, {"rows": 3, "rows of the guide": 3}),
        ("adm", {"guidance": "Auto(1.5)", "guide": "weak"}, {"rows": 2, "rows of the guide": 2}),
        ("plain", {"sampler": "DDIM()"}, {"rows": 2}),
    ],
)
def test_measured_in_the_pass_that_samples(
    models: Path, tmp_path: Path, name: str, said: dict[str, str], rows: dict[str, int]
) -> None:
    """As the same images from a folder; two steps, of which Heun's first evaluates twice."""
    said |= {"guide": str(models / said["guide"])} if "guide" in said else {}
    options = [part for key, value in said.items() for part in (f"--{key}", value)]
    run(models / name, *options, "--steps", "2", "--seeds", "0-5", "--out", tmp_path / "pictures")
    recipe = Recipe(**said, model=str(models / name), steps=2)  # type: ignore[arg-type]
    samples, features = Samples("0-5", 2, tmp_path / "work"), Features(size=32)
    extractor = features.build()
    found = samples.measure(recipe, features, extractor)
    assert {k: set(v.tolist()) for k, v in found.costs.items() if k != "seconds"} == {
        k: {float(n)} for k, n in rows.items()
    }
    want = measured(tmp_path / "pictures", features, extractor).features
    near = found.statistics.features
    assert (near - want).norm() < 0.05 * want.norm()  # a grey level, from batches of other sizes
    again = samples.measure(recipe, features, extractor)
    assert torch.equal(again.costs["seconds"], found.costs["seconds"])  # nothing is made twice
    with pytest.raises(ValueError, match="takes no prompt"):
        samples.measure(replace(recipe, prompt="a cat"), features, extractor)


def recorded(path: Path) -> dict:
    found: dict = json.loads(Image.open(path).info["diffsteer"])
    return found


def test_pictures_are_known_by_their_recipe_and_repeat(models: Path, tmp_path: Path) -> None:
    """Those of a recipe alone count as its own, and those with more options are told apart."""
    said = {"model": str(models / "edm2"), "steps": 3}
    (tmp_path / "recipe.json").write_text(json.dumps(said))
    recipe = Recipe(**said)  # type: ignore[arg-type]
    run(models / "edm2", "--steps", 3, "--seeds", "0-1", "--out", tmp_path / "own")
    assert recorded(tmp_path / "own/000000.png")["recipe"] == recipe.to_dict()
    assert seeds_in(Pictures.at(tmp_path / "own"), read(tmp_path / "recipe.json")) == "0-1"
    assert read(tmp_path / "own/000001.png") == recipe
    noise = ("--s-churn", "20", "--s-max", "50", "--sigma-max", "60")
    classed = ("--steps", 3, "--class", 4, "--precision", "official-bit", *noise)
    run(models / "edm2", *classed, "--seeds", "2", "--out", tmp_path / "classed")
    picture = tmp_path / "classed/000002.png"
    loop = Loop(3, sigma_max=60, s_churn=20, s_max=50)
    net = EDM2.load(models / "edm2", "official-bit")
    assert (
        shown(picture) - pixels(generate(net, [2], loop=loop, label=4))[0].int()
    ).abs().max() <= 1
    with pytest.raises(ValueError, match="class was None and is 4, precision was None"):
        seeds_in(Pictures.at(tmp_path / "classed"), recipe)
    found = read(picture)
    assert found.options == EDM2Options(4, "official-bit", loop := replace(loop, steps=32))
    assert (found.steps, found.options.loop) == (3, loop)
    assert seeds_in(Pictures.at(tmp_path / "classed"), found) == "2"
    run("--from", picture, "--out", tmp_path / "again")
    assert torch.equal(shown(tmp_path / "again/000002.png"), shown(picture))
    assert recorded(tmp_path / "again/000002.png")["options"] == recorded(picture)["options"]
    with pytest.raises(ValueError, match="class was 4 and is None"):
        run(models / "edm2", "--steps", 3, "--seeds", "2", "--out", tmp_path / "classed")
    for more in (("--class", "3"), ("--respacing", "4"), ("--rho", "6")):
        with pytest.raises(ValueError, match="--from repeats an image as it was"):
            run("--from", picture, *more, "--out", tmp_path / "again")
    (tmp_path / "classed/000001.png").write_bytes((tmp_path / "own/000001.png").read_bytes())
    with pytest.raises(ValueError, match="made otherwise than"):
        seeds_in(Pictures.at(tmp_path / "classed"))


def test_an_adm_picture_repeats_with_its_options(models: Path, tmp_path: Path) -> None:
    more = ("--guidance", SAG, "--official-head-split", "--respacing", "3", "--class", "5")
    run(models / "adm", *more, "--seeds", "4", "--out", tmp_path / "a")
    run("--from", tmp_path / "a/000004.png", "--out", tmp_path / "b")
    a, b = (tmp_path / name / "000004.png" for name in "ab")
    assert torch.equal(shown(a), shown(b)) and recorded(a) == recorded(b)
    assert recorded(a)["options"]["official_head_split"] is True
    with pytest.raises(ValueError, match="is an ADM network, which takes no models"):
        run("--from", a, "--models", tmp_path)


def test_latents_are_decoded_by_what_lies_beside_and_it_counts(
    models: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = EDM2(8, 4, 0, model_channels=8, channel_mult=[1], num_blocks=1, channels_per_head=8)
    encoder = {"kind": "vae", "vae_name": "x/vae", "scale": [0.1] * 4, "bias": [0.0] * 4}
    Checkpoint(net.config, net.state_dict(), {"encoder": encoder}).save(tmp_path / "net")
    vae = tiny.vae()
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "elsewhere").mkdir()
    run(tmp_path / "net", "--steps", 2, "--seeds", "0-1", "--out", tmp_path / "out")
    recipe, features = Recipe(str(tmp_path / "net"), steps=2), Features(size=32)
    samples, extractor = Samples("0-1", 2, tmp_path / "work"), features.build()
    near = samples.measure(recipe, features, extractor).statistics.features
    want = measured(tmp_path / "out", features, extractor).features
    assert (near - want).norm() < 0.05 * want.norm()
    (tmp_path / "vae").rename(tmp_path / "elsewhere/vae")
    picture = tmp_path / "out/000001.png"
    with pytest.raises(FileNotFoundError, match="what decodes them is in none of"):
        run("--from", picture, "--out", tmp_path / "again")
    run("--from", picture, "--models", tmp_path / "elsewhere", "--out", tmp_path / "again")
    assert torch.equal(shown(tmp_path / "again/000001.png"), shown(picture))
    vae.decoder.conv_out.bias.data += 0.5
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="was made otherwise: weights was"):
        run(tmp_path / "net", "--steps", 2, "--seeds", "0", "--out", tmp_path / "out")
    other = samples.measure(recipe, features, extractor).statistics.features
    assert not torch.equal(other, near)  # what was measured of the other decoder is not taken


def test_a_picture_of_a_preset_says_how_to_repeat_it(models: Path, tmp_path: Path) -> None:
    EDM2.load(models / "edm2").save(tmp_path / preset("edm2-img64-s-fid").main.stem)
    run("--preset", "edm2-img64-s-fid", "--models", tmp_path, "--seeds", "3", "--out", tmp_path)
    for call in (read, lambda path: run("--from", path, "--out", tmp_path)):
        with pytest.raises(ValueError, match="--preset edm2-img64-s-fid --seeds 3"):
            call(tmp_path / "000003.png")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("adm", {"guidance": "PAG(2, 'nowhere')"}, "nowhere"),
        ("edm2", {"guidance": "PAG(2, 'nowhere')"}, "nowhere"),
        ("edm2", {"guidance": "Auto(2)"}, "evaluates a weaker network"),
        ("edm2", {"guidance": "Auto(2)", "guide": "absent"}, "no guide absent"),
        ("adm", {"options": EDM2Options(3)}, "does not take EDM2Options"),
    ],
)
def test_recipes_of_networks_are_rehearsed(
    models: Path, name: str, fields: dict[str, object], message: str
) -> None:
    recipe = Recipe(str(models / name), steps=3)
    rehearse([recipe], "cpu")
    with pytest.raises((ValueError, OSError), match=message):
        rehearse([recipe, replace(recipe, **fields)], "cpu")
