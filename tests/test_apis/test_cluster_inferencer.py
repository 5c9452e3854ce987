"""ClusterInferencer: clusters and predictions of HCFormer and of the per-pixel family."""

import mmcv
import numpy as np
import pytest
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmseg.structures import SegDataSample

from hcformer_mm.apis.cluster_inferencer import ClusterInferencer
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG

FCN = "hc-fcn32s_r18_shapes-semantic"
SIZES = [(48, 80), (60, 40), (192, 256)]


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [random.integers(256, size=(*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def files(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"image{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        mmcv.imwrite(image, str(path))
    return paths


@pytest.fixture(scope="module")
def panoptic():
    return ClusterInferencer(SHAPES_CONFIG)


def assert_same(result, expected):
    assert np.array_equal(result.image, expected.image)
    for one, other in zip(result.labels(), expected.labels(), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("model", "kind", "field"),
    [
        (SHAPES_CONFIG, DetDataSample, "pred_panoptic_seg"),
        (Config.fromfile(SEMANTIC_CONFIG), SegDataSample, "pred_sem_seg"),
        (FCN, SegDataSample, "pred_sem_seg"),
    ],
)
def test_models_of_mmdet_and_mmseg(model, kind, field, files, images):
    results = ClusterInferencer(model)(files)
    assert [result.name for result in results] == ["image0", "image1", "image2"]
    for result, image in zip(results, images, strict=True):
        assert np.array_equal(result.image, image[..., ::-1])
        assert isinstance(result.prediction, kind)
        assert field in result.prediction
        assert "clusters" not in result.prediction
        levels = result.labels()
        assert [level.shape for level in levels] == [image.shape[:2]] * 3
        # Finer levels have more clusters; those of a level lie inside those of the next.
        numbers = [level.max() + 1 for level in levels]
        assert numbers == sorted(numbers, reverse=True) and numbers[0] > numbers[-1]
        pairs = np.unique(np.stack([levels[0], levels[1]], axis=-1).reshape(-1, 2), axis=0)
        assert len(pairs) == numbers[0]


def test_label_maps_and_assignments(panoptic, images):
    """Connected parts are finer; inference-mode tensors could take no part in autograd."""
    (result,) = panoptic(images[0])
    for whole, parts in zip(result.labels(), result.labels(connected=True), strict=True):
        assert parts.max() >= whole.max()
    assert not any(assignment.is_inference() for assignment in result.clusters.assignments)


def test_arrays_files_and_lists_give_the_same(panoptic, files, images):
    expected = panoptic(files)
    for given in (files[0], str(files[0]), images[0], [images[0]], iter(files[:1])):
        assert_same(panoptic(given)[0], expected[0])
    assert panoptic(images)[1].name == "1"
    assert [result.name for result in panoptic.iterate(iter(files))] == [
        result.name for result in expected
    ]


def test_batches_keep_the_order(panoptic, files):
    one_by_one = panoptic(files[:1] * 3)
    for result, expected in zip(
        panoptic(files[:1] * 3, batch_size=2, progress=True), one_by_one, strict=True
    ):
        assert_same(result, expected)
    assert panoptic([]) == []
