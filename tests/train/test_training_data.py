"""Training data: exact composition, no leak between splits, an order that resumes and shards."""

import hashlib
import io
import json
import pickle
import shutil
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import diffsteer_lab
import numpy as np
import pytest
import torch
from diffsteer_lab.emoji import BACKGROUNDS, Emoji, composed, family, held_out
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from diffsteer.io.atomic import owned
from diffsteer.train import captions, latents, webdataset
from diffsteer.train import stream as data
from diffsteer.train.captioned_images import Folder, Shards, open_images
from diffsteer.train.stream import Sample, Stream

ASSETS = Path(diffsteer_lab.__file__).parent / "assets/emoji"
TABLE = json.loads((ASSETS / "emoji.json").read_text("utf-8"))
CODES = [code for code, _, _ in TABLE["emoji"]]


def png(value: int, width: int = 4, height: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (value, 0, 255 - value)).save(file, "PNG")
    return file.getvalue()


# Composition


def test_composition_is_the_rounded_mean_of_colour_and_background() -> None:
    alpha, colour, below = np.meshgrid(np.arange(256), [0, 1, 77, 128, 254, 255], [0, 40, 128, 255])
    for background in (0, 40, 128, 255):
        at = below == background
        sprite = np.stack([colour[at]] * 3 + [alpha[at]], -1)[None].astype(np.uint8)
        found = composed(sprite, (background,) * 3)
        exact = (alpha[at] * colour[at] + (255.0 - alpha[at]) * background) / 255
        assert found.shape == (3, *sprite.shape[:2]) and found.dtype == torch.uint8
        assert np.array_equal(found[0, 0].numpy(), np.rint(exact)) and found.is_contiguous()


def test_a_hidden_colour_never_shows_and_each_channel_meets_its_own() -> None:
    sprite = np.array([[[200, 100, 50, 0], [200, 100, 50, 255], [255, 0, 100, 51]]], np.uint8)
    found = composed(sprite, BACKGROUNDS["blue"])
    assert found[:, 0].T.tolist() == [[40, 80, 220], [200, 100, 50], [83, 64, 196]]  # 51 / 255 = .2


# The emoji that ship


def test_sheets_are_those_of_the_table() -> None:
    for style, about in TABLE["styles"].items():
        pixels = np.array(Image.open(ASSETS / f"{style}.webp"))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == about["pixels_sha256"]
        assert pixels.shape == (37 * 64, 38 * 64, 4) and len(CODES) == 1386
        assert not pixels[pixels[..., 3] == 0].any()


def test_sprites_are_cut_where_the_table_says() -> None:
    page = Image.open(ASSETS / "noto.webp")
    i = CODES.index("1F34E")
    corner = (i % 38 * 64, i // 38 * 64)
    apple = np.array(page.crop((*corner, corner[0] + 64, corner[1] + 64)))
    mine = Emoji("all", ("noto",), ("green",))
    assert torch.equal(mine[i].pixels, composed(apple, BACKGROUNDS["green"]))
    assert mine[i].caption == "red apple, noto style, on a green background"
    assert mine.code(i) == "1F34E"
    centre = apple[24:48, 20:44, :3].reshape(-1, 3).mean(0)  # that the image is of a red thing
    assert centre[0] > 2 * max(centre[1:])


def test_a_split_shows_what_it_names() -> None:
    every, few = Emoji("all", backgrounds=("grey",)), Emoji("test", backgrounds=("grey",))
    for i in range(0, len(few), 17):
        same = every[2 * CODES.index(few.code(i)) + i % 2]
        assert few[i].caption == same.caption and torch.equal(few[i].pixels, same.pixels)


def test_licences_and_attribution_are_beside_the_sheets() -> None:
    notice = (ASSETS / "NOTICE.md").read_text("utf-8")
    for name, words in {
        "Apache-2.0": "Apache License",
        "CC-BY-4.0": "Attribution 4.0 International",
        "MIT": "Permission is hereby granted",
    }.items():
        assert words in (ASSETS / f"LICENSE-{name}.txt").read_text("utf-8")
        assert f"LICENSE-{name}.txt" in notice
    assert "Copyright Twitter, Inc and other contributors, licensed under CC-BY 4.0" in notice
    assert "Changes made" in notice


def test_captions_name_one_thing_each() -> None:
    names = [name for _, name, _ in TABLE["emoji"]]
    assert len(set(names)) == len(names) == len(set(CODES))
    assert all(name == name.lower().strip() and "," not in name for name in names)
    every = Emoji("all")
    captions = {every[i].caption for i in range(0, len(every), 7)}
    assert len(captions) == len(range(0, len(every), 7))
    few = Emoji("test")
    assert len({few[i].caption for i in range(len(few))}) == len(few) == 147 * 2 * 8


def test_no_object_is_in_both_splits() -> None:
    of = {
        split: {Emoji(split, ("noto",), ("red",)).code(i) for i in range(n)} for split, n in COUNTS
    }
    assert of["train"] | of["test"] == set(CODES) and not of["train"] & of["test"]
    assert not {family(c) for c in of["train"]} & {family(c) for c in of["test"]}
    both = {split: {Emoji(split).code(i) for i in range(len(Emoji(split)))} for split, _ in COUNTS}
    assert both == of  # styles and backgrounds divide alike


COUNTS = (("train", 1239), ("test", 147))


@pytest.mark.parametrize(
    ("code", "same"),
    [
        ("1F3C3", "1F3C3-200D-2640-FE0F-200D-27A1-FE0F"),  # woman running facing right
        ("1F469-200D-1F680", "1F9D1-1F3FD-200D-1F680"),  # astronauts
        ("2764-FE0F", "2764"),
        ("1F468", "1F9D1-200D-1F9D1-200D-1F9D2"),  # man, family
        ("1F468-200D-1F9B0", "1F476"),  # man with red hair, baby
        ("1F46B", "1F9D1-200D-1F91D-200D-1F9D1"),  # couples holding hands
        ("1F552", "1F562"),  # three o'clock, half past seven
        ("1F512", "1F513"),  # lock, open lock
    ],
)
def test_variants_of_an_emoji_stay_together(code: str, same: str) -> None:
    assert family(code) == family(same) and held_out(code) == held_out(same)


def test_things_are_told_apart() -> None:
    assert len({family(c) for c in ("1F34E", "1F34F", "1F9D1", "1F680", "1F550")}) == 5


def test_a_class_of_emoji_is_what_all_of_its_captions_share() -> None:
    every = Emoji("all")
    for label, number in (("group", 7), ("style", 2), ("background", 8)):
        mine = Emoji("all", label=label)
        classes = data.captions(mine)
        assert len(set(classes)) == number and len(mine) == len(every)
        for i in range(0, len(every), 997):
            assert mine[i].caption == mine.caption(i) == classes[i]
            assert label == "group" or mine.caption(i) in every.caption(i)
    faces = Emoji("all", group="Smileys & Emotion")
    assert len(faces) == 169 * 16 and faces.code(0) == "1F600"
    assert set(data.captions(replace(faces, label="group"))) == {"Smileys & Emotion"}


def test_smaller_emoji_are_means_of_four_or_sixteen_pixels() -> None:
    for size in (32, 16):
        large, small = Emoji("all")[5].pixels.numpy(), Emoji("all", size=size)[5].pixels
        n = 64 // size
        mean = large.reshape(3, size, n, size, n).mean((2, 4), dtype=np.float64)
        assert small.shape == (3, size, size) and small.dtype == torch.uint8
        assert np.array_equal(small.numpy(), np.rint(mean))


def test_what_is_not_in_the_emoji_data_is_refused() -> None:
    with pytest.raises(ValueError, match="apple.*noto"):
        Emoji(styles=("apple",))
    with pytest.raises(ValueError, match="orange.*white"):
        Emoji(backgrounds=("white", "orange"))
    with pytest.raises(ValueError, match="choose from"):
        Emoji(backgrounds=())
    with pytest.raises(ValueError, match="val.*train"):
        Emoji("val")  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="-1"):
        Emoji()[-1]
    with pytest.raises(IndexError, match="2352"):
        Emoji("test")[2352]


# The order


class Numbers:
    """Samples that say which they are."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        assert 0 <= index < self.size
        return Sample(torch.full((3, 1, 1), index % 256, dtype=torch.uint8), f"sample {index}")


def seen(stream: Stream, n: int) -> list[str]:
    return [sample.caption for sample in islice(stream, n)]


streams = st.builds(
    Stream,
    st.integers(1, 40).map(Numbers),
    st.integers(0, 2**63),
    st.sampled_from([0.0, 0.1, 0.9]),
    st.integers(0, 200),
)


@given(streams, st.integers(0, 90))
@settings(max_examples=60)
def test_a_stream_that_starts_at_n_goes_on_as_one_from_0(stream: Stream, n: int) -> None:
    later = replace(stream, start=stream.start + n)
    assert seen(stream, n + 30)[n:] == seen(later, 30)


@given(streams, st.integers(1, 7))
@settings(max_examples=60)
def test_all_ranks_together_see_what_one_would(stream: Stream, world: int) -> None:
    ranks = [seen(replace(stream, rank=rank, world=world), 12) for rank in range(world)]
    assert [caption for row in zip(*ranks, strict=True) for caption in row] == seen(
        stream, 12 * world
    )


@given(streams)
@settings(max_examples=60)
def test_an_epoch_is_every_sample_once(stream: Stream) -> None:
    size, whole = len(stream.source), replace(stream, start=0, drop=0.0)
    epochs = [[whole.index(n) for n in range(e * size, e * size + size)] for e in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert size < 12 or (epochs[0] != epochs[1] != epochs[2])  # 1 in 12! by chance


def test_order_is_uniform_and_follows_the_seed() -> None:
    """Places of sample 0 of 5 over 2000 seeds: 400 each, binomial spread 18; 5 of them."""
    at = [[Stream(Numbers(5), s).index(n) for n in range(5)].index(0) for s in range(2000)]
    assert all(abs(count - 400) < 90 for count in np.bincount(at, minlength=5))
    assert [Stream(Numbers(8), 3).index(n) for n in range(8)] == [2, 6, 1, 7, 3, 5, 0, 4]


def test_captions_are_dropped_as_often_as_asked() -> None:
    """Of 4000 images 10 %: 400, binomial spread 19; 5 of them. A larger drop drops these too."""
    drops = {
        p: [c == "" for c in seen(Stream(Numbers(50), 1, p), 4000)] for p in (0.0, 0.1, 0.5, 1.0)
    }
    assert sum(drops[0.0]) == 0 and sum(drops[1.0]) == 4000
    assert abs(sum(drops[0.1]) - 400) < 95
    assert not any(few and not many for few, many in zip(drops[0.1], drops[0.5], strict=True))
    first, second = np.array(drops[0.5]).reshape(2, -1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.12  # 5 / sqrt(2000): anew each epoch


def test_image_seeds_differ() -> None:
    seeds = {Stream(Numbers(3), s).image_seed(n) for s in range(20) for n in range(200)}
    assert len(seeds) == 4000 and all(0 <= seed < 2**64 for seed in seeds)


def test_a_pickled_stream_is_small_and_the_same() -> None:
    stream = Stream(Emoji("test"), 5, 0.1, start=1000)
    assert len(pickle.dumps(stream)) < 1000
    for a, b in zip(islice(stream, 20), pickle.loads(pickle.dumps(stream)), strict=False):
        assert a.caption == b.caption and torch.equal(a.pixels, b.pixels)


def test_workers_keep_the_order() -> None:
    stream = Stream(Emoji("test"), 7, 0.2, start=2260, rank=1, world=2)
    loader = DataLoader(
        stream, 4, sampler=stream.numbers(), num_workers=2, collate_fn=list, prefetch_factor=1
    )
    batches = list(islice(loader, 4))
    assert [s.caption for batch in batches for s in batch] == seen(stream, 16)


@pytest.mark.parametrize(
    "bad",
    [{"drop": 1.1}, {"drop": -0.1}, {"start": -1}, {"rank": 2, "world": 2}, {"rank": -1}],
    ids=str,
)
def test_numbers_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
        Stream(Numbers(3), **bad)  # type: ignore[arg-type]


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Stream(Numbers(0))


# Users' folders


def folder(root: Path) -> Path:
    (root / "sub").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.c.png", "sub/a.png"]):
        (root / name).write_bytes(png(i))
        (root / name).with_suffix(".txt").write_text(f"picture\n  {i} ä\n", "utf-8")
    return root


def metadata(root: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "metadata.jsonl").write_text(text, "utf-8")
    return root


NAMED = [{"file_name": name, "text": f"line {name}"} for name in ("sub/a.png", "a.png", "b.c.png")]


def test_a_folder_is_read_with_text_files(tmp_path: Path) -> None:
    source = Folder.at(str(folder(tmp_path / "set")), size=(4, 4))
    assert [source[i].caption for i in range(3)] == [f"picture {i} ä" for i in range(3)]
    assert [source[i].pixels[:, 0, 0].tolist() for i in range(3)] == [
        [i, 0, 255 - i] for i in range(3)
    ]
    assert sorted(seen(Stream(pickle.loads(pickle.dumps(source))), 3)) == [
        f"picture {i} ä" for i in range(3)
    ]


def test_metadata_names_pictures_in_any_order(tmp_path: Path) -> None:
    source = Folder.at(metadata(folder(tmp_path / "set"), *NAMED[:2], "", NAMED[2]))
    assert [source[i].caption for i in range(3)] == ["line a.png", "line b.c.png", "line sub/a.png"]
    again = metadata(tmp_path / "set", *NAMED[:2], {"file_name": "./b.c.png", "caption": "other"})
    assert Folder.at(again)[1].caption == "other"


BAD_LINES = {
    "no JSON": (["{"], "jsonl line 1 is no JSON"),
    "deep": (["[" * 100_000], "jsonl line 1 is no JSON"),
    "a list": ([[1]], "line 1 holds a JSON list"),
    "no file name": ([*NAMED, {"text": "x"}], 'line 4 has no "file_name"'),
    "no caption": ([NAMED[0], {"file_name": "a.png"}], "line 2 has no caption"),
    "number": ([{"file_name": "a.png", "text": 3}], "line 1 has no caption"),
    "empty": ([{"file_name": "a.png", "text": " "}], "line 1 is empty"),
    "stranger": ([*NAMED, {"file_name": "z.png", "text": "x"}], "line 4 .*z.png.*no image"),
    "twice": ([*NAMED, NAMED[0]], r"line 4 .*sub/a\.png.*before"),
    "left out": (NAMED[1:], r"no line for sub/a\.png"),
    "up": ([{"file_name": "../a.png", "text": "x"}], r"line 1 names \.\./a\.png, which leads out"),
    "root": ([{"file_name": "/etc/a.png", "text": "x"}], "line 1 names /etc/a.png, which leads"),
    "backslash": ([{"file_name": "..\\a.png", "text": "x"}], "line 1 names .*leads out"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_metadata_is_refused_by_line(case: str, tmp_path: Path) -> None:
    lines, message = BAD_LINES[case]
    root = metadata(folder(tmp_path / "set"), *lines)
    with pytest.raises(ValueError, match=r"metadata\.jsonl.*" + message.removeprefix("jsonl ")):
        Folder.at(root)


def test_bad_folders_are_refused_by_name(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    (root / "a.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"a\.txt is no UTF-8"):
        Folder.at(root)
    (root / "a.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"a\.txt is empty"):
        Folder.at(root)
    (root / "a.txt").write_text("x" * (captions.MAX_CAPTION + 1))
    with pytest.raises(ValueError, match=r"a\.txt has 1048577 bytes"):
        Folder.at(root)
    (root / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"a\.png has no caption: write a\.txt"):
        Folder.at(root)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Folder.at(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"set\.zip is no folder: unpack it"):
        Folder.at(Path(shutil.make_archive(str(root), "zip", root)))


@pytest.mark.parametrize("name", ["dog.txt", "sub/dog.TXT", "a.png.txt"])
def test_a_caption_without_a_picture_is_refused_by_name(name: str, tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    (root / "notes.md").write_text("no caption")
    assert len(Folder.at(root)) == 3
    (root / name).write_text("a dog")
    with pytest.raises(ValueError, match=f"holds {name}, a caption, and no image"):
        Folder.at(root)
    assert len(Folder.at(metadata(root, *NAMED))) == 3  # where captions are not beside images


def test_wrong_or_broken_pictures_are_refused_by_name(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    (root / "a.png").write_bytes(png(0, 5, 4))
    (root / "b.c.png").write_bytes(png(0)[:50])
    with pytest.raises(ValueError, match=r"set/a\.png has 5 x 4 pixels, not 4 x 4"):
        Folder.at(root, (4, 4))[0]
    assert Folder.at(root)[0].pixels.shape == (3, 4, 5)
    with pytest.raises(ValueError, match=r"set/b\.c\.png is broken or cut"):
        Folder.at(root)[1]


# Users' shards

PARTS = {
    "000.png": png(0),
    "000.txt": b"first",
    "000.json": b"{}",  # the text file goes before it
    "000.cls": b"7",
    "000.seg.png": b"not read",
    "._000.png": b"not read",
    "sub/000.JSON": b'{"caption": "second", "text": "2nd"}',
    "sub/000.PNG": png(1),
    "001.json": b'{"caption": "third"}',
    "001.webp": png(2),
}


def shard(path: Path, parts: dict[str, bytes], **changes: object) -> Path:
    """Write a tar file; `changes` are attributes of its last member."""
    with tarfile.open(path, "w") as archive:
        for i, (name, content) in enumerate(parts.items(), 1):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changes.items() if i == len(parts) else ():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content) if info.size == len(content) else None)
    return path


def test_shards_are_read_in_their_order(tmp_path: Path) -> None:
    paths = [shard(tmp_path / f"{i}.tar", PARTS) for i in range(2)]
    source = Shards.at(*paths, size=(4, 4))
    assert [source[i].caption for i in range(6)] == ["first", "2nd", "third"] * 2
    assert Shards.at(paths[0], label="none").caption(0) == ""
    assert [int(source[i].pixels[0, 0, 0]) for i in range(6)] == [0, 1, 2] * 2
    assert seen(Stream(pickle.loads(pickle.dumps(source))), 6) == seen(Stream(source), 6)


PAIR = {"a.png": png(3), "a.txt": b"x"}
BAD_SHARDS = {
    "no image": ({"a.cls": b"1"}, {}, "holds no image"),
    "no caption": ({**PAIR, "b.png": png(1)}, {}, "no caption for b"),
    "caption alone": ({**PAIR, "b.txt": b"x"}, {}, "0 images for b"),
    "dots in the name": ({**PAIR, "d.e/x.y.png": png(1)}, {}, r"0 images for d.e/x.*x\.y\.png"),
    "unknown kind": ({**PAIR, "b.gif": b"GIF"}, {}, r"0 images for b.*b\.gif"),
    "two pictures": ({**PAIR, "a.jpg": png(1)}, {}, "2 images for a"),
    "twice": ({**PAIR, "./a.txt": b"y"}, {}, "a.txt twice"),
    "no JSON": ({"a.png": png(3), "a.json": b"{"}, {}, "a.json is no JSON"),
    "no text": ({"a.png": png(3), "a.json": b"{}"}, {}, "a.json has no caption"),
    "up": ({**PAIR, "../a.png": png(1)}, {}, r"\.\./a\.png, which leads out"),
    "root": ({**PAIR, "/etc/a.png": png(1)}, {}, "/etc/a.png, which leads out"),
    "negative": ({**PAIR, "b.png": b""}, {"size": -512}, "b.png has no -512 bytes"),
    "back in a loop": (
        {**PAIR, "b": b""},
        {"size": -512, "type": tarfile.DIRTYPE},
        "b has no -512 bytes",
    ),
    "past the end": ({**PAIR, "b.png": b""}, {"size": 2**40}, "b.png has no 1099511627776 bytes"),
    "link": ({**PAIR, "b.png": b""}, {"type": tarfile.SYMTYPE, "linkname": "/etc/x"}, "a link"),
    "sparse": (
        {**PAIR, "b.png": png(1)},
        {"pax_headers": {"GNU.sparse.map": "0,77"}},
        r"b\.png is .* sparse",
    ),
    "device": ({**PAIR, "b.png": b""}, {"type": tarfile.CHRTYPE}, "a device"),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_bad_shards_are_refused_by_name(case: str, tmp_path: Path) -> None:
    parts, changes, message = BAD_SHARDS[case]
    with pytest.raises(ValueError, match=rf"0\.tar.*{message}"):
        Shards.at(shard(tmp_path / "0.tar", parts, **changes))


def test_notes_of_a_shard_are_no_samples(tmp_path: Path) -> None:
    parts = {**PAIR, "README.md": b"x", "d.e/about.v2.csv": b"x", "a.depth.npy": b"x"}
    assert len(Shards.at(str(shard(tmp_path / "0.tar", parts)))) == 1
    parts["d.e/folder"] = b""
    assert len(Shards.at(shard(tmp_path / "0.tar", parts, type=tarfile.DIRTYPE))) == 1


def test_a_folder_of_shards_holds_nothing_else_but_notes(tmp_path: Path) -> None:
    for i in range(2):
        shard(tmp_path / f"{i}.tar", PAIR)
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / "._0.tar").write_text("hidden")
    assert len(open_images(tmp_path)) == 2 and len(open_images(tmp_path / "0.tar")) == 1
    for name in ("2.tar.gz", "cat.png", "cat.txt", "sub/3.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"holds 0.tar, a tar file, and {name}, which is none"):
            open_images(tmp_path)
        (tmp_path / name).unlink()


def test_large_members_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(tmp_path / "0.tar", PAIR)
    monkeypatch.setattr(webdataset, "MAX_BYTES", 20)
    with pytest.raises(ValueError, match=r"0\.tar: a\.png has .* bytes, the limit is 20"):
        Shards.at(path)
    monkeypatch.undo()
    monkeypatch.setattr(webdataset, "MAX_CAPTION", 0)
    with pytest.raises(ValueError, match=r"0\.tar: a\.txt has 1 bytes, the limit is 0"):
        Shards.at(path)


def test_no_damage_to_a_header_goes_unseen(tmp_path: Path) -> None:
    """A shard cut anywhere, or with a damaged header, is refused: tarfile itself stops silently."""
    path = shard(tmp_path / "0.tar", {**PAIR, "b.png": png(4), "b.txt": b"y"})
    whole = path.read_bytes()
    assert len(Shards.at(path)) == 2
    for length in range(0, 8 * 512, 256):  # 4 members of a header and a block each
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"0\.tar is broken, cut short or compressed"):
            Shards.at(path)
    for member in range(4):
        damaged = bytearray(whole)
        damaged[member * 1024 + 3] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"0\.tar is broken, cut short or compressed"):
            Shards.at(path)


def test_compressed_and_missing_shards_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ValueError, match=r"0\.tar\.gz is broken, cut short or compressed"):
        Shards.at(tmp_path / "0.tar.gz")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Shards.at(tmp_path / "nowhere.tar")


def test_wrong_pictures_of_a_shard_are_refused_by_name(tmp_path: Path) -> None:
    parts = {"a.png": png(1, 5), "a.txt": b"x", "b.png": png(2)[:50], "b.txt": b"y"}
    source = Shards.at(shard(tmp_path / "0.tar", parts), size=(4, 4))
    with pytest.raises(ValueError, match=r"0\.tar: a\.png has 5 x 4 pixels, not 4 x 4"):
        source[0]
    with pytest.raises(ValueError, match=r"0\.tar: b\.png is broken or cut"):
        source[1]


# What they hold


def packed(root: Path) -> Path:
    """The images and captions of a folder as a tar file beside it."""
    files = {p.name: p.read_bytes() for p in sorted(root.iterdir())}
    return shard(root.with_suffix(".tar"), files)


@pytest.mark.parametrize("tar", [False, True])
def test_contents_change_with_pictures_and_captions_and_not_with_copies(
    tmp_path: Path, tar: bool
) -> None:
    def said() -> dict[str, object]:
        return open_images(packed(root) if tar else root).fingerprint.values

    root = tmp_path / "set"
    root.mkdir()
    noise = np.random.RandomState(0).randint(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "a.bmp")  # 120,054 bytes, more than is read of it
    (root / "b.png").write_bytes(png(1))
    for name in "ab":
        (root / f"{name}.txt").write_text(name)
    first = said()
    assert first["samples"] == 2
    shutil.copytree(root, tmp_path / "copy")
    root = tmp_path / "copy"
    assert said() == first
    (root / "a.txt").write_text("c")
    second = said()
    assert [k for k in first if first[k] != second[k]] == ["captions"]
    (root / "b.png").write_bytes(png(2))
    assert len(png(1)) == len(png(2))  # so that the length of the file tells nothing
    third = said()
    assert [k for k in first if second[k] != third[k]] == ["pictures"]
    noise[80:120] = 0
    Image.fromarray(noise).save(root / "a.bmp")
    assert said()["pictures"] != third["pictures"]


def test_every_byte_of_a_short_file_counts_and_the_end_of_a_long_one(tmp_path: Path) -> None:
    from diffsteer.train.fingerprint import PIECE, PIECES, _pieces

    for length in (0, 1, PIECE, PIECE * PIECES - 1, PIECE * PIECES):
        data = np.random.RandomState(0).bytes(length)
        pieces = list(_pieces(io.BytesIO(data), length))
        assert b"".join(pieces[:-1]) == data
    for length in (PIECE * PIECES + 1, 10**6):
        data = np.random.RandomState(0).bytes(length)
        pieces = list(_pieces(io.BytesIO(data), length))
        assert data.startswith(pieces[0]) and data.endswith(pieces[-1])
        assert PIECES < len(pieces) < PIECES + 3 and {len(p) for p in pieces[:-2]} == {PIECE}


def test_sizes_are_those_of_decoded_pictures(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, name in enumerate(("a.png", "b.jpg", "c.webp")):
        Image.new("RGB", (5 + i, 3)).save(tmp_path / name, exif=exif)
        (tmp_path / name).with_suffix(".txt").write_text("x")
    source = Folder.at(tmp_path)
    assert [s[::-1] for s in source.fingerprint.sizes] == [
        tuple(source[i].pixels.shape[1:]) for i in range(3)
    ]
    assert pickle.loads(pickle.dumps(source)) == source
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\.jpg is no readable"):
        _ = Folder.at(tmp_path).fingerprint


SIZES = {
    "mixed": ([(8, 8), (8, 8), (12, 8)], None, r"2\.png has 12 x 8 pixels and .*0\.png 8 x 8"),
    "odd": ([(66, 66)], None, r"0\.png has 66 x 66 pixels, and the autoencoder takes .* of 4"),
    "asked": ([(8, 8), (12, 8)], (8, 8), r"1\.png has 12 x 8 pixels, not 8 x 8: resize it"),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_cannot_be_trained_are_refused_by_name(case: str, tmp_path: Path) -> None:
    sizes, size, message = SIZES[case]
    for i, (width, height) in enumerate(sizes):
        (tmp_path / f"{i}.png").write_bytes(png(i, width, height))
        (tmp_path / f"{i}.txt").write_text("x")
    with pytest.raises(ValueError, match=message):
        Folder.at(tmp_path).fingerprint.require(size, 4)
    with pytest.raises(ValueError, match=message):
        open_images(packed(tmp_path)).fingerprint.require(size, 4)


def test_latents_are_those_of_the_pictures_that_are_there(tmp_path: Path) -> None:
    """Names and captions are the same: what counts are the images."""

    def kept() -> list[int]:
        with owned(tmp_path / "run"):
            rows = latents.cached(
                Folder.at(root), tmp_path / "run", torch.nn.Identity(), encode, lambda act: act()
            )
        numbers = [int(rows[i].pixels[0, 0, 0]) for i in range(3)]
        there = pickle.loads(pickle.dumps(rows))  # as workers are given it, without the map
        assert "_array" in vars(rows) and "_array" not in vars(there)
        assert [int(there[i].pixels[0, 0, 0]) for i in range(3)] == numbers
        return numbers

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixels))
        return pixels.float()

    root, encoded = folder(tmp_path / "set"), []
    (tmp_path / "run").mkdir()
    killed = tmp_path / "run/.latents-0.npy-1.part"  # what a killed process leaves
    killed.touch()
    assert kept() == kept() == [0, 1, 2] and encoded == [3] and not killed.exists()
    (root / "a.png").write_bytes(png(9))
    assert kept() == [9, 1, 2] and encoded == [3, 3]
    assert len(list((tmp_path / "run").iterdir())) == 1


# Classes


def classed(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(i))
    return folder


def test_a_class_is_the_first_folder(tmp_path: Path) -> None:
    folder = classed(tmp_path, "n02/a.png", "n01/x/b.png")
    source = Folder.at(folder, label="folder")
    assert data.captions(source) == ["n01", "n02"] == [source[i].caption for i in range(2)]
    classed(tmp_path, "c.png")
    with pytest.raises(ValueError, match="c.png is in no folder that names its class"):
        Folder.at(folder, label="folder")
    with pytest.raises(ValueError, match="label='cls' of a folder"):
        Folder.at(folder, label="cls")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([["a.png", 3], ["b/c.png", 0]], ""),
        ([["a.png", 3]], "no line for b/c.png"),
        ([["a.png", 3], ["b/c.png", 0], ["a.png", 4]], "a.png, which has a caption before it"),
        ([["a.png", 3], ["d.png", 0]], "d.png, which is no image"),
        ([["a.png", "3"]], "where .image, number of its class."),
        ([["a.png", True]], "where .image, number"),
        ([["a.png", -1]], "where .image, number"),
        ([["../a.png", 1]], "leads out of it"),
        (None, "says None"),
    ],
)
def test_classes_of_a_dataset_json(tmp_path: Path, labels: object, said: str) -> None:
    folder = classed(tmp_path, "a.png", "b/c.png")
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    if not said:
        assert data.captions(Folder.at(folder, label="dataset.json")) == ["3", "0"]
        return
    with pytest.raises(ValueError, match=said):
        Folder.at(folder, label="dataset.json")


def test_classes_of_tar_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (("x.png", png(1)), ("x.cls", b"17\n"), ("x.txt", b"a cat")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert data.captions(Shards.at(path)) == ["a cat"]
    assert Shards.at(path, label="cls")[0].caption == "17"
    with pytest.raises(ValueError, match="label='folder' of tar files"):
        Shards.at(path, label="folder")
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("x.png")
        info.size = len(png(1))
        archive.addfile(info, io.BytesIO(png(1)))
    with pytest.raises(ValueError, match="no class for x: add x.cls"):
        Shards.at(path, label="cls")
