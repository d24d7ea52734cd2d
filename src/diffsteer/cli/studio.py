"""`diffsteer studio`: the page on which recipes are tried; importable without torch and Gradio."""

from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from diffsteer.core.errors import InputError


def studio(
    models: Annotated[tuple[str, ...], Positional, arg(metavar="[MODEL ...]")] = ("critters",),
    /,
    out: Path = Path("studio"),
    refiner: UseAppendAction[tuple[str, ...]] = (),
    guide: UseAppendAction[tuple[str, ...]] = (),
    data: UseAppendAction[tuple[Path, ...]] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    password: str = "",
    device: str = "",
    no_browser: Annotated[bool, FlagCreatePairsOff] = False,
) -> None:
    """Try, compare and measure recipes on a page in the browser.

    It is bound to this machine, sends nothing elsewhere, and reads and writes nothing but OUT and
    the models that it was started with.

    Args:
        models: Hub ids or folders of diffusers pipelines, or names of models that ship; the page
            starts with the first.
        out: Folder of the history: every image with its recipe.
        refiner: Folder or hub id of a noise refiner that the page offers; may be given several
            times.
        guide: Folder or hub id of a weaker network, or of its pipeline, that Auto may ask; may be
            given several times.
        data: Folder, zip file or statistics (.npz) of real images that the page may compare with;
            may be given several times.
        host: Address that it is bound to; others than this machine's need a password.
        port: Of the page; 0 for the first that is free from 7860 on.
        password: Of the user "studio"; empty for none.
        device: Where networks run; empty for a GPU if there is one.
        no_browser: Do not open a browser.
    """
    from diffsteer.studio.serve import quiet, require_safe

    require_safe(host, password)
    if not 0 <= port < 65536:
        raise InputError(f"port must be in [0, 65535], got {port} (0 takes the first free one)")
    quiet()
    import gradio  # noqa: F401 - first, as it is the one that may be missing

    from diffsteer.io.atomic import require_writable
    from diffsteer.studio.start import start

    require_writable(out)
    if missing := [path for path in data if not path.exists()]:
        raise FileNotFoundError(f"no file or folder {missing[0]}: --data names real images")
    start(models, refiner, guide, data, out, device, host, port, password, not no_browser)
