"""Builds the emoji sheets that ship with diffsteer, or draws samples of them.

    python tools/build_emoji.py                        # needs npm; the same bytes each time
    python tools/build_emoji.py --contact samples.png  # 32 samples with their captions

Two art styles, base emoji only (no skin tones), as 64-pixel RGBA sprites in one lossless WebP sheet
a style, with one JSON file of code points, names and groups, and the licence texts.
"""

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from emoji_names import caption
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "lab/src/diffsteer_lab/assets/emoji"
SIZE = 64
COLUMNS = 38
DROPPED = {"Flags", "Symbols", "Component"}
"""Groups of signs rather than things; without them the two sheets take 7 MB."""

Sprite = NDArray[np.uint8]
Entry = dict[str, Any]


@dataclass(frozen=True)
class Package:
    """One npm package, pinned by the hash of its archive.

    Attributes:
        name: As npm knows it.
        version: Exact.
        integrity: `sha512-` and the base64 digest, as in npm's lock files.
    """

    name: str
    version: str
    integrity: str

    def read(self, folder: Path) -> dict[str, bytes]:
        """Fetch the archive to `folder`, unless it is there, and return its files by path.

        Raises:
            ValueError: the archive is not the pinned one.
        """
        plain = self.name.lstrip("@").replace("/", "-")
        path = folder / f"{plain}-{self.version}.tgz"
        if not path.exists():
            source = f"{self.name}@{self.version}"
            subprocess.run(
                ["npm", "pack", "--silent", source, "--pack-destination", str(folder)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        found = "sha512-" + b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        if found != self.integrity:
            raise ValueError(f"{path} has {found}, not the pinned {self.integrity}")
        with tarfile.open(path) as archive:
            wanted = [m for m in archive if m.isfile() and "/sheets" not in m.name]
            return {m.name.partition("/")[2]: archive.extractfile(m).read() for m in wanted}  # type: ignore[union-attr]


@dataclass(frozen=True)
class Style:
    """One set of art.

    Attributes:
        package: Holds `emoji.json` and the images.
        folder: Of the images in the package.
        licence: What its README has to say of them.
        art: Name of the art and SPDX name of its licence.
    """

    package: Package
    folder: str
    licence: str
    art: tuple[str, str]


STYLES = {
    "noto": Style(
        Package(
            "emoji-datasource-google",
            "16.0.0",
            "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        ),
        "google",
        "* Android/Google/Noto images, are available under the [Apache License 2.0]",
        ("Noto Emoji 2.048", "Apache-2.0"),
    ),
    "twemoji": Style(
        Package(
            "emoji-datasource-twitter",
            "16.0.0",
            "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        ),
        "twitter",
        "* Twitter images are available under the [Creative Commons Attribution 4.0 license]",
        ("Twemoji 16.0.1", "CC-BY-4.0"),
    ),
}
LICENCES = Package(
    "twemoji",
    "14.0.2",
    "sha512-BzOoXIe1QVdmsUmZ54xbEH+8AgtOKUiG53zO5vVP2iUu6h5u9lN15NcuS6te4OY96qx0H7JK9vjjl9WQbkTRuA==",
)
"""Code without art; it holds the licence text that the art names."""


def chosen(entries: list[Entry]) -> list[Entry]:
    """Keep the emoji of things, in Unicode's order, each image once.

    Families of men, women, boys and girls are drawn as the same silhouettes as those of adults and
    children, so their names would contradict each other.
    """
    kept = [e for e in entries if e["category"] not in DROPPED and e["unified"] != "1F46A"]
    kept = [e for e in kept if not (e["name"].startswith("FAMILY: ") and "MAN" in e["name"])]
    return sorted(kept, key=lambda e: int(e["sort_order"]))


def sprite(name: str, data: bytes) -> Sprite:
    """Decode one image, `(64, 64, 4)`; what cannot be seen becomes transparent black.

    Raises:
        ValueError: it has another size; nothing is resized here.
    """
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    if image.size != (SIZE, SIZE):
        raise ValueError(f"{name} has {image.size} pixels, not {SIZE} x {SIZE}")
    pixels = np.array(image)
    pixels[pixels[:, :, 3] == 0] = 0
    return pixels


def sheet(sprites: list[Sprite]) -> Sprite:
    """Lay sprites out in rows of COLUMNS, without gaps, `(H, W, 4)`."""
    rows = -(-len(sprites) // COLUMNS)
    cells = np.zeros((rows * COLUMNS, SIZE, SIZE, 4), np.uint8)
    cells[: len(sprites)] = sprites
    grid = cells.reshape(rows, COLUMNS, SIZE, SIZE, 4).swapaxes(1, 2)
    return grid.reshape(rows * SIZE, COLUMNS * SIZE, 4)


def webp(pixels: Sprite) -> bytes:
    """Encode without loss, the colours of transparent pixels included."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(file, "WEBP", lossless=True, quality=100, method=6, exact=True)
    decoded = np.array(Image.open(io.BytesIO(file.getvalue())))
    assert np.array_equal(decoded, pixels), "WebP lost something"
    return file.getvalue()


def draw(style: Style, files: dict[str, bytes], entries: list[Entry]) -> tuple[bytes, Entry]:
    """Make the sheet of one style, and what the JSON file says of it.

    Raises:
        ValueError: the package states another licence, or two emoji have the same image.
    """
    if style.licence not in files["README.md"].decode():
        raise ValueError(f"{style.package.name} does not say {style.licence!r} any more")
    paths = [f"img/{style.folder}/{SIZE}/{e['image']}" for e in entries]
    sprites = [sprite(path, files[path]) for path in paths]
    seen: dict[bytes, str] = {}
    for path, pixels in zip(paths, sprites, strict=True):
        if (other := seen.setdefault(pixels.tobytes(), path)) != path:
            raise ValueError(f"{path} is the same image as {other}, under another name")
    whole = sheet(sprites)
    package = style.package
    return webp(whole), {
        "art": style.art[0],
        "license": style.art[1],
        "package": f"{package.name}@{package.version}",
        "integrity": package.integrity,
        "pixels_sha256": hashlib.sha256(whole.tobytes()).hexdigest(),
    }


def build(packages: Path, out: Path) -> None:
    """Write sheets, names and licence texts to `out`."""
    files = {name: style.package.read(packages) for name, style in STYLES.items()}
    tables = {found["emoji.json"] for found in files.values()}
    assert len(tables) == 1, "the packages describe different emoji"
    entries = chosen(json.loads(tables.pop()))
    styles = {}
    for name, style in STYLES.items():
        data, styles[name] = draw(style, files[name], entries)
        (out / f"{name}.webp").write_bytes(data)
        print(f"{name}.webp: {len(entries)} emoji, {len(data)} bytes")
    lines = [
        json.dumps([e["unified"], caption(e["unified"], e["name"]), e["category"]]) for e in entries
    ]
    about = json.dumps({"size": SIZE, "columns": COLUMNS, "styles": styles}, indent=1)
    text = about.removesuffix("\n}") + ',\n "emoji": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    assert len(json.loads(text)["emoji"]) == len(entries)
    (out / "emoji.json").write_text(text, "utf-8")
    (out / "LICENSE-MIT.txt").write_bytes(files["noto"]["LICENSE"])
    (out / "LICENSE-Apache-2.0.txt").write_bytes((ROOT / "LICENSE").read_bytes())
    (out / "LICENSE-CC-BY-4.0.txt").write_bytes(LICENCES.read(packages)["LICENSE-GRAPHICS"])


def contact(path: Path, seed: int) -> None:
    """Draw 32 samples of the stream that training sees, 2x enlarged, captions below."""
    from textwrap import wrap

    from diffsteer_lab.emoji import Emoji
    from PIL import ImageDraw, ImageFont

    from diffsteer.train.stream import Stream

    page = Image.new("RGB", (8 * 176, 4 * 206), "#dddddd")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for i, sample in zip(range(32), Stream(Emoji(), seed), strict=False):
        x, y = i % 8 * 176 + 8, i // 8 * 206 + 8
        image = Image.fromarray(sample.pixels.permute(1, 2, 0).numpy())
        page.paste(image.resize((128, 128), Image.Resampling.NEAREST), (x + 16, y))
        pen.multiline_text((x, y + 132), "\n".join(wrap(sample.caption, 27)), "black", font)
    page.save(path)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--contact", type=Path, help="draw samples of the shipped sheets instead")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--packages", type=Path, help="folder with the archives of npm pack")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write, which exists")
    given = parser.parse_args()
    if given.contact:
        contact(given.contact, given.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        build(given.packages or Path(folder), given.out)


if __name__ == "__main__":
    main()
