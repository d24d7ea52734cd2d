"""EDM2's training: its loss and rate by closed form, runs that resume, results that sample."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from diffsteer_lab.emoji import Emoji
from PIL import Image
from test_train import begun, preset, require_equal, weights

from diffsteer.cli.main import app
from diffsteer.generate.base import NotFinite
from diffsteer.guidance import Auto
from diffsteer.io.images import decode
from diffsteer.models.edm2.generate import (
    Loop,
    decode_latents,
    decoded_bytes,
    encoded,
    generate,
    latents,
)
from diffsteer.models.edm2.magnitude import MPConv
from diffsteer.models.edm2.model import EDM2
from diffsteer.models.edm2.presets import presets as published
from diffsteer.train.edm2 import EDM2Settings, EDM2Task, classes_of, weighed
from diffsteer.train.objective import low_discrepancy
from diffsteer.train.settings import Pictures, Run, presets
from diffsteer.train.stream import Sample, Stream
from diffsteer.train.task import Examples

NETWORK = {
    **{"img_resolution": 16, "img_channels": 3, "model_channels": 8, "channel_mult": [1, 2]},
    **{"num_blocks": 1, "attn_resolutions": [8], "channels_per_head": 8, "logvar_channels": 8},
}
SMALL = {
    "task": "edm2",
    "settings": {"network": {**NETWORK, "dropout": 0.2}},
    "data": {"size": 16, "label": "background", "drop": 0.2},
    "training": {
        **{"images": 24, "batch": 4, "rate": 0.01, "precision": "no", "checkpoint": 8, "log": 8},
        **{"snapshot": 8, "clip": 0.0},
    },
}
"""Six steps of a tiny network."""


def task(**settings: Any) -> EDM2Task:
    torch.manual_seed(0)
    network = {**NETWORK, **settings.pop("network", {})}
    made = EDM2Task(EDM2Settings(network, **settings), ["a", "b", "c"])
    with torch.no_grad():
        for name, p in made.named_parameters():
            if name.endswith("_gain"):
                p.fill_(1.0)
    return made


def test_the_loss_is_the_formula_in_float64() -> None:
    made = task(mean=-0.8, std=1.6).double().eval()  # evaluation alters no weight
    x0, noise = torch.randn(2, 5, 3, 16, 16, dtype=torch.float64) * 0.5
    deviate = torch.linspace(-2, 2, 5, dtype=torch.float64)
    labels = torch.tensor([0, 2, -1, 1, 0])
    found = made(latents=x0 * 1.0, noise=noise, deviate=deviate, label=labels)
    one_hot = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]]).double()
    total = 0.0
    for i in range(5):
        sigma = torch.tensor(math.exp(-0.8 + 1.6 * deviate[i].item()), dtype=torch.float64)
        x = (x0 + sigma * noise)[i : i + 1]
        denoised, u = made.net(x, sigma, one_hot[i : i + 1], return_logvar=True)
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        total = total + (weight / u.exp() * (denoised - x0[i]) ** 2 + u).sum()
    torch.testing.assert_close(found["loss"], total / 5, atol=0, rtol=1e-10)


def test_the_loss_is_least_at_the_logarithm_of_the_expected_error() -> None:
    error = torch.rand(100, dtype=torch.float64) ** 3
    u = error.mean().log().requires_grad_()
    weighed(error, u).mean().backward()
    assert u.grad is not None and abs(u.grad.item()) < 1e-14
    least = weighed(error, u.detach()).mean()
    assert abs(least - 1 - u.detach()) < 1e-14  # every level adds 1 + u, whatever its error
    assert all(weighed(error, u.detach() + d).mean() > least for d in (-0.01, 0.01))


@pytest.mark.parametrize("spread", [0.5, 0.2])
def test_the_error_before_training_is_that_of_gaussian_data(spread: float) -> None:
    """The network says 0, where the best answer has variance 1 if the data has sigma_data."""
    torch.manual_seed(0)
    made = EDM2Task(EDM2Settings(NETWORK, mean=-0.4, std=1.0), ["a"])
    n = 512
    deviate = torch.tensor(
        [made.example(i, 0, Sample(torch.empty(0), "a"), i)["deviate"] for i in range(n)]
    )
    x0, noise = torch.randn(2, n, 3, 16, 16)
    with torch.no_grad():
        found = made(latents=spread * x0, noise=noise, deviate=deviate)["error"]
    sigma = (-0.4 + deviate.double()).exp()
    skip = 0.25 / (sigma**2 + 0.25)
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    want = (weight * ((1 - skip) ** 2 * spread**2 + skip**2 * sigma**2)).mean()
    # 512 images of 768 numbers: the mean square of each is known to 5 %, their mean to 0.3 %
    torch.testing.assert_close(found.double(), want, atol=0, rtol=0.01)
    if spread == 0.5:
        assert abs(want - 1) < 1e-12


def test_noise_levels_are_log_normal() -> None:
    """Spread evenly, so that the farthest quantile is off by less than a few of 4096."""
    made, sample = task(), Sample(torch.empty(0), "a")
    found = torch.stack([made.example(i, 0, sample, i)["deviate"] for i in range(4096)])
    quantiles = 0.5 + 0.5 * torch.erf(found.sort().values / math.sqrt(2))
    assert (quantiles - (torch.arange(4096) + 0.5) / 4096).abs().max() < 3 / 4096
    assert found.isfinite().all() and abs(found.std() - 1) < 0.01
    assert (
        min(low_discrepancy(i) for i in range(100_000)) > 0
    )  # of which there is a normal quantile


@pytest.mark.parametrize(
    ("name", "rate", "batches"), [("512-s", 0.01, 70_000), ("64-m", 0.009, 35_000)]
)
def test_the_rate_rises_and_falls_as_published(name: str, rate: float, batches: int) -> None:
    how = Run.named(f"edm2-img{name}").training
    flat = batches * 2048
    for images in (0, 2048, 5_000_000, 9_999_360, 10_000_384, flat, flat + 2048, 4 * flat):
        published = rate / max(images / flat, 1) ** 0.5 * min(images / 10e6, 1)
        assert how.learning_rate(images) == pytest.approx(published, rel=1e-12)
    assert (how.betas, how.decay, how.clip, how.averages) == ((0.9, 0.99), 0.0, 0.0, (0.05, 0.1))


def test_presets_are_the_published_networks() -> None:
    """Sizes by their millions of parameters, lengths by the table of published files."""
    millions = {"xxs": 31.3, "xs": 125, "s": 280, "m": 498, "l": 778, "xl": 1119, "xxl": 1523}
    trained = {n.main.size: n.main.mi for n in published().values() if "uncond" not in n.main.size}
    names = [name for name in presets() if name.startswith("edm2-img")]
    assert len(names) == 12 and {f"edm2-{size}" for size in trained} <= set(names)
    for name in names:
        run = Run.named(name)
        with torch.device("meta"):
            net = EDM2(**run.settings["network"])
        found = sum(p.numel() for p in net.parameters()) / 1e6
        assert found == pytest.approx(millions[name.rpartition("-")[2]], rel=0.004)
        assert net.shape == ((4, 64, 64) if "512" in name else (3, 64, 64))
        assert bool(run.settings.get("vae") is not None) == ("512" in name)
        if mi := trained.get(name.removeprefix("edm2-")):
            assert run.training.images == mi * 2**20
        assert run.training.images % run.training.snapshot == 0


def test_a_preset_like_another_changes_only_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('like = "edm2-img512-m"\n[training]\nbatch = 64\n')
    mine, other = (Run.named(name) for name in (str(tmp_path / "mine.toml"), "edm2-img512-m"))
    assert mine.training.batch == 64 and mine.training.rate == other.training.rate == 0.009
    assert (mine.settings, mine.data, mine.about) == (other.settings, other.data, other.about)
    (tmp_path / "mine.toml").write_text("like = 3")
    with pytest.raises(ValueError, match="like=3 is no name"):
        Run.named(str(tmp_path / "mine.toml"))


def pictures(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (200 * i, 50, 200)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    begun(preset(folder, SMALL), folder / "run", "training.log=4").fit()
    return folder / "run"


def test_a_run_with_dropout_goes_on_bit_for_bit(tmp_path: Path, whole: Path) -> None:
    path, out = preset(tmp_path, SMALL), tmp_path / "run"
    begun(path, out, "training.images=8").fit()
    torch.manual_seed(5)
    begun(path, out).fit()
    require_equal(weights(out, 24), weights(whole, 24))
    require_equal(*(EDM2.load(run / "model").state_dict() for run in (out, whole)))
    begun(path, tmp_path / "dry", "settings.network.dropout=0").fit()
    dry, wet = (
        weights(run, 24)["weights/net.unet.out_conv.weight"] for run in (tmp_path / "dry", whole)
    )
    assert not torch.equal(dry, wet)


def test_a_run_of_before_there_were_classes_goes_on(tmp_path: Path, whole: Path) -> None:
    """What it does not say of its data is as it was then."""
    shutil.copytree(whole, tmp_path / "run")
    said = json.loads((tmp_path / "run/run.json").read_text())
    assert said["data"].pop("group") == ""
    (tmp_path / "run/run.json").write_text(json.dumps(said))
    assert begun(preset(tmp_path, SMALL), tmp_path / "run").images == 24
    with pytest.raises(ValueError, match="data.group was '' and is 'Objects'"):
        begun(preset(tmp_path, SMALL), tmp_path / "run", "data.group=Objects")


def test_weights_keep_unit_magnitude_while_training(tmp_path: Path) -> None:
    trainer = begun(preset(tmp_path, SMALL, rate=0.3), tmp_path / "run")
    trainer.fit()
    layers = [m for m in trainer.task.modules() if isinstance(m, MPConv)]
    sizes = [m.weight.square().flatten(1).mean(1).sqrt() for m in layers]
    assert max((size - 1).abs().max() for size in sizes) > 0.01  # as the last step left them
    batch = torch.utils.data.default_collate(
        [Examples(trainer.task, Stream(trainer.source))[i] for i in range(2)]
    )
    trainer.task(**batch)
    for layer in layers:  # forced before use; the norm is 1e-4 above what it divides by
        size = layer.weight.square().flatten(1).mean(1).sqrt()
        torch.testing.assert_close(size, torch.ones_like(size), atol=2e-4, rtol=0)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 32 steps on two plain colours, a class each."""
    folder = tmp_path_factory.mktemp("learnt")
    data = {"source": str(pictures(folder / "in", "a/x.png", "b/y.png")), "label": "folder"}
    network = {**NETWORK, "img_resolution": 8, "channel_mult": [1]}
    table = {**SMALL, "settings": {"network": network}, "data": data}
    lengths = {"images": 2048, "batch": 64, "checkpoint": 2048, "snapshot": 1024, "log": 128}
    begun(preset(folder, table, **lengths, rate=0.05), folder / "run").fit()
    return folder / "run"


def test_the_loss_falls_and_the_uncertainty_follows_the_error(learnt: Path) -> None:
    lines = [json.loads(x) for x in (learnt / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    assert last["error"] < 0.5 * first["error"] and last["loss"] < 0.5 * first["loss"]
    # u of a level is near the logarithm of its error; their mean, below that of the mean error
    assert last["uncertainty"] < math.log(last["error"]) + 0.5


def test_the_result_samples_with_a_snapshot_as_its_guide(tmp_path: Path, learnt: Path) -> None:
    from diffsteer.models.edm2.posthoc import find, reconstruct

    main = EDM2.load(learnt / "model")
    assert main.label_dim == 2 and not main.training
    stored = find(learnt / "averages", "network-snapshot")
    assert [(s.count, s.width) for s in stored] == [
        (count, width) for count in (1024, 2048) for width in (0.05, 0.1)
    ]
    (path,) = reconstruct(learnt / "averages", tmp_path, [0.075], kimg=1)
    said = json.loads((path / "config.json").read_text())
    assert said["classes"] == ["a", "b"] and said["images"] == 1024
    guide = EDM2.load(path)
    x = generate(main, [0, 1], Auto(1.5), guide, Loop(3))
    assert x.shape == (2, 3, 8, 8) and x.isfinite().all()
    assert not torch.equal(x, generate(main, [0, 1], loop=Loop(3)))
    kept = EDM2.load(learnt / "averages/network-snapshot-0000002-0.050")
    for name, t in main.state_dict().items():  # the same average, one of both in float16
        torch.testing.assert_close(kept.state_dict()[name], t, atol=1e-6, rtol=2**-10)


def test_a_longer_run_replaces_its_result(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    before = EDM2.load(whole / "model").state_dict()
    path = preset(tmp_path, SMALL)
    begun(path, tmp_path / "run", "training.images=28", "pictures.every=28", "pictures.steps=2",
          "pictures.guidance=2").fit()  # fmt: skip
    after = EDM2.load(tmp_path / "run/model").state_dict()
    assert not torch.equal(after["unet.out_conv.weight"], before["unet.out_conv.weight"])
    assert torch.equal(after["unet.emb_fourier.freqs"], before["unet.emb_fourier.freqs"])
    assert Image.open(tmp_path / "run/pictures/0000000028.png").size == (8 * 20, 4 * 20 + 2)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        *("averages", "checkpoints", "curves.png", "metrics.jsonl", "model", "pictures"),
        "run.json",
    ]


def test_labels_are_dropped_as_often_as_asked(tmp_path: Path) -> None:
    trainer = begun(preset(tmp_path, SMALL), tmp_path / "run")
    examples = Examples(trainer.task, Stream(trainer.source, drop=0.2))
    labels = torch.stack([examples[i]["label"] for i in range(2000)])
    dropped = (labels == -1).float().mean().item()
    assert abs(dropped - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 2000)  # four standard errors
    assert set(labels.tolist()) == set(range(-1, 8))
    one_hot = trainer.task._one_hot(torch.tensor([-1, 7]))
    assert one_hot.tolist() == [[0] * 8, [0] * 7 + [1]]
    for i in range(20):
        sample = Emoji(size=16, label="background")[Stream(trainer.source).index(i)]
        if labels[i] >= 0:
            assert trainer.task.classes[labels[i]] == sample.caption


def test_latents_are_kept_and_scaled(tmp_path: Path) -> None:
    vae = tiny.vae()
    vae.save_pretrained(tmp_path / "vae")
    source = {"split": "test", "group": "Activities", "size": 16, "label": "background"}
    side = 16 // 2 ** (len(vae.config.block_out_channels) - 1)
    moments = {"latent_mean": [1.0, 2.0, -1.0, 0.5], "latent_std": [2.0, 4.0, 1.0, 0.5]}
    network = {**NETWORK, "img_channels": 4, "img_resolution": side, "channel_mult": [1]}
    settings = {"vae": str(tmp_path / "vae"), "network": network, **moments}
    table = {**SMALL, "settings": settings, "data": source}
    path = preset(tmp_path, table, images=4, checkpoint=4, snapshot=0)
    trainer = begun(path, tmp_path / "run", "pictures.every=4", "pictures.steps=2",
                    "pictures.guidance=1")  # fmt: skip
    example = Examples(trainer.task, Stream(trainer.source))[0]
    assert trainer.source[0].pixels.shape == (4, side, side)  # images are not read again
    sample = Stream(Emoji("test", group="Activities", size=16, label="background"))[0]
    with torch.no_grad():
        raw = vae.encode(sample.pixels[None] / 255).latent_dist.mean[0]
    mean, std = (torch.tensor(moments[k])[:, None, None] for k in ("latent_mean", "latent_std"))
    scaled = trainer.task._scaled(raw)
    torch.testing.assert_close(scaled, (raw - mean) / std * 0.5)
    torch.testing.assert_close(example["latents"], scaled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(latents(scaled[None], *trainer.task._factors())[0], raw)
    (kept,) = (tmp_path / "run").glob("latents-*.npy")
    written = kept.stat().st_mtime_ns
    trainer.fit()
    begun(path, tmp_path / "run")
    assert kept.stat().st_mtime_ns == written
    said = json.loads((tmp_path / "run/model/config.json").read_text())["encoder"]
    assert said["kind"] == "vae" and said["scale"] == [0.25, 0.125, 0.5, 1.0]


def test_latents_are_those_of_published_networks(tmp_path: Path) -> None:
    """Encoded from [0, 1] and decoded to it: what is shown in training is what is sampled then."""
    vae, ident = tiny.vae(), torch.eye(4)[:, :3]

    class Same(torch.nn.Module):  # latents are the pixels, with which the range is plain to see
        device, dtype = torch.device("cpu"), torch.float32

        def encode(self, x: torch.Tensor) -> Any:
            return SimpleNamespace(
                latent_dist=SimpleNamespace(mean=torch.einsum("lc,bchw->blhw", ident, x))
            )

        def decode(self, z: torch.Tensor) -> Any:
            return SimpleNamespace(sample=torch.einsum("lc,blhw->bchw", ident, z))

    shown = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).expand(1, 3, 4, 4)
    raw = encoded(shown, Same())
    assert raw.min() == 0 and raw.max() == 1
    scale, bias = [2.0] * 4, [-1.0] * 4

    def decoded(x: torch.Tensor) -> torch.Tensor:
        return decoded_bytes(decode_latents(x, Same(), scale, bias))

    back = decoded(raw * 2 - 1)
    assert (back.int() - shown.int()).abs().max() <= 1  # it is cut off, not rounded
    assert (decoded(raw * 2 - 1 + 9) == 255).all()

    vae.save_pretrained(tmp_path / "vae")
    moments = {"latent_mean": (0.0,) * 4, "latent_std": (0.02,) * 4}  # far, so that images differ
    network = {"img_channels": 4, "img_resolution": 8, "channel_mult": [1]}
    made = task(vae=str(tmp_path / "vae"), network=network, **moments)
    with torch.no_grad():
        grid = made.pictures(Pictures(guidance=1.0, steps=3))
    made.save(tmp_path / "model")
    command = ["sample", str(tmp_path / "model"), "--models", str(tmp_path), "--steps", "3"]
    app.cli(prog="diffsteer", args=[*command, "--seeds", "5,6", "--out", str(tmp_path / "out")])
    for seed in (5, 6):
        found = decode("", (tmp_path / f"out/{seed:06d}.png").read_bytes()).pixels
        assert grid[seed].float().std() > 5
        assert (found.int() - grid[seed].int()).abs().max() <= 1
    with torch.no_grad():  # what decodes is lost where no latent is
        made.vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(NotFinite, match="seeds 0-31 are not finite"):
        made.pictures(Pictures(guidance=1.0, steps=2))


def test_unconditional_networks_need_no_class(tmp_path: Path) -> None:
    data = {"source": str(pictures(tmp_path / "in", "a/x.png", "b/y.png")), "label": "folder"}
    network = {**NETWORK, "img_resolution": 8, "label_dim": 0}
    table = {**SMALL, "settings": {"network": network}, "data": data}
    assert begun(preset(tmp_path, table), tmp_path / "one").task.net.label_dim == 0
    alone = {**data, "source": str(pictures(tmp_path / "flat", "x.png", "y.png")), "label": "none"}
    bare = {**table, "settings": {"network": {**NETWORK, "img_resolution": 8}}, "data": alone}
    begun(preset(tmp_path, bare, images=4, checkpoint=4), tmp_path / "run").fit()
    assert EDM2.load(tmp_path / "run/model").label_dim == 0
    with pytest.raises(ValueError, match="drop=0.1 of an unconditional network"):
        begun(preset(tmp_path, table), tmp_path / "two", "data.drop=0.1")
    with pytest.raises(ValueError, match="needs a null class"):
        begun(
            preset(tmp_path, table), tmp_path / "3", "pictures.every=4", "training.images=4"
        ).fit()


def test_numbers_of_classes_are_in_the_order_of_numbers() -> None:
    assert classes_of(["10", "2", "2", "1"]) == ["1", "2", "10"]
    for names in (["1", "01", "001"], ["01", "001", "1"], ["001", "1", "01"]):
        assert classes_of(names) == ["001", "01", "1"]  # ties of numbers, by their text
    assert classes_of(["n02", "n10", "n01"]) == ["n01", "n02", "n10"]
    with pytest.raises(ValueError, match="100001 different captions are no classes"):
        classes_of([str(i) for i in range(100_001)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["training.precision=bf16"], 'take "no"; on a GPU'),
        (["settings.network.label_dim=1000"], "the data has 8 classes, black, blue, green"),
        (["settings.network.img_resolution=8"], r"shape \(3, 16, 16\), the network \(3, 8, 8\)"),
        (["settings.network.width=8"], "settings.network: .*width"),
        (["settings.vae=x"], "latents need all of"),
        (
            ["settings.vae=x", "settings.latent_mean=[0]", "settings.latent_std=[1]"],
            "a network of 3 channels, 1 means",
        ),
        (["settings.std=-1"], "no standard deviation"),
        (["data.label=colour"], "colour.*choose from"),
        (["data.group=Fish"], "Fish.*choose from"),
        (["data.size=8"], "size of .* 8: choose from"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, changes: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        begun(preset(tmp_path, SMALL), tmp_path / "run", *changes)
