"""Statistics files: read by others, read from others, refused when they do not fit."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffsteer.core.errors import InputError
from diffsteer.metrics.bootstrap import weights
from diffsteer.metrics.evaluate import compare, omitted, possible, resampled
from diffsteer.metrics.features import UNSTATED, Custom, Origin
from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.moments import Moments
from diffsteer.metrics.statistics import Statistics, kept, measure
from diffsteer.tune.objective import METRICS

MADE = Origin("Mean", "colour", "none", "ab" * 32)
INCEPTION = Origin("Inception", "2048", "tf-bilinear-299", "6726825d" + "0" * 56)


def statistics(n: int = 50, d: int = 5, seed: int = 0, origin: Origin = MADE) -> Statistics:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return Statistics(origin, Gaussian.of(Moments.of(x)), n, x)


def foreign(path: Path, d: int, n: int = 30) -> np.ndarray:
    """Write what pytorch-fid's --save-stats and ADM's reference batches hold."""
    x = np.random.RandomState(0).randn(n, d)
    arrays = {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)}
    np.savez(path, **arrays, mu_s=np.zeros(3), sigma_s=np.eye(3), arr_0=np.zeros((2, 4, 4, 3)))
    return x


def test_a_file_comes_back_bit_for_bit(tmp_path: Path) -> None:
    made = statistics()
    made.save(f"{tmp_path}/a.npz")
    found = Statistics.load(f"{tmp_path}/a.npz")
    assert (found.origin, found.n) == (made.origin, made.n)
    assert torch.equal(found.gaussian.mean, made.gaussian.mean)
    assert torch.equal(found.gaussian.cov, made.gaussian.cov)
    assert torch.equal(found.features, made.features)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_others_read_mu_and_sigma(tmp_path: Path) -> None:
    """The lines by which pytorch-fid reads a file, without pickles, and ADM reads these keys."""
    made = statistics()
    made.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as f:
        mu, sigma = f["mu"][:], f["sigma"][:]
    assert mu.dtype == sigma.dtype == np.float64
    x = made.features.double().numpy()
    assert np.abs(sigma - np.cov(x, rowvar=False)).max() < 1e-12
    assert np.abs(mu - x.mean(0)).max() < 1e-12


def test_files_of_others_are_read_as_inception(tmp_path: Path) -> None:
    x = foreign(tmp_path / "adm.npz", d=64)  # 2048 is the same, and slow
    found = Statistics.load(tmp_path / "adm.npz")
    assert found.origin == Origin("Inception", "64", UNSTATED, UNSTATED)
    assert found.n is None
    assert len(found.features) == 0
    origin = Origin("Inception", "64", INCEPTION.resize, INCEPTION.weights)
    mine = Statistics(origin, Gaussian.of(Moments.of(torch.from_numpy(x))), 30, torch.zeros(0, 64))
    (figure,) = compare(mine, found)
    assert figure.name == "FD-Inception"
    assert figure.value == pytest.approx(0, abs=1e-9)
    assert "reference N=unstated" in str(figure)
    assert "real against real: unknown" in str(figure)
    assert any("a floor cannot be had" in note for note in omitted(mine, found))


def test_files_without_a_known_width_are_refused(tmp_path: Path) -> None:
    foreign(tmp_path / "a.npz", d=7)
    with pytest.raises(ValueError, match="a.npz .*which extractor made its 7 numbers"):
        Statistics.load(tmp_path / "a.npz")


def test_a_mismatch_raises_and_says_both() -> None:
    for field in ("extractor", "layer", "resize", "weights"):
        other = statistics(origin=Origin(**{**vars(MADE), field: "other"}))
        with pytest.raises(ValueError, match=f"{field} '.*', the reference has 'other'"):
            compare(statistics(), other)


def test_what_is_no_statistics_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError, match="diffsteer stats"):
        Statistics.load(path)
    np.savez(path, features=np.zeros(3))
    with pytest.raises(ValueError, match="it holds features, not mu and sigma"):
        Statistics.load(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match="a.npz .*shape"):
        Statistics.load(path)
    np.savez(path, mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(ValueError, match="can run code"):
        Statistics.load(path)
    np.savez(path, mu=np.zeros(0), sigma=np.zeros((0, 0)))
    with pytest.raises(ValueError, match=r"a.npz .*shape \(0,\)"):
        Statistics.load(path)
    np.savez(path, mu=np.zeros(3, dtype=int), sigma=np.eye(3))
    with pytest.raises(ValueError, match="a.npz .*give floats"):
        Statistics.load(path)
    statistics().save(path)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="no usable file"):
            Statistics.load(path)
    with pytest.raises(ValueError, match=r"end in \.npz"):
        statistics().save(tmp_path / "a.npy")


HARM = {
    "n": (np.zeros(2), "a.npz is no usable"),
    "n ": (np.array(49), "n=49 and holds features of 50"),
    "features": (np.zeros((50, 4)), "mean has 5 numbers, its features have 4"),
    "features ": (np.full((50, 5), np.nan), "features of image 0 are not finite"),
    "features  ": (np.zeros((50, 5), dtype=int), "features have shape .* dtype torch.int64"),
    "mu": (np.array(list("abcde")), "a.npz is no usable"),
    "layer": (None, "names an extractor, but not layer"),
    "version": (np.array(2), "it has version 2, this program reads up to 1"),
}


@pytest.mark.parametrize("case", HARM)
def test_a_file_changed_by_hand_is_refused(tmp_path: Path, case: str) -> None:
    """When it is read, not by a traceback or an error about images after hours of sampling."""
    path = tmp_path / "a.npz"
    statistics().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    value, message = HARM[case]
    arrays[case.strip()] = value
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=message):
        Statistics.load(path)


def test_a_flipped_bit_of_a_file_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """A changed name would leave the features or the number of images out without a word."""
    path, made, draw = tmp_path / "a.npz", statistics(8, 2), random.Random(0)
    made.save(path)
    data, refused = path.read_bytes(), 0
    directory = range(data.index(b"PK\x01\x02"), len(data))
    for place in [*draw.sample(range(len(data)), 150), *draw.sample(directory, 150)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            stored = Statistics.load(path)
        except ValueError:
            refused += 1
            continue
        assert (stored.origin, stored.n) == (made.origin, made.n)
        assert torch.equal(stored.features, made.features)
        assert torch.equal(stored.gaussian.cov, made.gaussian.cov)
    assert refused > 100


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npz"
    statistics(seed=1).save(path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        statistics(seed=2).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_who_reads_while_it_is_written_reads_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    statistics(seed=1).save(path)
    before = path.read_bytes()
    with path.open("rb") as reader:
        statistics(seed=2).save(path)
        assert reader.read() == before
    assert path.read_bytes() != before


def colours(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 4, 4), generator=generator, dtype=torch.uint8)


MEANS = Custom(lambda x: x.double().mean(dim=(2, 3)), MADE)


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_a_stream_gives_the_same_statistics_in_any_batches(batch: int) -> None:
    x = colours(40)
    whole = measure([x], 40, MEANS, keep=10)
    found = measure(x.split(batch), 40, MEANS, keep=10)
    assert frechet(found.gaussian, whole.gaussian) == pytest.approx(0, abs=1e-9)
    assert torch.equal(found.features, whole.features)
    assert torch.equal(whole.features, MEANS(x)[kept(40, 10)].float())


def test_a_stream_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="41 images were announced but 40 came"):
        measure([colours(40)], 41, MEANS)
    with pytest.raises(ValueError, match="39 images were announced but 40 or more came"):
        measure(colours(40).split(10), 39, MEANS)
    with pytest.raises(ValueError, match="0 came"):
        measure([], 2, MEANS)


def test_an_extractor_gives_a_row_for_each_image() -> None:
    made = Origin("Mine", "x", "none", "none")
    extractor = Custom(lambda x: x.float().mean((2, 3))[:1], made)
    with pytest.raises(InputError, match="the extractor Mine gave .* for 10 images: it must"):
        measure([colours(10)], 10, extractor)


def test_every_figure_states_what_it_depends_on() -> None:
    fake, real = statistics(60, seed=1), statistics(50, seed=2)
    figures = compare(fake, real, "0-59", resampled(fake, real, weights(60)))
    names = [f.name for f in figures]
    assert names[:3] == ["FD-Mean", "FD-infinity-Mean", "KID-Mean"]
    assert names[3:] == ["precision", "recall", "density", "coverage"]
    assert [f.higher_is_better for f in figures] == [False] * 3 + [True] * 4
    assert {name.partition("-Mean")[0] for name in names} <= {*METRICS, "FD-infinity"}
    assert "KID-Mean (100 subsets of 25, scaled) = " in str(figures[2])
    for figure in figures:
        line = str(figure)
        for part in (
            "N=60, seeds 0-59, reference N=50",
            "Mean, layer colour, resize none, weights abababab",
        ):
            assert part in line
        if figure.name != "FD-infinity-Mean":
            assert figure.interval is not None
            assert figure.interval.low <= figure.value <= figure.interval.high
            assert f"[95 %: {figure.interval}; N=" in line
        assert figure.floor is not None
        assert (figure.floor.n, figure.floor.reference_n) == (25, 25)
        assert f"real against real: {figure.floor.real:.5g}, generated in their place" in line
        assert "at N=25, reference N=25]" in line


def test_the_floor_is_the_metric_of_two_real_parts() -> None:
    """As many real images as generated ones, against all the rest."""
    fake, real = statistics(20, seed=1), statistics(50, seed=2)
    fd = compare(fake, real)[0]
    assert fd.floor is not None
    order = torch.from_numpy(np.random.RandomState(0).permutation(50))
    parts = (real.features[order[:20]], fake.features, real.features[order[20:]])
    part, fakes, rest = (Gaussian.of(Moments.of(x)) for x in parts)
    assert fd.floor.real == pytest.approx(frechet(part, rest), abs=1e-12)
    assert fd.floor.generated == pytest.approx(frechet(fakes, rest), abs=1e-12)
    assert (fd.floor.n, fd.floor.reference_n) == (20, 30)


def test_a_set_of_no_number_has_no_distance() -> None:
    """As another tool's file of generated images."""
    with pytest.raises(ValueError, match="does not say how many images it has: measure it here"):
        compare(replace(statistics(), n=None), statistics(seed=1))


def test_only_the_published_inception_is_called_fid() -> None:
    official = compare(*(statistics(seed=s, origin=INCEPTION) for s in (1, 2)))
    assert official[0].name == "FID"
    assert (official[2].name, official[2].detail) == ("KID", "100 subsets of 25")
    other = Origin("Inception", "2048", "tf-bilinear-299", "0" * 64)
    assert compare(*(statistics(seed=s, origin=other) for s in (1, 2)))[0].name == "FD-Inception"


def test_logits_give_an_inception_score_alone() -> None:
    logits = Origin("Inception", "logits_unbiased", "tf-bilinear-299", INCEPTION.weights)
    (figure,) = compare(*(statistics(seed=s, origin=logits) for s in (1, 2)))
    assert figure.name == "IS"
    assert possible("IS").low == possible("IS-EfficientNetLite0").low == 1
    assert 1 <= figure.value <= 5
    assert figure.floor is not None
    empty = replace(statistics(seed=1, origin=logits), features=torch.zeros(0, 5))
    with pytest.raises(InputError, match="features that are kept, and 0 are: keep them"):
        compare(empty, statistics(seed=2, origin=logits))


def test_features_may_be_of_numpy_and_have_a_row_an_image() -> None:
    images = torch.randint(256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()

    def colour(images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))

    ours = measure([images], 6, Custom(colour, MADE))
    theirs = measure([images], 6, Custom(lambda images: colour(images).numpy(), MADE))
    assert torch.equal(ours.features, theirs.features)
    with pytest.raises(ValueError, match=r"gave \(1, 3\) for 6 images: it must give"):
        measure([images], 6, Custom(lambda images: colour(images)[:1], MADE))
    with pytest.raises(ValueError, match="takes a function and its Origin"):
        Custom(colour, "colour")  # type: ignore[arg-type]


@pytest.mark.parametrize("resamples", [20.0, "20", None, 5], ids=str)
def test_resamples_are_a_whole_number(resamples: int) -> None:
    with pytest.raises(ValueError, match="give >= 20"):
        weights(6, resamples)
