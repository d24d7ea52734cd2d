"""Mistakes in what is typed, each told in one line."""

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

import tyro

from diffsteer.core.errors import InputError, did_you_mean

MEANT = {
    ("cfg", "cfg-scale", "guidance-scale", "scale"): '--guidance "CFG(7.5)"',
    ("num-images", "num-images-per-prompt", "n", "count"): "--seeds 0-3",
    ("images", "steps", "epochs", "max-train-steps"): "--set training.images=1000",
    ("batch-size", "batch", "train-batch-size"): "--set training.batch=16",
    ("lr", "learning-rate", "rate"): "--set training.rate=1e-4",
    ("data", "dataset", "source", "train-data-dir", "images-dir"): "--set data.source=FOLDER",
}
"""Options of other programs, and what serves here in their place."""
FLAG, QUOTED = re.compile(r"(?<![\w-])--[a-z][\w-]*"), re.compile(r"'[^']*'")


@contextmanager
def one_line(app: tyro.extras.SubcommandApp, command: str) -> Iterator[None]:
    """Turn tyro's reports on a command into errors of one line."""
    try:
        from tyro._errors import on_parse_error
    except ImportError:  # a version of tyro without them shows its own
        yield
    else:
        with on_parse_error(lambda event: refuse(event, app, command)):
            yield


def refuse(event: Any, app: tyro.extras.SubcommandApp, command: str) -> None:
    """Raise what an event of tyro's parser means to a user; others are left to tyro."""
    kind, lowered = type(event).__name__, getattr(getattr(event, "argument", None), "lowered", None)
    flag = _shown(lowered) if lowered is not None else ""
    metavar = str(lowered.metavar).removeprefix("{None}|") if lowered is not None else ""
    hint = f"`diffsteer {command} --help`".replace("  ", " ")
    if kind == "UnrecognizedArgs":
        near = _near(event.tokens, app, command)
        if not any(token.startswith("-") for token in event.tokens):
            near = ": values follow their option (--prompt), and texts with blanks stand in quotes"
        raise InputError(f"unrecognized options: {', '.join(event.tokens)}{near}; see {hint}")
    if kind == "InvalidChoice":
        raise InputError(
            f"{flag} must be one of {', '.join(event.choices)}, got {event.value!r}"
            f"{did_you_mean(event.value, event.choices)}"
        )
    if kind == "BadValue" and event.reason == "too_few_values":
        raise InputError(f"{flag} needs a value: {metavar}")
    if kind == "MissingArgs":
        names = [_shown(each.arg.lowered) for each in event.missing_arguments]
        near = _near(sys.argv[2:], app, command)
        raise InputError(f"missing: {', '.join(names)}{near}; see {hint}")
    if kind == "MissingSubcommand":
        names = list(event.subcommand_spec.parser_from_name)
        raise InputError(f"diffsteer {command} needs one of {', '.join(names)}; see {hint}")
    if kind == "InstantiationFailure" and not flag:
        raise InputError(event.message)
    if kind == "InstantiationFailure":
        values = QUOTED.findall(event.message)
        raise InputError(f"{flag} takes {metavar}, got {values[-1] if values else event.message}")


def _near(tokens: list[str], app: tyro.extras.SubcommandApp, command: str) -> str:
    """What was meant by the first option that a command does not have."""
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        app.cli(prog="diffsteer", args=[*command.split(), "--help"])
    known = {*FLAG.findall(text.getvalue())}
    flags = [token.partition("=")[0] for token in tokens if token.startswith("--")]
    flag = next((flag for flag in flags if flag not in known), "").lstrip("-")
    for names, meant in MEANT.items():
        here = meant.split()[0] in known and (command == "train") == meant.startswith("--set")
        if here and flag.replace("_", "-") in names:
            return f" (did you mean {meant}?)"
    if "." in flag and command == "train":
        return f" (did you mean '--set {flag}=VALUE'?)"
    return did_you_mean(flag, sorted(each[2:] for each in known)).replace("'", "'--", 1)


def _shown(lowered: Any) -> str:
    """Flag of an argument, or what stands for one without."""
    flag = str(lowered.name_or_flags[-1])
    return flag if flag.startswith("-") else str(lowered.metavar).split()[0].strip("[]{}")
