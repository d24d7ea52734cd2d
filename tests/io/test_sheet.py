"""Contact sheets: every image is whole at its place, every label is there."""

import numpy as np
import pytest
from PIL import Image

from diffsteer.io.sheet import GAP, LABEL, LINE, sheet

LONG = (
    "an owl in the style of a very old woodcut on a background of deep purple, framed in gold " * 3
)


@pytest.mark.parametrize("size", [(8, 8), (64, 32), (300, 200)])
@pytest.mark.parametrize("rows", [(), ("first", LONG)])
def test_images_are_whole_and_labels_beside_them(size: tuple[int, int], rows: tuple[str]) -> None:
    images = [[Image.new("RGB", size, (200, 40 * x, 90 * y)) for x in range(3)] for y in range(2)]
    made = np.asarray(sheet(images, ["CFG", LONG, ""], rows))
    for row in images:
        for image in row:
            colour = np.array(image.getpixel((0, 0)))
            assert (made == colour).all(axis=2).sum() == size[0] * size[1]
    text = (made < 100).all(axis=2)
    assert text[: LINE + GAP, LABEL if rows else 0 :].any()
    assert not rows or text[made.shape[0] * 2 // 3 :, :LABEL].any()


def test_a_row_may_be_short_and_labels_missing() -> None:
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    made = sheet([[red, red], [blue]], ["", ""])
    assert made.size == (2 * 8, 2 * 8 + GAP)
