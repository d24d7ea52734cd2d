"""Picture files: read exactly, converted as documented, or refused by name."""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from PIL.ContainerIO import ContainerIO

from diffsteer.io.images import PictureError, Pictures, decode, header_of, stacked

RGB = np.random.RandomState(0).randint(0, 256, (9, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(array: np.ndarray) -> bytes:
    return encoded(Image.fromarray(array))


def pixels(data: bytes, upright: bool = False) -> np.ndarray:
    return decode("a.png", data, upright).pixels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_rgb_is_read_exactly(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(RGB), kind, **options)
    assert np.array_equal(pixels(data), RGB)
    assert decode("a", data).pixels.dtype == torch.uint8


def test_grey_is_copied_to_three_channels() -> None:
    grey = RGB[:, :, 0]
    assert np.array_equal(pixels(png(grey)), np.stack([grey] * 3, axis=2))
    bits = encoded(Image.fromarray(grey > 127))
    assert np.array_equal(pixels(bits)[:, :, 1], (grey > 127) * 255)


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(pixels(encoded(image)), np.asarray(image.convert("RGB")))


def test_transparency_lies_on_white() -> None:
    alpha = np.full((9, 7, 1), 255, dtype=np.uint8)
    alpha[0], alpha[1] = 0, 128
    found = pixels(png(np.concatenate([RGB, alpha], axis=2)))
    assert (found[0] == 255).all()
    assert np.abs(found[1].astype(float) - (RGB[1] * 128.0 + 255 * 127) / 255).max() <= 1
    assert np.array_equal(found[2:], RGB[2:])
    clear = pixels(png(np.concatenate([RGB[:, :, :1], alpha], axis=2)))  # grey and alpha
    assert (clear[0] == 255).all()


def test_a_transparent_colour_lies_on_white() -> None:
    array = RGB.copy()
    array[3] = (1, 2, 3)
    found = pixels(encoded(Image.fromarray(array), transparency=(1, 2, 3)))
    assert (found[3] == 255).all()
    assert np.array_equal(found[4:], array[4:])


# How each EXIF orientation, 1 to 8, is undone: what its definition says of rows and columns.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def turned(orientation: int, kind: str = "PNG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(RGB), kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_exif_orientation_is_applied(orientation: int) -> None:
    upright = UPRIGHT[orientation](RGB)
    assert np.array_equal(pixels(turned(orientation), True), upright)
    assert np.array_equal(pixels(turned(orientation, "WEBP", lossless=True), True), upright)
    plain = pixels(encoded(Image.fromarray(RGB), "JPEG"))
    assert np.array_equal(pixels(turned(orientation, "JPEG"), True), UPRIGHT[orientation](plain))
    assert np.array_equal(pixels(turned(orientation)), RGB)  # as other tools measure it


def test_turning_keeps_a_palette_and_what_is_transparent() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(RGB).quantize(16)
    found = pixels(encoded(image, exif=exif, transparency=3), True)
    plain = np.array(image.convert("RGB"))
    plain[np.asarray(image) == 3] = 255
    assert np.array_equal(found, np.rot90(plain, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("length", [7, 8, 12, 16, 20])
def test_damaged_exif_turns_nothing(kind: str, length: int) -> None:
    whole = Image.Exif()
    whole[0x0112] = 6
    image, cut = Image.fromarray(RGB), whole.tobytes()[:length]
    found = pixels(encoded(image, kind, exif=cut), True)
    assert np.array_equal(found, pixels(encoded(image, kind)))


def deep_rgb_png() -> bytes:
    """Write a 16-bit RGB PNG by hand: Pillow reads such files, as 8 bits and without a word."""
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + code

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(13))) + chunk(b"IEND", b"")
    )


def animation() -> bytes:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)


def large() -> bytes:
    return encoded(Image.new("1", (8193, 8193)))


REFUSED = {
    "16-bit grey": (lambda: png(RGB[:, :, 0].astype(np.uint16) * 257), "more than 8 bits"),
    "16-bit RGB": (deep_rgb_png, "more than 8 bits"),
    "CMYK": (lambda: encoded(Image.new("CMYK", (8, 8)), "JPEG"), "CMYK"),
    "animation": (animation, "animation"),
    "oversized": (large, "8193 x 8193"),
    "cut PNG": (lambda: png(RGB)[:120], "broken or cut"),
    "cut JPEG": (lambda: encoded(Image.fromarray(RGB), "JPEG")[:-30], "broken or cut"),
    "empty": (lambda: b"", "no readable"),
    "text": (lambda: b"not a picture", "no readable"),
    "GIF": (lambda: encoded(Image.fromarray(RGB), "GIF"), "no readable"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_by_name(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    (tmp_path / "bad.png").write_bytes(make())
    with pytest.raises(PictureError, match=f"bad.png .*{message}"):
        list(Pictures.at(tmp_path))


def test_cut_pictures_do_not_count_where_pillow_was_told_to_let_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        decode("a.png", png(RGB))


def folder(root: Path) -> Path:
    (root / "sub").mkdir(parents=True)
    sizes = {"a.png": 8, "b.PNG": 8, "c.png": 6, "sub/d.png": 6, "sub/e.png": 8}
    for i, (name, size) in enumerate(sizes.items()):
        (root / name).write_bytes(png(np.full((size, size, 3), i, dtype=np.uint8)))
    (root / "labels.json").write_text("{}")
    (root / ".hidden").write_text("")
    return root


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("behind", [b"", b"more" * 2000])
def test_an_image_without_its_end_is_refused_by_its_header(
    monkeypatch: pytest.MonkeyPatch, kind: str, behind: bytes
) -> None:
    """Also inside of a tar file; whole ones are not decoded, unless much stands behind them."""
    data = encoded(Image.fromarray(np.tile(RGB, (28, 36, 1))), kind)
    for end in (len(data) // 2, len(data) - 100):
        with pytest.raises(PictureError, match=r"a\.png is broken or cut short"):
            header_of("a.png", ContainerIO(io.BytesIO(data[:end] + bytes(9)), 0, end))
    if not behind:
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    assert header_of("a.png", io.BytesIO(data + behind)) == ((252, 252), "RGB")


def test_a_folder_and_its_zip_file_give_the_same(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(root / "a.png", "__MACOSX/._a.png")
        for path in sorted(root.rglob("*"), reverse=True):
            file.write(path, path.relative_to(root))
    for found in (Pictures.at(root), Pictures.at(archive)):
        assert found.names == ("a.png", "b.PNG", "c.png", "sub/d.png", "sub/e.png")
        assert [int(p.pixels[0, 0, 0]) for p in found] == [0, 1, 2, 3, 4]
        shapes = [tuple(stacked(batch).shape) for batch in found.batches(2)]
        assert shapes == [(2, 3, 8, 8), (2, 3, 6, 6), (1, 3, 8, 8)]
        assert sum(len(b) for b in found.batches(1)) == len(found) == 5


def test_nothing_is_left_out_unseen(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    (root / "scan.tiff").write_bytes(b"")
    with pytest.raises(PictureError, match=r"1 files .*scan\.tiff"):
        Pictures.at(root)


def test_where_there_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Pictures.at(tmp_path / "nowhere")
    with pytest.raises(PictureError, match="holds no image"):
        Pictures.at(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(PictureError, match="neither a folder nor a zip"):
        Pictures.at(tmp_path / "a.txt")


def test_a_damaged_zip_names_the_picture(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("good.png", png(RGB))
        file.writestr("bad.png", png(RGB))
    data = bytearray(archive.read_bytes())
    at = data.index(b"bad.png") + 60
    data[at] ^= 255
    archive.write_bytes(data)
    with pytest.raises(PictureError, match=r"bad\.png in .*set\.zip"):
        list(Pictures.at(archive))


def test_a_picture_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.png", bytes(10_000))
    monkeypatch.setattr("diffsteer.io.images.MAX_BYTES", 9_999)
    with pytest.raises(PictureError, match=r"bomb\.png has 10000 bytes"):
        list(Pictures.at(tmp_path / "set.zip"))


def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    """Its images would be left out unseen; links to files are read, hidden ones are not seen."""
    root, other = folder(tmp_path / "set"), folder(tmp_path / "other")
    (root / "z.png").symlink_to(other / "a.png")
    (root / ".cache").symlink_to(other)
    assert len(Pictures.at(root)) == 6
    (root / "more").symlink_to(other)
    with pytest.raises(PictureError, match="link to a folder, more"):
        Pictures.at(root)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_a_zip_file_is_refused(tmp_path: Path) -> None:
    """One member would count twice and the other never."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        for value in (0, 255, 9):
            file.writestr("a.png", png(np.full((4, 4, 3), value, dtype=np.uint8)))
    with pytest.raises(PictureError, match=r"set.zip holds a\.png twice"):
        Pictures.at(tmp_path / "set.zip")


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_any_damage_to_a_zip_file_names_it(tmp_path: Path, kind: int) -> None:
    """One byte after the other: the images are as they were, or the error is ours."""
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w", kind) as file:
        file.writestr("a.png", png(RGB))
    whole = archive.read_bytes()
    refused = 0
    for at in range(len(whole)):
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            list(Pictures.at(archive))
        except PictureError as error:
            refused += "set.zip" in str(error)
    assert refused > len(whole) / 2


def test_reading_texts_refuses_oversized_pictures_too(tmp_path: Path) -> None:
    """Pillow's own error for them is no OSError; a header alone says the size."""
    data = bytearray(png(RGB))
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PictureError, match=r"a\.png is too large"):
        list(Pictures.at(tmp_path).texts("key"))
