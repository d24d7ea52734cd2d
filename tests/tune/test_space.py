"""Text of a search space, and the recipes in it."""

from dataclasses import replace

import pytest
from optuna.trial import FixedTrial

from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe
from diffsteer.tune.space import Choice, Range, Space

BASE = Recipe(model="critters", steps=25)


def test_names_become_numbers_and_fields() -> None:
    space = Space.parse(
        "CFG(w).within(lo, hi) + SAG(s, sigma=2.0), w=1..8, s=0..1:0.25, lo=0.1..1 log, "
        "hi=2..20 log, steps=8..30, sampler=DDIM()|UniPC()"
    )
    assert space.variables["w"] == Range(1, 8)
    assert space.variables["s"] == Range(0, 1, step=0.25)
    assert space.variables["lo"] == Range(0.1, 1, log=True)
    assert space.variables["steps"] == Range(8, 30, whole=True)
    assert space.variables["sampler"] == Choice(("DDIM()", "UniPC()"))
    values = {"w": 3.0, "s": 0.5, "lo": 0.2, "hi": 9.0, "steps": 12, "sampler": "UniPC()"}
    recipe = space.recipe(BASE, values)
    assert recipe.guidance.startswith("CFG(3.0).within(0.2, 9.0) + SAG(0.5, ")
    assert "sigma=2.0" in recipe.guidance
    assert (recipe.steps, recipe.sampler, recipe.model) == (12, "UniPC()", "critters")


def test_steps_that_guide_are_whole_numbers() -> None:
    space = Space.parse("CFG(w).over(a, b), w=1..8, a=0..4, b=5..9")
    assert space.variables["a"] == Range(0, 4, whole=True)
    assert space.variables["b"] == Range(5, 9, whole=True)
    assert space.variables["w"] == Range(1, 8)
    assert "over(2, 7)" in next(iter(space.examples(BASE))).guidance


def test_a_field_alone_and_guidances_in_turn() -> None:
    alone = Space.parse("steps=4..8, strength=0..1, refiner=none|critters-refiner")
    assert [recipe.steps for recipe in alone.examples(BASE)] == [6]
    assert alone.variables["refiner"] == Choice(("", "critters-refiner"))
    turn = Space.parse("CFG(w) | PAG(p, layer='mid'), w=1..3, p=1..3")
    texts = [recipe.guidance for recipe in turn.examples(BASE)]
    assert len(texts) == 2 and texts[0].startswith("CFG(2") and texts[1].startswith("PAG(2")


def test_a_guide_goes_with_the_guidance_that_asks_it() -> None:
    turn = Space.parse("CFG(ramp(a, b)) | Auto(w), a=1..2, b=2..4, w=1..2")
    found = [(r.guidance, r.guide) for r in turn.examples(replace(BASE, guide="critters-guide"))]
    assert found == [("CFG(ramp(1.5, 3.0))", ""), ("Auto(1.5)", "critters-guide")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("CFG(w)", "w in 'CFG.w.' has no range"),
        ("CFG(3), w=1..2", "w is no name in a guidance"),
        ("CFG(w), w=1..2, step=4..8", "did you mean 'steps'"),
        ("CFG(w), w=2..1", "lower one first"),
        ("CFG(w), w=1..2, w=3..4", "two ranges"),
        ("CFG(w), w=0..1 log", "log needs numbers > 0"),
        ("CFG(w), w=1..x", "w=1..x is no range: write"),
        ("CFG(w), w=1..8:0", r"the step must be in \]0, 7\]"),
        ("CFG(w), w=1..8:9", r"the step must be in \]0, 7\]"),
        ("CFG(w), w=1|2|", "empty choice"),
        ("CFG(2), steps=1.5..3.5", "steps takes whole numbers, got 1.5..3.5"),
        ("CFG(2), sampler=DDIM()|Nope()", "unknown Sampler 'Nope'"),
        ("CFG(w, w=1..2", "is no guidance"),
        ("CFG(2) | PAG(p)", "p in 'PAG.p.' has no range"),
        ("CFG(2), zero_snr=true|yes", "zero_snr takes \"true|false\", got 'yes'"),
        ("", "varies nothing"),
        ("CFG(2)", "varies nothing"),
        ("CFG(w), w=1..1e400", "write two numbers"),
        ("CFG(w), w=e..5", "w=e..5 has no numbers at its ends: write 1..8"),
        ("CFG(2), steps=8|many", "steps takes whole numbers, got 'many'"),
    ],
)
def test_what_is_wrong_is_said(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Space.parse(text)


@pytest.mark.parametrize(
    "text", ["CFG(w), w=1|2|x", "CFG(w), w=1\u20138", "CFG(2) | PAG(p), p=1|y"]
)
def test_choices_of_numbers_are_tried(text: str) -> None:
    with pytest.raises(InputError, match="[wp]=|is no guidance"):
        Space.parse(text).require_each(BASE, lambda recipe: None)


def test_no_guidance_is_a_choice() -> None:
    space = Space.parse("none | CFG(w), w = 1 .. 3")
    base = replace(BASE, guidance="PAG(2)")
    assert [recipe.guidance for recipe in space.examples(base)] == ["", "CFG(2.0)"]


def test_a_guidance_that_does_not_parse_is_refused_with_the_first_recipe() -> None:
    with pytest.raises(InputError, match="unknown Guidance .CGF"):
        list(Space.parse("CGF(w), w=1..2").examples(BASE))
    with pytest.raises(InputError, match="within"):
        Space.parse("CFG(2).within(a, b), a=1.0..9.0, b=1.0..9.0").recipe(BASE, {"a": 5, "b": 2})


def test_a_trial_chooses_a_guidance_and_what_belongs_to_it() -> None:
    text = "CFG(w) | PAG(p), w=1..3, p=1..3, sampler=none|DDIM()"
    for guidance, name in (("CFG(w)", "w"), ("PAG(p)", "p")):
        trial = FixedTrial({"guidance": guidance, name: 2.5, "sampler": "DDIM()"})
        values = Space.parse(text).suggest(trial)  # type: ignore[arg-type]
        assert values == {"guidance": guidance, name: 2.5, "sampler": "DDIM()"}
