"""Agreement with torch-fidelity on the same features and on the same files.

Skipped where it is not installed: it needs torchvision, which the library does not.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffsteer.io.images import Pictures, stacked
from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.kernels import inception_score, kid
from diffsteer.metrics.manifold import manifold
from diffsteer.metrics.moments import Moments
from diffsteer.metrics.pretrained import Inception
from diffsteer.metrics.statistics import measure

pytestmark = pytest.mark.fidelity


def declare_nms() -> None:
    """Let a torchvision built for CUDA import beside a CPU torch, which lacks its operators."""
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        pass
    except RuntimeError:
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # noqa: TOR901
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        LIBRARIES.append(library)


LIBRARIES: list[torch.library.Library] = []
declare_nms()
pytest.importorskip("torch_fidelity")

import torch_fidelity  # noqa: E402
from torch_fidelity import feature_extractor_inceptionv3 as theirs  # noqa: E402
from torch_fidelity.metric_fid import (  # noqa: E402
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_kid import kid_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import prc_features_to_metric  # noqa: E402

DTYPES = [torch.float32, torch.float64]


def sets(
    n: int, d: int, dtype: torch.dtype = torch.float64, gain: float = 1.1
) -> tuple[Tensor, Tensor]:
    """Features as a network's: correlated, cut at 0, with means of their own."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator, dtype=dtype) / d**0.5
    x, y = (torch.randn(m, d, generator=generator, dtype=dtype) for m in (n, n + 200))
    return (x @ mix + 0.1).relu(), (y @ mix * gain).relu()


def close(mine: float, other: float, what: str) -> None:
    print(f"{what}: {mine:.9g}, theirs {other:.9g}, relative {mine / other - 1:.1e}")
    assert mine == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fid(dtype: torch.dtype) -> None:
    x, y = sets(1500, 256, dtype)
    other = fid_statistics_to_metric(*(fid_features_to_statistics(z) for z in (x, y)), False)
    mine = frechet(*(Gaussian.of(Moments.of(z)) for z in (x, y)))
    close(mine, other["frechet_inception_distance"], f"FID {dtype}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_kid_mean_and_spread_of_the_same_subsets(dtype: torch.dtype) -> None:
    x, y = sets(1500, 256, dtype, gain=1.5)  # torch-fidelity rounds to float32: not near 0
    other = kid_features_to_metric(x, y, kid_subsets=10, kid_subset_size=400, verbose=False)
    mine = kid(x, y, subsets=10, size=400)
    close(mine.value, other["kernel_inception_distance_mean"], f"KID {dtype}")
    close(mine.spread, other["kernel_inception_distance_std"], f"KID spread {dtype}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_inception_score(dtype: torch.dtype) -> None:
    logits = 3 * sets(1503, 100, dtype)[0]
    other = isc_features_to_metric(logits)
    mine = inception_score(logits)
    close(mine.value, other["inception_score_mean"], f"IS {dtype}")
    close(mine.spread, other["inception_score_std"], f"IS spread {dtype}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall(dtype: torch.dtype, k: int) -> None:
    x, y = sets(1500, 24, dtype)
    other = prc_features_to_metric(x, y, prc_neighborhood=k, verbose=False)
    mine = manifold(x, y, k)
    assert 0.1 < mine.precision < 0.99
    assert 0.1 < mine.recall < 0.99
    close(mine.precision, other["precision"], f"precision {dtype} k={k}")
    close(mine.recall, other["recall"], f"recall {dtype} k={k}")


@pytest.mark.parametrize("k", [3, 5])
def test_density_and_coverage_of_prdc(k: int) -> None:
    prdc = pytest.importorskip("prdc")
    x, y = sets(1500, 24)
    other = prdc.compute_prdc(y.numpy(), x.numpy(), nearest_k=k)
    for name, value in manifold(x, y, k)._asdict().items():
        close(value, float(other[name]), f"{name} k={k} (prdc)")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the file format of torch-fidelity's Inception."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = theirs.FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(net.state_dict(), path)
    return path


def test_the_whole_way_from_files_to_fid(weights: Path, tmp_path: Path) -> None:
    """Same folders, same weights: reading, resizing, Inception, moments, distance."""
    rng, gaussians = np.random.RandomState(0), []
    for name, top in (("fake", 200), ("real", 256)):
        (tmp_path / name).mkdir()
        for i in range(12):
            picture = rng.randint(0, top, (40, 52, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{i:02}.png")
        found = Pictures.at(tmp_path / name)
        stream = (stacked(batch) for batch in found.batches(5))
        extractor = Inception(weights, layer="64")
        gaussians.append(measure(stream, len(found), extractor).gaussian)
    other = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "fake"),
        input2=str(tmp_path / "real"),
        fid=True,
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=5,
        feature_layer_fid="64",
        feature_extractor_weights_path=str(weights),
    )
    close(frechet(*gaussians), other["frechet_inception_distance"], "FID from files, layer 64")


@pytest.mark.parametrize("layer", ["2048", "logits_unbiased"])
def test_the_adapter_gives_their_features(weights: Path, layer: str) -> None:
    x = torch.randint(0, 256, (2, 3, 33, 47), dtype=torch.uint8)
    net = theirs.FeatureExtractorInceptionV3(
        "same", [layer], feature_extractor_weights_path=str(weights)
    ).eval()
    extractor = Inception(weights, layer)
    with torch.no_grad():
        assert torch.equal(extractor(x), net(x)[0])
    assert extractor.origin.resize == "tf-bilinear-299"
    assert len(extractor.origin.weights) == 64
