"""Programs that load a checkpoint, and what each takes it for."""

from dataclasses import dataclass

from diffsteer.doctor import architectures
from diffsteer.doctor.architectures import PREFIX
from diffsteer.doctor.checkpoint import Checkpoint
from diffsteer.doctor.tensors import load
from diffsteer.doctor.verdict import ABOVE, EDM, EDM_V, PREDICTION, UNKNOWN, ZERO, claims_of

V2_NORM = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
V2_STD = 0.09
"""Biased standard deviation of V2_NORM above which ComfyUI takes a Stable Diffusion 2 for v."""
STEP = "global_step"
STEP_OF_BASE = 875000
"""`global_step` of Stable Diffusion 2.0 at 512 pixels, which predicts epsilon."""


@dataclass(frozen=True)
class Reading:
    """Reading of a checkpoint by a program.

    Attributes:
        program: Its name.
        prediction: Prediction type; "unknown" where it asks the network.
        snr: Terminal SNR, "zero" or "above zero".
        rule: Why.
        repair: What makes it read the checkpoint rightly, where writing marks does not; or empty.
    """

    program: str
    prediction: str
    snr: str
    rule: str
    repair: str = ""


def readings(checkpoint: Checkpoint) -> list[Reading]:
    """Readings of all programs; a LoRA is read as its base is."""
    if checkpoint.kind in ("folder", "network"):
        return [_pipeline(checkpoint)] if checkpoint.scheduler else []
    if checkpoint.kind == "lora" or checkpoint.architecture not in architectures.SINGLE:
        return []
    return [_comfy(checkpoint), _a1111(checkpoint), _single_file(checkpoint)]


def _pipeline(checkpoint: Checkpoint) -> Reading:
    claims = [c for c in claims_of(checkpoint) if c.source == "config"]
    types = [c.value for c in claims if c.subject == PREDICTION]
    prediction = types[0] if types else "epsilon"
    zero = any(c.value == ZERO for c in claims) or prediction == "flow_prediction"
    return Reading("diffusers", prediction, ZERO if zero else ABOVE, "its scheduler config")


def _comfy(checkpoint: Checkpoint) -> Reading:
    names, name = checkpoint.names, "ComfyUI"
    node = "add the node ModelSamplingDiscrete (v_prediction or x0; zsnr) to the workflow"
    if checkpoint.architecture is architectures.SD2:
        key = next((k for k in (PREFIX + V2_NORM, V2_NORM) if k in checkpoint.entries), None)
        std = load(checkpoint.entries, [key])[key].float().std(correction=0).item() if key else 0.0
        rule = f"standard deviation {std:.3g} of a norm's bias; over {V2_STD} means v"
        v = std > V2_STD and checkpoint.channels == 4  # inpainting is epsilon
        return Reading(name, "v_prediction" if v else "epsilon", ABOVE, rule, node)
    if {"edm_mean", "edm_std"} <= names:
        return Reading(name, EDM, ABOVE, "keys edm_mean and edm_std", node)
    if "edm_vpred.sigma_max" in names:
        return Reading(name, EDM_V, ABOVE, "key edm_vpred.sigma_max", node)
    if "v_pred" in names:
        snr = ZERO if "ztsnr" in names else ABOVE
        return Reading(name, "v_prediction", snr, "key v_pred" + ", ztsnr" * (snr == ZERO))
    return Reading(name, "epsilon", ABOVE, "no key v_pred")


def _a1111(checkpoint: Checkpoint) -> Reading:
    claims = [c for c in claims_of(checkpoint) if c.evidence.startswith("yaml") and c.value != ZERO]
    silent = ("epsilon", "no yaml beside the file that says another")
    if checkpoint.architecture is architectures.SD2 and not checkpoint.yaml:
        silent = (UNKNOWN, "it asks the network of an SD 2 without yaml")
    prediction = next((c.value for c in claims if c.subject == PREDICTION), silent[0])
    rule = claims[0].evidence if claims else silent[1]
    snr = ZERO if "ztsnr" in checkpoint.names else ABOVE
    return Reading("A1111, Forge", prediction, snr, rule)


def _single_file(checkpoint: Checkpoint) -> Reading:
    name, repair = "diffusers from_single_file", "pass scheduler=, made of the scheduler config"
    if checkpoint.architecture is not architectures.SD2:
        return Reading(name, "epsilon", ABOVE, "reads no marks", repair)
    step = load(checkpoint.entries, [STEP])[STEP] if STEP in checkpoint.entries else None
    base = step is not None and step.numel() == 1 and step.item() == STEP_OF_BASE
    rule = f"global_step is {'' if base else 'not '}{STEP_OF_BASE}"
    return Reading(name, "epsilon" if base else "v_prediction", ABOVE, rule, repair)
