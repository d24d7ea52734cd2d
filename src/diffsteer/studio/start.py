"""Start the studio: models, folder, page, server."""

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffsteer.hf.shipped import shipped
from diffsteer.studio.engine import Engine
from diffsteer.studio.history import History
from diffsteer.studio.page import Page
from diffsteer.studio.serve import launch


def engine_of(
    models: Sequence[str], refiners: Sequence[str], out: Path, device: str, data: Sequence[Path],
    guides: Sequence[str] = (),
) -> Engine:  # fmt: skip
    """Engine with the models, their own refiners and what was named."""
    own = [about.refiner for name in models if (about := shipped(name)) and about.refiner]
    names = tuple(dict.fromkeys([*own, *refiners]))
    return Engine(
        tuple(dict.fromkeys(models)),
        names,
        History(out.resolve()),
        device,
        tuple(p.resolve() for p in data),
        guides=tuple(dict.fromkeys(guides)),
    )


def start(
    models: Sequence[str],
    refiners: Sequence[str],
    out: Path,
    device: str,
    data: Sequence[Path],
    host: str,
    port: int,
    password: str,
    browser: bool,
    block: bool = True,
    guides: Sequence[str] = (),
) -> Any:
    """Load the first model, and serve the page.

    Args:
        models: Names; the page starts with the first.
        refiners: Names of refiners that it offers beside the models' own.
        out: Folder of the history.
        device: Where networks run; empty for a GPU if there is one.
        data: What images may be compared with.
        host: Address that the page is bound to.
        port: Of it; 0 for the first that is free.
        password: Empty for none.
        browser: Whether to open one.
        block: Whether to wait until it is interrupted.
        guides: Names of weaker networks that it offers.
    """
    print(f"loading {models[0]}", file=sys.stderr, flush=True)
    engine = engine_of(models, refiners, out, device, data, guides)
    made = Page(engine)
    page = made.build()
    threading.Thread(target=engine.warm_up, daemon=True).start()
    app, url, _ = launch(page, out, host, port, password, browser, block=False)
    print(f"diffsteer studio: {url}  (images: {out}; Ctrl-C ends it)", flush=True)
    if block:
        try:
            page.block_thread()
        finally:
            made.runs.close_all()
    return page, app, url
