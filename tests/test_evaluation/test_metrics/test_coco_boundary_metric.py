"""AP^boundary of hand-drawn instances.

Images of 60 x 80 pixels have a diagonal of 100, so a boundary of 0.02 of it is 2 pixels wide.
The object is a box of 24 x 20 = 480 pixels; without its inside, 20 x 16 = 320, 160 are left.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask

from hcformer_mm.evaluation import CocoBoundaryMetric
from hcformer_mm.evaluation.measures import MaskAP

HEIGHT, WIDTH = 60, 80
CLASSES = ("box", "other")


def box(left=10, top=10, width=24, height=20):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def ring():
    """The boundary of the box."""
    return box() - box(12, 12, 20, 16)


@pytest.fixture
def ann_file(tmp_path):
    """The box as a polygon, and a second image in which there is nothing."""
    corners = [10, 10, 34, 10, 34, 30, 10, 30]
    content = dict(
        images=[dict(id=i, file_name=f"{i}.jpg", height=HEIGHT, width=WIDTH) for i in (1, 2)],
        categories=[dict(id=7, name="box"), dict(id=9, name="other")],
        annotations=[
            dict(
                id=1,
                image_id=1,
                category_id=7,
                iscrowd=0,
                bbox=[10, 10, 24, 20],
                area=480,
                segmentation=[corners],
            )
        ],
    )
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return str(path)


def predictions(*masks, scores=None, labels=None):
    scores = [0.9] * len(masks) if scores is None else scores
    stacked = np.stack(masks) if masks else np.zeros((0, HEIGHT, WIDTH), np.uint8)
    return InstanceData(
        bboxes=torch.zeros(len(masks), 4),  # wrong, and unused
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor([0] * len(masks) if labels is None else labels, dtype=torch.long),
        masks=torch.from_numpy(stacked).bool(),
    )


def run(metrics, *samples, **options):
    """Evaluate the instances of images, whose samples have further ``options``."""
    evaluator = Evaluator(metrics)
    evaluator.dataset_meta = dict(classes=CLASSES)
    for index, instances in enumerate(samples, start=1):
        found = dict(instances.items())
        sample = dict(img_id=index, ori_shape=(HEIGHT, WIDTH), pred_instances=found, **options)
        evaluator.process([sample])
    return evaluator.evaluate(len(samples))


def evaluate(ann_file, *samples, **options):
    return run(dict(type="hcformer_mm.CocoBoundaryMetric", ann_file=ann_file, **options), *samples)


def test_perfect_prediction(ann_file):
    assert evaluate(ann_file, predictions(box()), predictions()) == {
        "coco/boundary_mAP": 1.0,
        "coco/boundary_mAP_50": 1.0,
        "coco/boundary_mAP_75": 1.0,
        "coco/boundary_mAP_s": 1.0,  # 480 pixels are small: below 32 x 32
        "coco/boundary_mAP_m": -1.0,
        "coco/boundary_mAP_l": -1.0,
    }


@pytest.mark.parametrize("number", [0, 0.0, 7.0])
def test_ids_and_sizes_of_other_tools(ann_file, number):
    """pycocotools takes the object of id 0 for missed, and faster-coco-eval refuses 60.0 rows."""
    content = json.loads(Path(ann_file).read_text())
    content["annotations"][0]["id"] = number
    content["images"][0] |= dict(id=1.0, height=float(HEIGHT), width=float(WIDTH))
    Path(ann_file).write_text(json.dumps(content))
    assert evaluate(ann_file, predictions(box()), predictions())["coco/boundary_mAP"] == 1
    measure = MaskAP(ann_file, CLASSES)
    truth = measure.truth(dict(img_id=1))
    assert measure.figures([measure.count(measure.perfect(truth), truth)]) == dict(AP=100)


def test_shifted_prediction(ann_file):
    """One pixel to the right: boundary IoU 0.63, mask IoU 0.92.

    Masks share 23 x 20 = 460 of 500 pixels. Rings share 23 columns of their four full rows, 92, and
    columns 11 and 33 of the 16 rows between, 32: 124 of 2 * 160 - 124 = 196 pixels, 0.633, which
    passes the thresholds 0.5, 0.55 and 0.6 of ten; the masks pass those up to 0.9, nine of ten.
    """
    scores = evaluate(ann_file, predictions(box(left=11)), predictions())
    assert scores["coco/boundary_mAP"] == 0.3
    assert scores["coco/boundary_mAP_50"] == 1.0
    assert scores["coco/boundary_mAP_75"] == 0.0


def test_stands_beside_mask_ap(ann_file):
    metrics = [
        CocoBoundaryMetric(ann_file, classwise=True),
        CocoMetric(ann_file, metric="segm", classwise=True),
    ]
    scores = run(metrics, predictions(box(left=11)))
    assert scores["coco/boundary_mAP"] == scores["coco/box_boundary_precision"] == 0.3
    assert scores["coco/segm_mAP"] == scores["coco/box_precision"] == 0.9
    assert np.isnan(scores["coco/other_boundary_precision"])


@pytest.mark.parametrize(
    ("found", "options", "expected"),
    [
        # The ring has the boundary of the box but a third of its mask: the smaller IoU counts.
        (predictions(ring()), {}, 0.0),
        # Ten pixels, 0.1 of the diagonal: no pixel of the box is farther from its contour.
        (predictions(box(left=11)), dict(dilation_ratio=0.1), 0.9),
        # A miss before the hit: precision 1/2 at any recall.
        (predictions(box(left=40), box(), scores=[0.9, 0.8]), {}, 0.5),
        (predictions(box(), labels=[1]), {}, 0.0),
        (predictions(), {}, 0.0),
    ],
    ids=["hollow", "wide boundary", "better scored miss", "wrong class", "nothing"],
)
def test_other_predictions(ann_file, found, options, expected):
    scores = evaluate(ann_file, found, predictions(), **options)
    assert scores["coco/boundary_mAP"] == expected


def test_ground_truth_of_the_samples():
    """Without ann_file, the ground truth is that of the data samples, as in CocoMetric."""
    rle = coco_mask.encode(np.asfortranarray(box()))
    annotation = dict(bbox_label=0, bbox=[10, 10, 34, 30], ignore_flag=0, mask=rle)
    metric = dict(type="hcformer_mm.CocoBoundaryMetric", prefix="val")
    scores = run(metric, predictions(box(left=11)), instances=[annotation])
    assert scores["val/boundary_mAP"] == 0.3


def test_keeps_predictions(ann_file, tmp_path):
    evaluate(ann_file, predictions(box()), outfile_prefix=str(tmp_path / "left"))
    (instance,) = json.loads((tmp_path / "left.segm.json").read_text())
    assert (instance["image_id"], instance["category_id"]) == (1, 7)


def test_evaluates_again(ann_file):
    """As after every epoch: an evaluation leaves nothing behind that changes the next."""
    metric = CocoBoundaryMetric(ann_file)
    for shift, expected in ((0, 1.0), (1, 0.3), (0, 1.0)):
        assert run(metric, predictions(box(left=10 + shift)))["coco/boundary_mAP"] == expected


def test_needs_masks(ann_file):
    boxes = predictions(box())
    del boxes.masks
    with pytest.raises(ValueError, match=r"expected masks in the predictions for AP\^boundary"):
        evaluate(ann_file, boxes)


def test_needs_a_width(ann_file):
    with pytest.raises(ValueError, match="expected dilation_ratio above 0, got 0"):
        METRICS.build(dict(type="hcformer_mm.CocoBoundaryMetric", dilation_ratio=0))
