"""Mistakes in what is typed, each told in one line."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

import tyro

from diffsteer.core.errors import InputError, did_you_mean

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
    flag = lowered.name_or_flags[-1] if lowered is not None else ""
    metavar = str(lowered.metavar).removeprefix("{None}|") if lowered is not None else ""
    hint = f"`diffsteer {command} --help`".replace("  ", " ")
    if kind == "UnrecognizedArgs":
        near = _near(event.tokens, app, command)
        raise InputError(f"unrecognized options: {', '.join(event.tokens)}{near}; see {hint}")
    if kind == "InvalidChoice":
        raise InputError(
            f"{flag} must be one of {', '.join(event.choices)}, got {event.value!r}"
            f"{did_you_mean(event.value, event.choices)}"
        )
    if kind == "BadValue" and event.reason == "too_few_values":
        raise InputError(f"{flag} needs a value: {metavar}")
    if kind == "MissingArgs":
        names = [each.arg.lowered.name_or_flags[-1] for each in event.missing_arguments]
        raise InputError(f"missing: {', '.join(names)}; see {hint}")
    if kind == "MissingSubcommand":
        names = list(event.subcommand_spec.parser_from_name)
        raise InputError(f"diffsteer {command} needs one of {', '.join(names)}; see {hint}")
    if kind == "InstantiationFailure" and not flag:
        raise InputError(event.message)
    if kind == "InstantiationFailure":
        values = QUOTED.findall(event.message)
        raise InputError(f"{flag} takes {metavar}, got {values[-1] if values else event.message}")


def _near(tokens: list[str], app: tyro.extras.SubcommandApp, command: str) -> str:
    """Flag of a command that was meant."""
    flags = [token.partition("=")[0] for token in tokens if token.startswith("--")]
    if not flags:
        return ""
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        app.cli(prog="diffsteer", args=[*command.split(), "--help"])
    return did_you_mean(flags[0], sorted({*FLAG.findall(text.getvalue())}))
