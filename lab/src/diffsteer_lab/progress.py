"""Progress of long commands, in a terminal and in a log."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

LOG_SECONDS = 5.0
"""Seconds between lines of progress where no terminal shows them."""


def progress(total: int, unit: str, title: str = "") -> "tqdm[Any]":
    """Progress bar on stderr, which a log has too, at longer intervals."""
    from tqdm import tqdm

    pause = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    return tqdm(desc=title, total=total, unit=unit, mininterval=pause, maxinterval=pause)
