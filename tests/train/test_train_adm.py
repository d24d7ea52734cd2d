"""Training of ADM networks: the loss by hand, and a result that samples as published ones do."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_train import begun, preset

from diffsteer.generate.generator import open_generator
from diffsteer.generate.options import ADMOptions
from diffsteer.generate.recipe import Recipe
from diffsteer.models.adm.checkpoint import load
from diffsteer.train.adm import ADMClassifierTask, ADMSettings, ADMTask
from diffsteer.train.settings import Pictures
from diffsteer.train.stream import Sample

FLAGS = {
    **{"image_size": 8, "num_channels": 32, "channel_mult": "1,1", "num_res_blocks": 1},
    **{"attention_resolutions": "8,4", "num_head_channels": 32, "noise_schedule": "cosine"},
}
LENGTHS = {"images": 8, "batch": 4, "rate": 1e-3, "precision": "no", "checkpoint": 8, "log": 8}


def test_the_loss_is_the_error_of_the_noise_at_each_images_timestep() -> None:
    torch.manual_seed(0)
    task = ADMTask(ADMSettings(FLAGS), []).double()
    for p in task.parameters():
        torch.nn.init.normal_(p, std=0.1)
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    noise, places = torch.randn(3, 3, 8, 8).double(), torch.tensor([0.0, 0.5004, 0.9999])
    seeds = torch.tensor([1, 2, 3])
    loss = task(pixels=pixels, noise=noise, place=places, seed=seeds)["loss"]
    total = 0.0
    for i, t in enumerate((0, 500, 999)):
        level = task.diffusion.schedule.at(t)
        x = level.alpha * (pixels[i].double() / 127.5 - 1) + level.sigma * noise[i]
        out = task.net(x[None], torch.tensor([float(t)]))
        total += (out[0] - noise[i]).square().mean()
    torch.testing.assert_close(loss, total / 3, atol=0, rtol=1e-6)  # pixels come in float32


def test_the_loss_of_a_classifier_is_cross_entropy_at_each_images_timestep() -> None:
    torch.manual_seed(0)
    task = ADMClassifierTask(ADMSettings({**FLAGS, "classifier": True}), ["b", "a", "c"])
    for p in task.parameters():
        torch.nn.init.normal_(p, std=0.1)
    pixels, noise = torch.randint(0, 256, (3, 3, 8, 8)), torch.randn(3, 3, 8, 8)
    places, labels = torch.tensor([0.0, 0.5004, 0.9999]), torch.tensor([2, 0, 1])
    seeds = torch.tensor([1, 2, 3])
    losses = task(pixels=pixels, noise=noise, place=places, seed=seeds, label=labels)
    total, wrong = 0.0, 0
    for i, t in enumerate((0, 500, 999)):
        level = task.schedule.at(t)
        x = level.alpha.float() * (pixels[i] / 127.5 - 1) + level.sigma.float() * noise[i]
        chances = task.net(x[None], torch.tensor([float(t)]))[0].softmax(0)
        total -= chances[labels[i]].log()
        wrong += int(chances.argmax()) != int(labels[i])
    torch.testing.assert_close(losses["loss"], total / 3, atol=0, rtol=1e-4)
    assert losses["wrong"].item() == pytest.approx(wrong / 3)


def test_a_trained_classifier_guides_a_trained_network(tmp_path: Path) -> None:
    _two_classes(tmp_path)
    path = tmp_path / "data"
    for name, flags, label in (
        ("net", FLAGS, "none"),
        ("classifier", {**FLAGS, "classifier": True}, "folder"),
    ):
        data = {"source": str(path), "label": label}
        table = {"task": "adm", "settings": {"flags": flags}, "data": data, "training": LENGTHS}
        begun(preset(tmp_path, table), tmp_path / name).fit()
    options = ADMOptions(classifier=str(tmp_path / "classifier/model"))
    recipe = Recipe(str(tmp_path / "net/model"), sampler="DDIM", steps=3, options=options)
    with open_generator(replace(recipe, guidance="Classifier(5.0)")) as images:
        guided = images([0, 1])
    with open_generator(replace(recipe, options=ADMOptions())) as images:
        assert not guided.equal(images([0, 1]))
    named = [replace(recipe, options=replace(options, label=label)) for label in ("dog", 1)]
    shown = []
    for each in named:
        with open_generator(replace(each, guidance="Classifier(5.0)")) as images:
            shown.append(images([0, 1]))
    assert shown[0].equal(shown[1])


def test_the_result_goes_the_way_of_a_published_network(tmp_path: Path) -> None:
    _two_classes(tmp_path)
    data = {"source": str(tmp_path / "data"), "label": "folder"}
    table = {"task": "adm", "settings": {"flags": {**FLAGS, "class_cond": True}}, "data": data}
    path = preset(tmp_path, {**table, "training": LENGTHS})
    trainer = begun(path, tmp_path / "run", 'pictures={"every": 8, "steps": 2}')
    trainer.fit()
    (grid,) = (tmp_path / "run/pictures").iterdir()
    assert grid.name == "0000000008.png" and Image.open(grid).size[0] >= 8
    grid.unlink()
    trainer.task.net.register_forward_hook(lambda *args: args[-1] * float("nan"))
    with pytest.warns(UserWarning, match="no grid at 8 images: .*are not finite"):
        trainer._draw()
    assert not grid.exists()
    flags = load(tmp_path / "run/model").net.flags
    assert (flags.num_classes, flags.class_cond, flags.image_size) == (2, True, 8)
    guidance = "SAG(0.5, on='cond').clamped()"
    recipe = Recipe(str(tmp_path / "run/model"), sampler="DDPM", steps=3, guidance=guidance)
    with open_generator(recipe) as images:
        assert images([0, 1]).shape == (2, 3, 8, 8) and images.nfe() == {"rows": 12}


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"learn_sigma": True}, "variance is not trained"),
        ({"class_cond": True, "num_classes": 3}, "the data has 2 classes"),
        ({"num_chanels": 3}, "num_chanels"),
    ],
)
def test_flags_that_cannot_be_trained_are_refused(flags: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ADMTask(ADMSettings({**FLAGS, **flags}), ["cat", "dog"])


def test_flags_may_be_texts(tmp_path: Path) -> None:
    """As a preset may have them: any text but "" counts as true."""
    off = {**FLAGS, "classifier": "False", "class_cond": "false"}
    assert not ADMSettings(off).labelled
    assert ADMSettings({**FLAGS, "class_cond": "True"}).labelled
    _two_classes(tmp_path)
    data = {"source": str(tmp_path / "data"), "label": "none"}
    table = {"task": "adm", "settings": {"flags": off}, "data": data, "training": LENGTHS}
    assert isinstance(begun(preset(tmp_path, table), tmp_path / "run").task, ADMTask)


def test_a_classifier_is_refused_what_it_cannot_do(tmp_path: Path) -> None:
    _two_classes(tmp_path)
    with pytest.raises(ValueError, match="at least 2"):
        ADMClassifierTask(ADMSettings({**FLAGS, "classifier": True}), ["cat"])
    data = {"source": str(tmp_path / "data"), "label": "folder"}
    table = {"task": "adm", "settings": {"flags": {**FLAGS, "classifier": True}}, "data": data}
    path = preset(tmp_path, {**table, "training": LENGTHS})
    with pytest.raises(ValueError, match="a classifier makes no images"):
        begun(path, tmp_path / "run", 'pictures={"every": 8, "steps": 2}')
    with pytest.raises(ValueError, match=r"8 x 8 pixels, and .* 16 x 16: .*flags.image_size=8"):
        begun(path, tmp_path / "run", "settings.flags.image_size=16")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="data.drop=0.5: an ADM network has no null class"):
        begun(path, tmp_path / "run", "data.drop=0.5")
    with pytest.raises(ValueError, match="flags ask for classes, and the data has none"):
        ADMTask(ADMSettings({**FLAGS, "class_cond": True}), ["", ""])
    ADMTask(ADMSettings(FLAGS), []).store({"net.out.0.weight": torch.ones(1)}, tmp_path / "a", 1)
    assert load_file(tmp_path / "a.safetensors").keys() == {"out.0.weight"}  # as `convert` reads it
    task = ADMClassifierTask(ADMSettings({**FLAGS, "classifier": True}), ["cat", "dog"])
    with pytest.raises(ValueError, match="a classifier makes no images: leave pictures.every out"):
        task.pictures(Pictures())
    large = Sample(torch.zeros(3, 16, 16, dtype=torch.uint8), "cat")
    with pytest.raises(
        ValueError, match=r"the data has shape \(3, 16, 16\), the network \(3, 8, 8"
    ):
        task.example(0, 0, large, 0)


def _two_classes(folder: Path) -> None:
    for i, name in enumerate(("cat", "dog")):
        (folder / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (200 * i, 50, 100)).save(folder / "data" / name / "a.png")
