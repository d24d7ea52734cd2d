"""Marks that say what a checkpoint is: keys, metadata, yaml and scheduler config, as one verdict.

Each is in the convention of the programs that read it.
"""

from collections.abc import Mapping
from copy import deepcopy
from importlib.resources import files
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.core.fields import is_whole
from diffsteer.doctor import architectures, schedulers
from diffsteer.doctor.architectures import unet_config
from diffsteer.doctor.checkpoint import Checkpoint
from diffsteer.doctor.tensors import MARKS, PLACEHOLDERS
from diffsteer.doctor.verdict import (
    EDM,
    EDM_V,
    PREDICTION_KEYS,
    SNR_KEYS,
    ZERO,
    inner,
)
from diffsteer.hf.scheduler_config import flows

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
}
"""Schedule of Stable Diffusion, where no config says another."""
MODELSPEC = {"v_prediction": "v", "flow_prediction": "flow"}
SCALING = "sgm.modules.diffusionmodules.denoiser_scaling."
WEIGHTING = "sgm.modules.diffusionmodules.denoiser_weighting."


def keys(prediction: str, snr: str) -> tuple[str, ...]:
    """Placeholder keys of the NoobAI convention."""
    v = ("v_pred",) if prediction == "v_prediction" else ()
    return (*v, *(("ztsnr",) if snr == ZERO and prediction != "flow_prediction" else ()))


def dropped(prediction: str) -> tuple[str, ...]:
    """Marks of a file that a repair leaves out: those without a value, and those that lie."""
    edm = {EDM: "edm_", EDM_V: "edm_vpred."}.get(prediction)
    lying = [m for m in MARKS[2:] if edm is None or m.startswith("edm_vpred.") != (edm != "edm_")]
    return (*PLACEHOLDERS, *lying)


def metadata(checkpoint: Checkpoint, prediction: str, snr: str) -> dict[str, str]:
    """Metadata with modelspec and the keys of sd-scripts; what else it says stays."""
    old, kind = dict(checkpoint.metadata), checkpoint.architecture
    ending = "/lora" if checkpoint.kind == "lora" else ""
    small = kind is architectures.SD2 and prediction == "epsilon"
    name, latent = (kind.spec, kind.latent) if not small else (architectures.SD2_BASE, (4, 64, 64))
    spec = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": name + ending,
        "modelspec.title": checkpoint.place.stem,
        **({"modelspec.resolution": "x".join(str(8 * n) for n in latent[1:])} if latent else {}),
    }
    word = MODELSPEC.get(prediction, prediction)
    kinds = {key: word for key in PREDICTION_KEYS if key in old}
    zero = {key: str(snr == ZERO) for key in SNR_KEYS if key in old}
    if "ss_v_parameterization" in old:
        kinds["ss_v_parameterization"] = str(prediction == "v_prediction")
    marks = {"modelspec.prediction_type": word, "ss_zero_terminal_snr": str(snr == ZERO)}
    if prediction == "flow_prediction":
        del marks["ss_zero_terminal_snr"]
    wrong = [k for k in architectures.ARCHITECTURE_KEYS if k in old]
    wrong = [k for k in wrong if kind.spec and architectures.in_words(old[k]) is not kind]
    return {
        **spec,
        **old,
        **kinds,
        **zero,
        **marks,
        **dict.fromkeys(wrong, spec[architectures.SPEC]),
    }


def yaml(checkpoint: Checkpoint, prediction: str) -> dict[str, Any]:
    """Config of the original code; empty where it has no words for the network."""
    own = inner(checkpoint.yaml, "model", "params")
    complete = "unet_config" in own or "network_config" in own
    names = {architectures.SD1: "sd1", architectures.SD2: "sd2", architectures.SDXL: "sdxl"}
    name = names.get(checkpoint.architecture)
    word = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}.get(prediction)
    other = checkpoint.channels not in (0, 4)  # of inpainting and the like, which are other models
    if word is None or name is None or other or (word == "x0" and name == "sdxl"):
        return {}
    if complete:
        tree = deepcopy(dict(checkpoint.yaml))
    else:
        import yaml as library

        text = files("diffsteer.doctor").joinpath(f"original/{name}.yaml").read_text()
        tree = library.safe_load(text)
        try:
            shape = unet_config(checkpoint.entries, checkpoint.architecture)
            _fill(inner(tree, "model", "params"), shape)
        except InputError:
            return {}
    parameters = inner(tree, "model", "params")
    if "denoiser_config" in parameters:
        kind = "VScaling" if word == "v" else "EpsScaling"
        config = parameters["denoiser_config"]["params"]
        config["scaling_config"] = {"target": SCALING + kind}
        config["weighting_config"] = {"target": WEIGHTING + kind.replace("Scaling", "Weighting")}
    else:
        parameters["parameterization"] = word
    return tree


def _fill(parameters: Any, config: Mapping[str, Any]) -> None:
    """Write the shape of a UNet into the config of the original code."""
    widths, blocks = config["block_out_channels"], config["down_block_types"]
    attended = [2**i for i, block in enumerate(blocks) if block.startswith("CrossAttn")]
    depth = config["transformer_layers_per_block"]
    unet = parameters.get("unet_config", parameters.get("network_config"))["params"]
    unet |= {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attention_resolutions": attended[::-1],
        "transformer_depth": depth if max(depth) > 1 else 1,
        "context_dim": config["cross_attention_dim"],
    }
    if "addition_time_embed_dim" in config:
        unet["adm_in_channels"] = config["projection_class_embeddings_input_dim"]


def scheduler(checkpoint: Checkpoint, prediction: str, snr: str) -> dict[str, Any]:
    """Config of a scheduler of diffusers that samples this checkpoint rightly.

    The one that belongs to it is kept, its class too, unless that cannot do what is needed.
    """
    old = dict(checkpoint.scheduler)
    if prediction in (EDM, EDM_V):
        return _edm(old, prediction)
    if prediction == "flow_prediction":
        return _flow(old, checkpoint)
    betas = {key: old.get(key, value) for key, value in BETAS.items()}
    if not schedulers.sound({"_class_name": "EulerDiscreteScheduler", **betas}):
        betas = BETAS
    zero, offset = snr == ZERO, old.get("steps_offset", 1)
    wanted: dict[str, Any] = {
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero and betas["trained_betas"] is None,
        "steps_offset": offset if is_whole(offset) and 0 <= offset < 1000 else 1,
        "clip_sample": False,
        "timestep_spacing": _spacing(old, prediction, zero),
        **(dict.fromkeys(schedulers.SIGMAS, False) if zero else {}),
        "use_flow_sigmas": False,
    }
    kept = {k: v for k, v in old.items() if k == "_class_name" or not k.startswith("_")}
    kept |= betas | wanted
    if old and _works(kept, prediction, snr):
        return kept
    fresh = {k: v for k, v in wanted.items() if v or k == "rescale_betas_zero_snr"}
    return {"_class_name": "EulerDiscreteScheduler", **betas, **fresh}


def _spacing(old: Mapping[str, Any], prediction: str, zero: bool) -> str:
    """Spacing that starts where the network can: below the last timestep for epsilon at zero."""
    if zero:
        return "leading" if prediction == "epsilon" else "trailing"
    spacing = str(old.get("timestep_spacing", "trailing"))
    return spacing if spacing in ("leading", "linspace") else "trailing"


def _works(config: Mapping[str, Any], prediction: str, snr: str) -> bool:
    try:
        return all(f.severity != "problem" for f in schedulers.findings(config, prediction, snr))
    except InputError:
        return False


def _edm(old: Mapping[str, Any], prediction: str) -> dict[str, Any]:
    if str(old.get("_class_name", "")).startswith("EDM") and schedulers.sound(old):
        return dict(old)
    v = prediction == EDM_V
    return {
        "_class_name": "EDMEulerScheduler",
        "sigma_min": 0.002,
        "sigma_max": 120.0 if v else 80.0,
        "sigma_data": 1.0 if v else 0.5,
        "prediction_type": "v_prediction" if v else "epsilon",
    }


def _flow(old: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """A scheduler of flow matching; UNets' pipelines need one that scales its input."""
    unet = checkpoint.kind == "file" and not checkpoint.architecture.flow
    if not schedulers.sound(old):
        old = {}
    if flows(old) and not (unet and str(old.get("_class_name")).startswith("FlowMatch")):
        return dict(old)
    if checkpoint.architecture.flow:
        flux = {"base_shift": 0.5, "max_shift": 1.15, "use_dynamic_shifting": True}
        more = flux if checkpoint.architecture is architectures.FLUX else {}
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, **more}
    return {
        "_class_name": "UniPCMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": old.get("shift", 1.0),
    }
