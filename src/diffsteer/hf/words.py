"""What a pipeline is asked to show, in the words that it takes: prompts, or names of classes."""

import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

NAMES = ("prompt", "class_labels")
"""Arguments of pipelines that say what pictures show."""


def shows(pipe: Any) -> str:
    """Name of the argument that says what a pipeline shows; empty where it takes none."""
    takes = inspect.signature(pipe.__call__).parameters
    return next((name for name in NAMES if name in takes), "")


def asked(pipe: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of a pipeline's call by which its pictures show texts, one each.

    Args:
        pipe: Of prompts, of classes (DiT), or of neither.
        texts: A prompt each, or the name or number of a class; empty for none in particular.

    Raises:
        ValueError: there is no such class, or the pipeline takes no texts and there are some.
    """
    name = shows(pipe)
    if name == "prompt":
        return {name: list(texts)}
    if name:
        return {name: [_number(pipe, text.strip()) for text in texts]}
    if any(texts):
        raise ValueError(f"{type(pipe).__name__} takes no prompt: leave it out")
    return {"batch_size": len(texts)}


def _number(pipe: Any, text: str) -> int:
    """Number of a class by its name, or in digits; that of no class for an empty text."""
    count, names = pipe.transformer.config.num_embeds_ada_norm, getattr(pipe, "labels", {})
    if not text:
        return int(count)
    if text.isdecimal() and int(text) < count:
        return int(text)
    if text in names:
        return int(names[text])
    near = get_close_matches(text, names, 3) or list(names)[:3]
    told = ", ".join([*(repr(name) for name in near), f"a number below {count}, or nothing"])
    raise ValueError(
        f"{text!r} is no class of this {type(pipe).__name__}, which shows classes and takes no "
        f"other prompt: give {told}"
    )
