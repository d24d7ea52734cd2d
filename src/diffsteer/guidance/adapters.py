"""Adapters (LoRA) that act in one branch of a guidance, by their text.

"style@0.3" is the adapter "style" alone, at the scale 0.3; "epoch2" at the scale that it has;
"lcm, style@0.3" both; "none" is the network without adapters.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import Rule

NONE = "none"
Adapt = Callable[[str], AbstractContextManager[None]]
"""From a text of adapters to the context in which they act, and no others; raises where one is
not loaded, before the context is entered."""


def scales(text: str) -> dict[str, float | None]:
    """Adapters of a text with their scales; None keeps the scale that it has.

    Raises:
        InputError: the text is none of adapters.
    """
    wanted: dict[str, float | None] = {}
    for part in () if text.strip() == NONE else text.split(","):
        name, _, scale = part.strip().partition("@")
        try:
            wanted[name] = float(scale) if "@" in part else None
        except ValueError:
            wanted[name] = math.nan
        if not name or not math.isfinite(wanted[name] or 0.0):
            raise InputError(
                f"adapter={brief(text)} names no adapters: give names with or without a finite "
                "scale, 'style@0.3' or 'lcm, style@0.3', or 'none'"
            )
    return wanted


def no_adapters(text: str) -> AbstractContextManager[None]:
    """Refuse: the network has no adapters."""
    raise InputError(
        f"the guidance asks for adapter={text!r}, and this network has no adapters: load a LoRA "
        "(pipe.load_lora_weights(..., adapter_name='style')), or guide by a second network"
    )


def _holds(value: object) -> bool:
    return value is None or (isinstance(value, str) and scales(value) is not None)


Adapters = Annotated[str | None, Rule("names of adapters, such as 'style@0.3', or None", _holds)]
