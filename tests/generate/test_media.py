"""Videos, sounds and images of many pipelines, with the recipe in or beside them."""

import json
import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from families import (
    tiny_audio,
    tiny_guider_based,
    tiny_image_batched,
    tiny_image_separate,
    tiny_video_audio,
    tiny_video_separate,
)
from families.encoders import CHAT, decoder, spelling, t5
from families.parts import kl_vae, network, pipeline, wan_vae
from PIL import Image

from diffsteer import steer
from diffsteer.cli.evaluate import evaluate
from diffsteer.cli.main import main
from diffsteer.cli.sample import sample
from diffsteer.core.errors import InputError
from diffsteer.generate.base import NotFinite
from diffsteer.generate.call import call_of, fitting
from diffsteer.generate.generator import open_generator
from diffsteer.generate.outputs import _compare_length, _floats, sample_rate
from diffsteer.generate.pipelines import PipelineGenerator, configured
from diffsteer.generate.recipe import Recipe, recipe_of
from diffsteer.generate.seed_images import SeedImages
from diffsteer.io.images import Pictures
from diffsteer.io.media import is_whole, write_sound, write_video
from diffsteer.metrics.image_sets import seeds_in


def saved(kind: str, like: Any, folder: Path, **parts: Any) -> str:
    """Folder of a tiny pipeline with the parts that the families leave out."""
    own = {"scheduler": like.scheduler, "transformer": like.transformer}
    pipeline(kind, **own | parts).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    parts = {"vae": wan_vae(), "text_encoder": t5("UMT5EncoderModel", "UMT5Config")}
    folder = tmp_path_factory.mktemp("wan") / "pipe"
    model = saved("WanPipeline", tiny_video_separate.wan(), folder, tokenizer=spelling(), **parts)
    size = {"width": 32, "height": 32, "num_frames": 5}
    return Recipe(model, prompt="a cat", guidance="CFG(3)", steps=2, **size)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    like = tiny_audio.stable_audio()
    parts = {"text_encoder": t5(), "tokenizer": spelling(), "vae": like.vae}
    parts |= {"projection_model": like.projection_model}
    folder = tmp_path_factory.mktemp("audio") / "pipe"
    return Recipe(
        saved("StableAudioPipeline", like, folder, **parts), prompt="rain", steps=2, audio_seconds=2
    )


def test_a_video_is_the_pipelines_own(video: Recipe) -> None:
    """Guided, since both are CFG; and alone as beside another."""
    with open_generator(video, "cpu") as generate:
        both = generate([3, 4])
        assert both.shape == (2, 5, 3, 32, 32) and generate.rate == 16
        assert torch.equal(generate([4])[0], both[1])
        pipe = generate.pipe
    noise = torch.Generator().manual_seed(4)
    call = {"num_inference_steps": 2, "width": 32, "height": 32, "num_frames": 5}
    own = pipe("a cat", guidance_scale=3.0, generator=noise, output_type="np", **call).frames[0]
    difference = both[1].int() - torch.from_numpy((own * 255).round()).permute(0, 3, 1, 2).int()
    assert difference.abs().max() <= 1


def test_a_video_is_written_and_made_again(video: Recipe, tmp_path: Path) -> None:
    import imageio

    fast = replace(video, fps=8)
    sample(fast, "0,3", tmp_path / "a", device="cpu")
    assert {p.name for p in (tmp_path / "a").glob("0*")} == {
        *("000000.mp4", "000000.json", "000003.mp4", "000003.json")
    }
    file = tmp_path / "a/000003.mp4"
    assert recipe_of(file) == recipe_of(file.with_suffix(".json")) == (fast, 3)
    with imageio.get_reader(file) as reader:
        assert reader.get_meta_data()["fps"] == 8
        assert np.stack([np.asarray(frame) for frame in reader]).shape == (5, 32, 32, 3)
    before = file.stat().st_mtime_ns
    sample(fast, "0,3", tmp_path / "a", device="cpu")
    assert file.stat().st_mtime_ns == before
    sample(out=tmp_path / "b", device="cpu", file=file)
    assert (tmp_path / "b/000003.mp4").read_bytes() == file.read_bytes()
    with pytest.raises(InputError, match="made otherwise: steps was 2 and is 3"):
        sample(replace(fast, steps=3), "3", tmp_path / "a", device="cpu")


def test_frames_hold_the_recipe_and_are_measured_one_by_one(video: Recipe, tmp_path: Path) -> None:
    sample(video, "0-1", tmp_path, device="cpu", frames=True)
    names = [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*.png"))]
    assert names == [f"00000{seed}/000{frame}.png" for seed in (0, 1) for frame in range(5)]
    with open_generator(video, "cpu") as generate:
        frame = torch.from_numpy(np.array(Image.open(tmp_path / names[7]))).permute(2, 0, 1)
        assert torch.equal(generate([1])[0, 2], frame)
    assert recipe_of(tmp_path / names[7]) == (video, 1)
    assert seeds_in(Pictures.at(tmp_path)) == "0-1"
    sample(video, "0-1", tmp_path, device="cpu", frames=True)  # are there


def test_a_video_is_no_image_to_measure(video: Recipe, tmp_path: Path) -> None:
    (tmp_path / "video.json").write_text(json.dumps(video.to_dict()))
    with pytest.raises(InputError, match="makes video, .* sample it with --frames"):
        evaluate(tmp_path / "video.json", reference=tmp_path)


def test_a_sound_is_written_and_made_again(sound: Recipe, tmp_path: Path) -> None:
    sample(sound, "3", tmp_path / "a", device="cpu")
    file = tmp_path / "a/000003.wav"
    with open_generator(sound, "cpu") as generate, wave.open(str(file)) as written:
        values = generate([3])[0]
        assert (written.getnchannels(), written.getframerate()) == (2, 16) and values.shape[
            -1
        ] == 32
        data = np.frombuffer(written.readframes(32), "<i2").reshape(32, 2).T
    assert np.abs(data / 32767 - values.clamp(-1, 1).numpy()).max() <= 0.5 / 32767 + 1e-7
    assert recipe_of(file) == (sound, 3)
    sample(out=tmp_path / "b", device="cpu", file=file)
    assert (tmp_path / "b/000003.wav").read_bytes() == file.read_bytes()
    with open_generator(replace(sound, audio_seconds=1.0), "cpu") as generate:
        assert generate([0]).shape[-1] == 16


def test_frames_that_are_not_as_many_as_asked_for_are_told_and_made_again(
    video: Recipe, tmp_path: Path
) -> None:
    odd = replace(video, num_frames=6)
    with pytest.warns(UserWarning, match="WanPipeline made 5 frames, not the 6 that --num-frames"):
        sample(odd, "3", tmp_path / "a", device="cpu")
    table = json.loads((tmp_path / "a/000003.json").read_text())
    assert table["frames"] == 5 and table["recipe"]["num_frames"] == 6
    with pytest.warns(UserWarning, match="made 5 frames"):
        sample(out=tmp_path / "b", device="cpu", file=tmp_path / "a/000003.mp4")
    again, first = (tmp_path / side / "000003.mp4" for side in "ba")
    assert again.read_bytes() == first.read_bytes()


def test_a_sound_without_samples_is_none(sound: Recipe) -> None:
    with (
        open_generator(replace(sound, audio_seconds=0.01), "cpu") as generate,
        pytest.raises(InputError, match="made nothing of this length: .*--audio-seconds"),
    ):
        generate([0])


@pytest.mark.parametrize(
    "changes", [{"num_frames": -5}, {"fps": -1}, {"fps": 100_000}, {"audio_seconds": -1.0}]
    + [{"audio_seconds": float(text)} for text in ("nan", "inf")],
)  # fmt: skip
def test_lengths_that_cannot_be_are_no_recipe(changes: Any) -> None:
    with pytest.raises(InputError, match=f"{next(iter(changes))}"):
        Recipe("m", **changes)


@pytest.mark.parametrize("kept", [0, 30, 0.5, 0.99])
def test_a_file_that_is_cut_off_does_not_count_as_made(
    video: Recipe, sound: Recipe, tmp_path: Path, kept: float
) -> None:
    for recipe, name in ((video, "000003.mp4"), (sound, "000003.wav")):
        file = tmp_path / name
        sample(recipe, "3", tmp_path, device="cpu")
        data = file.read_bytes()
        file.write_bytes(data[: int(kept if kept > 1 else kept * len(data))])
        with pytest.raises(InputError, match=f"{name} is cut off: remove it"):
            sample(recipe, "3", tmp_path, device="cpu")
        for path in tmp_path.iterdir():
            path.unlink()


def test_without_guidance_no_null_prompt_is_evaluated(tmp_path: Path) -> None:
    """Z-Image guides wherever its scale is above 0."""
    words = spelling(64)
    words.chat_template = CHAT
    like = tiny_image_batched.z_image()
    parts = {"vae": kl_vae(like.transformer.config.in_channels, 2), "tokenizer": words}
    parts |= {"text_encoder": decoder("Qwen3Model", "Qwen3Config", num_hidden_layers=2)}
    model = saved("ZImagePipeline", like, tmp_path / "pipe", **parts)
    for guidance, rows in (("", 2), ("CFG(3)", 4)):
        recipe = Recipe(model, prompt="a", guidance=guidance, steps=2, width=32, height=32)
        with open_generator(recipe, "cpu") as generate:
            assert generate([0]).shape == (1, 3, 32, 32) and generate.nfe() == {"rows": rows}


def test_without_guidance_the_guider_of_a_pipeline_is_off() -> None:
    family = next(f for f in tiny_guider_based.FAMILIES if f.pipeline == "HunyuanImagePipeline")
    pipe = family.build()
    assert family.guided
    guided, plain = family.kwargs(pipe) | family.guided(pipe), family.kwargs(pipe)
    pipe.guider = pipe.guider.new(guidance_scale=4.0)
    own = pipe(**guided).images
    with configured(pipe, Recipe("hunyuan", prompt="a")):
        alone = pipe(**guided | {"generator": plain["generator"]}).images
    with steer(pipe, "CFG(1)"):
        expected = pipe(**family.kwargs(pipe) | {n: guided[n] for n in guided if "negative" in n})
    torch.testing.assert_close(alone, expected.images, atol=1e-5, rtol=0)
    assert not torch.equal(own, alone) and pipe.guider._enabled


def test_files_of_known_content(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", torch.tensor([[0.0, 1.0, -2.0], [0.5, 0.0, 0.0]]), 8000)
    with wave.open(str(tmp_path / "a.wav")) as sound:
        assert np.frombuffer(sound.readframes(3), "<i2").tolist() == [0, 16384, 32767, 0, -32767, 0]
    import imageio

    (tmp_path / "b.mp4").write_bytes(b"\0\0\0\1moov" + bytes(8))  # a length that leads nowhere
    assert not is_whole(tmp_path / "b.mp4")
    frames = torch.zeros(4, 3, 18, 34, dtype=torch.uint8)
    frames[2:] = 255
    write_video(tmp_path / "a.mp4", frames, 4)
    with imageio.get_reader(tmp_path / "a.mp4") as reader:
        means = [frame.mean() for frame in reader]
        assert reader.get_meta_data()["size"] == (34, 18)
    assert len(means) == 4 and max(means[:2]) < 5 and min(means[2:]) > 250


def test_a_missing_extra_is_told_before_the_model_is_loaded(
    video: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("diffsteer.io.media.find_spec", lambda name: None)
    options = ["--width", "32", "--height", "32", "--num-frames", "5", "--out", str(tmp_path / "o")]
    monkeypatch.setattr(
        sys, "argv", ["diffsteer", "sample", video.model, "--prompt", "a", *options]
    )
    with pytest.raises(SystemExit, match=r'diffsteer\[video\]", or `pip install -e ".\[video\]"'):
        main()
    assert not (tmp_path / "o").exists()


def test_the_sound_of_a_video_is_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LTX-2 makes both: sound in the MP4, or as a WAV beside its frames."""
    pipe = tiny_video_audio.ltx2()
    pipe.vocoder = network(
        LTX2Vocoder, in_channels=32, hidden_channels=16, upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2], resnet_kernel_sizes=[3], resnet_dilations=[[1]],
        output_sampling_rate=8000,
    )  # fmt: skip
    video = torch.rand(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(pipe.vae, "decode", lambda *_, **__: (video,))
    call = tiny_video_audio.ltx2_kwargs(pipe)
    own = pipe(**call | {"output_type": "np", "generator": torch.Generator().manual_seed(7)}).audio
    del call["generator"], call["output_type"]
    monkeypatch.setattr("diffsteer.generate.pipelines.call_of", lambda *_: call)
    generator = PipelineGenerator(Recipe("ltx", prompt="rain", num_frames=9), pipe, "weights")
    for frames in (False, True):
        SeedImages(tmp_path, generator, frames=frames).fill([7], 1)
    heard = tmp_path / "heard.wav"
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i"]
    subprocess.run([*ffmpeg, str(tmp_path / "000007.mp4"), "-vn", str(heard)], check=True)
    for file, limit in ((tmp_path / "000007.wav", 1e-4), (heard, 0.2)):  # AAC loses some
        with wave.open(str(file)) as written:
            assert (written.getnchannels(), written.getframerate()) == (2, 8000)
            data = np.frombuffer(written.readframes(own.shape[-1]), "<i2").reshape(-1, 2).T / 32767
        length = min(data.shape[1], own.shape[-1])
        off = np.sqrt(np.mean((data[:, :length] - own[0].numpy()[:, :length]) ** 2))
        assert length > 0.9 * own.shape[-1] and off <= limit * own.std()
    assert generator.sound(7) is None


def test_the_rate_of_frames_is_told_to_pipelines_that_ask_for_it() -> None:
    takes = {"prompt", "num_frames", "frame_rate"}
    assert fitting(Recipe("m", fps=8), "LTXPipeline", takes) == {"frame_rate": 8}
    assert fitting(Recipe("m", fps=8), "WanPipeline", takes - {"frame_rate"}) == {}


def test_a_true_scale_of_guidance_sends_the_negative_prompt() -> None:
    pipe, recipe = (
        tiny_image_separate.qwen_image(),
        Recipe("m", negative="a dog", guidance="CFG(3)"),
    )
    call = call_of(pipe, recipe, ["a", "b"])
    assert call["true_cfg_scale"] > 1 and call["negative_prompt"] == ["a dog"] * 2
    assert "guidance_scale" not in call
    assert "true_cfg_scale" not in call_of(pipe, Recipe("m"), ["a"])


def test_one_side_of_an_image_needs_the_size_of_the_pipeline() -> None:
    pipe = tiny_image_separate.qwen_image()
    assert call_of(pipe, Recipe("m", width=32), ["a"])["height"] == 1024
    with pytest.raises(InputError, match="WanPipeline names no size of its own: give width and"):
        call_of(tiny_video_separate.wan(), Recipe("m", width=32), ["a"])


IMAGES = torch.rand(2, 5, 6, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (IMAGES.movedim(-1, -3), IMAGES),
        ((255 * IMAGES).byte().movedim(-1, -3), (255 * IMAGES).byte() / 255),
        ((255 * IMAGES).byte().numpy(), (255 * IMAGES).byte() / 255),
        (list(IMAGES.numpy()), IMAGES),
        (IMAGES[..., 0, 0], IMAGES[..., 0, 0][:, None]),
        (IMAGES[..., 0, 0].double().numpy(), IMAGES[..., 0, 0][:, None]),
        (IMAGES[..., 0], IMAGES[..., 0]),
    ],
    ids=["tensor", "bytes", "array of bytes", "list", "mono", "array of mono", "stereo"],
)
def test_what_pipelines_return_is_read_in_every_form(given: Any, wanted: torch.Tensor) -> None:
    """Images with colours last, float32 in [0, 1]; sounds with channels."""
    torch.testing.assert_close(_floats(SimpleNamespace(images=given)), wanted)


def test_what_is_no_image_is_refused() -> None:
    for output, kind in (("a text", "str"), (SimpleNamespace(images=[0.5]), "ndarray")):
        with pytest.raises(InputError, match=f"an output of {kind} is no image, video or sound"):
            _floats(output)
    with pytest.raises(InputError, match="WanPipeline does not name the sample rate"):
        sample_rate(tiny_video_separate.wan())


def test_a_video_of_the_pipelines_own_length_is_as_long_as_asked(
    video: Recipe, recwarn: pytest.WarningsRecorder
) -> None:
    with open_generator(video, "cpu") as generate:
        _compare_length(generate.pipe, torch.zeros(1, 9, 3, 4, 4), {})
    assert not recwarn


def test_videos_that_are_not_finite_leave_the_others(video: Recipe) -> None:
    with open_generator(video, "cpu") as generate:
        decode = generate.pipe.vae.decode
        broken = iter((False, True, False))

        def decoded(*args: Any, **kwargs: Any) -> Any:
            (sample,) = decode(*args, **kwargs)
            return (sample * (float("nan") if next(broken) else 1.0),)

        generate.pipe.vae.decode = decoded
        with pytest.raises(NotFinite, match="seeds 4 are not finite") as error:
            generate([3, 4, 5])
        del generate.pipe.vae.decode
    assert error.value.seeds == (4,) and error.value.images.keys() == {3, 5}
