"""Storage of the trials of a search: a journal in its folder, or one that machines share."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from diffsteer.core.errors import InputError, brief

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

MADE = ("already exists", "unique")
"""In the error of a database whose tables another worker makes at the same moment."""
JOURNALS = (".journal", ".log")
"""Ends of files that are journals."""


def open_storage(text: str, journal: Path) -> "BaseStorage":
    """Open a store of Optuna.

    Args:
        text: URL of a database, such as "sqlite:////shared/tune.db" or "postgresql://...", or a
            file that ends in .journal, for machines that share a folder; empty for `journal`.
        journal: Of the folder of the search.

    Raises:
        InputError: it cannot be opened.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = Path(text) if text else journal
    if "://" not in text and path.suffix not in JOURNALS:
        raise InputError(
            f"storage {brief(text)} is neither a URL of a database, such as postgresql://..., nor "
            f"a file that ends in {' or '.join(JOURNALS)}"
        )
    try:
        if "://" in text:
            return _database(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except ImportError as error:
        package = getattr(error.__cause__, "name", None)  # which Optuna's own error does not say
        raise InputError(
            f"storage {brief(text)} needs the package {package}: install it"
        ) from error
    except Exception as error:  # of a database, or of the library that speaks to it
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"storage {brief(text)} cannot be opened: {reason}") from error


def _database(url: str) -> "BaseStorage":
    """Open a database, whose tables workers that start together make at once: one of them fails."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import DBAPIError

    for _ in range(9):
        try:
            return RDBStorage(url)
        except DBAPIError as error:
            if not any(word in str(error).lower() for word in MADE):
                raise
            time.sleep(0.5)
    return RDBStorage(url)
