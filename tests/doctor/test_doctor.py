"""Folders, LoRAs, damaged files, and findings on schedulers."""

import json
import re
import shutil
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from doctor.made import Made, Marks, original, original_name, scheduler
from safetensors.torch import save_file
from tiny import saved, sd3, stable_diffusion
from transformers import CLIPTextModel

from diffsteer.cli.main import main
from diffsteer.core.errors import InputError
from diffsteer.doctor.diagnosis import diagnose
from diffsteer.doctor.fix import fix
from diffsteer.doctor.present import text
from diffsteer.doctor.schedulers import contradictions, findings
from diffsteer.doctor.verdict import ABOVE, PREDICTION, SNR, ZERO, Claim
from diffsteer.io.safetensors_header import read_header

ZSNR = Marks("v_prediction", True)


def codes(found) -> set[str]:
    return {finding.code for finding in found}


def lora(path: Path, width: int = 768, metadata: dict[str, str] | None = None) -> Path:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(4, width),
        f"{name}.lora_up.weight": torch.ones(32, 4),
        f"{name}.alpha": torch.tensor(4.0),
    }
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(("width", "base"), [(768, "SD 1"), (1024, "SD 2"), (2048, "SDXL")])
def test_lora(width: int, base: str, tmp_path) -> None:
    said = {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}
    diagnosis = diagnose(lora(tmp_path / "lora.safetensors", width, said))
    assert (diagnosis.checkpoint.kind, diagnosis.checkpoint.architecture.name) == ("lora", base)
    assert (diagnosis.prediction.value, diagnosis.snr.value) == ("v_prediction", ZERO)
    fix(diagnosis, tmp_path / "out" / "fixed.safetensors")
    entries, metadata = read_header(tmp_path / "out/fixed.safetensors")
    assert metadata["modelspec.prediction_type"] == "v" and len(entries) == 3
    assert metadata["modelspec.architecture"].endswith("/lora")


def test_edm_keys(tmp_path) -> None:
    tensors = {**original("SDXL"), "edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}
    save_file(tensors, tmp_path / "a.safetensors")
    diagnosis = diagnose(tmp_path / "a.safetensors")
    assert (diagnosis.prediction.value, diagnosis.snr.value) == ("edm", "above zero")
    fix(diagnosis, tmp_path / "b.safetensors")
    after = diagnose(tmp_path / "b.safetensors")
    assert after.prediction.confidence == "agreed" and after.exit_status == 0
    assert after.checkpoint.scheduler["sigma_data"] == 0.5 and not after.last_timestep


def test_a_flow_needs_no_rescale(tmp_path) -> None:
    import tiny
    from diffusers import FlowMatchEulerDiscreteScheduler

    tiny.sd3(FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(tmp_path / "sd3")
    diagnosis = diagnose(tmp_path / "sd3", deep=True)
    assert (diagnosis.prediction.value, diagnosis.prediction.confidence) == (
        *("flow_prediction", "certain"),
    )
    assert diagnosis.exit_status == 0 and all(diagnosis.last_timestep.values())
    assert codes(diagnosis.findings) == {"not-measured"}


def test_lora_without_words_is_unknown(tmp_path) -> None:
    diagnosis = diagnose(lora(tmp_path / "lora.safetensors"), deep=True)
    assert "not-measured" in codes(diagnosis.findings)
    assert not diagnosis.prediction.known and not diagnosis.snr.known
    with pytest.raises(InputError, match="prediction type is unknown"):
        fix(diagnosis, tmp_path / "fixed.safetensors")
    assert not (tmp_path / "fixed.safetensors").exists()


def test_a_lora_of_half_pairs(tmp_path) -> None:
    path = lora(tmp_path / "lora.safetensors")
    tensors = {"a.lora_down.weight": torch.ones(4, 8), "b.lora_A.weight": torch.ones(4, 8)}
    save_file(tensors, path)
    assert "missing-tensors" in codes(diagnose(path).findings)


def test_a_repaired_folder_samples(tmp_path) -> None:
    """The pipeline loads as it is, from the last timestep on, with the weights of before."""
    from diffusers import DiffusionPipeline

    folder = Path(saved(tmp_path))
    stated = [
        Claim(PREDICTION, "v_prediction", "user", "test"),
        Claim(SNR, ZERO, "user", "test"),
    ]
    diagnosis = diagnose(folder, stated=stated)
    assert {"disagreement", "last-timestep", "misread"} <= codes(diagnosis.findings)
    assert fix(diagnosis, tmp_path / "fixed") == [tmp_path / "fixed"]
    after = diagnose(tmp_path / "fixed")
    assert after.exit_status == 0 and after.scan.hash == diagnosis.scan.hash
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "fixed")
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a cat", num_inference_steps=3, output_type="np").images
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.timesteps[0] == 999 and pipe.scheduler.alphas_cumprod[-1] == 0
    assert torch.as_tensor(image).isfinite().all()


@pytest.mark.parametrize(
    ("prediction", "snr", "remedy", "spacing"),
    [
        ("epsilon", ABOVE, "zero-snr-finetune --model .* --set data.source=IMAGES", "trailing"),
        ("v_prediction", ZERO, "no training: it is the scheduler", "trailing"),
        ("epsilon", ZERO, "zero-snr-finetune --model .*", ""),  # samplers refuse it
    ],
)
def test_advice_that_follows_the_verdicts(prediction, snr, remedy, spacing, tmp_path) -> None:
    """Dark samples of leading spacing: whether training or the scheduler mends them."""
    stated = [Claim(PREDICTION, prediction, "user", "test"), Claim(SNR, snr, "user", "test")]
    diagnosis = diagnose(Path(saved(tmp_path)), stated=stated)
    (dark,) = (f for f in diagnosis.findings if f.code == "brightness")
    assert re.search(remedy, dark.remedy)
    assert diagnosis.defaults is not None and diagnosis.defaults.spacing == spacing


def test_never_over_the_input(tmp_path) -> None:
    path = Made("SD 1", ZSNR, ZSNR).save(tmp_path / "a.safetensors")
    before = path.read_bytes()
    diagnosis = diagnose(path)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    for out in (path, link):
        with pytest.raises(InputError, match="the checkpoint itself"):
            fix(diagnosis, out)
    with pytest.raises(InputError, match="name of a pickle"):
        fix(diagnosis, tmp_path / "c.ckpt")
    (tmp_path / "b.yaml").write_text("mine: true")
    with pytest.raises(FileExistsError, match="there already"):
        fix(diagnosis, tmp_path / "b.safetensors")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.yaml", link.name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "changed while it was copied"),
        (lambda data: data[:-1], "became shorter while it was read"),
    ],
    ids=["other", "shorter"],
)
def test_a_file_that_changes_while_it_is_copied(change, reason: str, tmp_path) -> None:
    path = Made("SD 1", ZSNR, ZSNR).save(tmp_path / "a.safetensors")
    diagnosis = diagnose(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=reason):
        fix(diagnosis, tmp_path / "b.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.safetensors"
    save_file(original("SD 1"), path)
    return path.read_bytes()


def damaged(whole: bytes, kind: str) -> bytes:
    length = int.from_bytes(whole[:8], "little")
    return {
        "truncated": whole[:-100],
        "truncated header": whole[: length // 2],
        "longer": whole + b"1234",
        "empty": b"",
        "header of gigabytes": (2**40).to_bytes(8, "little") + whole[8:],
        "no JSON": whole[:8] + b"x" * length + whole[8 + length :],
        "no table": (2).to_bytes(8, "little") + b"[]",
        "no entry": (7).to_bytes(8, "little") + b'{"a":1}',
        "pickle": b"PK\x03\x04" + whole[:1000],
    }[kind]


KINDS = ["truncated", "truncated header", "longer", "empty", "header of gigabytes", "no JSON"]


@pytest.mark.parametrize("kind", [*KINDS, "no table", "no entry", "pickle"])
def test_damaged_files(kind: str, whole: bytes, tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(damaged(whole, kind))
    with pytest.raises(InputError, match="is no file of safetensors") as error:
        diagnose(path)
    assert "\n" not in str(error.value)


def test_an_unknown_architecture(tmp_path) -> None:
    save_file({"weird.layer.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="architecture that is not known"):
        diagnose(tmp_path / "a.safetensors")
    (tmp_path / "a.ckpt").write_bytes(b"x")
    with pytest.raises(InputError, match="is a pickle"):
        diagnose(tmp_path / "a.ckpt")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=r"a.ckpt is safetensors, .* rename it to a.safetensors"):
        diagnose(tmp_path / "a.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="is no file of safetensors: it is a pickle"):
        diagnose(tmp_path / "b.safetensors")
    with pytest.raises(FileNotFoundError, match="no model 'critterss' "):
        diagnose("critterss")


def test_damaged_configs_beside_it(tmp_path) -> None:
    path = Made("SD 1", ZSNR).save(tmp_path / "a.safetensors")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is no YAML"):
        diagnose(path)
    (tmp_path / "a.yaml").write_text("[a]")
    with pytest.raises(InputError, match="is no YAML: it holds a list, not a table"):
        diagnose(path)
    (tmp_path / "a.yaml").unlink()
    (tmp_path / "a.scheduler_config.json").write_text("[]")
    with pytest.raises(InputError, match="not an object"):
        diagnose(path)
    (tmp_path / "a.scheduler_config.json").write_text('{"_class_name": "NoScheduler"}')
    stated = [Claim(PREDICTION, "epsilon", "user", "test")]
    diagnosis = diagnose(path, stated=stated)
    assert "scheduler" in codes(diagnosis.findings)
    fix(diagnosis, tmp_path / "b.safetensors")
    after = diagnose(tmp_path / "b.safetensors").checkpoint
    assert after.scheduler["_class_name"] == "EulerDiscreteScheduler"


def test_faults_of_weights(tmp_path) -> None:
    tensors = original("SDXL")
    names = sorted(n for n in tensors if n.endswith("in_layers.2.weight"))
    tensors[names[0]][0] = float("nan")
    tensors[names[1]][0] = 1e6
    tensors.pop("model.diffusion_model.out.0.weight")
    save_file(tensors, tmp_path / "a.safetensors")
    diagnosis = diagnose(tmp_path / "a.safetensors", deep=True)
    assert diagnosis.scan.not_finite == (names[0],)
    assert diagnosis.scan.beyond_fp16 == (names[1],)
    wanted = {"not-finite", "beyond-fp16", "missing-tensors", "not-measured", "unknown"}
    assert wanted <= codes(diagnosis.findings)
    assert diagnosis.exit_status == 3 and not diagnosis.prediction.known


def test_yaml_and_words_of_other_tools(tmp_path) -> None:
    path = Made("SD 1", ZSNR).save(tmp_path / "a.safetensors")
    (tmp_path / "a.yaml").write_text("model: {params: {parameterization: v}}")
    diagnosis = diagnose(path)
    assert (diagnosis.prediction.value, diagnosis.prediction.confidence) == (
        *("v_prediction", "declared"),
    )
    assert next(r for r in diagnosis.readings if "A1111" in r.program).prediction == "v_prediction"
    save_file(original("SD 1"), path, {"modelspec.prediction_type": "banana"})
    assert "not-understood" in codes(diagnose(path).findings)


@pytest.mark.parametrize(
    ("marks", "extra", "code"),
    [
        (ZSNR, {"timestep_spacing": "leading"}, "last-timestep"),
        (ZSNR, {"timestep_spacing": "trailing"}, "timestep-minus-one"),
        (ZSNR, {"timestep_spacing": "trailing"}, "stride"),
        (ZSNR, {"timestep_spacing": "trailing"}, "ddim-eta"),
        (ZSNR, {"_class_name": "HeunDiscreteScheduler"}, "flag-dropped"),
        (ZSNR, {"_class_name": "PNDMScheduler"}, "pndm-v"),
        (
            ZSNR,
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            "sigmas-at-zero",
        ),
        (
            ZSNR,
            {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "linear"},
            "clipped-zero",
        ),
        (
            ZSNR,
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver"}
            | {"final_sigmas_type": "sigma_min"},
            "sde-at-zero",
        ),
    ],
)
def test_bugs_of_schedulers(marks: Marks, extra: dict[str, object], code: str) -> None:
    config = scheduler(marks, extra)
    assert code in codes(findings(config, "v_prediction", ZERO))
    assert code not in codes(findings(scheduler(Marks("epsilon", False)), "epsilon", "above zero"))


def test_unipc_is_nan_where_it_is_said_to_be() -> None:
    """Without diffusers' defaults, at the sigma of 0 that they end with."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    names = ("solver_type", "predict_x0", "lower_order_final", "final_sigmas_type", "solver_order")
    ends, orders = ("zero", "sigma_min"), (1, 2)
    for values in product(("bh1", "bh2"), (True, False), (True, False), ends, orders):
        made = UniPCMultistepScheduler(**betas, **dict(zip(names, values, strict=True)))
        made.set_timesteps(4)
        x = torch.ones(1, 1, 2, 2)
        for t in made.timesteps:
            x = made.step(x, t, x).prev_sample
        found = findings({"_class_name": type(made).__name__, **made.config}, "epsilon", ABOVE)
        assert ("unipc-nan" in codes(found)) == (not x.isfinite().all()), values


def test_a_schedule_of_other_words_is_not_judged() -> None:
    config = scheduler(Marks("epsilon", False))
    for name in ("beta_schedule", "clip_sample"):
        config.pop(name)
    for more in ({}, {"beta_schedule": "sigmoid"}):
        found = findings({**config, "_class_name": "DDPMScheduler", **more}, "epsilon", ABOVE)
        assert not codes(found) & {"schedule"}
    assert codes(contradictions("flow_prediction", ABOVE)) == {"flow-above-zero"}


def test_the_timesteps_of_the_bugs(tmp_path) -> None:
    """Trailing spacing with 61 steps ends at -1; DDIM steps wrongly at 15, 28 and 30 steps."""
    found = findings(scheduler(ZSNR, {"timestep_spacing": "trailing"}), "v_prediction", ZERO)
    texts = {f.code: f.text for f in found}
    assert " 61 steps" in texts["timestep-minus-one"]
    assert "15, 28, 30 steps" in texts["stride"]


def test_a_guidance_rescale_that_acts_twice(tmp_path) -> None:
    folder = Path(saved(tmp_path))
    (folder / "guider").mkdir()
    for name in ("guider/guider_config.json", "generation_config.json"):
        (folder / name).write_text(json.dumps({"guidance_rescale": 0.7}))
    assert "rescale-twice" in codes(diagnose(folder).findings)


def run(monkeypatch, *words: object) -> object:
    """Exit status, or message, of `diffsteer doctor`."""
    monkeypatch.setattr(sys, "argv", ["diffsteer", "doctor", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


def test_command(tmp_path, monkeypatch, capsys) -> None:
    """JSON on stdout, 3 for a problem, one line for a mistake; the repair ends in 0."""
    path = Made("SDXL", ZSNR, metadata=ZSNR).save(tmp_path / "a.safetensors")
    out = tmp_path / "b.safetensors"
    assert run(monkeypatch, path, "--json") == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["prediction_type"], report["terminal_snr"]) == ("v_prediction", "zero")
    assert run(monkeypatch, path, "--fix", out, "--plot", tmp_path / "a.png") == 0
    printed = capsys.readouterr()
    assert "sha256" in printed.out and (tmp_path / "a.png").stat().st_size > 1000
    assert not printed.err
    assert {"v_pred", "ztsnr"} <= read_header(out)[0].keys()
    assert "target: sgm" in out.with_suffix(".yaml").read_text()
    assert "there already" in str(run(monkeypatch, path, "--fix", out))


def test_a_repair_says_what_it_leaves_to_training(tmp_path, monkeypatch, capsys) -> None:
    assert run(monkeypatch, saved(tmp_path), "--fix", tmp_path / "fixed") == 0
    assert re.search(r"Left: brightness: .* -> .*--model .*fixed", capsys.readouterr().out)


def test_a_user_says_what_no_source_says(tmp_path, monkeypatch, capsys) -> None:
    path = Made("SD 1", ZSNR).save(tmp_path / "a.safetensors")
    words = ("--prediction", "v_prediction", "--terminal-snr", "zero")
    assert "unknown" in str(run(monkeypatch, path, "--fix", tmp_path / "b.safetensors"))
    assert run(monkeypatch, path, "--fix", tmp_path / "b", *words) == 0
    names = sorted(p.name for p in (tmp_path / "b").iterdir())
    assert names == ["a.safetensors", "a.scheduler_config.json", "a.yaml"]


def test_a_shard_that_is_missing_is_named(tmp_path) -> None:
    folder = Path(saved(tmp_path))
    for part, kind in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
        network = kind.from_pretrained(folder / part)
        shutil.rmtree(folder / part)
        network.save_pretrained(folder / part, max_shard_size="60KB")
    whole = diagnose(folder)
    assert not codes(whole.findings) & {"missing-files", "missing-tensors"}
    lost = [next((folder / p).glob("*-00002-of-*")) for p in ("unet", "text_encoder")]
    for file in lost:
        file.unlink()
    diagnosis = diagnose(folder)
    texts = [f.text for f in diagnosis.findings if f.code == "missing-files"]
    assert len(texts) == 2 and all(any(str(f) in text for text in texts) for f in lost)
    assert diagnosis.exit_status == 3 and "missing-tensors" not in codes(diagnosis.findings)
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    assert "no-weights" in codes(diagnose(folder).findings)


def test_a_folder_without_zero_snr_in_its_scheduler(tmp_path) -> None:
    """A zero SNR that its scheduler drops without a word."""
    config = scheduler(ZSNR, {"_class_name": "PNDMScheduler"})
    pipe = stable_diffusion(DDIMScheduler(), tmp_path)
    pipe.save_pretrained(tmp_path / "pipe")
    (tmp_path / "pipe/scheduler/scheduler_config.json").write_text(json.dumps(config))
    diagnosis = diagnose(tmp_path / "pipe")
    assert {"flag-dropped", "pndm-v"} <= codes(diagnosis.findings)
    fix(diagnosis, tmp_path / "fixed")
    index = json.loads((tmp_path / "fixed/model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "EulerDiscreteScheduler"]
    assert diagnose(tmp_path / "fixed").exit_status == 0


@pytest.mark.slow
def test_a_full_size_stable_diffusion_in_a_minute(tmp_path) -> None:
    """859 million weights, float16: header, values, hash, names and shapes."""
    import time

    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, in_channels=4
        )
    tensors = {
        f"model.diffusion_model.{original_name(name, 2, plain=0)}": torch.randn(t.shape).half()
        * 0.02
        for name, t in unet.state_dict().items()
    }
    save_file(tensors, tmp_path / "a.safetensors")
    start = time.perf_counter()
    diagnosis = diagnose(tmp_path / "a.safetensors")
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} s")
    assert diagnosis.checkpoint.architecture.name == "SD 1" and seconds < 60
    assert not codes(diagnosis.findings) & {"missing-tensors", "other-shapes", "not-finite"}


def test_words_of_another_architecture_are_named_and_mended(tmp_path) -> None:
    said = {"modelspec.architecture": "stable-diffusion-xl-v1-base"}
    save_file(original("SD 1"), tmp_path / "a.safetensors", said)
    stated = [Claim(PREDICTION, "epsilon", "user", "test")]
    diagnosis = diagnose(tmp_path / "a.safetensors", stated=stated)
    (finding,) = (f for f in diagnosis.findings if f.code == "architecture")
    assert "stable-diffusion-xl-v1-base' is not SD 1" in finding.text
    fix(diagnosis, tmp_path / "b.safetensors")
    assert "architecture" not in codes(diagnose(tmp_path / "b.safetensors").findings)
    metadata = read_header(tmp_path / "b.safetensors")[1]
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    words = {"ss_base_model_version": "sdxl_base_v1-0"}
    other = diagnose(lora(tmp_path / "lora.safetensors", 768, words))
    assert other.checkpoint.architecture.name == "SD 1" and "architecture" in codes(other.findings)


@pytest.mark.parametrize(
    "broken",
    [
        {"beta_start": 5.0},
        {"beta_start": None, "beta_end": -1},
        {"beta_start": 0.012, "beta_end": 0.00085},
        {"beta_end": 1e-7, "beta_start": 1e-8},
        {"num_train_timesteps": 10**9},
        {"trained_betas": [2.0] * 1000},
        {"timestep_spacing": "banana"},
        {"steps_offset": -5},
    ],
    ids=",".join,
)
def test_broken_settings_of_a_scheduler_are_not_copied(broken, tmp_path) -> None:
    path = Made("SD 1", ZSNR, ZSNR, ZSNR, ZSNR, extra=broken).save(tmp_path / "a.safetensors")
    diagnosis = diagnose(path)
    assert diagnosis.exit_status == 3
    fix(diagnosis, tmp_path / "b.safetensors")
    after = diagnose(tmp_path / "b.safetensors")
    assert (after.prediction.value, after.snr.value) == ("v_prediction", ZERO)
    assert after.exit_status == 0
    kept = after.checkpoint.scheduler
    assert all(kept.get(name) != value for name, value in broken.items())


def test_a_broken_shift_of_a_flow_is_not_copied(tmp_path) -> None:
    pipe = sd3(FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.save_pretrained(tmp_path / "a")
    path = tmp_path / "a/scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift": -3.0}))
    diagnosis = diagnose(tmp_path / "a")
    assert "schedule" in codes(diagnosis.findings)
    fix(diagnosis, tmp_path / "b")
    assert diagnose(tmp_path / "b").checkpoint.scheduler["shift"] == 3.0


def test_keys_of_edm_in_a_file_that_is_stated_to_be_of_v(tmp_path) -> None:
    tensors = {**original("SDXL"), "edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}
    save_file(tensors, tmp_path / "a.safetensors")
    stated = [Claim(PREDICTION, "v_prediction", "user", "test"), Claim(SNR, ZERO, "user", "test")]
    diagnosis = diagnose(tmp_path / "a.safetensors", stated=stated)
    fix(diagnosis, tmp_path / "b.safetensors")
    after = diagnose(tmp_path / "b.safetensors")
    assert (after.prediction.value, after.snr.value) == ("v_prediction", ZERO)
    assert not after.prediction.disagreement and after.scan.hash == diagnosis.scan.hash
    assert "vae-float16" in codes(after.findings)


def ones(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.ones(4, 4) for name in names}


@pytest.mark.parametrize(
    "names",
    [
        ["down_blocks.0.x", "mid_block.x", "controlnet_cond_embedding.conv_in.weight"],
        ["down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"],
        ["double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.in_proj.weight"],
        ["double_blocks.0.x", "vector_in.x", "txt_in.individual_token_refiner.x"],
        ["transformer_blocks.0.attn.add_k_proj.weight", "txt_norm.weight"],
        ["input_blocks.0.0.weight", "middle_block.0.time_stack.x", "input_blocks.1.0.x"],
        ["encoder.conv_in.weight", "decoder.mid_block.x"],
        ["v_pred", "ztsnr"],
        ["input_blocks.0.0.weight", "label_emb.weight"],
        ["input_blocks.0.0.weight", "label_emb.0.0.weight", "cond_stage_model.model.x"],
        ["input_blocks.0.0.weight", "out.2.weight"],
    ],
    ids=["controlnet", "motion", "chroma", "hunyuan", "qwen", "video", "vae", "marks"]
    + ["adm", "unclip", "unconditional"],
)
def test_what_resembles_a_known_network_is_not_taken_for_one(names: list[str], tmp_path) -> None:
    save_file(ones(*names), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="architecture that is not known"):
        diagnose(tmp_path / "a.safetensors")


def test_flux_in_both_layouts(tmp_path) -> None:
    both = (
        ("double_blocks.0.img_attn.qkv.weight", "vector_in.in_layer.weight"),
        ("single_transformer_blocks.0.x", "time_text_embed.text_embedder.linear_1.weight"),
    )
    for names in both:
        save_file(ones(*names), tmp_path / "a.safetensors", {"modelspec.prediction_type": "eps"})
        diagnosis = diagnose(tmp_path / "a.safetensors")
        assert diagnosis.checkpoint.architecture.name == "Flux"
        assert (diagnosis.prediction.value, diagnosis.prediction.confidence) == (
            *("flow_prediction", "certain"),
        )
        assert "epsilon by metadata" in diagnosis.prediction.disagreement
    fix(diagnosis, tmp_path / "b.safetensors")
    assert diagnose(tmp_path / "b.safetensors").checkpoint.scheduler["use_dynamic_shifting"]


def test_files_that_are_something_else(tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
    with pytest.raises(InputError, match="pointer of Git LFS"):
        diagnose(path)
    header = b'{"__metadata__":null,"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(InputError, match="architecture that is not known"):
        diagnose(path)
    path = Made("SD 1", ZSNR).save(tmp_path / "b.safetensors")
    (tmp_path / "b.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(InputError, match="is no YAML") as error:
        diagnose(path)
    assert "\n" not in str(error.value)


def test_control_characters_are_not_printed(tmp_path) -> None:
    said = {"modelspec.architecture": "sdxl\x1b[2J\nx", "ss_noise_offset": "\x1b[31m5"}
    save_file(original("SD 1"), tmp_path / "a.safetensors", said)
    printed = text(diagnose(tmp_path / "a.safetensors"))
    assert "\x1b" not in printed and "sdxl?[2J" in printed


@pytest.mark.parametrize(
    ("file", "change", "code"),
    [
        ("unet/config.json", {"sample_size": 0}, ""),
        ("unet/config.json", {"layers_per_block": 10**9}, "config"),
        ("unet/config.json", {"_class_name": "os"}, "config"),
        ("scheduler/scheduler_config.json", {"steps_offset": 10**12}, "schedule"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": "true"}, "schedule"),
        ("labels.json", ["cat"], ""),
    ],
    ids=lambda value: str(value)[:20],
)
def test_absurd_settings_of_a_folder(file: str, change, code: str, tmp_path) -> None:
    path = Path(saved(tmp_path)) / file
    old = json.loads(path.read_text()) if path.exists() else None
    path.write_text(json.dumps(change if old is None else old | change))
    diagnosis = diagnose(tmp_path / "pipe")
    assert diagnosis.prediction.value == "epsilon" and {code} - {""} <= codes(diagnosis.findings)
