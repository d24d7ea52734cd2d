"""What `diffsteer stats` and `diffsteer evaluate` do; importable without torch.

The command line reads its options from the types and docstrings here.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import OmitArgPrefixes, Positional

if TYPE_CHECKING:
    from torch import Tensor

    from diffsteer.eval.features import Extractor
    from diffsteer.eval.statistics import Statistics
    from diffsteer.pictures import Pictures


@dataclass(frozen=True)
class Features:
    """How pictures become features; the same for a reference and for what is compared with it.

    Attributes:
        extractor: EfficientNetLite0 works offline; Inception gives FID, CLIP gives CMMD.
        layer: Of EfficientNetLite0 (block10, head, logits) or Inception (2048, logits_unbiased, 64,
            192, 768); its default is the first named.
        size: Side in pixels at which EfficientNetLite0 or DINOv2 sees pictures; 224 by default.
        weights: Checkpoint folder or hub id of DINOv2 and CLIP; weights file of Inception.
        batch: Pictures in one pass, >= 1.
        device: Where the network runs.
        keep: Pictures of which features are kept, for all metrics but Frechet distances.
    """

    extractor: Literal["EfficientNetLite0", "Inception", "DINOv2", "CLIP"] = "EfficientNetLite0"
    layer: str | None = None
    size: int | None = None
    weights: str | None = None
    batch: int = 32
    device: str = "cpu"
    keep: int = 10_000

    def __post_init__(self) -> None:
        if self.batch < 1 or self.keep < 0:
            raise ValueError(f"batch={self.batch}, keep={self.keep}: give batch >= 1 and keep >= 0")

    def build(self) -> "Extractor":
        """Make the extractor.

        Raises:
            ValueError: an option is given that it does not have, or one that it needs is not.
        """
        from diffsteer.eval.efficientnet import EfficientNetLite0
        from diffsteer.eval.pretrained import CLIP, DINOv2, Inception

        kinds = {k.__name__: k for k in (EfficientNetLite0, Inception, DINOv2, CLIP)}
        wanted = {"layer": self.layer, "size": self.size, "weights": self.weights}
        given = {name: value for name, value in wanted.items() if value is not None}
        try:
            made: Extractor = kinds[self.extractor](**given, device=self.device)  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(
                f"{self.extractor} cannot be made from {given or 'no options'}: {error}"
            ) from error
        return made


AS_SHIPPED = Features()


def stats(
    data: Positional[Path], /, out: Path, features: OmitArgPrefixes[Features] = AS_SHIPPED
) -> None:
    """Measure a data set once, to compare with it later.

    Args:
        data: Folder or zip file of pictures.
        out: Statistics file to write, .npz; pytorch-fid reads it too.
        features: How pictures become features.
    """
    if out.suffix != ".npz":
        raise ValueError(f"{out} does not end in .npz, by which readers know the format")
    found = _measured(data, features, features.build())
    found.save(out)
    print(f"{out}: N={found.n}, features of {len(found.features)} kept, {found.origin}")


def evaluate(
    pictures: Positional[Path],
    /,
    reference: Path,
    features: OmitArgPrefixes[Features] = AS_SHIPPED,
    out: Path | None = None,
) -> None:
    """Compare pictures with a reference and print every metric that it allows.

    Args:
        pictures: Folder or zip file.
        reference: Statistics file (.npz) of `diffsteer stats`, pytorch-fid or ADM, or a folder or
            zip file of real pictures.
        features: How pictures become features; must be as the reference was measured.
        out: JSON file for the figures.
    """
    from diffsteer.eval.features import file_hash
    from diffsteer.eval.report import compare, omitted, table
    from diffsteer.eval.statistics import Statistics

    extractor, known = features.build(), reference.suffix == ".npz"
    if known:
        real = Statistics.load(reference)
        extractor.origin.require(real.origin, "the pictures", str(reference))
    else:
        real = _measured(reference, features, extractor)
    fake = _measured(pictures, features, extractor)
    figures, notes = compare(fake, real), omitted(fake, real)
    print(f"{pictures} against {reference}", table(figures), sep="\n")
    for note in notes:
        print(f"not measured: {note}")
    if out is not None:
        digest = file_hash(reference) if known else None
        content = {
            "pictures": str(pictures),
            "reference": {"path": str(reference), "sha256": digest},
            "figures": [figure.json() for figure in figures],
            "not measured": notes,
        }
        out.write_text(json.dumps(content, indent=2) + "\n")


def _measured(path: Path, features: Features, extractor: "Extractor") -> "Statistics":
    from diffsteer.eval.measure import measure
    from diffsteer.pictures import Pictures

    found, kinds = Pictures.at(path), Counter[str]()
    stream = _stream(found, features.batch, kinds)
    result = measure(stream, len(found), extractor, features.keep)
    held = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    print(f"{path}: {held}; all measured as RGB, transparency on white", file=sys.stderr)
    return result


def _stream(found: "Pictures", batch: int, kinds: Counter[str]) -> Iterator["Tensor"]:
    """Yield batches with a progress bar, counting what the files hold."""
    from tqdm import tqdm

    from diffsteer.pictures import stacked

    with tqdm(total=len(found), unit="picture", desc=found.path.name, disable=None) as bar:
        for pictures in found.batches(batch):
            for picture in pictures:
                height, width = picture.pixels.shape[1:]
                kinds[f"{picture.found} {width}x{height}"] += 1
            yield stacked(pictures)
            bar.update(len(pictures))
