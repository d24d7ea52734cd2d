"""Runs end where one that nothing disturbs would: after kill -9, a full disk, a broken file."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffsteer_lab.emoji import Emoji
from interrupt import child, command, full, together
from PIL import Image
from safetensors.torch import load_file
from tiny import saved, stable_diffusion

from diffsteer import Cosine, Discrete, Flow
from diffsteer.train.autoencoder import Autoencoder, AutoencoderSettings
from diffsteer.train.checkpoints import BrokenCheckpoint, Checkpoints
from diffsteer.train.curves import MISSING
from diffsteer.train.log import Metrics
from diffsteer.train.objective import low_discrepancy, uniform_times
from diffsteer.train.settings import LATER, Run, Training, presets
from diffsteer.train.state import NotFinite
from diffsteer.train.stream import Sample
from diffsteer.train.task import channels_last
from diffsteer.train.text_to_image import TextToImage, TextToImageSettings

NETWORK = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
}
SMALL = {
    "task": "autoencoder",
    "settings": {"network": NETWORK},
    "data": {"split": "test", "group": "Activities", "size": 16},
    "training": {
        "images": 24,
        "batch": 4,
        "rate": 1e-3,
        "precision": "no",
        "checkpoint": 8,
        "log": 8,
    },
}
"""Six steps of a tiny autoencoder on a few small emoji, all of which are encoded at the end."""


def preset(folder: Path, table: dict[str, Any] = SMALL, **training: Any) -> str:
    """Write a preset of one's own; JSON values are TOML values here."""
    training = {**table["training"], **training}
    lines = [f'task = "{table["task"]}"']
    tables = {"settings": table["settings"], "training": training, "data": table.get("data", {})}
    for name, values in tables.items():
        lines += [f"[{name}]", *(f"{k} = {toml(v)}" for k, v in values.items())]
    path = folder / "small.toml"
    path.write_text("\n".join(lines), "utf-8")
    return str(path)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def begun(path: str, out: Path, *changes: str, start: int | None = None) -> Any:
    from diffsteer.train.registry import begin

    return begin(Run.named(path, *changes), out, start)


def weights(out: Path, images: int) -> dict[str, torch.Tensor]:
    groups, _ = Checkpoints(out / "checkpoints").load(images)
    return {f"{g}/{n}": v for g, values in groups.items() for n, v in values.items()}


def require_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    begun(preset(folder), folder / "run").fit()
    return folder / "run"


def test_loss_falls_and_the_result_is_an_autoencoder_of_unit_latents(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    from diffsteer.train.autoencoder import latent_moments

    begun(preset(tmp_path, images=96, rate=3e-3, keep=0.1), tmp_path / "run").fit()
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == list(range(8, 97, 8))
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    vae = AutoencoderKL.from_pretrained(tmp_path / "run/model")
    mean, std = latent_moments(vae, Emoji("test", group="Activities", size=16), torch.device("cpu"))
    assert vae.config.scaling_factor == 1
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)  # float32 sums
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-4, rtol=0)


def test_unit_latents_change_no_reconstruction() -> None:
    from diffusers import AutoencoderKL

    from diffsteer.train.autoencoder import normalise

    torch.manual_seed(0)
    vae = AutoencoderKL(**NETWORK).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        shown = vae.decode(before.mean).sample
        normalise(vae, torch.tensor([3.0, -1.0]), torch.tensor([0.2, 5.0]))
        after = vae.encode(x).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, shown, atol=1e-4, rtol=0)
    scale = torch.tensor([0.2, 5.0])[:, None, None]
    shift = torch.tensor([3.0, -1.0])[:, None, None]
    torch.testing.assert_close(after.mean * scale + shift, before.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.std * scale, before.std, atol=0, rtol=1e-4)


def killed(path: str, out: Path, after: float) -> None:
    """Start a run and kill it some seconds after its first checkpoint began to be written."""
    there, ended = set(out.glob("checkpoints/*")), False
    run, start = child(lambda: begun(path, out).fit()), time.monotonic()
    while set(out.glob("checkpoints/*")) <= there and not ended:
        assert time.monotonic() - start < 120
        time.sleep(0.001)
        ended = os.waitpid(run, os.WNOHANG) != (0, 0)
    if not ended:
        time.sleep(after)
        os.kill(run, signal.SIGKILL)
        os.waitpid(run, 0)


def resumes_exactly(tmp_path: Path, whole: Path, kills: int) -> None:
    path, out, draw = preset(tmp_path), tmp_path / "run", random.Random(0)
    for _ in range(kills):
        killed(path, out, draw.random() * 0.2)
    torch.set_num_threads(1)
    begun(path, out).fit()
    require_equal(weights(out, 24), weights(whole, 24))
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    want = [json.loads(x) for x in (whole / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in x.items() if k != "images_per_second"} for x in (*lines, *want)]
    assert timeless[: len(lines)] == timeless[len(lines) :]


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, whole: Path) -> None:
    resumes_exactly(tmp_path, whole, kills=1)


@pytest.mark.slow
def test_a_run_killed_ten_times_goes_on_bit_for_bit(tmp_path: Path, whole: Path) -> None:
    resumes_exactly(tmp_path, whole, kills=10)


@pytest.mark.parametrize("harm", ["cut", "flip", "gone", "state", "no state"])
def test_a_broken_checkpoint_is_refused_and_the_one_before_offered(
    tmp_path: Path, whole: Path, harm: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    last = out / "checkpoints/0000000024"
    file = last / "weights.safetensors"
    data = file.read_bytes()
    if harm == "cut":
        file.write_bytes(data[:-1])
    elif harm == "flip":
        file.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    elif harm == "gone":
        file.unlink()
    elif harm == "state":
        state = last / "state.json"
        state.write_text(state.read_text().replace('"images": 24', '"images": 25'))
    else:
        (last / "state.json").unlink()
    with pytest.raises(BrokenCheckpoint, match="0000000024 is broken.*--from 16"):
        begun(preset(tmp_path), out)
    trainer = begun(preset(tmp_path), out, start=16)
    if harm == "cut":  # of either harm the run starts at the other checkpoint
        trainer.fit()
        require_equal(weights(out, 24), weights(whole, 24))
    assert trainer.images == (24 if harm == "cut" else 16)


def test_of_checkpoints_that_are_all_broken_none_is_offered(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for images in (8, 16):
        checkpoints.save(images, {"a": {"b": torch.zeros(1)}}, {"images": images})
        (checkpoints.path(images) / "a.safetensors").unlink()
    with pytest.raises(BrokenCheckpoint, match="is broken.*No other is whole: begin in another"):
        checkpoints.load(16)


def test_a_line_of_the_log_without_its_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"images": 4}\n{"images": "5"}\n')
    with pytest.raises(ValueError, match='metrics.jsonl line 2 has no number of "images"'):
        Metrics(tmp_path / "metrics.jsonl").rewind(8)


def test_batches_that_do_not_divide_are_refused() -> None:
    training = Training(images=8, batch=10, rate=1.0, rows=4)
    with pytest.raises(ValueError, match="batch=10 does not divide among 3 processes"):
        training.passes(3)
    with pytest.raises(ValueError, match="10 images a process do not divide into 3 passes of at m"):
        training.passes(1)
    assert training.passes(5) == 1


def test_passes_accumulate_to_the_same_step(tmp_path: Path, whole: Path) -> None:
    """Sums in another order: float32 rounding, amplified by Adam where gradients are near 0."""
    begun(preset(tmp_path), tmp_path / "run", "training.rows=2", "training.images=4").fit()
    begun(preset(tmp_path), tmp_path / "one", "training.images=4").fit()
    a, b = (weights(tmp_path / name, 4) for name in ("run", "one"))
    for name in a:
        if name.startswith("optimizer/") and name.endswith("exp_avg"):
            torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-3)


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    path, out = preset(tmp_path), tmp_path / "two"
    together(2, lambda: command("train", path, "--out", str(out), "--set", "training.images=4"))
    reports = [json.loads(line)["images"] for line in (out / "metrics.jsonl").open()]
    assert reports == sorted(set(reports)), "each process trained a run of its own"
    begun(path, tmp_path / "one", "training.images=4").fit()
    a, b = weights(out, 4), weights(tmp_path / "one", 4)
    for name in a:
        if name.startswith("optimizer/") and name.endswith("exp_avg"):
            torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-3)


def test_averages_of_other_lengths_are_made_from_snapshots(tmp_path: Path) -> None:
    """One that is stored comes back as it is, in half precision."""
    from safetensors.torch import load_file

    from diffsteer.models.edm2.posthoc import reconstruct

    table = {**SMALL, "data": {"source": str(tmp_path / "pictures"), "size": 8}}
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8), (100 * i, 50, 200)).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text("a colour", "utf-8")
    out = tmp_path / "run"
    lengths = {"batch": 500, "images": 2000, "checkpoint": 2000, "snapshot": 1000}
    begun(preset(tmp_path, table, **lengths), out).fit()
    stored = load_file(out / "averages" / "network-snapshot-0000002-0.100.safetensors")
    for width, same in ((0.1, True), (0.15, False)):
        (made,) = reconstruct(out / "averages", tmp_path / "made", [width])
        made_of = load_file(made)
        assert made_of.keys() == stored.keys()
        near = all(torch.allclose(made_of[n], stored[n], atol=1e-4, rtol=1e-3) for n in stored)
        assert near == same


def test_a_run_on_request_writes_a_checkpoint_and_ends(tmp_path: Path) -> None:
    trainer = begun(preset(tmp_path, images=400, checkpoint=400), tmp_path / "run")
    step, steps = trainer._step, []

    def asked(passes: Any) -> Any:
        steps.append(passes)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(passes)

    trainer._step = asked
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.checkpoints.counts() == [12]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    path, out = preset(tmp_path), tmp_path / "run"
    begun(path, out, "training.images=8").fit()
    trainer = begun(path, out)
    with torch.no_grad():
        next(iter(trainer.trained.values())).fill_(float("nan"))
    with pytest.raises(NotFinite, match="the checkpoint at 8 images is whole"):
        trainer.fit()
    assert trainer.checkpoints.counts() == [8]


@pytest.mark.parametrize("lost", ["weights", "loss"])
def test_a_run_that_is_lost_keeps_no_checkpoint_of_it(tmp_path: Path, lost: str) -> None:
    """Asked to end between reports, after a step that spoilt the weights or a loss."""
    trainer = begun(preset(tmp_path, images=400, checkpoint=400, log=400), tmp_path / "run")
    step = trainer._step

    def spoilt(passes: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        found = step(passes)
        with torch.no_grad():
            if lost == "weights":
                next(iter(trainer.trained.values()))[0] = float("nan")
            else:
                found["loss"] *= float("inf")
        return found

    trainer._step = spoilt
    with pytest.raises(NotFinite, match="no checkpoint yet.*give another --out"):
        trainer.fit()
    assert trainer.checkpoints.counts() == []


def test_fewer_images_give_the_result_of_their_checkpoint(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    longer = shutil.copytree(whole, tmp_path / "longer")
    begun(preset(tmp_path), run, "training.images=16").fit()
    begun(preset(tmp_path), longer, start=16)
    assert Checkpoints(run / "checkpoints").counts() == [16, 24]
    assert Checkpoints(longer / "checkpoints").counts() == [16]  # what is beyond is out of the way
    short = begun(preset(tmp_path), tmp_path / "short", "training.images=16")
    short.fit()
    a, b = (load_file(next((f / "model").glob("*.safetensors"))) for f in (run, short.folder))
    require_equal(a, b)
    with pytest.raises(ValueError, match="gone on to .16, 24., of which none"):
        begun(preset(tmp_path), whole, "training.images=8")


def test_a_run_killed_before_its_first_checkpoint_says_nothing_twice(tmp_path: Path) -> None:
    path, out = preset(tmp_path, log=4), tmp_path / "run"
    begun(path, out)
    (out / "metrics.jsonl").write_text('{"images": 4, "loss": 1}\n{"ima', "utf-8")
    begun(path, out)
    assert (out / "metrics.jsonl").read_text("utf-8") == ""


def test_what_says_which_run_it_is_has_to_be_whole(tmp_path: Path) -> None:
    path, out = preset(tmp_path), tmp_path / "run"
    begun(path, out)
    for text in ('{"task": "auto', "[1]"):
        (out / "run.json").write_text(text, "utf-8")
        with pytest.raises(ValueError, match="run.json was changed and says no more which run"):
            begun(path, out)


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel refuses to write more than a few bytes to any file."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path, out = preset(tmp_path), tmp_path / "run"
    begun(path, out, "training.images=8").fit()
    match = "no checkpoint could be written at 16 images.*the checkpoint at 8 images is whole"
    with full(4096), pytest.raises(SystemExit, match=match):
        command("train", path, "--out", str(out))
    assert Checkpoints(out / "checkpoints").counts() == [8]
    assert not list((out / "checkpoints").glob(".*")) and MISSING in capsys.readouterr().err


def test_a_folder_of_another_run_is_refused(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match="training.rate was 0.001 and is 0.002"):
        begun(preset(tmp_path), whole, "training.rate=0.002")
    with pytest.raises(ValueError, match="no checkpoint at 12 images: there are .16, 24."):
        begun(preset(tmp_path), whole, start=12)
    with pytest.raises(ValueError, match="task='autoencode' is not known: there are adm, agd"):
        begun(preset(tmp_path, {**SMALL, "task": "autoencode"}), tmp_path / "none")


@pytest.mark.parametrize(
    "change, said",
    [
        ("training.imags=3", "no setting 'imags'"),
        ("training.images=many", "images must be a whole number, got 'many'"),
        ("training.images=true", "images must be a whole number, got True"),
        ("training.images", "write training.images=1000"),
        ("training.images=0", "at least 1"),
        ("training.rate=NaN", "rate=nan"),
        ("training.precision=fp8", "bf16"),
        ("training.keep=0.3", "one of"),
        ("training.betas=[0.9, 1]", r"betas=\(0.9, 1.0\).*in .0, 1."),
        ("training.seed=-1e30", "seed"),
        ("pictures.every=-5", "every >= 0"),
        ("data.drop=3.0", "data.drop=3.0.*0 <= drop <= 1"),
        ("data.drop=NaN", "data.drop=nan"),
        ("data.size=-1", "data.size=-1.*others >= 0"),
        ("task.x=1", "no table"),
        ("data=pictures", "data='pictures' is no table of settings: .* is data.source"),
    ],
)
def test_wrong_settings_are_refused(change: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Run.named("critters-vae", change)


def test_a_preset_of_windows_is_one(tmp_path: Path) -> None:
    path = Path(preset(tmp_path))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert Run.named(str(path)).training.images == 24


def test_pictures_are_images_by_another_name() -> None:
    run = Run.named("critters", "images.every=8", "pictures.steps=3")
    assert (run.pictures.every, run.pictures.steps) == (8, 3)
    assert run.pictures.prompts == Run.named("critters").pictures.prompts
    with pytest.raises(ValueError, match="must be a table of settings"):
        Run.named("critters", "images=8")


@pytest.mark.parametrize("averages", ["[0.05, 0.0501]", "[0.05, 0.05]"])
def test_widths_that_name_no_snapshot_are_refused(averages: str) -> None:
    with pytest.raises(ValueError, match="at most three decimals"):
        Run.named("critters-vae", f"training.averages={averages}", "training.snapshot=1000")


def test_every_preset_reads() -> None:
    assert {
        "critters-vae",
        "critters-eps",
        "critters",
        "critters-guide",
        "zero-snr-finetune",
    } <= set(presets())
    for name in presets():
        assert Run.named(name).about
    assert set(Training.__dataclass_fields__) >= LATER


def fine_tuning(folder: Path, **settings: Any) -> str:
    from diffusers import DDIMScheduler

    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    pipe = stable_diffusion(DDIMScheduler(**betas), folder / "tokenizer")
    pipe.save_pretrained(folder / "start")
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in (5, 1000, 3000, 7000):
        sample = Emoji("train")[i]
        Image.fromarray(sample.pixels.permute(1, 2, 0).numpy()).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(sample.caption, "utf-8")
    table = {
        "data": {"source": str(pictures), "size": 64},
        "task": "text-to-image",
        "settings": {"start": str(folder / "start"), "cache": True, **settings},
        "training": {**SMALL["training"], "images": 8, "checkpoint": 8},
    }
    return preset(folder, table)


ZERO = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def test_a_pipeline_is_repaired(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    path = fine_tuning(tmp_path, scheduler=ZERO, cache=True)
    begun(path, tmp_path / "run", "pictures.every=8", 'pictures.prompts=["a", "b"]').fit()
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "run/model")
    assert pipe.scheduler.config.rescale_betas_zero_snr
    assert pipe.scheduler.alphas_cumprod[-1] == 0
    before = StableDiffusionPipeline.from_pretrained(tmp_path / "start")
    new, old = pipe.unet.state_dict(), before.unet.state_dict()
    assert all(not torch.equal(new[n], old[n]) for n in new if n.endswith("weight"))
    same = pipe.text_encoder.state_dict(), before.text_encoder.state_dict()
    require_equal(*same)
    assert (tmp_path / "run/pictures/0000000008.png").is_file()


def test_latents_kept_are_those_encoded_anew(tmp_path: Path) -> None:
    """Encoding with the network in another precision and memory layout: float32 rounding."""
    path = fine_tuning(tmp_path, scheduler=ZERO)
    for name in ("true", "false"):
        begun(path, tmp_path / name, f"settings.cache={name}", "training.images=4").fit()
    a, b = (weights(tmp_path / name, 4) for name in ("true", "false"))
    for name in a:
        if name.endswith("exp_avg"):
            torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-3)


def test_weights_of_videos_beside_those_of_images_keep_their_layout() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3), torch.nn.Conv3d(2, 2, 3))
    channels_last(network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous()


def test_an_autoencoder_that_could_not_be_stored_is_refused_before_it_is_trained() -> None:
    for name in ("use_quant_conv", "use_post_quant_conv"):
        with pytest.raises(ValueError, match="leave use_quant_conv and use_post_quant_conv out"):
            Autoencoder(AutoencoderSettings({**NETWORK, name: False}))


def test_true_and_false_are_no_texts() -> None:
    """A library takes the text "False" for true."""
    changes = [
        f"settings.network.{name}={value}"
        for name, value in (("a", "False"), ("b", "True"), ("c", "false"), ("d", "Falsely"))
    ]
    network = Run.named("critters-vae", *changes).settings["network"]  # fmt: skip
    assert [network[name] for name in "abcd"] == [False, True, False, "Falsely"]


def test_a_scale_without_an_adaptation_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha=8 scales a low-rank adaptation"):
        TextToImageSettings("some/model", alpha=8)
    with pytest.raises(ValueError, match="lora adapts the network of settings.start: leave"):
        TextToImageSettings("some/model", lora=2, unet={})


def test_activations_computed_again_have_the_same_gradient(tmp_path: Path) -> None:
    gradients, passes = [], []
    for low in (False, True):
        task = TextToImage(TextToImageSettings(saved(tmp_path / str(low)), low_memory=low), [])
        pixels = torch.full((3, 16, 16), 77, dtype=torch.uint8)
        batch = {n: v[None] for n, v in task.example(0, 0, Sample(pixels, "a"), 3).items()}
        task.unet.down_blocks[0].resnets[0].register_forward_pre_hook(
            lambda *_, low=low: passes.append(low)
        )
        task.train()(**batch)["loss"].backward()
        gradients.append({name: p.grad for name, p in task.trained().items()})
    assert passes == [False, True, True]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_a_lora_is_trained_and_loaded(tmp_path: Path) -> None:
    """What it learned is what readers of its result add: 4 x the products at rank 2, alpha 8."""
    from diffusers import StableDiffusionPipeline

    path = fine_tuning(tmp_path, scheduler=ZERO, lora=2, alpha=8)
    trainer = begun(path, tmp_path / "run")
    trainer.fit()
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "start")
    pipe.set_progress_bar_config(disable=True)

    def call() -> Any:
        noise = torch.Generator().manual_seed(0)
        return pipe("a", num_inference_steps=2, generator=noise, output_type="pt").images

    before = call()
    pipe.load_lora_weights(tmp_path / "run/model")
    for unet in (trainer.task.unet, pipe.unet):
        parts = [m.scaling for m in unet.modules() if getattr(m, "scaling", None)]
        assert {scale for scales in parts for scale in scales.values()} == {4.0}
    assert not torch.equal(call(), before)
    pipe.unload_lora_weights()
    assert torch.equal(call(), before)


@pytest.mark.parametrize(
    "change, said",
    [
        ("settings.scheduler.predicton_type=epsilon", "scheduler has no 'predicton_type'"),
        ('settings.text={"hidden_size": 64}', "give settings.unet too"),
        ("settings.unet.blokc=3", "settings.unet: .*blokc"),
        (
            'settings={"start": "x", "text": {"hidden": 8}, "unet": {}}',
            "settings.text has no 'hidden'",
        ),
        ("pictures.every=8", "give pictures.prompts"),
        ('pictures={"every": 8, "prompts": ["a"], "steps": 1001}', "has 1000 timesteps"),
        ("settings.scheduler.beta_schedule=foo", "settings.scheduler: foo is not implemented"),
        ("settings.unet.block_out_channels=[8]", "settings.unet: Must provide the same number"),
        ('settings.unet={"block_out_channels": [32, 32, 32, 32]}', "give cross_attention_dim=32"),
        ("settings.lora=-1", "settings.lora=-1 is no rank"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        begun(fine_tuning(tmp_path, scheduler=ZERO), tmp_path / "run", change)
    assert not (tmp_path / "run").exists()


def test_every_image_has_a_time_of_its_schedule() -> None:
    """Image 14,930,351, the 36th Fibonacci number less 1, is the first rounded up to 1."""
    u = torch.tensor(low_discrepancy(14_930_351))
    assert u == 1
    for schedule in (Discrete.linear(), Cosine(), Flow()):
        times = uniform_times(schedule, u[None])
        assert schedule.at(times).sigma.isfinite().all() and times <= schedule.last


def test_noise_prediction_at_zero_snr_is_refused(tmp_path: Path) -> None:
    path = fine_tuning(tmp_path, scheduler={**ZERO, "prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="repeats its input: train v-prediction"):
        begun(path, tmp_path / "run")


@pytest.mark.parametrize(
    "change, said",
    [("data.source=emoji data.size=64", "settings.start is"), ("settings.start=x", "data.source")],
)
def test_what_a_preset_leaves_open_has_to_be_named(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"{said}.*empty|{said} empty"):
        begun("zero-snr-finetune", tmp_path / "run", *change.split())


def test_wrong_data_is_refused_before_the_folder_is_claimed(tmp_path: Path) -> None:
    path, out = preset(tmp_path, {**SMALL, "data": {}}), tmp_path / "run"
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match="data.split='nonsense' is of the data that ship, not of"):
        begun(path, out, f"data.source={tmp_path / 'pictures'}", "data.split=nonsense")
    with pytest.raises(
        FileNotFoundError, match='data.source=nope is not there: name "critters", "emoji", a f'
    ):
        begun(path, out, "data.source=nope")
    assert not out.exists()


def test_a_run_whose_data_changed_is_refused(tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8), (100 * i, 50, 200)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text("a colour", "utf-8")
    path = preset(tmp_path, {**SMALL, "data": {"source": str(pictures)}})
    begun(path, out)
    begun(path, out)
    pictures = pictures.rename(tmp_path / "elsewhere")  # where files lie does not count
    begun(path, out, f"data.source={pictures}")
    pictures = pictures.rename(tmp_path / "pictures")
    (pictures / "1.txt").write_text("another colour", "utf-8")
    with pytest.raises(ValueError, match="another run: contents.captions was '[^,]*'. Give"):
        begun(path, out)
    shutil.copy(pictures / "1.png", pictures / "2.png")
    shutil.copy(pictures / "1.txt", pictures / "2.txt")
    with pytest.raises(ValueError, match="pictures was '.*contents.samples was 2 and is 3"):
        begun(path, out)
    said = json.loads((out / "run.json").read_text())
    assert said.pop("contents")["samples"] == 2
    (out / "run.json").write_text(json.dumps(said))  # of before contents were recorded
    begun(path, out)


def test_pictures_that_make_no_batch_are_refused_before_the_folder_is_claimed(
    tmp_path: Path,
) -> None:
    path = preset(tmp_path, {**SMALL, "data": {"source": str(tmp_path / "pictures")}})
    (tmp_path / "pictures").mkdir()
    for i, said in enumerate(("0.png has 65 x 65 .* multiples of 2", "1.png has 66 x 66 .*0.png")):
        Image.new("RGB", (65 + i, 65 + i)).save(tmp_path / f"pictures/{i}.png")
        (tmp_path / f"pictures/{i}.txt").write_text("x")
        with pytest.raises(ValueError, match=said):
            begun(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_emoji_bind_is_as_it_was(whole: Path) -> None:
    assert json.loads((whole / "run.json").read_text()).keys() == {
        *("task", "training", "data", "settings")
    }


def test_a_chain_that_has_not_begun_says_so(tmp_path: Path) -> None:
    change = f"settings.start={tmp_path}/none"
    with pytest.raises(FileNotFoundError, match="train the preset that makes it first"):
        begun("critters", tmp_path / "run", change)


def test_only_pipelines_with_one_text_encoder_are_trained(tmp_path: Path) -> None:
    from diffusers import DDPMScheduler
    from tiny import unconditional

    unconditional(DDPMScheduler()).save_pretrained(tmp_path / "start")
    table = {**SMALL, "task": "text-to-image", "settings": {"start": str(tmp_path / "start")}}
    with pytest.raises(ValueError, match="with one text encoder"):
        begun(preset(tmp_path, table), tmp_path / "run")
