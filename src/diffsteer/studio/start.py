"""Start the studio: models, folder, page, server."""

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from diffsteer.hf.shipped import shipped
from diffsteer.studio.engine import Engine
from diffsteer.studio.history import History
from diffsteer.studio.page import Page
from diffsteer.studio.serve import launch


def start(
    models: Sequence[str], refiners: Sequence[str], guides: Sequence[str], data: Sequence[Path],
    out: Path, device: str, host: str, port: int, password: str, browser: bool,
) -> None:  # fmt: skip
    """Load the first model and serve the page until it is interrupted.

    `cli/studio.py` says what the arguments are; refiners that belong to models are offered too.
    """
    print(f"loading {models[0]}", file=sys.stderr, flush=True)
    own = [about.refiner for name in models if (about := shipped(name)) and about.refiner]
    engine = Engine(
        tuple(dict.fromkeys(models)),
        tuple(dict.fromkeys([*own, *refiners])),
        History(out.resolve()),
        device,
        tuple(path.resolve() for path in data),
        tuple(dict.fromkeys(guides)),
    )
    made = Page(engine)
    page = made.build()
    threading.Thread(target=engine.warm_up, daemon=True).start()
    url = launch(page, out, host, port, password, browser)
    print(f"diffsteer studio: {url}  (images: {out}; Ctrl-C ends it)", flush=True)
    try:
        page.block_thread()
    finally:
        made.runs.close_all()
