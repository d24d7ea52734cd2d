"""Sampling of published networks: the official numbers for a seed, presets, and their images."""

import csv
import importlib.util
import json
import math
import re
import shutil
from pathlib import Path

import fabricate
import pytest
import tiny
import torch
from PIL import Image

from diffsteer import EDM, Auto, Heun, Preconditioned, grid
from diffsteer.cli.main import app
from diffsteer.cli.sample import Published
from diffsteer.cli.sample import sample as sample_command
from diffsteer.core.noise import Noise
from diffsteer.core.parse import parse
from diffsteer.generate.edm2 import Decoder
from diffsteer.guidance import Denoiser, Guidance, ramp
from diffsteer.models.edm2.generate import Loop, generate, guided, latents, pixels
from diffsteer.models.edm2.model import EDM2, network
from diffsteer.models.edm2.presets import Net, Preset, preset, presets

ROOT = Path(__file__).parents[2]
SMALL = {
    **{"img_resolution": 8, "img_channels": 3, "label_dim": 10, "model_channels": 8},
    **{"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]},
    **{"channels_per_head": 8, "logvar_channels": 8},
}


def small(seed: int, **changes) -> EDM2:
    torch.manual_seed(seed)
    net = EDM2(**{**SMALL, **changes}).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("_gain"):
                p.fill_(1.0)
    return net


@pytest.mark.parametrize("name", ["sigma_min", "sigma_max", "rho", "s_churn", "s_min", "s_noise"])
def test_a_loop_that_would_sample_other_levels_is_refused(name: str) -> None:
    for value in (-1.0, math.nan, "7", 1e9 if name == "rho" else -math.inf):
        with pytest.raises(ValueError, match=f"Loop: {name} must be"):
            Loop(**{name: value})
    for settings in ({"steps": 2.5}, {"steps": 0}, {"sigma_min": 80.0}, {"s_min": 2, "s_max": 1}):
        with pytest.raises(ValueError, match="Loop"):
            Loop(**settings)


def plain_loop():
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "edm2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.plain


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 1.5, 2.0, 3.5])
@pytest.mark.parametrize(("steps", "churn"), [(2, 0), (3, 40), (12, 0), (12, 4)])
@pytest.mark.parametrize("free", [False, True], ids=["guide", "unconditional guide"])
def test_trajectories_are_those_of_the_written_out_loop(weight, steps, churn, free) -> None:
    """In float64, where nothing but a mistake can tell them apart."""
    plain, labels = plain_loop(), torch.eye(10, dtype=torch.float64)[[3, 7]]
    plain_net = {"channel_mult": [1], "img_resolution": 4}
    main = small(0, **plain_net).double()
    guide = small(1, **plain_net, **({"label_dim": 0} if free else {})).double()
    first, second = Noise([4, 2**32 - 1]), Noise([4, 2**32 - 1])
    start = first(torch.empty(2, 3, 4, 4, dtype=torch.float64))
    second(start)
    limits = {"lo": 0.05, "hi": 50.0, "swell": 1.003}
    with torch.no_grad():
        want = plain(
            lambda x, t: main(x, t, labels), lambda x, t: guide(x, t, labels),
            start, weight, steps, churn, **limits, noise=first,
        )  # fmt: skip
        nets = {"main": network(main), "guide": network(guide)}
        denoiser = Denoiser(nets, {"cond": {"labels": labels}}, Preconditioned(), Auto(weight))
        levels = grid(EDM(), steps)
        heun = Heun(gamma=min(churn / steps, math.sqrt(2) - 1), **limits)
        *_, found = heun(levels[0].sigma * start, levels, denoiser, second)
    # two steps divide a difference of 1e-16 by 0.002 and multiply it by 80
    torch.testing.assert_close(found, want, atol=1e-9 * want.abs().max().item(), rtol=0)


def test_a_seed_draws_latent_class_and_churn_in_the_official_order() -> None:
    seeds, net = [7, 2**32 + 8], small(0)
    generators = [torch.Generator().manual_seed(seed % 2**32) for seed in seeds]
    start = torch.stack([torch.randn(3, 8, 8, generator=g) for g in generators])
    drawn = torch.stack([torch.randint(10, [], generator=g) for g in generators])

    def churn(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.randn(3, 8, 8, generator=g) for g in generators])

    labels = torch.eye(10)[drawn]
    with torch.no_grad():
        want = plain_loop()(
            lambda x, t: net(x, t, labels), None, start, 1.0, 4, churn=1.0, noise=churn
        )
    found = generate(net, seeds, loop=Loop(4, s_churn=1.0))
    # the same rounding: what differs is the last bit of the network, times 1 / sigma and back
    torch.testing.assert_close(found, want, atol=1e-5, rtol=0)
    one = generate(net, seeds[1:], loop=Loop(4, s_churn=1.0))
    torch.testing.assert_close(one, found[1:], atol=1e-4, rtol=0)
    fixed = generate(net, seeds, loop=Loop(4, s_churn=1.0), label=int(drawn[0]))
    torch.testing.assert_close(fixed[0], found[0], atol=1e-4, rtol=0)  # drawn though given
    assert (fixed[1] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("weight", [0.0, 1.0, 1.5, 3.5])
@pytest.mark.parametrize("steps", [2, 9])
def test_guided_pictures_have_the_bits_of_the_written_out_loop(weight: float, steps: int) -> None:
    main, guide = (small(i).keep_weights() for i in (0, 1))
    x, labels = torch.randn(2, 3, 8, 8), torch.eye(10)[[3, 7]]
    with torch.no_grad():
        want = plain_loop()(
            lambda x, t: main(x, t, labels), lambda x, t: guide(x, t, labels), x, weight, steps
        )
        cond = {"cond": {"labels": labels}}
        exact = Loop(steps)(x, guided(main, guide, cond, Auto(weight)), lambda: x)
        assert torch.equal(exact, want)
        summed = Loop(steps)(x, guided(main, guide, cond, 1.0 * Auto(weight)), lambda: x)
        scheduled = guided(main, guide, cond, Auto(ramp(weight, weight)))
        assert torch.equal(Loop(steps)(x, scheduled, lambda: x), summed)
    # the same guidance, rounded once: last bits, of states of up to 300, times 80 / 0.002 / 2
    torch.testing.assert_close(summed, want, atol=1e-4 * want.abs().max().item(), rtol=0)


def test_float64_draws_churn_in_float64() -> None:
    net, g = small(0, label_dim=0), torch.Generator().manual_seed(3)
    start = torch.randn(1, 3, 8, 8, generator=g).double()

    def churn(x: torch.Tensor) -> torch.Tensor:
        return torch.randn(1, 3, 8, 8, generator=g, dtype=torch.float64)

    with torch.no_grad():
        want = plain_loop()(lambda x, t: net(x, t), None, start, 1.0, 4, churn=1.0, noise=churn)
    found = generate(net, [3], loop=Loop(4, s_churn=1.0), dtype=torch.float64)
    torch.testing.assert_close(found, want, atol=1e-6, rtol=0)


def test_one_step_and_no_weight_are_ordinary() -> None:
    net, guide = small(0), small(1, label_dim=0)
    assert generate(net, [0], loop=Loop(1)).isfinite().all()
    calls: list[int] = []
    guide.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    off = generate(net, [0], Auto(1.0), guide, Loop(4))
    assert not calls and torch.equal(off, generate(net, [0], loop=Loop(4)))
    with pytest.raises(ValueError, match="a network 'guide'"):
        generate(net, [0], Auto(2.0), loop=Loop(2))  # never a silent no-op
    for other in (small(0, img_channels=1), small(0, label_dim=5), small(0, sigma_data=1.0)):
        with pytest.raises(ValueError, match="guide"):
            generate(net, [0], Auto(2.0), other, Loop(2))
    with pytest.raises(ValueError, match="class 10 of a network that knows 10"):
        generate(net, [0], label=10)
    with pytest.raises(ValueError, match=r"class \[1, 2\] of .*: give one number, 0 to 9"):
        generate(net, [0, 1], label=[1, 2])
    with pytest.raises(ValueError, match="is no guidance or prediction"):
        generate(net, [0], "CFG(2)")
    with pytest.raises(ValueError, match="no seeds"):
        generate(net, [])
    alike = generate(net, torch.arange(2), loop=Loop(1), label=torch.tensor(3))
    assert torch.equal(alike, generate(net, [0, 1], loop=Loop(1), label=3))


def test_bytes_and_latents() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).view(1, 1, 1, 6)
    for channels in (1, 3):  # grey is copied to RGB
        shown = pixels(x.expand(-1, channels, -1, -1))
        assert shown.view(3, 6).tolist() == [[0, 0, 128, 255, 255, 255]] * 3
    raw = torch.randn(2, 4, 3, 3)
    scale, bias = (0.5 / 4.17, 0.5 / 4.62, 0.5 / 3.71, 0.5 / 3.28), (-0.7, -0.35, -0.02, 0.33)
    encoded = torch.stack([raw[:, i] * scale[i] + bias[i] for i in range(4)], 1)
    torch.testing.assert_close(latents(encoded, scale, bias), raw, atol=1e-5, rtol=1e-5)


def test_presets() -> None:
    known = presets()
    assert len(known) == 45
    best = known["edm2-img64-s-autog-fid"]
    assert best.main.stem == "edm2-img64-s-1073741-0.045"
    assert best.guide.stem == "edm2-img64-xs-0134217-0.110"
    assert (best.guidance(), best.metric, best.figure) == ("Auto(1.7)", "fid", 1.01)
    assert known["edm2-img512-xxl-autog-fid"].main.stem == "edm2-img512-xxl-0939524-0.075"
    assert known["edm2-img512-s-guid-fid"].guide.stem == "edm2-img512-xs-uncond-2147483-0.025"
    where = parse(known["edm2-img512-s-interval-fid"].guidance(), Guidance)
    assert where == Auto(2.1).within(0.28, 2.9)
    for one in known.values():
        assert one.metric == ("fd_dinov2" if one.name.endswith("dino") else "fid")
        assert ("uncond" in one.name) == one.main.size.endswith("uncond")
        assert bool(one.guide) == any(w in one.name for w in ("guid", "autog", "interval"))
    with pytest.raises(ValueError, match="no preset is called 'edm2'.*edm2-img512-xs-fid"):
        preset("edm2")


def test_settings_that_are_not_recorded_are_asked_for() -> None:
    found = preset("edm2-img512-m-guid-fid")
    with pytest.raises(ValueError, match="which average of edm2-img512-m"):
        found.main.stem  # noqa: B018
    with pytest.raises(ValueError, match="weight .* is not recorded"):
        found.guidance()
    given = found.varied(1.2, 0.03, 0.03)
    assert given.guidance() == "Auto(1.2)" and given.main == Net("img512-m", 2048, 0.03)
    with pytest.raises(ValueError, match="has no guide"):
        preset("edm2-img64-s-fid").varied(2.0, None, None)
    assert found.varied(None, 0.125, 0.015).main.stem.endswith("-0.125")
    for widths in ((0.1234, None), (None, 0.0155), (math.nan, None)):
        with pytest.raises(ValueError, match="three decimals"):
            found.varied(None, *widths)


def test_the_docs_list_every_preset_and_none_else() -> None:
    page = (ROOT / "docs/published.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `edm2-img")]
    names = [name for row in rows for name in re.findall(r"`([^`]*)`", row)]
    listed = [one for name in names for one in unfolded(name)]
    assert sorted(listed) == sorted(presets())
    asks = [one.name for one in presets().values() if not complete(one)]
    guided = [name for name in asks if presets()[name].guide]
    assert f"{len(listed)} presets {len(listed) - len(asks)} are complete" in page
    assert (len(asks), len(guided)) == (13, 5) and "The other 13" in page and "guided five" in page


def complete(one: Preset) -> bool:
    nets = [one.main, *([one.guide] if one.guide else [])]
    return all(net.ema for net in nets) and (one.guide is None or one.weight is not None)


def unfolded(name: str) -> list[str]:
    """Names that braces stand for: "a-{b,c}" is a-b and a-c."""
    before, brace, rest = name.partition("{")
    if not brace:
        return [name]
    inner, _, after = rest.partition("}")
    return [one for part in inner.split(",") for one in unfolded(before + part + after)]


def sample(said: Published, seeds: list[int], out: Path, batch: int, device: str) -> None:
    text = ",".join(map(str, seeds))
    sample_command(seeds=text, out=out, batch=batch, device=device, preset=said)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny networks under the names that presets ask for, one of them a pickle."""
    folder = tmp_path_factory.mktemp("models")
    chosen = preset("edm2-img64-s-autog-fid")
    small(0).half().save(folder / chosen.main.stem)
    content = fabricate.snapshot(small(1).half(), folder / "trace")
    (folder / f"{chosen.guide.stem}.pkl").write_bytes(content)
    return folder


def test_pictures_of_a_preset(models: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    said = Published("edm2-img64-s-autog-fid", models, subdirs=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        sample(said, [998, 999, 1000], tmp_path, 2, "cpu")
    printed = capsys.readouterr().out
    assert "0 of 2 images were there" in printed and "0 of 1 images were there" in printed
    made = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*"))
    assert made == ["000000/000998.png", "000000/000999.png", "001000/001000.png"]
    want = pixels(generate(small(0).half(), [1000], Auto(1.7), small(1).half()))[0]
    picture = Image.open(tmp_path / "001000/001000.png")
    found = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(8, 8, 3)
    # batches of other sizes take other kernels, which tells in the last bit
    assert (found.permute(2, 0, 1).int() - want.int()).abs().max() <= 1
    kept = json.loads(picture.info["diffsteer"])
    assert kept["seed"] == 1000 and kept["model"] == said.preset
    assert kept["recipe"]["guide"] == "edm2-img64-xs-0134217-0.110"
    with pytest.raises(ValueError, match="RANK=2 of WORLD_SIZE=2"):
        monkeypatch.setenv("RANK", "2")
        sample(said, [998], tmp_path, 2, "cpu")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    sample(said, [998, 999, 1000], tmp_path, 2, "cpu")
    assert "3 of 3 images were there" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was made otherwise"):
        sample(Published(said.preset, models, weight=2.0, subdirs=True), [998], tmp_path, 1, "cpu")


def test_latent_networks_are_decoded(tmp_path: Path) -> None:
    chosen = preset("edm2-img512-s-fid")
    content = fabricate.snapshot(small(0, img_channels=4).half(), tmp_path / "trace", latent=True)
    (tmp_path / f"{chosen.main.stem}.pkl").write_bytes(content)
    said = Published(chosen.name, tmp_path)
    with pytest.raises(FileNotFoundError, match="put diffusers' AutoencoderKL folder"):
        sample(said, [0], tmp_path / "out", 1, "cpu")
    vae = tiny.vae()
    vae.save_pretrained(tmp_path / "sd-vae-ft-mse")
    sample(said, [0], tmp_path / "out", 1, "cpu")
    assert Image.open(tmp_path / "out" / "000000.png").size == (16, 16)
    vae.decoder.conv_out.bias.data += 0.1
    vae.save_pretrained(tmp_path / "sd-vae-ft-mse")
    with pytest.raises(ValueError, match="was made otherwise: weights was"):
        sample(said, [0], tmp_path / "out", 1, "cpu")


def test_a_network_under_the_name_of_another_is_seen(models: Path, tmp_path: Path) -> None:
    said = Published("edm2-img64-s-fid", tmp_path)
    folder = tmp_path / preset(said.preset).main.stem
    small(0).half().save(folder)
    sample(said, [0], tmp_path / "out", 1, "cpu")
    shutil.rmtree(folder)
    small(1).half().save(folder)
    with pytest.raises(ValueError, match="was made otherwise: weights was"):
        sample(said, [0, 1], tmp_path / "out", 1, "cpu")
    assert not (tmp_path / "out/000001.png").exists()


def test_what_decodes_is_looked_for_where_it_was_beside_and_in_models(tmp_path: Path) -> None:
    about = {"encoder": {"kind": "vae", "vae_name": str(tmp_path / "own/vae")}}
    places = [tmp_path / "own/vae", tmp_path / "run/vae", tmp_path / "models/vae"]

    def found() -> float:
        decode = Decoder.find(about, tmp_path / "run/model", tmp_path / "models", "cpu")
        return decode.vae.decoder.conv_out.bias[0].item()

    with pytest.raises(FileNotFoundError, match=", ".join(re.escape(str(p)) for p in places)):
        found()
    vae = tiny.vae()
    for i, place in reversed(list(enumerate(places))):
        vae.decoder.conv_out.bias.data.fill_(i)
        vae.save_pretrained(place)
        assert found() == i


def test_the_command_line(models: Path, tmp_path: Path, capsys) -> None:
    def run(*args: object) -> None:
        app.cli(prog="diffsteer", args=[str(arg) for arg in args])

    command = ("--preset", "edm2-img64-s-autog-fid", "--models", models)
    run("sample", *command, "--seeds", "0", "--class", "3", "--out", tmp_path / "a")
    assert (tmp_path / "a" / "000000.png").exists()
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        run("sample", *command[:-1], tmp_path, "--out", tmp_path / "b")
    with pytest.raises(ValueError, match="give neither"):
        run("sample", "model", *command)
    run("convert", "edm2", next(models.glob("*.pkl")), tmp_path / "network-snapshot-0008388-0.050")
    assert EDM2.load(tmp_path / "network-snapshot-0008388-0.050").label_dim == 10
    run("ema", tmp_path, "--out", tmp_path / "ema", "--std", "0.05")
    assert capsys.readouterr().out.endswith("phema-0008388-0.050\n")


def test_the_table_is_read_whole() -> None:
    text = (ROOT / "src/diffsteer/models/edm2/presets.csv").read_text("utf-8")
    assert [row["name"] for row in csv.DictReader(text.splitlines())] == list(presets())
