"""`diffsteer doctor`: what a checkpoint is, what would go wrong, and its repair."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from diffsteer.core.errors import InputError
from diffsteer.io.hub import require_known

if TYPE_CHECKING:
    from diffsteer.doctor.diagnosis import Diagnosis
    from diffsteer.doctor.verdict import Claim

Prediction = Literal["", "epsilon", "v_prediction", "sample", "flow_prediction"]
TerminalSNR = Literal["", "zero", "above"]


def doctor(
    model: Annotated[str, Positional, arg(metavar="MODEL")],
    /,
    fix: Annotated[Path | None, arg(metavar="OUT")] = None,
    deep: Annotated[bool, FlagCreatePairsOff] = False,
    json: Annotated[bool, FlagCreatePairsOff] = False,
    plot: Annotated[Path | None, arg(metavar="PNG")] = None,
    prediction: Prediction = "",
    terminal_snr: TerminalSNR = "",
) -> None:
    """Say what a checkpoint is, what goes wrong with it, and repair it.

    The exit status is 0 without problems and 3 with one, after --fix of what was written; 1 means
    that it could not be read.

    Args:
        model: Safetensors file of a checkpoint or LoRA, folder of diffusers, hub id, or the name of
            a model that ships.
        fix: Also write it anew, with keys, metadata, yaml and scheduler config that say what it is:
            a .safetensors file or a folder that is not there yet.
        deep: Also load the network and measure what it predicts.
        json: Print JSON instead of text.
        plot: Also draw schedule and brightness to this image.
        prediction: What you know that the network predicts.
        terminal_snr: What you know of its last level.
    """
    require_known(model)
    from diffsteer.doctor.diagnosis import diagnose
    from diffsteer.doctor.fix import fix as repair
    from diffsteer.doctor.fix import require_new

    if fix is not None:
        require_new([Path(model)], fix)
    if plot is not None:
        _require_image(plot)
    diagnosis = diagnose(model, deep, _stated(prediction, terminal_snr))
    written = repair(diagnosis, fix) if fix is not None else []
    repaired = diagnose(written[0]) if written else None
    _print(diagnosis, repaired, written, json)
    if plot is not None:
        from diffsteer.doctor.present import plot as draw

        draw(diagnosis, plot)
    if status := (repaired or diagnosis).exit_status:
        sys.exit(status)


def _stated(prediction: str, snr: str) -> "list[Claim]":
    from diffsteer.doctor.verdict import ABOVE, PREDICTION, SNR, ZERO, Claim

    claims = [Claim(PREDICTION, prediction, "user", "--prediction")] if prediction else []
    value = {"zero": ZERO, "above": ABOVE}.get(snr)
    return [*claims, *([Claim(SNR, value, "user", "--terminal-snr")] if value else [])]


def _require_image(path: Path) -> None:
    if path.is_dir() or not path.absolute().parent.is_dir() or path.suffix != ".png":
        raise InputError(f"{path} cannot be written: give a .png in a folder there is")
    import matplotlib  # noqa: F401 - the image comes last: better to miss it now


def _print(
    diagnosis: "Diagnosis", repaired: "Diagnosis | None", written: list[Path], as_json: bool
) -> None:
    from diffsteer.doctor.present import text

    if as_json:
        fixed = {"files": [str(p) for p in written], **repaired.to_dict()} if repaired else None
        print(json.dumps({**diagnosis.to_dict(), "fixed": fixed}, indent=2))
        return
    print(text(diagnosis))
    if repaired is not None:
        print(f"\nWritten: {', '.join(map(str, written))}")
        print(f"Weights of the new one: sha256 {repaired.scan.hash}, the same")
        for finding in repaired.findings:
            if finding.severity != "note":
                remedy = f" -> {finding.remedy}" if finding.remedy else ""
                print(f"Left: {finding.code}: {finding.text}{remedy}")
