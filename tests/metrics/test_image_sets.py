"""Images in memory and in a folder have the same metrics."""

from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from PIL import Image

import diffsteer
from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe
from diffsteer.io.images import Pictures
from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.metrics.features import Origin
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": [Image.new("RGB", (8, 8))] * 9}, "got a list: of images of Pillow"),
        ({"images": np.zeros((9, 8, 8, 3), np.uint8)}, "got a ndarray"),
        ({"reference": None}, "got a NoneType"),
        ({"extractor": "EfficientNetLite0"}, "extractor must be an Extractor"),
        ({"extractor": EfficientNetLite0}, r"give one, such as EfficientNetLite0\(size=64\)"),
        ({"scores": [torch.mean]}, "is no text of a score: write MODULE:FUNCTION"),
        ({"scores": "math:sqrt", "prompts": "a cat at"}, "prompts must be a list of texts"),
        ({"resamples": 10}, "resamples=10: give >= 20"),
        ({"resamples": 20.0}, r"resamples=20.0: give >= 20"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is(change: dict, words: str) -> None:
    images = torch.zeros(9, 3, 8, 8)  # of floats, which measuring would refuse
    given = {"images": images, "reference": images, **change}
    with pytest.raises(InputError, match=words):
        diffsteer.evaluate(**given)
    sets = {"a": given.pop("images"), "b": images}
    with pytest.raises(InputError, match=words):
        diffsteer.compare(sets, **given)


def test_images_of_pillow_become_a_tensor_as_the_error_says() -> None:
    images = torch.from_numpy(np.stack([Image.new("RGB", (8, 4), "red")] * 2)).permute(0, 3, 1, 2)
    assert images.shape == (2, 3, 4, 8) and images[0, :, 0, 0].tolist() == [255, 0, 0]


class Means:
    """An extractor of no class of ours."""

    origin = Origin("means", "rows", "none", "none")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((1, 3))


def test_extractors_and_paths_serve_by_what_they_offer(tmp_path: Path) -> None:
    images = torch.randint(256, (9, 3, 4, 4), dtype=torch.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    measured = diffsteer.evaluate(PurePath(tmp_path), images, extractor=Means(), resamples=0)
    assert measured[0].name == "FD-means" and abs(measured[0].value) < 1e-6
