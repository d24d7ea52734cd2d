"""Extractors whose weights you bring: Inception (so that the number is FID), DINOv2, CLIP.

Each imports its package when it first runs. A network whose weights do not cover it raises, where
loading would only warn and leave random numbers.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError, brief
from diffsteer.io.hashing import file_hash, weights_hash
from diffsteer.io.hub import HUB_ID, require_known
from diffsteer.metrics.features import Extractor, Origin, normalised, pictures, resized

INCEPTION_LAYERS = ("64", "192", "768", "2048", "logits_unbiased")


@dataclass(frozen=True)
class Inception(Extractor):
    """The Inception-v3 of the published FID, through torch-fidelity.

    Args:
        weights: File of torch-fidelity's weights; without one it downloads its own.
        layer: `2048` for FID, or 64, 192, 768; `logits_unbiased` for the inception score.
        device: Where it runs.
    """

    weights: Path | None = None
    layer: str = "2048"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.layer not in INCEPTION_LAYERS:
            raise InputError(
                f"no layer is called {self.layer!r}: there are {', '.join(INCEPTION_LAYERS)}"
            )

    @cached_property
    @override
    def origin(self) -> Origin:
        self._net  # noqa: B018  # downloads the file that is hashed
        return Origin("Inception", self.layer, "tf-bilinear-299", file_hash(self._file))

    @property
    def _file(self) -> Path:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        if self.weights is not None:
            return Path(self.weights)
        return Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name)

    @cached_property
    def _net(self) -> nn.Module:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"FID needs torch-fidelity and torchvision, but {error.name} is not installed: "
                'pip install "diffsteer[fid]", or measure with EfficientNetLite0'
            ) from error
        path = None if self.weights is None else str(self.weights)
        net: nn.Module = FeatureExtractorInceptionV3(
            "inception-v3-compat", [self.layer], feature_extractor_weights_path=path
        )
        return net.eval().to(self.device)

    @override
    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._net(pictures(images).to(self.device))[0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class DINOv2(Extractor):
    """The normed class token of DINOv2; FD on it follows human judgement better than FID.

    Args:
        weights: Folder or hub id of a transformers checkpoint; the published FD-DINOv2 has
            facebook/dinov2-large.
        size: Side of the square that the network sees, in pixels.
        device: Where it runs.

    Source: Stein et al. 2023, https://arxiv.org/abs/2306.04675.
    """

    weights: str
    size: int = 224
    device: str = "cpu"

    @cached_property
    @override
    def origin(self) -> Origin:
        resize = f"bicubic-antialias-{self.size}"
        return Origin("DINOv2", "class-token", resize, weights_hash(self._net))

    @cached_property
    def _net(self) -> nn.Module:
        from transformers import Dinov2Model

        return pretrained(Dinov2Model, self.weights).to(self.device)

    @override
    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            x = resized(images, self.size).to(self.device)
            x = normalised(x, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
            return self._net(x).pooler_output  # type: ignore[no-any-return]


@dataclass(frozen=True)
class CLIP(Extractor):
    """Image embeddings of CLIP, for CMMD.

    Args:
        weights: Folder or hub id of a transformers checkpoint; the published CMMD has
            openai/clip-vit-large-patch14-336.
        device: Where it runs.

    Source: Jayasumana et al. 2024, https://arxiv.org/abs/2401.09603.
    """

    weights: str
    device: str = "cpu"

    @cached_property
    @override
    def origin(self) -> Origin:
        resize = f"bicubic-antialias-{self.size}"
        return Origin("CLIP", "image-embedding", resize, weights_hash(self._net))

    @property
    def size(self) -> int:
        """Side of the images that the network takes."""
        return int(self._net.config.image_size)  # type: ignore[union-attr,arg-type]

    @cached_property
    def _net(self) -> nn.Module:
        from transformers import CLIPVisionModelWithProjection

        return pretrained(CLIPVisionModelWithProjection, self.weights).to(self.device)

    @override
    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            x = resized(images, self.size).to(self.device)
            mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
            return self._net(normalised(x, mean, std)).image_embeds  # type: ignore[no-any-return]


def require_checkpoint(name: str) -> None:
    """Check that a name can be of a transformers checkpoint, before transformers looks for it."""
    if not (Path(name).is_dir() or HUB_ID.fullmatch(name)):
        raise FileNotFoundError(
            f"no folder {brief(name)}: give a transformers checkpoint, or a hub id NAME/MODEL"
        )
    require_known(name)


def pretrained(model: Any, weights: str) -> nn.Module:
    """Load a transformers model in float32, refusing weights that leave a part of it random.

    What else the checkpoint holds, such as CLIP's other half, is left out without a word.
    """
    require_checkpoint(weights)
    from transformers.utils import logging

    net: nn.Module
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        net, info = model.from_pretrained(weights, dtype=torch.float32, output_loading_info=True)
    finally:
        logging.set_verbosity(level)
    missing = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if missing:
        raise InputError(
            f"{weights} lacks {len(missing)} weights of {model.__name__} (as {missing[0]}), which "
            "would be random: give a checkpoint of this architecture"
        )
    return net.eval()
