"""Reachability of the model hub, within seconds, and contents of its cache."""

import re
import socket
from pathlib import Path
from threading import Thread
from urllib.parse import urlparse
from urllib.request import getproxies

from diffsteer.core.errors import brief

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
PATIENCE = 2.0
"""Seconds in which the hub has to answer; its libraries try for half a minute."""


def silence() -> str:
    """Say why the hub does not answer; empty where it does, or where a proxy hides it."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    url = urlparse(constants.ENDPOINT)
    if url.scheme in getproxies():
        return ""
    reasons: list[str] = []

    def connect() -> None:
        place = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
        try:
            socket.create_connection(place, PATIENCE).close()
            reasons.append("")
        except OSError as error:
            reasons.append(f"{url.hostname}: {error.strerror or error}")

    thread = Thread(target=connect, daemon=True)  # names are looked up without a timeout
    thread.start()
    thread.join(PATIENCE)
    return reasons[0] if reasons else f"{url.hostname} did not answer in {PATIENCE:g} s"


def snapshot(name: str) -> Path | None:
    """Folder of a model in the hub's cache; None where it was never downloaded."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception:  # of a cache, for whatever it lacks
        return None


def require_known(*names: str) -> None:
    """Check that models are in the cache, or that the hub can be asked; others pass.

    Takes a fraction of a second, before a library that computes is imported.

    Raises:
        FileNotFoundError: neither is so.
    """
    for name in names:
        if not HUB_ID.fullmatch(name) or name.endswith(".safetensors") or Path(name).exists():
            continue
        if snapshot(name) is None and (reason := silence()):
            raise FileNotFoundError(
                f"there is no folder {brief(name)}, the hub's cache has no model of that name, and "
                f"the hub does not answer ({reason}): look at the name, and at the connection"
            )
