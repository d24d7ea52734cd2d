"""Scores that ship: parity with transformers and torch, and which weights judged, kept apart."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from test_layers import HEAVY, loaded_after
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from diffsteer import parse
from diffsteer.cli.refine import targets
from diffsteer.core.errors import InputError
from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.metrics.best_of_n import scored
from diffsteer.metrics.preference import INNER, NORMS, OUTER, PROJECTIONS, HPSv2
from diffsteer.metrics.scores import Aesthetic, CLIPScore, Scorer, _chain, name_of, score_of
from diffsteer.train.refiner.targets import Targets

PROMPTS = ["owl", "a small red cat", "dog"]
LONG = "so many words that the model knows no place for them"
WIDTH = 12


def random_pictures(n: int, height: int = 40, width: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def saved(folder: Path, seed: int = 0, end: int = 189) -> CLIPModel:
    """A CLIP with random weights, whose tokenizer spells; 16 tokens at most."""
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2, "projection_dim": WIDTH}
    text = {"vocab_size": 190, "max_position_embeddings": 16, "bos_token_id": 188}
    config = CLIPConfig(
        text_config={**size, **text, "eos_token_id": end, "pad_token_id": 189},
        vision_config={**size, "image_size": 30, "patch_size": 15},
        projection_dim=WIDTH,
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    tiny.tokenizer(folder).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    saved(folder)
    return folder


def chain(*widths: int, gaps: int = 2) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """Linear layers, and their state dict as that of a predictor with dropout between most."""
    torch.manual_seed(1)
    layers = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    numbers = [*range(0, gaps * (len(layers) - 1), gaps)]
    numbers.append(numbers[-1] + gaps - 1)  # none before the last
    state = {
        f"layers.{number}.{part}": value.detach()
        for number, layer in zip(numbers, layers, strict=True)
        for part, value in layer.named_parameters()
    }
    return nn.Sequential(*layers), state


# ------------------------------------------------------------------ CLIP score


@pytest.mark.parametrize("end", [189, 2], ids=["end as the tokenizer's", "old config"])
def test_clip_score_is_what_transformers_says(tmp_path: Path, end: int) -> None:
    """100 times logits over their scale; cosines in float32, hence 1e-4 of 100."""
    model = saved(tmp_path, end=end)
    pictures = random_pictures(3, 40, 56)
    for prompts in (PROMPTS, ["owl", LONG, "dog"]):
        with torch.no_grad():
            out = model(**processed(tmp_path, pictures, prompts))
            cosine = (out.logits_per_image / model.logit_scale.exp()).diagonal()
        found = CLIPScore(str(tmp_path), device="cpu")(pictures, prompts)
        torch.testing.assert_close(found, 100 * cosine, atol=1e-4, rtol=0)
        assert found.std() > 0.1


def test_a_prompt_scores_the_same_alone_and_beside_longer_ones(clip: Path) -> None:
    """Which fails where the embedding is that of padding."""
    score, pictures = CLIPScore(str(clip), device="cpu"), random_pictures(3)
    together = score(pictures, ["owl", LONG, PROMPTS[1]])
    alone = score(pictures[:1], ["owl"])
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        score(pictures, ["owl", "dog"])
    with pytest.raises(ValueError, match="give uint8"):
        score(pictures / 255, PROMPTS)


def test_clip_weights_that_would_judge_by_chance_are_refused(clip: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "deeper")
    config = json.loads((tmp_path / "deeper/config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "deeper/config.json").write_text(json.dumps(config))
    model.save_pretrained(tmp_path / "wordless")
    saved(tmp_path / "other end", end=7)
    for folder, message in (
        ("deeper", "would be random"),
        ("wordless", "the tokenizer knows 2 and ends them at 2"),
        ("other end", "ends texts at 7, the tokenizer knows 190 and ends them at 189"),
    ):
        with pytest.raises(ValueError, match=message):
            CLIPScore(str(tmp_path / folder), device="cpu")(random_pictures(1), ["owl"])


# ------------------------------------------------------------------ aesthetic


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("widths", [(WIDTH, 20, 9, 8, 4, 1), (WIDTH, 1)], ids=["five", "one"])
def test_aesthetic_is_the_chain_on_the_unit_embedding(
    clip: Path, tmp_path: Path, name: str, widths: tuple[int, ...]
) -> None:
    """Read in any order of the names, in which layers.10 comes before layers.2."""
    layers, state = chain(*widths) if len(widths) > 2 else (nn.Linear(*widths), {})
    state = state or dict(layers.state_dict())
    if "layers.0.weight" in state:
        assert [k for k in state if "bias" in k][-2:] == ["layers.6.bias", "layers.7.bias"]
    mixed = dict(sorted(state.items(), reverse=True))
    save = save_file if name.endswith("safetensors") else torch.save
    save(mixed, tmp_path / name)
    score, pictures = Aesthetic(str(tmp_path / name), str(clip), device="cpu"), random_pictures(3)
    with torch.no_grad():
        model = CLIPModel.from_pretrained(clip)
        want = layers(model(**processed(clip, pictures, PROMPTS)).image_embeds)[:, 0]
    torch.testing.assert_close(score(pictures, [""] * 3), want, atol=1e-6, rtol=1e-6)
    save({n: w + 1 for n, w in mixed.items()}, tmp_path / f"other-{name}")
    other = Aesthetic(str(tmp_path / f"other-{name}"), str(clip), device="cpu")
    assert score.digest != other.digest and name_of(score, "").endswith(score.digest)
    assert want.std() > 1e-3


def test_layers_without_numbers_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Any order of square ones fits; a set's is another one in each process."""
    names = [f"part_{letter}" for letter in "hfadcegb"]
    state = {f"{name}.{part}": w.detach() for name in names
             for part, w in nn.Linear(4, 4).named_parameters()}  # fmt: skip
    state |= {f"out.{part}": w.detach() for part, w in nn.Linear(4, 1).named_parameters()}
    layers = _chain(state, "a.pth")
    for name, layer in zip([*names, "out"], layers, strict=True):
        assert torch.equal(layer.weight, state[f"{name}.weight"])


def test_files_that_are_no_predictor(clip: Path, tmp_path: Path) -> None:
    five, one = chain(WIDTH, 9, 1)[1], dict(nn.Linear(WIDTH, 1).state_dict())
    broken: list[tuple[Any, str]] = [
        ({**five, "layers.1.bias": torch.zeros(2)}, r"'layers.0.weight': \(9, 12\)"),
        (chain(WIDTH, 9, 2)[1], "the last one number"),
        ({k: v for k, v in five.items() if "0.bias" not in k}, "no linear layers"),
        ({**five, "layers.0.weight": torch.zeros(8, WIDTH)}, "takes what the one before gives"),
        (one | {"x": torch.zeros(1)}, r"'x': \(1,\)"),
        (chain(WIDTH, 9, 4, 1, gaps=3)[1], "layers.0., layers.3., layers.5.: .* ReLU"),
        ({"layers": five}, "save what is under 'layers' alone"),
        ([1.0], "not tensors by name"),
        (dict(nn.Linear(7, 1).state_dict()), "embeddings of 7 numbers, .* gives 12"),
    ]
    for held, message in broken:
        torch.save(held, tmp_path / "a.pth")
        with pytest.raises(ValueError, match=message):
            Aesthetic(str(tmp_path / "a.pth"), str(clip), device="cpu")(random_pictures(1), [""])
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="no file of safetensors"):
        Aesthetic(str(tmp_path / "b.safetensors"), str(clip), device="cpu").digest  # noqa: B018
    with pytest.raises(FileNotFoundError, match="is no file"):
        Aesthetic(str(tmp_path), str(clip), device="cpu")(random_pictures(1), [""])


# ------------------------------------------------------------------ by their text


def test_scores_are_known_by_their_text() -> None:
    for score in (CLIPScore("a/b"), Aesthetic("a.pth", clip="a/b", device="cpu")):
        assert parse(repr(score), Scorer) == score and "device" not in repr(score)
    assert score_of('Aesthetic("a.pth", "b")', "cuda:1") == Aesthetic("a.pth", "b")
    assert score_of('CLIPScore("a")', "cuda:1").device == "cuda:1"
    with pytest.raises(InputError, match="PickScore: weights must be a text, got 3"):
        score_of("PickScore(3)")
    assert score_of('CLIPScore("a", device="cpu")', "cuda:1").device == "cpu"
    assert score_of("math:sqrt") is not None and name_of(score_of("math:sqrt"), "m:f") == "m:f"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("math", "has no attribute ''; write MODULE:FUNCTION, or one of Aesthetic, CLIPScore"),
        ("math:pi", "math:pi is no function: write MODULE:FUNCTION"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("CLIPScore", "missing 1 required positional argument: 'weights'"),
        ("CLIPScore(openai/clip-vit-base-patch16)", r"write it as 'CLIPScore\(\"openai/clip-vit-b"),
        ("Aesthetic(head.pth, 'x')", r"unknown .pth: write it as 'CLIPScore.*with both quotes"),
        ("PickScore()", r"it is PickScore\(weights, words='', device=''\)"),
        ("Klip('a')", "unknown Scorer 'Klip'; there are Aesthetic, CLIPScore"),
        ("CLIPScore('a', 3)", "takes 2 positional arguments but 3 were given"),
    ],
)
def test_texts_that_name_no_score(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_of(text)


def test_functions_that_fail(tmp_path: Path, monkeypatch) -> None:
    """One line names the function, the reason and the place; of the module too."""
    lines = ["def a(images, prompts): raise KeyError('x')", "def b(images, prompts): ..."]
    (tmp_path / "failing_score.py").write_text("\n".join([*lines, "def c(i, p): return [0.0]"]))
    (tmp_path / "failing_module.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    reasons = {
        "a": r"score a raised KeyError: 'x' \(failing_score.py, line 1\)",
        "b": "score b raised RuntimeError: .* NoneType",
        "c": r"gave \[0.0\] for 2 images: it must give one finite number each",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=reason):
            scored(score_of(f"failing_score:{name}"), images, ["", ""])
    with pytest.raises(InputError, match="failing_module:f: division by zero"):
        score_of("failing_module:f")


def test_a_module_of_the_working_directory_is_found(tmp_path: Path, monkeypatch) -> None:
    """A console script does not look there by itself."""
    (tmp_path / "mine_to_judge.py").write_text("def f(images, prompts): ...")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    assert score_of("mine_to_judge:f").__name__ == "f"


def test_help_loads_nothing_heavy() -> None:
    for command in ("targets", "analyse"):
        code = f"sys.argv = ['diffsteer', 'refine', '{command}', '--help']\n"
        code = f"from diffsteer.cli.main import main\n{code}"
        loaded = loaded_after(code + "try: main()\nexcept SystemExit as end: assert not end.code")
        assert not loaded & {"torch", *HEAVY}


def test_targets_are_bound_to_the_weights_that_judged(clip: Path, tmp_path: Path) -> None:
    """And training leaves out the worse, by the score of the images alone."""
    recipe = Recipe(tiny.saved(tmp_path / "model"), guidance="CFG(4)", sampler="DDIM()", steps=2)
    prompts, out = tmp_path / "prompts.txt", tmp_path / "targets"
    prompts.write_text("\n".join(PROMPTS), "utf-8")
    folder = tmp_path / "clip"
    saved(folder)
    text = f"CLIPScore({str(folder)!r})"

    def make(seeds: str) -> None:
        targets(recipe, prompts, seeds, out, batch=3, device="cpu", score=text)

    make("0-5")
    key = Targets.at(out).key
    assert key["score"] == f"CLIPScore(weights={str(folder)!r}) {CLIPScore(str(folder)).digest}"
    scores = _judged(replace(recipe, prompts=tuple(PROMPTS)), CLIPScore(str(folder), device="cpu"))
    ordered = scores.sort().values
    widest = int(ordered.diff().argmax())  # so that rounding by batch moves none across
    middle = float(ordered[widest : widest + 2].mean())
    kept = Targets.at(out, least=middle).seeds
    assert kept == tuple(i for i in range(6) if scores[i] > middle) and 0 < len(kept) < 6
    make("0-6")  # the same weights go on
    saved(folder, seed=1)
    with pytest.raises(ValueError, match="score was"):
        make("0-7")
    assert Targets.at(out).seeds == tuple(range(7))


def _judged(recipe: Recipe, score: CLIPScore) -> Tensor:

    with open_pipeline(recipe, "cpu") as images:
        texts = [recipe.for_seed(seed).prompt for seed in range(6)]
        return score(images(range(6)), texts)


# ------------------------------------------------------------------ preference


def processed(folder: Path, pictures: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """Inputs by transformers' own processor, which crops the middle."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size=30)
    images = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures]
    words = CLIPTokenizer.from_pretrained(folder)
    said = words(prompts, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    return {**said, **processor(images=images, return_tensors="pt")}


@pytest.mark.parametrize("size", [(30, 30), (40, 57), (64, 33)])
def test_pick_score_is_what_transformers_says(tmp_path: Path, size: tuple[int, int]) -> None:
    model, pictures = saved(tmp_path), random_pictures(3, *size)
    with torch.no_grad():
        want = model(**processed(tmp_path, pictures, PROMPTS)).logits_per_image.diagonal()
    score = score_of(f'PickScore("{tmp_path}")', "cpu")
    found = score(pictures, PROMPTS)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)
    assert found.std() > 1e-3
    with pytest.raises(ValueError, match="1 prompts for 3 images: give one each"):
        score(pictures, ["owl"])
    saved(tmp_path, seed=1)
    assert score.digest != score_of(f'PickScore("{tmp_path}")', "cpu").digest


def opened(model: CLIPModel) -> dict[str, Tensor]:
    """State dict of a CLIP of transformers under the names of open_clip."""
    state = model.state_dict()
    inner = {v: k for k, v in INNER.items()}
    out = {k: state[v] for k, v in OUTER.items()}
    out |= {k: state[v].T.contiguous() for k, v in PROJECTIONS.items()}
    for ours, theirs in NORMS.items():
        out |= {f"{ours}.{p}": state[f"{theirs}.{p}"] for p in ("weight", "bias")}
    for side, prefix in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        for i in range(2):
            place, new = f"{side}.encoder.layers.{i}", f"{prefix}.resblocks.{i}"
            for p in ("weight", "bias"):
                parts = [state[f"{place}.self_attn.{c}_proj.{p}"] for c in "qkv"]
                out[f"{new}.attn.in_proj_{p}"] = torch.cat(parts)
                out |= {f"{new}.{b}.{p}": state[f"{place}.{a}.{p}"] for a, b in inner.items()}
    return out


@pytest.mark.parametrize("name", ["a.pt", "nested.pt", "a.safetensors"])
def test_hps_is_the_cosine_of_an_open_clip_file(tmp_path: Path, name: str) -> None:
    model, pictures = saved(tmp_path / "clip"), random_pictures(3, 40, 57)
    saved(tmp_path / "other", seed=5)  # gives config and tokenizer alone
    state = opened(model)
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save(
            {"epoch": 1, "state_dict": state} if "nested" in name else state, tmp_path / name
        )
    with torch.no_grad():
        out = model(**processed(tmp_path / "clip", pictures, PROMPTS))
        want = (out.logits_per_image / model.logit_scale.exp()).diagonal()
    score = score_of(f'HPSv2("{tmp_path / name}", "{tmp_path / "other"}")', "cpu")
    torch.testing.assert_close(score(pictures, PROMPTS), want, atol=1e-5, rtol=1e-5)
    assert name_of(score, "").endswith(score.digest)


def test_files_that_are_no_open_clip(clip: Path, tmp_path: Path) -> None:
    state = opened(saved(tmp_path / "clip"))
    state.pop("ln_final.weight")
    save_file(state, tmp_path / "short.safetensors")
    save_file({"weird": torch.ones(1)}, tmp_path / "weird.safetensors")
    for name, message in (("short", "does not fit"), ("weird", "weird is no part of a CLIP")):
        with pytest.raises(ValueError, match=message):
            HPSv2(str(tmp_path / f"{name}.safetensors"), str(clip))(random_pictures(1), ["owl"])
    with pytest.raises(FileNotFoundError, match="is no file"):
        HPSv2(str(tmp_path / "none.pt"), str(clip))(random_pictures(1), ["owl"])


def test_a_function_is_named_by_its_module() -> None:
    with pytest.raises(ValueError, match="is no text of a score: write MODULE:FUNCTION"):
        score_of(lambda images, prompts: images)  # type: ignore[arg-type, return-value]
