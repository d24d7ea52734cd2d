"""Better samples from the diffusion model you already have, and the measurements that prove it.

The public names are listed in `__init__.pyi`; each loads its module, and torch, when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
