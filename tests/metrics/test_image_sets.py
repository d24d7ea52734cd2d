"""Images in memory and in a folder have the same metrics."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import diffsteer
from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe
from diffsteer.io.images import Pictures
from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.metrics.image_sets import seeds_in


def test_images_in_memory_and_in_a_folder_have_the_same_metrics(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    fake, real = (torch.randint(256, (12, 3, 32, 32), generator=draws).byte() for _ in range(2))
    for i, image in enumerate(fake):
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(tmp_path / f"{i:02}.png")
    extractor = EfficientNetLite0(size=32)
    memory = diffsteer.evaluate(fake, real, extractor, resamples=20)
    folder = diffsteer.evaluate(tmp_path, real, extractor, resamples=20)
    assert memory[0].name == "FD-EfficientNetLite0" and memory[0].interval is not None
    for a, b in zip(memory, folder, strict=True):
        assert (a.name, a.n) == (b.name, 12) and a.value == pytest.approx(b.value, 1e-3)


def test_one_recipe_and_mixed_ones_are_not_asked_for_together(tmp_path: Path) -> None:
    """Else what one option checks the other would pass, or the other way round, without a word."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    images, recipe = Pictures.at(tmp_path), Recipe("some/model", prompt="a cat")
    assert seeds_in(images, mixed=True) == "unstated"
    with pytest.raises(InputError, match="one recipe alone: leave out it, or --mixed"):
        seeds_in(images, recipe, mixed=True)


def test_what_is_no_set_of_images_is_told_what_is() -> None:
    some = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for given in (some.numpy(), list(some), None):
        with pytest.raises(
            ValueError, match=r"no set of images: give a tensor uint8 \(N, 3, H, W\)"
        ):
            diffsteer.evaluate(given, some)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no set of images"):
            diffsteer.compare({"a": given, "b": some}, some)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="'Inception' is no extractor: give one"):
        diffsteer.evaluate(some, some, "Inception")  # type: ignore[arg-type]
