"""Claims of three sources on a checkpoint, and the verdict of all.

Only what a source says is a claim: a key that is absent may have been lost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffsteer.core.errors import InputError
from diffsteer.doctor.checkpoint import Checkpoint
from diffsteer.hf.scheduler_config import discrete_of, flows

Subject = Literal["prediction type", "terminal SNR"]
PREDICTION: Subject = "prediction type"
SNR: Subject = "terminal SNR"
Source = Literal["keys", "metadata", "config", "network", "user"]
SOURCES: tuple[Source, ...] = ("keys", "metadata", "config", "network", "user")
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
ZERO, ABOVE = "zero", "above zero"
EDM, EDM_V = "edm", "edm_v_prediction"
UNKNOWN = "unknown"
SPELLINGS = {
    **dict.fromkeys(("epsilon", "eps", "noise"), "epsilon"),
    **dict.fromkeys(("v_prediction", "v-prediction", "v", "v_pred", "velocity"), "v_prediction"),
    **dict.fromkeys(("sample", "x0", "x_0", "x_start", "original_sample"), "sample"),
    **dict.fromkeys(("flow_prediction", "flow", "flow_matching", "flow-matching"), PREDICTIONS[3]),
    **dict.fromkeys(("rectified_flow", "rectified-flow", "rf"), "flow_prediction"),
    EDM: EDM,
    EDM_V: EDM_V,
}
"""Prediction types as trainers spell them."""
PREDICTION_KEYS = ("modelspec.prediction_type", "ss_prediction_type", "prediction_type")
SNR_KEYS = (
    *("ss_zero_terminal_snr", "modelspec.zero_terminal_snr", "zero_terminal_snr"),
    *("rescale_betas_zero_snr", "ztsnr", "zsnr"),
)
BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes"), True),
    **dict.fromkeys(("false", "0", "no"), False),
}


@dataclass(frozen=True)
class Claim:
    """One statement of one source.

    Attributes:
        subject: Of which the statement is.
        value: A prediction type, or "zero" or "above zero".
        source: Where it stands.
        evidence: The words of the source.
        certain: Whether nothing can contradict it: no network of this architecture is otherwise.
    """

    subject: Subject
    value: str
    source: Source
    evidence: str
    certain: bool = False


@dataclass(frozen=True)
class Verdict:
    """Verdict of all sources on a checkpoint.

    Attributes:
        subject: Of which the verdict is.
        value: "unknown" where sources disagree or none says it.
        confidence: "stated" by the user, "measured" on the network, "certain" by the architecture,
            "agreed" by several sources, "declared" by one, "implied" by another verdict, "none".
        disagreement: The sources that contradict each other; empty where they do not.
    """

    subject: Subject
    value: str
    confidence: str
    disagreement: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a verdict."""
        return self.value != UNKNOWN


def claims_of(checkpoint: Checkpoint) -> list[Claim]:
    """Read all that keys, metadata and configs claim."""
    configs = (*_yaml(checkpoint.yaml), *_scheduler(checkpoint.scheduler))
    return [*_keys(checkpoint), *_metadata(checkpoint.metadata), *configs]


def _keys(checkpoint: Checkpoint) -> list[Claim]:
    names, claims = checkpoint.names, []
    if checkpoint.architecture.flow:
        text = f"networks of {checkpoint.architecture.name} are trained by flow matching"
        claims += [Claim(PREDICTION, "flow_prediction", "keys", text, certain=True)]
    if checkpoint.kind == "lora":
        return claims
    if {"edm_mean", "edm_std"} <= names:
        claims += [_prediction(EDM, "keys", "keys edm_mean and edm_std")]
    if "edm_vpred.sigma_max" in names:
        claims += [_prediction(EDM_V, "keys", "key edm_vpred.sigma_max")]
    if "v_pred" in names:
        claims += [_prediction("v_prediction", "keys", "key v_pred")]
    if "ztsnr" in names:
        claims += [Claim(SNR, ZERO, "keys", "key ztsnr")]
    return claims


def _prediction(value: str, source: Source, evidence: str) -> Claim:
    return Claim(PREDICTION, value, source, evidence)


def _metadata(metadata: Mapping[str, str]) -> list[Claim]:
    claims = []
    for key in PREDICTION_KEYS:
        if value := SPELLINGS.get(metadata.get(key, "").strip().lower()):
            claims += [_prediction(value, "metadata", f"{key} = {metadata[key]}")]
    if (velocity := _boolean(metadata, "ss_v_parameterization")) is not None:
        value = "v_prediction" if velocity else "epsilon"
        evidence = f"ss_v_parameterization = {metadata['ss_v_parameterization']}"
        claims += [_prediction(value, "metadata", evidence)]
    for key in SNR_KEYS:
        if (zero := _boolean(metadata, key)) is not None:
            claims += [Claim(SNR, ZERO if zero else ABOVE, "metadata", f"{key} = {metadata[key]}")]
    return claims


def _boolean(metadata: Mapping[str, str], key: str) -> bool | None:
    return BOOLEANS.get(metadata.get(key, "").strip().lower())


def not_understood(metadata: Mapping[str, str]) -> list[str]:
    """Statements of metadata on the prediction type in words that are not known."""
    words = {key: metadata[key].strip() for key in PREDICTION_KEYS if metadata.get(key)}
    known = {*SPELLINGS, "none", "null", ""}
    return [f"{key} = {word[:80]}" for key, word in words.items() if word.lower() not in known]


def _yaml(tree: Mapping[str, Any]) -> list[Claim]:
    parameters = inner(tree, "model", "params")
    word = str(parameters.get("parameterization", ""))
    scaling = str(inner(parameters, "denoiser_config", "params", "scaling_config").get("target"))
    targets = {"VScaling": "v_prediction", "EpsScaling": "epsilon", "EDMScaling": EDM}
    claims = []
    if spelled := SPELLINGS.get(word.lower()):
        claims += [_prediction(spelled, "config", f"yaml: parameterization: {word}")]
    if kind := targets.get(scaling.rpartition(".")[2]):
        claims += [_prediction(kind, "config", f"yaml: target: {scaling}")]
    return claims


def inner(tree: Any, *names: str) -> Any:
    """Table that lies under names in a tree of tables; an empty one where there is none."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def _scheduler(config: Mapping[str, Any]) -> list[Claim]:
    name, word = str(config.get("_class_name", "")), config.get("prediction_type")
    if name.startswith("EDM"):
        value = EDM_V if word == "v_prediction" else EDM
        return [_prediction(value, "config", f"scheduler: {name}, prediction_type = {word}")]
    if config and flows(config):
        evidence = f"scheduler: {name}, a flow"
        flow = _prediction("flow_prediction", "config", evidence)
        return [flow, Claim(SNR, ZERO, "config", evidence)]
    claims = []
    if spelled := SPELLINGS.get(str(word)):
        claims += [_prediction(spelled, "config", f"scheduler: prediction_type = {word}")]
    if config.get("trained_betas") is not None:
        try:
            zero = float(discrete_of(config).alphas[-1]) == 0
        except InputError:  # which a finding names
            return claims
        return [*claims, Claim(SNR, ZERO if zero else ABOVE, "config", "scheduler: trained_betas")]
    if isinstance(flag := config.get("rescale_betas_zero_snr"), bool):
        evidence = f"scheduler: rescale_betas_zero_snr = {flag}"
        claims += [Claim(SNR, ZERO if flag else ABOVE, "config", evidence)]
    return claims


def judge(claims: Sequence[Claim]) -> tuple[Verdict, Verdict]:
    """Verdicts on the prediction type and on the terminal SNR.

    A measurement stands above what is declared, and the user's word above both. Where sources
    disagree otherwise the verdict is unknown: a converter that lost a mark and a mark that lies
    look the same.
    """
    prediction = _of([c for c in claims if c.subject == PREDICTION], PREDICTION)
    snr = _of([c for c in claims if c.subject == SNR], SNR)
    implied = {"epsilon": ABOVE, EDM: ABOVE, EDM_V: ABOVE, "flow_prediction": ZERO}
    if prediction.value in implied and not snr.known and not snr.disagreement:
        snr = Verdict(SNR, implied[prediction.value], "implied")
    return prediction, snr


def _of(claims: Sequence[Claim], subject: Subject) -> Verdict:
    values = list(dict.fromkeys(claim.value for claim in claims))
    words = "; ".join(
        f"{value} by {', '.join(f'{c.source} ({c.evidence})' for c in claims if c.value == value)}"
        for value in values
    )
    disagreement = words if len(values) > 1 else ""
    for source, confidence in (("user", "stated"), ("network", "measured")):
        if own := [c.value for c in claims if c.source == source]:
            return Verdict(subject, own[0], confidence, disagreement)
    if certain := [c.value for c in claims if c.certain]:
        return Verdict(subject, certain[0], "certain", disagreement)
    if len(values) != 1:
        return Verdict(subject, UNKNOWN, "none", disagreement)
    several = len({claim.source for claim in claims}) > 1
    return Verdict(subject, values[0], "agreed" if several else "declared")
