"""Critters: captions of the grammar, the split by combinations, rendering, and the data source."""

import sys
from itertools import product

import pytest
import torch
from diffsteer_lab.critters import images
from diffsteer_lab.critters.grammar import (
    ATTRIBUTES,
    BACKGROUNDS,
    HELD_OUT,
    Critter,
    parse_caption,
)
from diffsteer_lab.critters.images import JITTER, Critters

from diffsteer.train.registry import source_of
from diffsteer.train.settings import Data
from diffsteer.train.stream import contents

FULL = Critter("purple", "three-eyed", "tower", "green", "antennae", "grinning", "orange")


def test_a_caption_names_the_attributes_and_is_read_back_whichever_are_left_out():
    text = (
        "a purple three-eyed tower critter with green antennae, grinning, on an orange background"
    )
    assert FULL.caption == text
    for kept in product((True, False), repeat=7):
        some = Critter(*(word if keep else "" for word, keep in zip(FULL, kept, strict=True)))
        if some.accent and not some.top:
            with pytest.raises(ValueError, match="name a top"):
                _ = some.caption
        else:
            assert parse_caption(some.caption) == some


def test_every_word_is_read_back_with_its_article():
    for name, words in ATTRIBUTES.items():
        for word in words:
            critter = FULL._replace(**{name: word})
            assert parse_caption(critter.caption) == critter
            alone = Critter(**{"top": "horns"} | {name: word})
            assert parse_caption(alone.caption) == alone
    assert Critter(eyes="one-eyed").caption == "a one-eyed critter"
    assert Critter(eyes="angry", accent="orange", top="a spike").caption == (
        "an angry critter with an orange spike"
    )


def test_prompts_are_read_as_people_write_them():
    issue = "a purple three-eyed critter with antennae, grinning, on an orange background"
    assert parse_caption(issue) == FULL._replace(shape="", accent="")
    assert parse_caption(" An ANGRY critter on a  black background. ") == Critter(
        eyes="angry", background="black"
    )


@pytest.mark.parametrize("text", ["", "a red apple", "a critter with wings", "a green red critter"])
def test_a_prompt_outside_of_the_grammar_is_refused_with_the_vocabulary(text):
    with pytest.raises(ValueError, match="three-eyed.*floppy ears.*toothy"):
        parse_caption(text)


def test_the_splits_share_no_held_out_pair_and_each_pair_is_one_of_eight():
    train, test = Critters("train", images=400), Critters("test", images=400)
    assert not any(train.critter(i).held_out for i in range(400))
    assert all(test.critter(i).held_out for i in range(400))
    assert all(len(pairs) == 8 for pairs in HELD_OUT.values())
    # A pair of shape and top, and of eyes and mouth, is held out with probability 1/8 each; of
    # body and background with 1/9, as they never have one colour.
    share = 1 - (7 / 8) ** 2 * (8 / 9)
    every = Critters("all", images=2000)
    held = sum(every.critter(i).held_out for i in range(2000)) / 2000
    assert abs(held - share) < 4 * (share * (1 - share) / 2000) ** 0.5


def test_images_are_a_function_of_split_seed_and_index():
    source = Critters("test", images=50)
    assert source.caption(0) == Critters("test", images=10).caption(0)
    assert source.caption(0) == (
        "a red sleepy squat critter with pink pointed ears, smiling, on a white background"
    )
    other = Critters("test", images=50, seed=1)
    assert sum(source.caption(i) == other.caption(i) for i in range(50)) == 0
    for i in range(50):
        critter = source.critter(i)
        assert len({critter.body, critter.accent, critter.background}) == 3
    with pytest.raises(IndexError):
        source[50]


def test_training_captions_leave_parts_out_and_the_image_stays():
    partial = Critters(images=500, partial=0.2)
    whole = Critters(images=500)
    fewer = [i for i in range(500) if partial.caption(i) != whole.caption(i)]
    assert 60 < len(fewer) < 140
    for i in fewer:
        named = parse_caption(partial.caption(i))
        pairs = zip(named, whole.critter(i), strict=True)
        assert all(word in ("", true) for word, true in pairs)


def test_settings_that_mean_nothing_are_refused():
    for kwargs, match in (
        ({"split": "valid"}, "choose from"),
        ({"label": "colour"}, "choose from .*accent"),
        ({"images": 0}, "images >= 1"),
        ({"size": 8}, "size in 16"),
        ({"partial": 2}, "partial in"),
    ):
        with pytest.raises(ValueError, match=match):
            Critters(**kwargs)
    with pytest.raises(ValueError, match="group='a' is of the emoji, not of critters"):
        source_of(Data("critters", group="a"))
    with pytest.raises(ValueError, match="images=9 is of the critters, not of emoji"):
        source_of(Data("emoji", images=9))
    with pytest.raises(ValueError, match="data.seed=-1"):
        Data("critters", seed=-1)


def test_the_trainer_opens_them_by_name():
    source = source_of(Data("critters", "test", images=7, seed=3, label="eyes", size=32))
    assert source == Critters("test", 7, 3, "eyes", 32)
    assert source.caption(0) == source.critter(0).eyes
    assert source_of(Data("critters")) == Critters(partial=images.PARTIAL)


def test_a_renderer_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    images._renderer.cache_clear()
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ValueError, match=r"resvg_py.*diffsteer-lab\[critters\]"):
        Critters()[0]
    assert Critters().caption(0)


def test_what_is_drawn_has_the_colours_of_the_caption():
    pytest.importorskip("dicebear")
    source = Critters("all", images=60)
    for i in range(20):
        critter, pixels = source.critter(i), source[i].pixels.int()
        body = BACKGROUNDS[critter.body]
        background = torch.tensor(BACKGROUNDS[critter.background])
        corner = pixels[:, 2, 1]
        slack = 0 if critter.background in ("black", "white") else JITTER
        assert (corner - background).abs().max() <= slack
        # the largest patch of one colour in the middle of the body is the body's
        patch = pixels[:, 50:60, 24:40].flatten(1).median(1).values
        assert (patch - torch.tensor(body)).abs().max() <= 45  # a pattern shines through
    assert torch.equal(source[7].pixels, Critters("all", images=60)[7].pixels)
    assert source[0].pixels.shape == (3, 64, 64)
    assert Critters("all", size=32)[0].pixels.shape == (3, 32, 32)


def test_a_run_does_not_go_on_with_another_number_or_seed():
    pytest.importorskip("dicebear")
    prints = [
        contents(Critters(images=n, seed=seed))["contents"]["pictures"]
        for n, seed in ((20, 0), (20, 0), (21, 0), (20, 1))
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 3
