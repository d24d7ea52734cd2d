"""From a user's own images to samples of a class: arrays, tables of captions, grey images."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffsteer.cli.main import app
from diffsteer.core.errors import InputError
from diffsteer.models.edm2.config import read_config
from diffsteer.train.captioned_images import open_images
from diffsteer.train.settings import Run
from diffsteer.train.stream import captions

DRAW = np.random.RandomState(0)
GREY = DRAW.randint(0, 256, (6, 8, 8), dtype=np.uint8)
COLOUR = DRAW.randint(0, 256, (6, 8, 8, 3), dtype=np.uint8)
CLASSES = np.array([3, 0, 10, 3, 0, 1], dtype=np.uint8)
NETWORK = {"img_resolution": 8, "model_channels": 8, "channel_mult": "[1]", "num_blocks": 1}
NETWORK |= {"channels_per_head": 8, "logvar_channels": 8, "attn_resolutions": "[]"}


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return head + array.tobytes()


def saved(folder: Path, kind: str) -> Path:
    """Write grey images with classes; return what a user names."""
    images, labels = (folder / f"train-{n}-ubyte" for n in ("images-idx3", "labels-idx1"))
    if kind == "idx":
        images.write_bytes(idx(GREY))
        labels.write_bytes(idx(CLASSES))
        return folder
    if kind == "gz":
        for path, array in ((images, GREY), (labels, CLASSES)):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
        return images.with_name(f"{images.name}.gz")
    if kind == "npy":
        np.save(folder / "a.npy", GREY[:, None])
        np.save(folder / "a-labels.npy", CLASSES)
        return folder / "a.npy"
    arrays = {"x_train": GREY, "y_train": CLASSES, "x_test": GREY[:2], "y_test": CLASSES[:2]}
    np.savez_compressed(folder / "a.npz", **arrays)
    return folder / "a.npz"


@pytest.mark.parametrize("kind", ["idx", "gz", "npy", "npz"])
def test_arrays_are_images_with_classes(tmp_path: Path, kind: str) -> None:
    source = open_images(saved(tmp_path, kind), (8, 8))
    assert [source[i].caption for i in range(len(source))] == ["3", "0", "10", "3", "0", "1"]
    expected = torch.from_numpy(GREY)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(torch.stack([source[i].pixels for i in range(6)]), expected)
    assert source.fingerprint.grey and source.fingerprint.sizes.keys() == {(8, 8)}
    with pytest.raises(InputError, match="8 x 8 pixels, not 9 x 9"):
        open_images(saved(tmp_path, kind), (9, 9)).fingerprint.require((9, 9), 1)


def test_a_column_of_classes_is_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=GREY, y_train=CLASSES[:, None])  # as Keras gives CIFAR-10
    source = open_images(tmp_path / "a.npz")
    assert [source.caption(i) for i in range(6)] == [str(number) for number in CLASSES]
    assert captions(open_images(tmp_path / "a.npz", label="none")) == [""] * 6


def test_other_columns_than_classes_are_passed_over(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=GREY, y=CLASSES, ids=CLASSES[:, None], size=np.array([[8]]))
    source = open_images(tmp_path / "a.npz")
    assert captions(source) == [str(number) for number in CLASSES]


def test_colour_without_classes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", COLOUR)
    source = open_images(tmp_path / "a.npy")
    assert torch.equal(source[2].pixels, torch.from_numpy(COLOUR[2]).permute(2, 0, 1))
    assert source[2].caption == "" and not source.fingerprint.grey
    np.save(tmp_path / "a.npy", COLOUR / 255)
    with pytest.raises(InputError, match="must be uint8 of shape .N, H, W. or .*got float64"):
        open_images(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"a": GREY.astype(float)}, "no array of uint8"),
        ({"a": GREY, "b": GREY}, "a, b may all be images"),
        ({"a": GREY, "b": CLASSES[:4]}, "6 whole numbers >= 0, got uint8 of shape .4,"),
        ({"a": GREY[0].reshape(1, 2, 2, 16)}, "1 or 3 channels"),
        ({"a": GREY, "b": np.array([object()])}, "never read"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=f"a.npz holds no images in arrays: .*{reason}"):
        open_images(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (b"", "not enough values"),
        (b"\0\0\x08", "not enough values"),
        (b"\0\0\x0d\x03", "is no idx file of uint8"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", "has 0 bytes, not 4294967295"),
        (b"\0\0\x08\x02" + b"\xff" * 8, "is over the limit"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, harm: bytes, reason: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(harm)
    with pytest.raises(InputError, match=f"holds no images in arrays: .*{reason}"):
        open_images(tmp_path)


@pytest.mark.parametrize(("name", "hint"), [("a.PNG", "one image: name"), ("a.zip", "unpack it")])
def test_a_file_that_is_no_data_set_is_told_apart(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"{name} is .*{hint}.* the folder that holds the images"):
        open_images(tmp_path / name)


def test_a_table_of_captions(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    table = tmp_path / "metadata.csv"
    table.write_text('file_name,text\nb.png,"a cat, red"\na.png,a dog\n', "utf-8")
    source = open_images(tmp_path)
    assert [source.caption(i) for i in range(2)] == ["a dog", "a cat, red"]
    assert source.fingerprint.grey
    table.write_text("file_name,text\nb.png,a\u2028cat\na.png,a\x0bdog\n", "utf-8")
    assert [open_images(tmp_path).caption(i) for i in range(2)] == ["a dog", "a cat"]
    table.write_text("file_name,text\na.png\n", "utf-8")
    with pytest.raises(InputError, match="row 2 must have a value under each name"):
        open_images(tmp_path)


def test_other_data_leave_what_belongs_to_those_of_the_preset(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="data.label='background', data.group=.*: of emoji"):
        run = Run.named("edm2-tiny", "data.source=here", "data.size=8")
    assert (run.data.label, run.data.group, run.data.size) == ("", "", 8)
    own = tmp_path / "own.toml"
    own.write_text('like = "edm2-tiny"\n[data]\nsource = "here"\nlabel = "folder"\n', "utf-8")
    with pytest.warns(UserWarning, match="data.group=.*: of emoji"):
        assert Run.named(str(own)).data.label == "folder"
    assert run.data.drop == 0.1 and "img_channels" not in run.settings["network"]
    with pytest.warns(UserWarning):
        run = Run.named("edm2-tiny", "data.label=folder", "data.source=here")
    assert run.data.label == "folder"
    assert Run.named("edm2-tiny", "data.size=16").data.group == "Smileys & Emotion"


def test_a_grey_class_from_folders_to_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The journey: no setting but the source and its label; a class is asked for by its name."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(GREY[i]).save(tmp_path / f"data/{name}/{i}.png")
    changes = {"data.source": "data", "data.label": "folder", "data.size": 8, "training.images": 4}
    changes |= {"training.batch": 4, "training.log": 4, "pictures.every": 4, "pictures.steps": 2}
    changes |= {f"settings.network.{name}": value for name, value in NETWORK.items()}
    command = ["train", "edm2-tiny", "--out", "run"]
    for name, value in changes.items():
        command += ["--set", f"{name}={value}"]
    with pytest.warns(UserWarning, match="left out for other data"):
        app.cli(prog="diffsteer", args=command)
    assert read_config(tmp_path / "run/model")["config"]["img_channels"] == 1
    assert Image.open(next(tmp_path.glob("run/pictures/*.png"))).mode == "RGB"
    for out, label in (("name", "dog"), ("number", "1"), ("other", "cat")):
        sample = ["sample", "run/model", "--steps", "2", "--seeds", "0", "--class", label]
        app.cli(prog="diffsteer", args=[*sample, "--out", out])
    files = {n: next((tmp_path / n).glob("*.png")) for n in ("name", "number", "other")}
    images = {name: np.array(Image.open(file)) for name, file in files.items()}
    assert images["name"].shape == (8, 8, 3) and (np.ptp(images["name"], axis=2) == 0).all()
    assert (images["name"] == images["number"]).all()
    with pytest.raises(InputError, match="no class 'dgo' .did you mean 'dog'.*there are cat, dog"):
        app.cli(prog="diffsteer", args=[*sample[:-1], "dgo", "--out", "none"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_whoever_reads_it(tmp_path: Path, workers: int) -> None:
    from diffsteer.train.registry import begin

    (tmp_path / "data").mkdir()
    for i, image in enumerate(COLOUR):
        Image.fromarray(image).save(tmp_path / f"data/{i}.png")
    data = bytearray((tmp_path / "data/3.png").read_bytes())
    data[60] ^= 1
    (tmp_path / "data/3.png").write_bytes(data)
    changes = [f"settings.network.{name}={value}" for name, value in NETWORK.items()]
    changes += [f"data.source={tmp_path / 'data'}", "data.label=none", "data.drop=0"]
    changes += ["data.size=8", "training.batch=2", f"training.workers={workers}"]
    with pytest.warns(UserWarning):
        run = Run.named("edm2-tiny", *changes)
    batches = begin(run, tmp_path / "run")._batches()
    with pytest.raises(InputError, match=r"^\S*data/3.png is broken or cut short: [^\n]*$"):
        for _ in range(3):
            next(batches)


def test_colour_for_a_network_of_one_channel_is_refused(tmp_path: Path) -> None:
    from diffsteer.train.registry import begin

    np.savez(tmp_path / "a.npz", images=COLOUR, labels=CLASSES)
    changes = [f"settings.network.{name}={value}" for name, value in NETWORK.items()]
    changes += [f"data.source={tmp_path / 'a.npz'}", "settings.network.img_channels=1"]
    with pytest.warns(UserWarning):
        run = Run.named("edm2-tiny", *changes, "data.size=8")
    with pytest.raises(InputError, match="has images in colour"):
        begin(run, tmp_path / "run")
