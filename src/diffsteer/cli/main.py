"""The command line. `--help` imports this module alone; commands load torch when they run."""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import tyro

from diffsteer.cli import (
    compare,
    convert,
    doctor,
    evaluate,
    models,
    refine,
    sample_options,
    studio,
    train,
    tune,
)
from diffsteer.cli.mistakes import one_line
from diffsteer.cli.options import command_line, described
from diffsteer.core.errors import InputError, did_you_mean
from diffsteer.io.extensions import LAB, extension, extensions

DESCRIPTION = "Better samples from the diffusion model you have."
LONGEST = 2000
"""Characters of an error; a name of a file in it may have thousands."""


def schedule(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCHEDULE")],
    /,
    steps: int = 10,
    spacing: str = "",
    zero_snr: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    plot: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None,
) -> None:
    """Print the noise levels that a sampling visits.

    Args:
        source: A name (sd, linear, cosine, continuous-cosine, edm, flow, sd3), or the path of a
            diffusers scheduler_config.json or of a folder that holds one, or a model that ships.
        steps: Number of sampling steps.
        spacing: Which levels: trailing, leading, linspace, logsigma, karras, ays-sd, ays-sdxl,
            ays-svd; empty for what the config says, else trailing, and karras for edm.
        zero_snr: Rescale the schedule so that it ends in pure noise.
        plot: Also draw alpha, sigma and SNR to this image.
    """
    from diffsteer.cli.schedule import show

    print(show(source, steps=steps, spacing=spacing, zero_snr=zero_snr, plot=plot))


def plan(
    guidance: Annotated[str, tyro.conf.Positional],
    /,
    schedule: str = "sd",
    steps: int = 25,
    spacing: str = "",
) -> None:
    """Print how often a guidance evaluates each network.

    Args:
        guidance: Such as "CFG(6) + PAG(3) + SAG(0.75).within(0, 2)".
        schedule: As for `diffsteer schedule`.
        steps: Number of sampling steps.
        spacing: As for `diffsteer schedule`.
    """
    from diffsteer.cli.plan import show

    print(show(guidance, schedule, steps, spacing))


OURS: dict[str, Callable[..., None]] = {
    "schedule": schedule,
    "plan": plan,
    "models": models.models,
    "doctor": doctor.doctor,
    "sample": sample_options.command,
    "stats": evaluate.stats,
    "evaluate": evaluate.evaluate,
    "compare": compare.compare,
    "tune": tune.tune,
    "studio": studio.studio,
    "train": train.train,
    "ema": convert.ema,
    "convert edm2": convert.edm2,
    "convert adm": convert.adm,
    "refine targets": refine.targets,
}
"""Function of each command of this package, "COMMAND" or "GROUP COMMAND"."""
GROUPS = {
    "convert": "Convert published checkpoints to safetensors.",
    "refine": "Noise refiners: what they learn from, what they do.",
}


def _added() -> dict[str, Callable[..., None]]:
    """Functions of the commands of extensions; a warning in place of one that cannot be used."""
    added = {}
    for name, point in extensions("commands").items():
        try:
            if {name, name.partition(" ")[0]} & OURS.keys() or name in GROUPS:
                raise InputError("diffsteer has a command of this name")
            if name.count(" ") > 1:
                raise InputError("give it a name of one word, or of a group and a word")
            added[name] = point.load()
        except Exception as error:  # of the module, which is run
            reason = " ".join(str(error).split())[:LONGEST]
            print(f"warning: no command {name!r} by {point.value}: {reason}", file=sys.stderr)
    return added


FUNCTIONS = {**OURS, **_added()}
GROUPS |= {
    group: f"Commands of the group {group}, by an extension."
    for name in FUNCTIONS
    if (group := name.rpartition(" ")[0]) and group not in GROUPS
}
COMMANDS = list(dict.fromkeys(name.partition(" ")[0] for name in FUNCTIONS))

app = tyro.extras.SubcommandApp()
_groups = {"": app, **{name: tyro.extras.SubcommandApp() for name in GROUPS}}
for _name, _function in FUNCTIONS.items():
    _group, _, _command = _name.rpartition(" ")
    _groups[_group].command(name=_command)(described(_function))
for _group, _help in GROUPS.items():
    app.command(_groups[_group], name=_group, help=_help)


def _show(
    seen: set[str],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning to a user once, as people read it, and one to a programmer as Python does."""
    if category is UserWarning:
        if str(message) not in seen:
            print(f"warning: {message}", file=file or sys.stderr)
        seen.add(str(message))
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, file=file or sys.stderr, end="")


EXTRAS = {
    **dict.fromkeys(
        ("accelerate", "diffusers", "peft", "PIL", "tqdm", "transformers", "yaml"), "hf"
    ),
    **dict.fromkeys(("imageio", "imageio_ffmpeg"), "video"),
    "matplotlib": "plot",
    "optuna": "tune",
    "gradio": "studio",
}
"""Extra that installs a package, by the name under which that is imported."""
KEPT = {
    "sample": "images that are finished are kept, and the same command makes the others",
    "evaluate": "samples that were measured are kept in --work, and the same command goes on",
    "compare": "samples that were measured are kept in --work, and the same command goes on",
    "tune": "finished trials are kept, and the same command goes on",
    "refine": "targets that are finished are kept, and the same command makes the others",
}
"""What an interrupted command leaves, and how to go on."""


def _hint(module: str | None) -> str:
    """Say which extra installs a package that an import did not find."""
    extra = EXTRAS.get((module or "").partition(".")[0])
    if extra is None:
        return ""
    return f': pip install "diffsteer[{extra}]", or `pip install -e ".[{extra}]"` in a clone'


def _require_command(args: list[str]) -> None:
    """Check that a command is one of ours, and that the package that adds it is installed."""
    for name in LAB["commands"]:
        if args[: name.count(" ") + 1] == name.split() and name not in extensions("commands"):
            extension("commands", name)
    if args and not args[0].startswith("-") and args[0] not in COMMANDS:
        hint = did_you_mean(args[0], COMMANDS)
        raise InputError(f"no command {args[0]!r}{hint}; there are {', '.join(COMMANDS)}")


def _words(args: list[str]) -> str:
    """Words of the command in what was typed, such as "sample" or "convert edm2"."""
    words = [arg for arg in args[:2] if not arg.startswith("-")]
    return " ".join(words if {*words[:1]} & {*GROUPS} else words[:1])


def _stop(error: object) -> NoReturn:
    sys.exit(f"diffsteer: {' '.join(str(error).split())[:LONGEST]}")


def main() -> None:
    """Run a command; a mistake in its input ends in one line, not in a traceback."""
    warnings.showwarning = partial(_show, set())
    args = sys.argv[1:]
    if args == ["--version"]:
        print(f"diffsteer {version('diffsteer')}")
        return
    try:
        _require_command(args)
        with one_line(app, _words(args)), command_line(args):
            app.cli(prog="diffsteer", description=DESCRIPTION)
    except ModuleNotFoundError as error:
        sys.exit(f"diffsteer: {error}{_hint(error.name)}")
    except OSError as error:
        known = error.filename is not None and error.strerror is not None
        _stop(f"{error.filename}: {error.strerror}" if known else error)
    except InputError as error:
        _stop(error)
    except KeyboardInterrupt:
        rest = KEPT.get(args[0] if args else "", "")
        print(f"diffsteer: interrupted{rest and '; '}{rest}", file=sys.stderr)
        sys.exit(130)
