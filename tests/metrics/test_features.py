"""Extractors: the right numbers from the right images, and never from others."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from diffsteer.io.hashing import weights_hash
from diffsteer.metrics import efficientnet
from diffsteer.metrics.efficientnet import LAYERS, EfficientNetLite0, SameConv
from diffsteer.metrics.features import UNSTATED, Custom, Extractor, Origin, resized
from diffsteer.metrics.pretrained import CLIP, DINOv2, Inception

MADE = Origin("Mean", "colour", "none", "0" * 64)


def random_pictures(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture
def dino(tmp_path: Path) -> Dinov2Model:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Dinov2Model(Dinov2Config(**shape, image_size=28, patch_size=14)).eval()
    model.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize(("layer", "width"), LAYERS.items())
def test_efficientnet_layers(layer: str, width: int) -> None:
    extractor = EfficientNetLite0(layer, size=32)
    x = random_pictures(3, 40, 36)
    features = extractor(x)
    assert features.shape == (3, width)
    assert features.dtype == torch.float32
    torch.testing.assert_close(extractor(x[1:2]), features[1:2], rtol=1e-4, atol=1e-4)
    assert extractor.origin == Origin(
        "EfficientNetLite0", layer, "bicubic-antialias-32", efficientnet.SHA256
    )


def test_parts_of_a_batch_change_no_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    extractor, sizes = EfficientNetLite0(size=32), []
    whole = extractor(images)
    monkeypatch.setattr("diffsteer.metrics.efficientnet.BUFFER", 2 * 96 * 4 * 16**2)
    extractor._net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    assert (extractor(images) - whole).abs().max() < 1e-5 * whole.abs().max()
    assert sizes == [2, 2, 1]


def test_efficientnet_knows_flat_pictures_apart() -> None:
    """Weights in place and pixels scaled: black, white and noise differ by much more than noise."""
    flat = torch.stack([torch.full((3, 64, 64), v, dtype=torch.uint8) for v in (0, 128, 255)])
    logits = EfficientNetLite0("logits", size=64)(torch.cat([flat, random_pictures(2, 64, 64)]))
    gaps = torch.cdist(logits, logits)
    assert gaps[3, 4] < gaps[:3, 3:].min() / 2
    assert logits.softmax(1).sum(1).allclose(torch.ones(5))


def test_a_mask_hides_grain_and_keeps_what_images_show() -> None:
    """Grain of 2 levels moves features as far as a square of 400 pixels; masked, a tenth as far."""
    flat = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    draw = torch.Generator().manual_seed(1)
    grain = (flat + 2 * torch.randn(flat.shape, generator=draw)).round().to(torch.uint8)
    square = flat.clone()
    square[..., 20:40, 20:40] = 120
    ratio = {}
    for mask in (0.0, 16.0):
        x = EfficientNetLite0(size=64, mask=mask)(torch.cat([flat, grain, square]))
        ratio[mask] = ((x[1] - x[0]).norm() / (x[2] - x[0]).norm()).item()
    assert ratio[16.0] < 0.2 < 0.5 < ratio[0.0]
    masked = EfficientNetLite0(size=64, mask=16)
    assert masked.origin.resize == "bicubic-antialias-64+mask-16"
    assert torch.equal(masked(flat), EfficientNetLite0(size=64, mask=16)(flat))


@pytest.mark.parametrize("edge", [7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (1, 1)])
def test_same_padding_puts_the_odd_pixel_right_and_below(
    edge: int, kernel: int, stride: int
) -> None:
    conv = SameConv(2, 3, kernel, stride)
    x = torch.randn(1, 2, edge, edge)
    out = -(-edge // stride)
    total = (out - 1) * stride + kernel - edge
    low, high = total // 2, total - total // 2
    padded = torch.zeros(1, 2, edge + total, edge + total)
    padded[:, :, low : low + edge, low : low + edge] = x
    assert high - low in (0, 1)
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, stride=stride))
    assert conv(x).shape[-1] == out


def test_wrong_or_missing_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "SHA256", "f" * 64)
    with pytest.raises(ValueError, match="has sha256 5793442"):
        efficientnet.load()
    monkeypatch.setattr(efficientnet, "PACKAGE", "not_an_installed_package")
    with pytest.raises(ModuleNotFoundError, match=r"diffsteer\[eval\]"):
        efficientnet.load()


@pytest.mark.parametrize("size", [(96, 80), (20, 33)])
def test_resizing_is_pillows_to_one_grey_level(size: tuple[int, int]) -> None:
    x = random_pictures(2, *size)
    found = resized(x, 48)
    for picture, mine in zip(x, found, strict=True):
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        theirs = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        assert np.abs(mine.numpy() - theirs.astype(float)).max() <= 1  # of 255
    assert torch.equal(resized(found.to(torch.uint8), 48), found)


def test_dinov2_is_the_class_token_of_normalised_pictures(
    dino: Dinov2Model, tmp_path: Path
) -> None:
    extractor = DINOv2(str(tmp_path), size=28)
    x = random_pictures(3, 28, 28)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (x / 255 - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    with torch.no_grad():
        token = dino(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(x), token, rtol=1e-5, atol=1e-5)
    assert extractor.origin.weights == weights_hash(dino)
    assert extractor.origin.resize == "bicubic-antialias-28"


def test_clip_takes_its_size_from_the_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}
    config = CLIPVisionConfig(
        **shape, num_attention_heads=2, image_size=30, patch_size=15, projection_dim=16
    )
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    extractor = CLIP(str(tmp_path))
    assert extractor(random_pictures(2, 64, 40)).shape == (2, 16)
    assert extractor.origin.resize == "bicubic-antialias-30"
    assert extractor.origin.weights == weights_hash(model)


def test_weights_that_leave_a_part_random_are_refused(dino: Dinov2Model, tmp_path: Path) -> None:
    deeper = Dinov2Config.from_pretrained(tmp_path)
    deeper.num_hidden_layers = 3
    deeper.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="would be random"):
        DINOv2(str(tmp_path), size=28)(random_pictures(1, 28, 28))


def test_the_hash_of_weights_sees_every_change(dino: Dinov2Model) -> None:
    before = weights_hash(dino)
    with torch.no_grad():
        dino.layernorm.bias[0] += 1e-6
    assert weights_hash(dino) != before


def test_any_function_is_an_extractor() -> None:
    extractor = Custom(lambda x: x.float().mean(dim=(2, 3)), MADE)
    assert extractor(random_pictures(4, 5, 6)).shape == (4, 3)
    assert extractor.origin is MADE


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)]
)
def test_other_than_uint8_rgb_is_refused(images: Tensor) -> None:
    for extractor in (EfficientNetLite0(size=32), Custom(lambda x: x, MADE)):
        with pytest.raises(ValueError, match=r"127.5 x \+ 127.5"):
            extractor(images)


def test_origins_that_differ_are_refused_saying_both() -> None:
    for field in ("extractor", "layer", "resize", "weights"):
        other = Origin(**{**vars(MADE), field: "other"})
        with pytest.raises(ValueError, match=f"{field} .*'other'"):
            MADE.require(other, "these", "those")
    both = Origin(MADE.extractor, "other", "another", MADE.weights)
    with pytest.raises(ValueError, match="layer .*'other'; .*'another'.*the same --extractor"):
        MADE.require(both, "these", "those")
    MADE.require(Origin("Mean", "colour", UNSTATED, UNSTATED), "these", "those")


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="block10, head, logits"):
        EfficientNetLite0("block99")
    with pytest.raises(ValueError, match="size=8"):
        EfficientNetLite0(size=8)
    with pytest.raises(ValueError, match="mask=-1"):
        EfficientNetLite0(mask=-1)
    with pytest.raises(ValueError, match="2048, logits_unbiased"):
        Inception(layer="4096")


def test_inception_says_what_to_install() -> None:
    """In a process that has no torch-fidelity, whatever this one has."""
    code = (
        "import sys; sys.modules['torch_fidelity'] = None\n"
        "import torch; from diffsteer.metrics.pretrained import Inception\n"
        "Inception()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "diffsteer[fid]" in done.stderr


def test_ready_extractors_are_known_by_their_class() -> None:
    assert {EfficientNetLite0, Inception, DINOv2, CLIP, Custom} <= set(Extractor.__subclasses__())
