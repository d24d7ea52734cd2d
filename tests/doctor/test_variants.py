"""Folders whose words lie, forms of LoRAs, and files of kinds that lie beside Stable Diffusion."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel, WanTransformer3DModel
from doctor.made import SILENT, Made, Marks, original, scheduler, unet
from safetensors.torch import load_file, save_file
from tiny import saved

from diffsteer.core.errors import InputError
from diffsteer.core.schedule import EDM, Discrete, Flow
from diffsteer.doctor.diagnosis import diagnose
from diffsteer.doctor.fix import fix
from diffsteer.doctor.present import _levels, text
from diffsteer.doctor.schedulers import findings
from diffsteer.doctor.verdict import ABOVE, PREDICTION, SNR, ZERO, Claim
from diffsteer.io.safetensors_header import read_header


def codes(found) -> set[str]:
    return {finding.code for finding in found}


def diffusers_folder(tmp_path: Path, **changes: dict[str, object]) -> Path:
    """A pipeline whose JSON files say something else, by their first word."""
    folder = Path(saved(tmp_path))
    files = {"index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}
    for name, change in changes.items():
        path = folder / files[name]
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"index": {"_class_name": "StableDiffusionXLPipeline"}}, {"pipeline"}),
        (
            {"index": {"feature_extractor": ["transformers", "CLIPImageProcessor"]}},
            {"missing-files"},
        ),
        ({"scheduler": {"prediction_type": "v"}}, {"prediction-type"}),
        (
            {
                "index": {"scheduler": ["diffusers", "PNDMScheduler"]},
                "scheduler": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
                | {"timestep_spacing": "trailing"},
            },
            {"flag-dropped", "scheduler-class", "pndm-v"},
        ),
    ],
    ids=["pipeline", "missing part", "word", "scheduler"],
)
def test_an_index_or_a_config_that_lies(changes, expected: set[str], tmp_path) -> None:
    diagnosis = diagnose(diffusers_folder(tmp_path, **changes))
    assert expected <= codes(diagnosis.findings) and diagnosis.exit_status == 3
    if "scheduler" in changes:
        assert diagnosis.prediction.value == "v_prediction"
        fix(diagnosis, tmp_path / "fixed")
        assert diagnose(tmp_path / "fixed").exit_status == 0


def test_attention_under_its_names_of_2022_is_not_missing(tmp_path) -> None:
    """As of the autoencoder of Stable Diffusion 1.5; diffusers still reads them."""
    folder = Path(saved(tmp_path))
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(path)
    names = {n: n for n in weights if "attentions" not in n}
    for name in weights.keys() - names.keys():
        names[name] = re.sub("|".join(map(re.escape, old)), lambda m: old[m[0]], name)
    assert any("query" in name for name in names.values())
    save_file({names[n]: value for n, value in weights.items()}, path)
    assert "missing-tensors" not in codes(diagnose(folder).findings)


NAMES = "down_blocks.0.attentions.0.transformer_blocks.0.attn2."


@pytest.mark.parametrize(
    ("down", "up", "base"),
    [
        (f"base_model.model.{NAMES}to_k.lora_A", f"base_model.model.{NAMES}to_k.lora_B", "SD 2"),
        (f"unet.{NAMES}to_k.lora.down", f"unet.{NAMES}to_k.lora.up", "SD 2"),
        (f"{NAMES}processor.to_k_lora.down", f"{NAMES}processor.to_k_lora.up", "SD 2"),
        ("lora_unet_double_blocks_0_x.lora_down", "lora_unet_double_blocks_0_x.lora_up", "Flux"),
    ],
    ids=["peft", "diffusers", "processor", "kohya of Flux"],
)
def test_forms_of_lora(down: str, up: str, base: str, tmp_path) -> None:
    tensors = {f"{down}.weight": torch.ones(4, 1024), f"{up}.weight": torch.ones(32, 4)}
    save_file(tensors, tmp_path / "a.safetensors")
    diagnosis = diagnose(tmp_path / "a.safetensors")
    assert (diagnosis.checkpoint.kind, diagnosis.checkpoint.architecture.name) == ("lora", base)
    assert diagnosis.prediction.value == ("flow_prediction" if base == "Flux" else "unknown")
    assert not any("--deep" in finding.remedy for finding in diagnosis.findings)


@pytest.mark.parametrize("layout", ["SD 1", "SD 2"])
def test_an_inpainting_file_is_measured_and_gets_no_yaml_of_another_model(
    layout: str, tmp_path
) -> None:
    weights, name = original(layout), "model.diffusion_model.input_blocks.0.0.weight"
    weights[name] = torch.cat([weights[name], torch.zeros(len(weights[name]), 5, 3, 3)], 1)
    save_file(weights, tmp_path / "a.safetensors", {"modelspec.prediction_type": "epsilon"})
    diagnosis = diagnose(tmp_path / "a.safetensors", deep=layout == "SD 2")
    assert layout == "SD 1" or "no-type-fits" in codes(diagnosis.findings)  # random weights
    assert diagnosis.to_dict()["pipeline"] == "StableDiffusionInpaintPipeline"
    fix(diagnosis, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.yaml").exists()
    words = {"SD 1": "stable-diffusion-v1", "SD 2": "stable-diffusion-v2-512"}
    assert read_header(tmp_path / "b.safetensors")[1]["modelspec.architecture"] == words[layout]


def test_a_file_under_the_names_of_diffusers_is_not_measured(tmp_path) -> None:
    save_file(unet("SD 1").state_dict(), tmp_path / "a.safetensors")
    (finding,) = (f for f in diagnose(tmp_path / "a.safetensors", deep=True).findings
                  if f.code == "not-measured")  # fmt: skip
    assert "under the names of diffusers" in finding.text
    stated = [Claim(PREDICTION, "epsilon", "user", "test")]
    fix(diagnose(tmp_path / "a.safetensors", stated=stated), tmp_path / "b.safetensors")
    assert not (tmp_path / "b.yaml").exists()  # whose words are of the other layout


def test_the_plot_of_a_flow_and_of_edm_is_of_their_own_schedule(tmp_path) -> None:
    path = Made("SD 1", Marks("flow_prediction", True), config=Marks("flow_prediction", True))
    schedule, levels = _levels(diagnose(path.save(tmp_path / "a.safetensors")))
    assert schedule == Flow() and len(levels) == 50
    assert levels[0].sigma == 1 and levels[0].alpha == 0
    edm = {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}
    save_file(original("SDXL") | edm, tmp_path / "b.safetensors")
    assert _levels(diagnose(tmp_path / "b.safetensors")) == (EDM(), [])


def test_a_scheduler_that_takes_no_number_of_steps_is_not_judged(tmp_path) -> None:
    found = [*findings({"_class_name": "SCMScheduler", "num_train_timesteps": 1000}, "unknown", "")]
    assert [(f.code, f.severity) for f in found] == [("scheduler-not-examined", "note")]


def test_a_lora_of_a_text_encoder_is_of_the_base_that_its_metadata_says(tmp_path) -> None:
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    halves = {f"{name}.lora_{half}.weight": torch.ones(4, 4) for half in ("down", "up")}
    for word, base in (("True", "SD 2"), ("False", "unknown")):
        save_file(halves, tmp_path / "a.safetensors", {"ss_v2": word})
        assert diagnose(tmp_path / "a.safetensors").checkpoint.architecture.name == base


@pytest.mark.parametrize(
    ("layout", "lost", "expected"),
    [
        ("SD 1", r"input_blocks\.0\.0\.weight", "missing: 'input_blocks.0.0.weight'"),
        ("SD 1", r"input_blocks\.[^0]", "missing: those of its residual blocks"),
        ("SD 1", r"\.attn2\.", "missing: those of its residual blocks or attention"),
        ("SDXL", r"label_emb\.0\.2\.weight", "such as 'label_emb.0.2.weight'"),
        ("SD 1", r"middle_block\.1\.", r"of the network are missing, such as mid_block.attent"),
    ],
    ids=["input", "blocks", "attention", "label", "middle"],
)
def test_tensors_that_are_missing_are_named(layout, lost: str, expected: str, tmp_path) -> None:
    kept = {n: t for n, t in original(layout).items() if not re.search(lost, n)}
    save_file(kept, tmp_path / "a.safetensors")
    (text,) = (f.text for f in diagnose(tmp_path / "a.safetensors").findings
               if f.code == "missing-tensors")  # fmt: skip
    assert expected in text


def test_faults_of_values_and_shapes(tmp_path) -> None:
    """What no sampling needs is not judged: whole numbers, and tensors without a value."""
    weights = original("SD 1", torch.float16)
    start = "model.diffusion_model.output_blocks."
    name = f"{start}0.0.in_layers.2.weight"
    weights[name] = weights[name][:, :4].clone()
    weights[f"{start}0.0.in_layers.0.bias"][0] = torch.inf
    weights |= {"counts": torch.tensor([1], dtype=torch.uint16), "empty": torch.empty(0)}
    weights["first_stage_model.x"] = torch.ones(4).to(torch.float8_e4m3fn)
    weights |= {f"model_ema.{i}": torch.ones(1) for i in range(101)}
    save_file(weights, tmp_path / "a.safetensors")
    diagnosis = diagnose(tmp_path / "a.safetensors")
    assert not diagnosis.scan.beyond_fp16 and len(diagnosis.scan.not_finite) == 1
    found = {finding.code: finding.text for finding in diagnosis.findings}
    assert {"overflowed", "float8", "ema", "half-precision"} <= found.keys()
    assert "conv1.weight, [64, 4, 3, 3] in place of [64, 128, 3, 3]" in found["other-shapes"]


def test_what_is_no_checkpoint(tmp_path) -> None:
    with pytest.raises(InputError, match="MODEL is empty"):
        diagnose("")
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="without a network .*: give one that save_pretrained"):
        diagnose(tmp_path / "a")
    save_file({}, tmp_path / "a/b.safetensors")
    with pytest.raises(InputError, match=r"without a network .*: give .*b.safetensors"):
        diagnose(tmp_path / "a")
    with pytest.raises(InputError, match="holds no tensors"):
        diagnose(tmp_path / "a/b.safetensors")


def small_unet(**config: object) -> UNet2DModel:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    return UNet2DModel(8, block_out_channels=[32], layers_per_block=1, **blocks, **config)


def test_a_network_alone_is_measured(tmp_path) -> None:
    """With tensors that diffusers leaves out, and an absurd size; not where it needs classes."""
    small_unet().save_pretrained(tmp_path / "a")
    path = tmp_path / "a/diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "position_ids": torch.ones(3)}, path)
    config = json.loads((tmp_path / "a/config.json").read_text())
    (tmp_path / "a/config.json").write_text(json.dumps(config | {"sample_size": "8"}))
    DDPMScheduler().save_pretrained(tmp_path / "a")
    diagnosis = diagnose(tmp_path / "a", deep=True)
    assert diagnosis.measurement is not None and diagnosis.checkpoint.kind == "network"
    assert "scheduler-class" not in codes(diagnosis.findings)  # no index says another
    assert "network   fits no prediction type" in text(diagnosis)
    small_unet(num_class_embeds=4).save_pretrained(tmp_path / "b")
    diagnosis = diagnose(tmp_path / "b", deep=True)
    (finding,) = (f for f in diagnosis.findings if f.code == "not-measured")
    assert "cannot be asked alone: class_labels should be provided" in finding.text


def test_guidance_of_a_pipeline_that_is_not_in_the_table(tmp_path) -> None:
    """That of the plainest pipeline of its network, not of a distilled one."""
    DDPMPipeline(small_unet(), DDPMScheduler()).save_pretrained(tmp_path / "a")
    terms = {term.name: term for term in diagnose(tmp_path / "a").terms}
    assert terms["PAG"].works and terms["CFG"].note.startswith("no null prompt")


def test_the_second_network_of_a_pipeline_is_looked_at_too(tmp_path) -> None:
    folder = diffusers_folder(tmp_path)
    config = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 12, "ffn_dim": 4}
    config |= {"freq_dim": 4, "text_dim": 4, "in_channels": 4, "out_channels": 4}
    WanTransformer3DModel(**config).save_pretrained(folder / "transformer_2")
    assert "missing-tensors" not in codes(diagnose(folder).findings)
    path = folder / "transformer_2/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop("patch_embedding.bias")
    save_file(weights, path)
    (lost,) = (f.text for f in diagnose(folder).findings if f.code == "missing-tensors")
    assert lost == "1 tensors of the transformer_2 are missing, such as patch_embedding.bias"


def test_keys_of_edm_with_v(tmp_path) -> None:
    """A scheduler of EDM that fits is kept."""
    keys = {"edm_vpred.sigma_max": torch.tensor(100.0), "edm_vpred.sigma_min": torch.tensor(0.01)}
    save_file(original("SDXL") | keys, tmp_path / "a.safetensors")
    config = {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}
    config |= {"sigma_min": 0.01, "sigma_max": 100.0, "sigma_data": 1.0}
    (tmp_path / "a.scheduler_config.json").write_text(json.dumps(config))
    diagnosis = diagnose(tmp_path / "a.safetensors")
    assert (diagnosis.prediction.value, diagnosis.prediction.confidence) == (
        *("edm_v_prediction", "agreed"),
    )
    assert [r.prediction for r in diagnosis.readings][:1] == ["edm_v_prediction"]
    fix(diagnosis, tmp_path / "b.safetensors")
    assert diagnose(tmp_path / "b.safetensors").checkpoint.scheduler == config


def test_a_flow_of_a_unet_keeps_the_scheduler_that_scales_its_input(tmp_path) -> None:
    config = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}
    config |= {"use_flow_sigmas": True, "flow_shift": 3.0}
    path = Made("SD 1", SILENT).save(tmp_path / "a.safetensors")
    (tmp_path / "a.scheduler_config.json").write_text(json.dumps(config))
    fix(diagnose(path), tmp_path / "b.safetensors")
    assert diagnose(tmp_path / "b.safetensors").checkpoint.scheduler == config


@pytest.mark.parametrize("zero", [False, True])
def test_trained_betas_say_the_terminal_snr(zero: bool, tmp_path) -> None:
    alphas = Discrete.scaled_linear().alphas
    bar = alphas**2 if not zero else Discrete.scaled_linear().zero_snr().alphas ** 2
    betas = 1 - bar / torch.cat([torch.ones(1), bar[:-1]])
    config = scheduler(Marks("v_prediction"), {"trained_betas": betas.tolist()})
    path = Made("SD 1", SILENT).save(tmp_path / "a.safetensors")
    (tmp_path / "a.scheduler_config.json").write_text(json.dumps(config))
    (claim,) = (c for c in diagnose(path).claims if c.subject == SNR)
    assert (claim.value, claim.evidence) == (ZERO if zero else ABOVE, "scheduler: trained_betas")


@pytest.mark.parametrize(
    ("change", "cut"),
    [
        ({"clip_sample": True}, True),
        ({"clip_sample": None}, True),  # is not there: the default of DDIM
        ({"clip_sample": True, "_class_name": "PNDMScheduler"}, False),  # which has none
    ],
)
def test_latents_that_are_clipped(change, cut: bool, tmp_path) -> None:
    path = Made("SD 1", SILENT).save(tmp_path / "a.safetensors")
    config = scheduler(Marks("epsilon", False)) | change
    config = {name: value for name, value in config.items() if value is not None}
    (tmp_path / "a.scheduler_config.json").write_text(json.dumps(config))
    assert ("clip-sample" in codes(diagnose(path).findings)) == cut


def test_a_whole_yaml_is_kept_with_its_parameterization_mended(tmp_path) -> None:
    import yaml

    path = Made("SD 1", SILENT).save(tmp_path / "a.safetensors")
    tree = {"model": {"params": {"unet_config": {"params": {"mine": 1}}}, "target": "ldm.Mine"}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree))
    stated = [Claim(PREDICTION, "v_prediction", "user", "test"), Claim(SNR, ZERO, "user", "test")]
    fix(diagnose(path, stated=stated), tmp_path / "b.safetensors")
    tree["model"]["params"]["parameterization"] = "v"
    assert yaml.safe_load((tmp_path / "b.yaml").read_text()) == tree
