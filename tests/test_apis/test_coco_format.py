"""Results in the formats of COCO and label maps, by definition."""

import json

import mmcv
import numpy as np
import pytest
import torch
from mmdet.structures.mask import encode_mask_results
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from hcformer_mm.apis.coco_format import encode_instances, encode_panoptic, label_map, read_coco_ids
from hcformer_mm.apis.result_writer import segments_of, write_image
from hcformer_mm.structures.panoptic import Classes, Panoptic
from tests.helpers.predictions import CLASSES, random_sample

SIZES = [(5, 7), (1, 1), (40, 3), (24, 33)]
IDS = {"cup": 47, "dog": 18, "field": 193, "sky": 187}


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_encoding(seed):
    size = SIZES[seed]
    panoptic = segments_of(random_sample(*size, seed=seed), CLASSES, score_thr=0.5)
    ids, info = encode_panoptic(panoptic, [11, 12, 13, 14])
    assert [entry["id"] for entry in info] == list(range(1, len(info) + 1))
    described = np.zeros(size, bool)
    for entry in info:
        mask = ids == entry["id"]
        described |= mask
        ((value,),) = [set(panoptic.segments[mask].tolist())]
        assert np.array_equal(mask, panoptic.segments == value)
        rows, cols = np.nonzero(mask)
        box = [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
        assert entry == dict(
            id=entry["id"], category_id=11 + value % 1000, iscrowd=0, area=mask.sum(), bbox=box
        )
    assert np.array_equal(described, panoptic.segments != 4)
    assert (ids[~described] == 0).all()


def test_scores_of_segments():
    """Of those that have one."""
    scores = {2: 0.25, 1002: 0.5, 3001: 1}
    panoptic = Panoptic(np.array([[0, 1002, 2, 7]]), {0: 0, 2: 2, 1002: 2}, scores=scores)
    _, info = encode_panoptic(panoptic, range(3))
    assert [entry.get("score") for entry in info] == [None, 0.25, 0.5]
    assert [entry["category_id"] for entry in info] == [0, 2, 2]


def test_stuff_of_class_0_is_no_void():
    panoptic = Panoptic(np.array([[0, 0, 2]]), {0: 0, 2: 2})
    ids, info = encode_panoptic(panoptic, range(3))
    assert ids.tolist() == [[1, 1, 2]]
    assert [(entry["category_id"], entry["area"]) for entry in info] == [(0, 2), (2, 1)]


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8])
@pytest.mark.parametrize("size", SIZES)
def test_masks_are_encoded_as_by_mmdet(size, kind):
    instances = random_sample(*size).pred_instances
    expected = encode_mask_results(instances.masks.numpy())
    instances.masks = instances.masks.to(kind)
    found = [entry["segmentation"] for entry in encode_instances(instances, 0, range(4))]
    assert found == [dict(one, counts=one["counts"].decode()) for one in expected]


def test_nothing_found():
    ids, info = encode_panoptic(Panoptic(np.full((2, 3), 4), {}), range(4))
    assert ids.tolist() == [[0] * 3] * 2 and info == []
    none = InstanceData(
        masks=torch.zeros(0, 2, 3, dtype=torch.bool), scores=torch.zeros(0), labels=torch.zeros(0)
    )
    assert encode_instances(none, 1, range(4)) == []


@pytest.mark.parametrize(("number", "kind"), [(255, np.uint8), (256, np.uint16)])
def test_label_maps_of_many_classes(number, kind, tmp_path):
    sample = SegDataSample()
    sample.pred_sem_seg = PixelData(data=torch.tensor([[[0, number - 1, number, -1]]]))
    labels = label_map(sample, number)
    void = np.iinfo(kind).max
    assert labels.dtype == kind
    assert labels.tolist() == [[0, number - 1, void, void]]
    write_image(tmp_path / "labels.png", labels)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "labels.png")), labels)
    assert np.array_equal(mmcv.imread(str(tmp_path / "labels.png"), "unchanged"), labels)


def test_ids_of_annotations(tmp_path):
    path = tmp_path / "annotations.json"
    content = dict(
        images=[dict(id=7, file_name="val/a.jpg"), dict(id=3, file_name="b.jpg")],
        categories=[dict(id=i, name=name) for name, i in IDS.items()][::-1],
    )
    path.write_text(json.dumps(content))
    images, categories, _ = read_coco_ids(path, CLASSES)
    assert [images.find(name) for name in ("a.jpg", "data/b.jpg", "c.jpg")] == [7, 3, None]
    assert categories == [47, 18, 193, 187]
    path.write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    assert read_coco_ids(path, CLASSES)[1] == categories
    with pytest.raises(ValueError, match="got none for mug, pot, tea, box and 1 more"):
        read_coco_ids(path, Classes(["cup", "mug", "pot", "tea", "box", "bag"]))
    with pytest.raises(ValueError, match=r"got none for mug$"):
        read_coco_ids(path, Classes(["mug"]))


@pytest.mark.parametrize(
    ("files", "names", "message"),
    [
        (("a/x.jpg", "a/x.jpg"), ("disc",), r"every image once in .*, got a/x\.jpg twice"),
        (("x.jpg",), ("disc", "disc"), "disc is the name of both 1 and 2"),
    ],
)
def test_names_that_annotations_give_twice(files, names, message, tmp_path):
    content = dict(
        images=[dict(id=i, file_name=name) for i, name in enumerate(files, 1)],
        categories=[dict(id=i, name=name) for i, name in enumerate(names, 1)],
    )
    (tmp_path / "gt.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_coco_ids(tmp_path / "gt.json", Classes(names=["disc"]))


def test_files_that_are_no_annotations(tmp_path):
    path = tmp_path / "annotations.json"
    with pytest.raises(FileNotFoundError, match=r"no such annotations: .*annotations\.json"):
        read_coco_ids(path, CLASSES)
    for content in ("no JSON", "{}", "[]"):
        path.write_text(content)
        with pytest.raises(ValueError, match="to be a COCO JSON file with images and cat"):
            read_coco_ids(path, CLASSES)
