"""Recipes: one hash, files of both kinds, prompts by seed, sweeps."""

import json
import shlex
import zlib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffsteer import CFG, UniPC
from diffsteer.core.errors import InputError
from diffsteer.generate.base import Generator
from diffsteer.generate.generator import open_generator
from diffsteer.generate.options import ADMOptions
from diffsteer.generate.recipe import KEY, Recipe, read, recipe_of_png
from diffsteer.io.hashing import differences
from diffsteer.io.images import Pictures
from diffsteer.io.seeds import format_seeds, parse_seeds, prompts_of
from diffsteer.metrics.image_sets import seeds_in

CAT = Recipe("some/model", prompt="a cat", guidance="CFG({w})", sampler="UniPC()", steps=3)


def test_every_field_is_in_the_hash() -> None:
    others: dict[str, object] = {"options": ADMOptions(label=3)}
    others |= {"sampler": "DDIM()", "spacing": "karras", "zero_snr": True, "prompt": "a dog"}
    others |= {"lora": ("x",), "settings": ("x=1",)}
    others |= {"num_frames": 7, "audio_seconds": 7.0, "fps": 7}
    others |= {"strength": 7.0, "dtype": "float16", "offload": "group"}
    changed = {f.name: others.get(f.name, 7 if f.type == "int" else "x") for f in fields(Recipe)}
    changed["steps"] = changed["width"] = changed["height"] = 7
    hashes = {replace(CAT, **{k: v}).hash for k, v in changed.items() if k != "prompts"}
    hashes |= {CAT.hash, replace(CAT, prompt="", prompts=("a cat", "b")).hash}
    assert len(hashes) == len(fields(Recipe)) + 1
    assert replace(CAT).hash == CAT.hash
    assert CAT.hash == (  # as files hold it
        "7934190590927de4a2dbefe808048437a78eaa6f1d47bfc83742361fc25812f8"
    )


def test_a_seed_shows_its_prompt() -> None:
    many = replace(CAT, prompt="", prompts=("a", "b", "c"))
    assert [many.for_seed(seed).prompt for seed in (0, 4, 8)] == ["a", "b", "c"]
    assert many.for_seed(4) == replace(CAT, prompt="b") and CAT.for_seed(4) == CAT


@pytest.mark.parametrize("field", ["prompt", "negative", "prompts"])
def test_half_a_character_is_no_prompt(field: str) -> None:
    """As Python reads what a terminal of another encoding sends; tokenizers raise a TypeError."""
    text = "caf\udce9"
    with pytest.raises(InputError, match="holds no UTF-8"):
        Recipe(**{field: (text,) if field == "prompts" else text})


def test_one_text_is_no_list_of_texts() -> None:
    with pytest.raises(InputError, match=r"lora must be a list of texts, got one: \['a.safet"):
        Recipe("m", lora="a.safetensors")  # type: ignore[arg-type]


def test_a_command_repeats_options_that_are_given_several_times() -> None:
    recipe = Recipe(model="m", lora=("a:0.5", "b"), settings=("eta=0.5",), zero_snr=True,
                    sampler="DDIM()", prompt="a cat's")  # fmt: skip
    words = shlex.split(recipe.command())
    assert [w for flag, w in pairwise(words) if flag == "--lora"] == ["a:0.5", "b"]
    assert [w for flag, w in pairwise(words) if flag == "--set"] == ["eta=0.5"]
    assert "--zero-snr" in words and "a cat's" in words


def test_a_sweep_fills_the_guidance() -> None:
    assert [r.guidance for r in CAT.sweep([1, 1.23456789])] == ["CFG(1)", "CFG(1.23456789)"]
    assert replace(CAT, guidance="CFG(2)").sweep([1, 2]) == [replace(CAT, guidance="CFG(2)")]


def test_json_is_read_with_prompts_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n", "utf-8")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"model": "m", "prompts": "prompts.txt", "steps": 5}))
    assert read(path) == Recipe("m", prompts=("a cat", "a dog"), steps=5)
    path.write_text(json.dumps({"model": "m", "prompts": ["x", "y"]}))
    assert read(path) == Recipe("m", prompts=("x", "y"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "holds a JSON list, not an object"),
        ('{"model": "m", "step": 5}', "has no setting 'step': there are .* steps"),
        ('{"model": "m", "steps": "5"}', "steps must be a whole number, got '5'"),
        ('{"model": "m", "zero_snr": 1}', "zero_snr must be True or False, got 1"),
        ('{"model": "m", "prompts": [1]}', "prompts must be a text, got 1"),
        ('{"model": "m", "options": 5}', "recipe.json: options must be a table, got 5"),
        ('{"model": "m", "prompts": 5}', "prompts must be a list, got 5"),
        ('{"model": "m", "prompts": null}', "prompts must be a list, got None"),
        ('{"model": "m", "width": -8}', "recipe.json: -8 x 0 pixels"),
        ('{"model": "m", "steps": 0}', "recipe.json: 0 steps"),
        ('{"model": "m", "width": 1000000000}', "1000000000 x 0 pixels: an image has at most"),
        ('{"model": "m", "prompt": "a", "prompts": ["b"]}', "leave one of them out"),
    ],
)
def test_bad_json_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_bad_files_are_named(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    for text, message in (("a\n\nb\n", "line 2 is empty"), ("", "it is empty")):
        prompts.write_text(text)
        with pytest.raises(ValueError, match=f"prompts.txt: {message}"):
            prompts_of(prompts)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png holds no recipe"):
        read(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"b.png is no readable image"):
        read(tmp_path / "b.png")


@given(st.sets(st.integers(0, 60), min_size=1))
def test_seeds_are_spelled_as_they_are_read(seeds: set[int]) -> None:
    assert parse_seeds(format_seeds(list(seeds))) == sorted(seeds)


def test_differences_are_said() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3}) == "b was 2 and is 3"
    assert len(differences({"a": "x" * 500}, {})) < 120


def test_files_of_other_editors_read_the_same(tmp_path: Path) -> None:
    """A byte order mark and CRLF; only line feeds end a prompt, not every separator of Unicode."""
    path = tmp_path / "recipe.json"
    path.write_bytes(b'\xef\xbb\xbf{"model": "m",\r\n"prompts": "prompts.txt"}')
    (tmp_path / "prompts.txt").write_bytes("\ufeffa cat\r\na\u2028dog\x0b\x85".encode())
    assert read(path).prompts == ("a cat", "a\u2028dog\x0b\x85")
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="prompts.txt is no UTF-8 text"):
        read(path)


@pytest.mark.parametrize(
    "text",
    ["{", '{"seed": 3}', '{"seed": 3, "recipe": null}', '{"seed": "3", "recipe": {}}',
     '{"seed": [3], "recipe": {}}', '{"seed": 3, "recipe": {}, "options": [1]}'],
)  # fmt: skip
def test_a_changed_recipe_in_a_picture_names_the_file(tmp_path: Path, text: str) -> None:
    said = PngInfo()
    said.add_text(KEY, text)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=said)
    with pytest.raises(ValueError, match=r"a\.png: its recipe was changed"):
        recipe_of_png(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: its recipe was changed"):
        seeds_in(Pictures.at(tmp_path))


def test_ranges_that_fall_and_numbers_over_64_bits_are_no_seeds() -> None:
    """Among other parts, a range that falls would be left out without a word."""
    assert parse_seeds(str(2**64 - 1)) == [2**64 - 1] and parse_seeds("0 - 1, 3") == [0, 1, 3]
    odd = ("1_0", "٣", "0-1_0", "+1", "1-2-3")  # of which int reads some
    for text in ("5-3", "5-3,7", str(2**64), f"0,{2**64}", "9" * 5000, "-1", "", *odd):
        with pytest.raises(InputError, match="are no seeds"):
            parse_seeds(text)
    for text in (f"0-{2**64 - 1}", "0-2999999,4000000-6999999"):
        with pytest.raises(InputError, match="take at most 5000000 at a time"):
            parse_seeds(text)


def test_numbers_of_json_serve_for_floats_and_truth_values_do_not(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"model": "m", "strength": 1}')
    assert read(path) == Recipe("m", strength=1.0) and type(read(path).strength) is float
    path.write_text('{"model": "m", "strength": true}')
    with pytest.raises(InputError, match="strength must be a number, got True"):
        read(path)
    path.write_text('{"model": "m", "steps": 5.0}')
    with pytest.raises(InputError, match=r"steps must be a whole number, got 5\.0"):
        read(path)


@pytest.mark.parametrize("width", [100_000, 2**31 - 1])
@pytest.mark.parametrize("read_one", [read, recipe_of_png])
def test_a_png_that_claims_a_vast_size_is_refused(
    tmp_path: Path, width: int, read_one: Callable[[Path], object]
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = width.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.png is too large"):
        read_one(tmp_path / "a.png")


def test_values_of_python_become_those_of_files(tmp_path: Path) -> None:
    """Or a recipe fails where it is written, after its images were made."""
    made = Recipe(
        *(Path("m"), "a cat"),
        **{"guidance": CFG(np.float32(3)), "sampler": UniPC(), "refiner": Path("r")},
        **{"steps": np.int64(3), "strength": 2, "dtype": torch.float16, "lora": [Path("l")]},
    )
    text = Recipe("m", "a cat", guidance="CFG(3.0)", sampler="UniPC()", refiner="r", steps=3,
                  strength=2.0, dtype="float16", lora=("l",))  # fmt: skip
    assert made == text and made.hash == text.hash and repr(made) == repr(text)
    (tmp_path / "r.json").write_text(json.dumps(made.to_json()), "utf-8")
    assert read(tmp_path / "r.json") == made


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 2.0},
        {"prompt": None},
        {"dtype": "bf16"},
        {"zero_snr": 1},
        {"guidance": CFG},
        {"prompt": ("a",)},
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_where_it_is_given(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(values))} must be "):
        Recipe("m", **values)


def test_a_generator_takes_seeds_of_any_library_until_it_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Zeros(Generator):
        def sampled(self, seeds: Sequence[int]) -> torch.Tensor:
            assert all(type(seed) is int for seed in seeds)
            return torch.zeros(len(seeds), 3, 1, 1)

        def rehearse(self) -> None: ...

    recipe = Recipe("critters", prompt="a cat")
    opener = contextmanager(lambda *_: iter([Zeros(recipe, "")]))
    monkeypatch.setattr("diffsteer.generate.pipelines.open_pipeline", opener)
    monkeypatch.setattr("diffsteer.generate.generator.require_consistent", lambda _: None)
    with open_generator(recipe, "cpu") as generate:
        for seeds in (np.arange(2), torch.arange(2), range(2), iter([0, 1])):
            assert len(generate(seeds)) == 2
        for bad in ([-1], [0.5], [], 0, "0-3"):
            with pytest.raises(InputError, match="are no seeds"):
                generate(bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="this generator is closed"):
        generate([0])


@pytest.mark.parametrize("given", ["critters", {"model": "critters"}], ids=str)
def test_a_name_is_no_recipe(given: Any) -> None:
    with pytest.raises(InputError, match="is no recipe: give one"), open_generator(given):
        pass
