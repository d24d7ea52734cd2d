"""`diffsteer convert adm`: a checkpoint as safetensors and JSON; importable without torch.

The command line reads its options from the types and docstring here.
"""

from pathlib import Path

from tyro.conf import Positional


def adm(source: Positional[Path], out: Positional[Path], /, flags: str = "") -> None:
    """Convert an ADM or IDDPM checkpoint to safetensors and JSON; nothing in it is run.

    Args:
        source: The .pt file.
        out: Folder to make; must not be there.
        flags: Of the network, as its README writes them, --flags="--image_size 64 ...", or the name
            of a published file that has the same; empty for those of the file name.
    """
    from diffsteer.models.adm.checkpoint import convert
    from diffsteer.models.adm.flags import Flags
    from diffsteer.models.adm.published import PUBLISHED

    known = PUBLISHED.get(flags) or (Flags.parse(flags) if flags else None)
    print(f"{out}: {convert(source, out, known)}")
