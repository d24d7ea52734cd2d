"""The judge of critters: what it reads on renderings, and what its scores count."""

import pytest
import torch
from diffsteer_lab.critters import judge
from diffsteer_lab.critters.grammar import ATTRIBUTES, Critter, parse_caption
from diffsteer_lab.critters.images import Critters
from torch import Tensor

from diffsteer.metrics.scores import score_of

TRUE = Critter("purple", "three-eyed", "tower", "green", "antennae", "grinning", "orange")
BLANK = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)


class Blind:
    """A judge that reads the same critter from any image."""

    def read(self, images: Tensor) -> list[Critter]:
        return [TRUE] * len(images)


def test_scores_count_the_attributes_that_the_prompt_names(monkeypatch):
    monkeypatch.setattr(judge, "judge", Blind)
    prompts = [
        TRUE.caption,
        TRUE._replace(eyes="one-eyed", body="red").caption,
        "an angry critter with antennae",
    ]
    assert judge.right(BLANK, prompts)[2].nan_to_num(-1).tolist() == [-1, 0, -1, -1, 1, -1, -1]
    torch.testing.assert_close(judge.obedience(BLANK, prompts), torch.tensor([1, 5 / 7, 1 / 2]))
    assert judge.all_right(BLANK, prompts).tolist() == [1, 0, 0]


def test_colours_are_judged_where_they_belong(monkeypatch):
    """A prompt with body and background exchanged is wrong in both."""
    monkeypatch.setattr(judge, "judge", Blind)
    exchanged = TRUE._replace(body="orange", background="purple").caption
    assert judge.right(BLANK[:1], [exchanged]).sum() == 5


def test_prompts_that_cannot_be_judged_are_refused():
    with pytest.raises(ValueError, match="red apple.*no caption of a critter"):
        judge.obedience(BLANK[:1], ["red apple"])
    with pytest.raises(ValueError, match="'a critter' names no attribute"):
        judge.all_right(BLANK[:1], ["a critter"])
    with pytest.raises(ValueError, match="argument"):
        judge.obedience(BLANK, ["a red critter"])


def test_scores_are_named_as_users_name_them():
    score = score_of("diffsteer_lab.critters.judge:obedience")
    assert score(BLANK, ["a critter on a black background"] * 3).tolist() == [1, 1, 1]
    assert score(255 - BLANK, ["a critter on a black background"] * 3).tolist() == [0, 0, 0]


@pytest.fixture(scope="module")
def renderings() -> tuple[Tensor, list[str]]:
    pytest.importorskip("dicebear")
    source = Critters("test", 96, seed=12)  # seeds 101 and 102 trained and measured the judge
    samples = [source[i] for i in range(len(source))]
    return torch.stack([s.pixels for s in samples]), [s.caption for s in samples]


def test_it_reads_held_out_renderings(renderings):
    images, prompts = renderings
    assert judge.obedience(images, prompts).mean() > 0.97
    assert judge.all_right(images, prompts).mean() > 0.85


def test_a_wrong_attribute_is_seen_and_grain_is_not(renderings):
    images, prompts = renderings
    right = judge.right(images, prompts).mean(0)
    for i, (name, words) in enumerate(ATTRIBUTES.items()):
        critters = [parse_caption(p) for p in prompts]
        other = {c: words[(words.index(getattr(c, name)) + 1) % len(words)] for c in critters}
        wrong = [c._replace(**{name: other[c]}).caption for c in critters]
        assert judge.right(images, wrong).mean(0)[i] < 0.1
    draw = torch.Generator().manual_seed(0)
    noisy = images + 4 * torch.randn(images.shape, generator=draw)
    noisy = noisy.round().clamp(0, 255).to(torch.uint8)
    assert (judge.right(noisy, prompts).mean(0) - right).abs().max() < 0.06
