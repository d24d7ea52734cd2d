"""Backgrounds are told from the corners, whatever stands in the middle."""

import torch
from diffsteer_lab.emoji import BACKGROUNDS, Emoji

from diffsteer.metrics.background import corners, errors


def test_corners_are_the_median_of_four() -> None:
    pictures = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    pictures[0, :, 8:56, 8:56] = 0
    pictures[0, :, :4, :4] = 0  # one corner of four, covered
    assert corners(pictures).tolist() == [[200, 200, 200]]
    assert errors(pictures, [(200, 190, 215)]).tolist() == [25 / 3]


def test_real_pictures_have_the_background_that_they_are_said_to_have() -> None:
    """But for some emoji that fill corners, 591 of these 600."""
    source = Emoji("all")
    picks = range(0, len(source), 37)
    pictures = torch.stack([source[i].pixels for i in picks])
    said = [source[i].caption.split("on a ")[1].removesuffix(" background") for i in picks]
    names, colours = list(BACKGROUNDS), torch.tensor(list(BACKGROUNDS.values())).double()
    nearest = torch.cdist(corners(pictures), colours).argmin(1).tolist()
    assert sum(names[n] == name for n, name in zip(nearest, said, strict=True)) >= 591
