"""Values from their text, and nothing else from any text."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffsteer import (
    APG,
    CFG,
    DDIM,
    DDPM,
    EDM,
    DPMpp2M,
    Flow,
    Guidance,
    Heun,
    Karras,
    MinSNR,
    Sampler,
    Schedule,
    UniPC,
    Weight,
    parse,
    ramp,
)
from diffsteer.core.errors import InputError
from diffsteer.core.sampler import NAMED


@pytest.mark.parametrize(
    "value",
    [DDIM(0.25), DPMpp2M(), UniPC(), Heun(), Heun(0.1, 0.05, 50.0, 1.003, EDM(0.01))],
    ids=repr,
)
def test_round_trip(value: Sampler) -> None:
    assert parse(repr(value), Sampler, Schedule) == value


@given(st.floats(0, 1))
def test_round_trip_of_every_eta(eta: float) -> None:
    assert parse(repr(DDIM(eta)), Sampler) == DDIM(eta)


def test_churn_by_its_names_of_the_last_version() -> None:
    new = Heun(0.1, s_min=0.05, s_max=50.0, s_noise=1.003)
    assert repr(new).startswith("Heun(gamma=0.1, s_min=0.05, s_max=50.0, s_noise=1.003, schedule=")
    with pytest.warns(DeprecationWarning, match="lo is s_min now"):
        assert parse("Heun(gamma=0.1, lo=0.05, hi=50.0, swell=1.003)", Sampler) == new


def test_short_forms() -> None:
    assert parse("DDIM", Sampler) == DDIM()
    assert parse(" DDIM(0.5) ", Sampler) == DDIM(0.5)
    assert parse("DDPM", Sampler, named=NAMED) == DDIM(eta=1.0)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "DDIM.__init__",
        "DDIM(eta=().__class__)",
        "[DDIM()]",
        "(lambda: DDIM())()",
        "DDIM(eta=9**9**9)",
        "DDIM(eta='x')",
        "DDIM(nope=1)",
        "DDIM() if 1 else 2",
        "print(1)",
        "EDM()",
        "1.0",
        "",
        "DDIM(",
        "DDIM()\x00",
        "(" * 500 + ")" * 500,
        "x" * 20_000,
        "-" * 2_000 + "1",
        "DDIM(eta=0.1,eta=0.2)",
        "'a'()",
        "DDPM()",
        5,
        f"DDIM(eta=0.{'0' * 20_000})",
        "DDIM(eta=True)",
        f"DDIM(eta={'4' * 400})",
        f"DDIM(eta=0x{'f' * 5000})",
        "DDIM(eta=0j)",
        "DDIM(eta=0*inf)",
        "Heun(gamma=0.1, s_max=None)",
        "Heun(schedule=Heun())",
        "DDIM(\ud800)",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text, Sampler, named=NAMED)


@pytest.mark.parametrize(
    "text",
    [
        "CFG(" + "4" * 400 + ")",
        "CFG(1e999)",
        "CFG(True)",
        "CFG('5')",
        "CFG(0*inf)",
        "True * CFG(2)",
        "'2' * CFG(2)",
        "inf * CFG(2)",
        "CFG(2).within('0.3')",
        "CFG(2).over(0.5, 2)",
        "CFG(2).over(0, " + "9" * 30 + ")",
        "CFG(2).rescaled(0.7, 1)",
        "CFG(2).rescaled(0.7, centred='x')",
        "SAG(1, kernel=True)",
        "SAG(1, layer=3)",
        "CFG(2)" + ".over(0, 9)" * 800,
        "CFG(2)" * 9,
        "(" * 60 + "CFG(2)" + ")" * 60,
        "2 * (" * 150 + "CFG(2)" + ")" * 150,
        "CFG(2)" + " + CFG(2)" * 900,
        "Clamped(" * 100 + ")" * 100,
        "-" * 900 + "1 * CFG(2)",
    ],
    ids=lambda text: text[:40],
)
def test_guidance_texts_have_bounds(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse(text, Guidance)
    assert len(str(error.value)) < 1000 and "\n" not in str(error.value)


def test_what_parses_can_be_printed_and_parsed_again() -> None:
    for text in ("CFG(2)" + ".over(0, 9)" * 300, "CFG(2)" + " + PAG(1)" * 100,
                 "2.0 * (" * 45 + "2.0 * CFG(2)" + ")" * 45):  # fmt: skip
        value = parse(text, Guidance)
        assert repr(value) == text and parse(repr(value), Guidance) == value
        assert len(list(value.parts())) > 40 and hash(value)


@given(st.text(max_size=60))
def test_any_text_parses_or_raises_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse(text, Sampler), Sampler)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("", ".over(0, 9)"),
        ("(", " + CFG(1)).over(0, 9)"),
        ("(CFG(1) + ", ").rescaled(0.5)"),
        ("2.0 * (", ")"),
        ("Scaled(", ", 2.0)"),
        ("", " + CFG(1)"),
    ],
)
def test_what_parses_can_be_printed_and_compared(start: str, end: str) -> None:
    """However deep; what is too deep is refused in a short line."""
    depths, refused = (1, 10, 30, 40, 60, 90, 150, 199, 300, 310, 400, 700), 0
    for depth in depths:
        text = start * depth + "CFG(3)" + end * depth
        try:
            value = parse(text, Guidance)
        except ValueError as error:
            refused += 1
            assert len(str(error)) < 500
        else:
            assert not refused
            assert repr(parse(repr(value), Guidance)) == repr(value)
            assert parse(text, Guidance) == value and len({value, parse(text, Guidance)}) == 1
    assert 0 < refused < len(depths)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("cfg(5)", Guidance, "unknown Guidance 'cfg' .did you mean 'CFG'"),
        ("CGF(1)", Guidance, "did you mean 'CFG'"),  # as near to ICG, but of the same letters
        ("Saag(1)", Guidance, "did you mean 'SAG'"),
        ("Magic(1)", Guidance, "'Magic'; there are ADG, APG, .* ramp, and your"),  # none of methods
        ("CFG(weight=5)", Guidance, r"unexpected keyword argument 'weight'; it is CFG\(scale\)"),
        ("PAG()", Guidance, r"missing .* it is PAG\(scale, layer='mid', "),
        ("CFG(5).withn(1)", Guidance, "unknown .withn .did you mean 'within'.*; there are clamped"),
        ("CFG 5", Guidance, "'CFG 5': invalid syntax: write it as CFG"),
        ("CFG++(0.6)", Guidance, r"unknown Guidance 'CFG\+\+' .did you mean 'CFGpp'"),
        ("SAG(1) + CFG-Zero*(4)", Guidance, r"'CFG-Zero\*' .did you mean 'CFGZero'"),
        ("Rectified-CFG++(ramp(4, 0))", Guidance, "did you mean 'RectifiedCFGpp'"),
        ("Auto-guidance", Guidance, "unknown Guidance 'Auto-guidance' .did you mean 'Auto'"),
        ("Autoguidance(2)", Guidance, "did you mean 'Auto'"),
        ("PAG+", Guidance, r"unknown Guidance 'PAG\+' .did you mean 'PAG'"),
        ("MAMBO-G(10)", Guidance, "did you mean 'MAMBO'"),
        ("S²-Guidance(0.2)", Guidance, "did you mean 'S2'"),
        ("Sliding window guidance(2)", Guidance, "did you mean 'SWG'"),  # of its docstring
        ("CFG(5)+", Guidance, "invalid syntax: write it as CFG"),  # no name is misspelled
        ("CFG(5) - PAG(3)", Guidance, r"Sub is not allowed here: write it as .* 0.5 \* PAG\(3\)"),
        ("CFG(5) * 2", Guidance, r"BinOp is not allowed here: write it as .* 0.5 \* PAG\(3\)"),
        ("CFGNrom(4)", Guidance, "did you mean 'CFGNorm'"),
        ("DPM++(2M)", Sampler, r"unknown Sampler 'DPM\+\+' .did you mean 'DPMpp2M'"),
        ("ddim", Sampler, "did you mean 'DDIM'"),
        ("DDPM(eta=1)", Sampler, r"DDPM is DDIM\(eta=1.0\) and takes no arguments"),
    ],
)
def test_a_mistake_names_what_may_be_meant(text: str, kind: type, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text, kind, named=NAMED if kind is Sampler else None)


@pytest.mark.parametrize(
    "number", [np.float64, np.float32, np.int64], ids=lambda kind: kind.__name__
)
def test_numbers_of_numpy_become_plain(number: Any) -> None:
    """Sweeps over `np.linspace` give them; their `repr` is no text of a number."""
    three = number(3)
    made = [CFG(three), three * CFG(3), CFG(3).within(0, three), CFG(ramp(1, three))]
    made += [CFG(3).over(0, np.int64(3)), APG(ramp(1, 3), three), CFG(3).clamped(three)]
    made += [Flow(three), Karras(three), EDM(0.01, three), MinSNR(three)]
    for value in made:
        assert "np." not in repr(value)
        kind = next(k for k in (Guidance, Schedule, Karras, Weight) if isinstance(value, k))
        assert parse(repr(value), kind) == value


def test_a_class_is_of_its_own_kind() -> None:
    assert parse("CFG(3)", CFG) == CFG(3)
    assert parse("Karras(3)", Karras) == Karras(3)
    assert parse("DDPM", Sampler) == DDPM
    for text, kind in (("PAG(3)", CFG), ("Guidance()", Guidance)):
        with pytest.raises(InputError, match="unknown"):
            parse(text, kind)
