"""ADM networks and checkpoints: names and shapes, parity with diffusers, bad files."""

import json
import math
import pickle
import random as dice
import re
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from safetensors.torch import save_file
from tiny import random_weights
from torch import nn

from diffsteer import X0, Eps
from diffsteer.guidance.attention_edits import received
from diffsteer.models.adm.blocks import join_heads, split_heads, time_features
from diffsteer.models.adm.checkpoint import (
    Diffusion,
    check,
    convert,
    from_state,
    load,
    load_classifier,
    shapes_of,
    timesteps,
)
from diffsteer.models.adm.flags import Flags
from diffsteer.models.adm.published import PUBLISHED
from diffsteer.models.adm.unet import ADM, ADMClassifier
from diffsteer.models.adm.unet2d import to_unet2d, why_not

SPEC = json.loads((Path(__file__).parents[1] / "data/adm_state_dict.json").read_text("utf-8"))
SPEC_FLAGS = Flags.of({**SPEC["config"], "num_classes": 10})
SMALL = Flags(
    image_size=32, num_channels=32, num_res_blocks=1, channel_mult="1,2", learn_sigma=True
)


def on_meta(flags: Flags) -> ADM:
    with torch.device("meta"):
        return ADM(flags)


# ------------------------------------------------------------------ names and shapes


def test_every_name_and_shape_of_the_published_form() -> None:
    want = {name: tuple(shape) for name, shape in SPEC["tensors"].items()}
    assert shapes_of(SPEC_FLAGS) == want and len(want) == 307
    ADM(SPEC_FLAGS).load_state_dict({n: torch.zeros(s) for n, s in want.items()}, strict=True)


SIZES = {  # parameters in millions, as the papers and READMEs say
    "64x64_diffusion.pt": 296,
    "128x128_diffusion.pt": 422,
    "256x256_diffusion.pt": 554,
    "512x512_diffusion.pt": 559,
    "imagenet64_cond_270M_250K.pt": 270,
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name: str) -> None:
    """Dhariwal & Nichol 2021, table 4; Nichol & Dhariwal 2021, sec. 6."""
    count = sum(torch.Size(shape).numel() for shape in shapes_of(PUBLISHED[name]).values())
    assert count / 1e6 == pytest.approx(SIZES[name], rel=0.015)  # "270M" stands for 273


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_flags_round_trip(name: str) -> None:
    flags = PUBLISHED[name]
    assert Flags.parse(str(flags)) == flags


def test_flags_of_official_command_lines() -> None:
    """As the README of guided-diffusion writes them, flags without effect included."""
    text = (
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 "
        "--image_size 64 --learn_sigma True --noise_schedule cosine --num_channels 192 "
        "--num_head_channels 64 --num_res_blocks 3 --resblock_updown True "
        "--use_new_attention_order True --use_fp16 True --use_scale_shift_norm True"
    )
    assert Flags.parse(text) == PUBLISHED["64x64_diffusion.pt"]
    assert PUBLISHED["512x512_diffusion.pt"].widths == (128, 256, 256, 512, 512, 1024, 1024)


def test_flags_of_classifiers_on_official_command_lines() -> None:
    """In full as the README of guided-diffusion writes them, and in short with its defaults."""
    text = (
        "--image_size 128 --classifier_attention_resolutions 32,16,8 --classifier_depth 2 "
        "--classifier_width 128 --classifier_pool attention --classifier_resblock_updown True "
        "--classifier_use_scale_shift_norm True"
    )
    assert Flags.parse(text) == PUBLISHED["128x128_classifier.pt"]
    short = "--image_size 64 --classifier_depth 4 --noise_schedule cosine"
    assert Flags.parse(short) == PUBLISHED["64x64_classifier.pt"]


def test_iddpm_says_whether_timesteps_are_rescaled() -> None:
    text = "--image_size 32 --num_res_blocks 3 --dropout 0.3 --learn_sigma True "
    text += "--diffusion_steps 4000 --noise_schedule cosine"
    with pytest.raises(ValueError, match="Add --rescale_timesteps True or False"):
        Flags.parse(text)
    told = Flags.parse(f"{text} --rescale_timesteps True")
    assert told == PUBLISHED["cifar10_uncond_50M_500K.pt"]
    assert not Flags.parse(f"{text} --rescale_timesteps False").rescale_timesteps


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("--image_size", "are no flags"),
        ("image_size 64", "are no flags"),
        ("--imagesize 64", "ADM has no setting 'imagesize'"),
        ("--image_size big", "image_size='big' is no int"),
        ("--class_cond maybe", "class_cond='maybe' is no bool"),
        ("--image_size 48", "channel_mult='' at image_size=48"),
        ("--num_channels 40", "40 channels do not make 32 groups"),
        ("--noise_schedule sqrt", "give linear or cosine"),
        ("--attention_resolutions x", "attention_resolutions='x'"),
        ("--classifier True", "needs num_head_channels"),
        ("--num_res_blocks 0", "num_res_blocks must be a whole number in \\[1, 64\\], got 0"),
        ("--classifier_pool adaptive", "classifier_pool='adaptive'"),
        ("--classifier_depth 4 --num_res_blocks 3", "classifier_depth beside num_res_blocks"),
        ("--classifier False --classifier_depth 4", "of two networks"),
        ("--classifier_colour 4", "ADM has no setting 'classifier_colour'"),
    ],
)
def test_bad_flags(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Flags.parse(text)


def test_the_docs_hold_the_table() -> None:
    """Every published file with its flags, and none else."""
    page = (Path(__file__).parents[2] / "docs/published-adm.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\S+\.pt)` \| `([^`]*)` \|", page, re.M))
    assert rows == {name: str(flags) for name, flags in PUBLISHED.items()}


def test_what_a_network_is_told_of_a_level() -> None:
    """IDDPM's 4000 timesteps on the scale of 1000, but for the class-conditional network."""
    for name, told in (
        ("imagenet64_uncond_100M_1500K.pt", 500),
        ("imagenet64_cond_270M_250K.pt", 2000),
    ):
        adm = Diffusion(on_meta(PUBLISHED[name]))
        level, x = adm.schedule.at(2000), torch.zeros(3, 1)
        assert timesteps(adm.net.flags, x, level).tolist() == [told] * 3 and adm.prediction == Eps()
        bar = [math.cos((t / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 2001)]
        assert level.alpha.item() ** 2 == pytest.approx(bar[1] / bar[0], rel=1e-9)
    flags = replace(PUBLISHED["256x256_diffusion.pt"], diffusion_steps=4000, predict_xstart=True)
    other = Diffusion(on_meta(flags))
    assert other.prediction == X0() and timesteps(flags, x, level).tolist() == [2000] * 3
    assert other.schedule.betas[[0, -1]].tolist() == pytest.approx([2.5e-5, 5e-3])


# ------------------------------------------------------------------ the network


@pytest.mark.parametrize("order", [False, True])
def test_heads_split_as_described(order: bool) -> None:
    """Channel c of head h of q, k, v: legacy h (3 d) + part d + c, new part (H d) + h d + c."""
    heads, d, n = 3, 4, 5
    qkv = torch.arange(3.0 * heads * d * n).view(1, -1, n)
    found = split_heads(qkv, heads, order)
    for part, tensor in enumerate(found):
        for h in range(heads):
            start = (part * heads + h) * d if order else (3 * h + part) * d
            assert torch.equal(tensor[0, h], qkv[0, start : start + d].T)
    assert torch.equal(join_heads(*found, order), qkv)


def test_orders_of_attention_are_permuted_weights() -> None:
    """A network in the legacy order is one in the new order with rows of qkv moved."""
    old, new = (
        random_weights(ADM(replace(SMALL, use_new_attention_order=o))) for o in (False, True)
    )
    state = old.state_dict()
    for name, value in state.items():
        if ".qkv." in name:
            parts = value.view(4, 3, -1, *value.shape[1:])
            state[name] = parts.transpose(0, 1).reshape(value.shape)
    new.load_state_dict(state)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([0, 700])
    torch.testing.assert_close(new(x, t), old(x, t), atol=1e-6, rtol=0)


def test_time_features_are_cosines_and_sines() -> None:
    t, size = torch.tensor([0.0, 1.0, 999.0]), 6
    angles = [[x * 10_000 ** (-i / 3) for i in range(3)] for x in t.tolist()]
    angles = torch.tensor(angles, dtype=torch.float64)
    want = torch.cat([angles.cos(), angles.sin()], dim=1).float()
    # an angle of 999 rounds by 6e-5 in float32, and so do its cosine and sine
    torch.testing.assert_close(time_features(t, size), want, atol=1e-4, rtol=0)


def test_new_networks_begin_at_zero() -> None:
    """The last convolution starts from 0, and so does every block."""
    assert ADM(SMALL)(torch.randn(1, 3, 32, 32), torch.zeros(1)).abs().max() == 0


def test_a_batch_is_its_rows() -> None:
    net = random_weights(ADM(replace(SPEC_FLAGS, num_res_blocks=1)))
    x, t, y = torch.randn(3, 3, 32, 32), torch.tensor([3, 500, 999]), torch.tensor([1, 2, 9])
    rows = torch.cat([net(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t, y), rows, atol=1e-5, rtol=0)


def test_wrong_calls() -> None:
    net, x, t = ADM(SMALL), torch.zeros(1, 3, 32, 32), torch.zeros(1)
    with pytest.raises(ValueError, match="knows no classes"):
        net(x, t, torch.tensor([1]))
    with pytest.raises(ValueError, match="needs classes y"):
        ADM(SPEC_FLAGS)(x, t)
    with pytest.raises(ValueError, match="multiples of 2"):
        net(x[..., :31], t)
    with pytest.raises(ValueError, match="build ADMClassifier"):
        ADM(PUBLISHED["64x64_classifier.pt"])
    with pytest.raises(ValueError, match="build ADM"):
        ADMClassifier(SMALL)
    for heads in ({"num_heads": 3}, {"num_head_channels": 128}):  # 3, and none
        with pytest.raises(ValueError, match=r"channels cannot be split into [03] attention heads"):
            on_meta(replace(SMALL, **heads))


def shrunk(flags: Flags) -> Flags:
    """A published architecture with fewer channels and blocks."""
    channels = -1 if flags.num_head_channels == -1 else 16
    return replace(
        flags, num_channels=32, num_res_blocks=1, num_head_channels=channels, num_classes=10
    )


EXACT = {n: f for n, f in PUBLISHED.items() if not f.classifier and why_not(f) is None}
CASES = {str(shrunk(f)): shrunk(f) for f in EXACT.values()}


@pytest.mark.parametrize("flags", CASES.values(), ids=CASES)
def test_equal_to_diffusers(flags: Flags) -> None:
    """Float32 rounding of attention and of sums of a thousand products: a relative 2e-6."""
    net = random_weights(ADM(flags))
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([5, 700])
    y = torch.tensor([1, 7]) if flags.class_cond else None
    mine, theirs = net(x, t, y), to_unet2d(net)(x, t, class_labels=y).sample
    assert ((mine - theirs).abs().max() / mine.abs().max()).item() < 5e-6


def test_what_diffusers_cannot_express() -> None:
    """Heads of one number for all widths, and half the channels at full resolution."""
    apart = {n for n, f in PUBLISHED.items() if not f.classifier} - set(EXACT)
    imagenet64 = {n for n in PUBLISHED if n.startswith("imagenet64")}
    assert apart == {"128x128_diffusion.pt", "512x512_diffusion.pt"} | imagenet64
    with pytest.raises(ValueError, match=r"heads of \[8, 16\] channels"):
        to_unet2d(ADM(replace(SMALL, attention_resolutions="32,16")))


def test_classifier_pool_is_attention_of_the_mean() -> None:
    """Pixels all alike: every weight is equal, so that the pool is linear in values and place."""
    flags = replace(SMALL, classifier=True, num_head_channels=16, num_classes=7)
    net = random_weights(ADMClassifier(flags))
    pool = net.out[2]
    pool.positional_embedding.zero_()
    x = torch.randn(2, 64, 1, 1).expand(-1, -1, 16, 16)
    v = pool.qkv_proj(x.flatten(2)[..., :1])[:, 128:]
    torch.testing.assert_close(pool(x), pool.c_proj(v)[..., 0], atol=1e-5, rtol=0)
    assert net(torch.randn(2, 3, 32, 32), torch.tensor([1, 2])).shape == (2, 7)


def test_official_head_split_is_a_mix_of_queries_keys_and_values() -> None:
    """At 256 pixels, 16 heads of 64: the queries of the first of 4 are channels 0 to 255.

    They are queries, keys and values of the first true head, and queries of the second.
    """
    net = on_meta(PUBLISHED["256x256_diffusion_uncond.pt"])
    score = Diffusion(net).network(official_head_split=True).score
    qkv = torch.randn(2, 3072, 64)
    got = score(*split_heads(qkv, 16, False))
    parts = qkv.view(2, 4, 3, 256, 64).transpose(-1, -2)
    want = received(parts[:, :, 0], parts[:, :, 1])
    assert torch.equal(got, want)
    true = received(*split_heads(qkv, 16, False)[:2])
    assert not torch.equal(got > 1, true > 1)
    assert torch.equal(parts[:, 0, 0].transpose(-1, -2), qkv[:, :256])


# ------------------------------------------------------------------ files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "small.pt"
    torch.save(random_weights(ADM(SMALL)).state_dict(), path)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_load_and_convert(tmp_path: Path, legacy: bool) -> None:
    """The same network from the file, in either form of torch.save, and from the folder."""
    net, path, out = (
        random_weights(ADM(SPEC_FLAGS)),
        tmp_path / "mine.pt",
        tmp_path / "made" / "adm",
    )
    half = {name: value.half() for name, value in net.state_dict().items()}
    torch.save(half, path, _use_new_zipfile_serialization=not legacy)
    flags = replace(SPEC_FLAGS, num_classes=1000)  # 10 are read off the tensors
    assert convert(str(path), str(out), flags) == SPEC_FLAGS
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((out / "config.json").read_text())["source"]["name"] == "mine.pt"
    with pytest.raises(ValueError, match="is there already"):
        convert(path, out, flags)
    x, t, y = torch.randn(1, 3, 32, 32), torch.tensor([9]), torch.tensor([3])
    want = from_state(half, SPEC_FLAGS)(x, t, y)
    save_file(half, tmp_path / "mine.safetensors")
    for again in (load(path, flags), load(out), load(tmp_path / "mine.safetensors", flags)):
        assert torch.equal(again.net(x, t, y), want)
        assert not any(p.requires_grad or p.is_meta for p in again.net.parameters())


def test_a_classifier_is_read_as_one(tmp_path: Path) -> None:
    flags = replace(SMALL, classifier=True, num_head_channels=16, num_classes=7, learn_sigma=False)
    path = tmp_path / "c.pt"
    torch.save(random_weights(ADMClassifier(flags)).state_dict(), path)
    assert load_classifier(path, flags).flags.num_classes == 7
    with pytest.raises(ValueError, match="read it by load_classifier"):
        load(path, flags)
    with pytest.raises(ValueError, match="read it by load"):
        load_classifier(path, SMALL)


def test_a_published_name_brings_its_flags(tmp_path: Path) -> None:
    """A file of another network under that name is told from it."""
    path = tmp_path / "64x64_diffusion.pt"
    torch.save(random_weights(ADM(SMALL)).state_dict(), path)
    with pytest.raises(ValueError, match="do not fit '--num_channels 192.* missing"):
        load(path)


def test_unknown_flags_are_asked_for(saved: Path) -> None:
    with pytest.raises(ValueError, match="no published checkpoint has this name.*give flags"):
        load(saved)


def test_likely_flags_are_named() -> None:
    """Tensors of the 256-pixel network under flags of 512: those that would fit are listed."""
    state = on_meta(PUBLISHED["256x256_diffusion_uncond.pt"]).state_dict()
    with pytest.raises(ValueError) as error:
        check(state, PUBLISHED["512x512_diffusion.pt"])
    said = str(error.value)
    assert "missing (" in said and "of another shape (" in said and "..." in said
    assert "its tensors are those of 256x256_diffusion_uncond.pt, lsun_bedroom.pt" in said


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ([torch.zeros(1)], "holds a list, not tensors by name"),
        (torch.zeros(1), "holds a Tensor"),
        ({}, "it is empty"),
        ({"model": {"a": torch.zeros(1)}, "step": 3}, "save what is under 'model' alone"),
        ({"a": "text"}, "'a' is a str"),
        ({"a": torch.zeros(1, dtype=torch.long)}, "a is torch.int64"),
        ({"a": Hostile()}, "cannot be read as tensors: .*exec"),
        ({"a": nn.Linear(1, 1)}, "cannot be read as tensors: .*Linear"),
    ],
)
def test_files_that_are_no_state_dict(tmp_path: Path, held, says: str) -> None:
    torch.save(held, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=says):
        load(tmp_path / "bad.pt", SMALL)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_hostile_pickle_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        load(tmp_path / "bad.pt", SMALL)


def test_archives_that_unpack_to_more_than_they_are(tmp_path: Path) -> None:
    good, bomb = tmp_path / "good.pt", tmp_path / "bomb.pt"
    torch.save({"w": torch.zeros(2**18)}, good)
    with ZipFile(good) as old, ZipFile(bomb, "w", ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(ValueError, match="entry 'good/data.pkl' unpacks .*: refused"):
        load(bomb)
    with ZipFile(good) as old, ZipFile(bomb, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.filelist += new.filelist * 2  # data of one entry under three names
    with pytest.raises(ValueError, match="unpacks .*: refused"):
        load(bomb)


def test_cut_and_changed_files(saved: Path, tmp_path: Path) -> None:
    """Cut anywhere a file is refused; with bytes changed it is refused, or weights differ."""
    whole, bad = saved.read_bytes(), tmp_path / "bad.pt"
    for share in (0, 0.01, 0.3, 0.9, 0.999):
        bad.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="cannot be read as tensors"):
            load(bad, SMALL)
    roll = dice.Random(0)
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(20):
            broken[roll.randrange(4000)] = roll.randrange(256)
        bad.write_bytes(broken)
        try:
            assert isinstance(load(bad, SMALL).net, ADM)
        except ValueError as error:
            assert str(bad) in str(error) or "do not fit" in str(error)


def test_no_file_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pt", SMALL)
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="no folder of .*must have the format"):
        load(tmp_path)


def test_a_failed_conversion_leaves_nothing(saved: Path, tmp_path: Path, monkeypatch) -> None:
    """Neither the folder nor a part of it, when writing ends half-way."""
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(json, "dumps", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        convert(saved, tmp_path / "out", SMALL)
    assert sorted(tmp_path.iterdir()) == before


def test_the_command(saved: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    from diffsteer.cli.main import main

    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["diffsteer", "convert", "adm", str(saved), str(out)])
    with pytest.raises(SystemExit, match="no published checkpoint has this name"):
        main()
    monkeypatch.setattr("sys.argv", [*sys.argv, f"--flags={SMALL}"])
    main()
    assert capsys.readouterr().out == f"{out}: {SMALL}\n" and load(out).net.flags == SMALL
