"""Better samples from the diffusion model you already have, and the measurements that prove it.

The public names are listed in `__init__.pyi`; each loads its module, and torch, when first used.
"""

from typing import Any

import lazy_loader

from diffsteer import _renamed

_find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_renamed.install()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("diffsteer")
    if name in _renamed.NAMES[__name__] or f"{__name__}.{name}" in _renamed.MODULES:
        return _renamed.renamed(__name__, name)
    return _find(name)
