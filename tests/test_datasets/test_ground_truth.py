"""Ground truth of images in the three forms that ``--gt`` reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image
from pycocotools import mask as coco_mask

from hcformer_mm.datasets.ground_truth import open_ground_truth
from hcformer_mm.evaluation.measures import MaskAP
from hcformer_mm.structures.panoptic import Classes

CLASSES = Classes(["sand", "box", "disc"])
IMAGES = [{"id": 3, "file_name": "some/folder/a.jpg", "height": 4, "width": 6}]
CATEGORIES = [{"id": 71, "name": "disc", "isthing": 1}, {"id": 4, "name": "sand"}]


def write_json(folder: Path, **content: Any) -> Path:
    path = folder / "truth.json"
    path.write_text(json.dumps(dict(images=IMAGES, categories=CATEGORIES) | content))
    return path


def write_panoptic(folder: Path) -> Path:
    """An image whose left half is a disc and whose right half is sand, but for a void column."""
    segments = np.zeros((4, 6, 3), np.uint8)
    segments[:, :3] = (5, 1, 0)  # id 5 + 256
    segments[:, 3:5] = (9, 0, 0)
    (folder / "truth").mkdir()
    Image.fromarray(segments).save(folder / "truth" / "a.png")
    infos = [{"id": 261, "category_id": 71}, {"id": 9, "category_id": 4}]
    annotation = {"image_id": 3, "file_name": "a.png", "segments_info": infos}
    return write_json(folder, annotations=[annotation])


def rle(*columns: int) -> dict[str, Any]:
    """Whole columns of the image, run-length encoded."""
    mask = np.zeros((4, 6), np.uint8, order="F")
    mask[:, list(columns)] = 1
    return dict(size=[4, 6], counts=coco_mask.encode(mask)["counts"].decode())


def write_instances(folder: Path) -> Path:
    """A large disc under a small polygonal one, and a crowd."""
    annotations = [
        # Rows 1 and 2 of column 1.
        dict(id=1, category_id=71, segmentation=[[1, 1, 2, 1, 2, 3, 1, 3]], iscrowd=0),
        dict(id=2, category_id=71, segmentation=rle(0, 1, 2), iscrowd=0),
        dict(id=3, category_id=4, segmentation=rle(2, 3, 4), iscrowd=1),
    ]
    return write_json(folder, annotations=[dict(one, image_id=3) for one in annotations])


def write_map(path: Path, values: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)


def test_panoptic_segments(tmp_path: Path) -> None:
    path = write_panoptic(tmp_path)
    truth = open_ground_truth(path, CLASSES)
    assert "a.jpg" in truth and tmp_path / "elsewhere" / "a.jpg" in truth
    assert "a" in truth and "b.jpg" not in truth and "a.b" not in truth
    panoptic = truth.read(tmp_path / "elsewhere" / "a.jpg", (4, 6))
    assert panoptic.segments.tolist() == [[261] * 3 + [9] * 2 + [0]] * 4
    assert panoptic.categories == {261: 2, 9: 0}
    assert panoptic.ignore.tolist() == [[False] * 5 + [True]] * 4
    path.write_text(path.read_text().replace('"id": 9,', '"id": 9, "iscrowd": 1,'))
    panoptic = open_ground_truth(path, CLASSES).read("a", (4, 6))
    assert panoptic.categories == {261: 2, 9: 0}
    assert panoptic.ignore.tolist() == [[False] * 3 + [True] * 3] * 4


def test_unusable_panoptic_segments(tmp_path: Path) -> None:
    path = write_panoptic(tmp_path)
    truth = open_ground_truth(path, CLASSES)
    with pytest.raises(ValueError, match=r"for category 71 \(disc\) of .*got none"):
        open_ground_truth(path, Classes(["sand"])).read("a.jpg", (4, 6))
    path.write_text(path.read_text().replace('"id": 71', '"id": 72'))
    with pytest.raises(ValueError, match=r"for category 71 \(not among the categories\)"):
        open_ground_truth(path, CLASSES).read("a.jpg", (4, 6))
    (tmp_path / "truth" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"PNG file, got .*truth/a\.png"):
        truth.read("a.jpg", (4, 6))
    (tmp_path / "truth" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"PNG file, got .*truth/a\.png: .*No such file"):
        truth.read("a.jpg", (4, 6))


def test_instances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = open_ground_truth(write_instances(tmp_path), CLASSES)
    assert "a.jpg" in truth and "b.jpg" not in truth
    panoptic = truth.read("a.jpg", (4, 6))
    large, small = 1002, 2002
    edge, middle = [large] * 3 + [0] * 3, [large, small, large] + [0] * 3
    assert panoptic.segments.tolist() == [edge, middle, middle, edge]
    assert panoptic.categories == {large: 2, small: 2}
    # Pixels of two instances, and the crowd.
    ignore = np.zeros((4, 6), bool)
    ignore[1:3, 1] = ignore[:, 2:5] = True
    assert np.array_equal(panoptic.ignore, ignore)
    assert capsys.readouterr().out == ""


def test_instances_agree_with_the_metric(tmp_path: Path) -> None:
    path = write_instances(tmp_path)
    panoptic = open_ground_truth(path, CLASSES).read("a.jpg", (4, 6))
    truth = MaskAP(str(path), ("sand", "disc")).truth(dict(img_id=3))
    assert np.array_equal(truth.void, panoptic.ignore)
    scored = np.stack([truth.segments, panoptic.segments])[:, ~truth.void]
    assert len(np.unique(scored, axis=1).T) == len(np.unique(scored[0])) == 2


def test_instances_of_other_classes_are_left_out(tmp_path: Path) -> None:
    path = write_instances(tmp_path)
    sand = open_ground_truth(path, Classes(["sand"])).read("a.jpg", (4, 6))
    assert sand.segments.tolist() == [[0] * 6] * 4
    assert sand.ignore[:, 2:5].all()
    with pytest.raises(ValueError, match="no class for any category of"):
        open_ground_truth(path, Classes(["cow"]))


def test_image_without_instances(tmp_path: Path) -> None:
    content = json.loads(write_instances(tmp_path).read_text())
    content["images"] += [{"id": 4, "file_name": "empty.jpg", "height": 2, "width": 3}]
    truth = open_ground_truth(write_json(tmp_path, **content), CLASSES)
    panoptic = truth.read("empty.jpg", (2, 3))
    assert panoptic.segments.tolist() == [[0] * 3] * 2
    assert panoptic.categories == {}
    assert not panoptic.ignore.any()


@pytest.mark.parametrize("write", [write_panoptic, write_instances])
def test_image_that_is_missing_or_of_another_size(write: Any, tmp_path: Path) -> None:
    truth = open_ground_truth(write(tmp_path), CLASSES)
    with pytest.raises(ValueError, match=r"no ground truth of b$"):
        truth.read("b.jpg", (4, 6))
    with pytest.raises(ValueError, match=r"a\..* of the image's size \(6, 4\), got \(4, 6\)"):
        truth.read("a.jpg", (6, 4))


def test_label_maps(tmp_path: Path) -> None:
    write_map(tmp_path / "maps" / "a.png", [[0, 2, 255]])
    truth = open_ground_truth(tmp_path / "maps", CLASSES)
    assert "a.jpg" in truth and "b.jpg" not in truth
    panoptic = truth.read("elsewhere/a.jpg", (1, 3))
    assert panoptic.segments.tolist() == [[0, 2, 255]]
    assert panoptic.categories == {0: 0, 2: 2}
    assert panoptic.ignore.tolist() == [[False, False, True]]
    # A palette does not matter: pixels are indices.
    image = Image.fromarray(np.array([[0, 2, 1]], np.uint8), mode="P")
    image.putpalette([9, 8, 7, 6, 5, 4, 3, 2, 1])
    image.save(tmp_path / "maps" / "a.png")
    assert truth.read("a.jpg", (1, 3)).segments.tolist() == [[0, 2, 1]]


def test_label_maps_that_count_from_1(tmp_path: Path) -> None:
    """As mmseg loads them."""
    write_map(tmp_path / "a.png", [[0, 1], [3, 255]])
    truth = open_ground_truth(tmp_path, CLASSES, reduce_zero_label=True)
    assert truth.read("a.jpg", (2, 2)).segments.tolist() == [[255, 0], [2, 255]]
    results = dict(seg_map_path=str(tmp_path / "a.png"), seg_fields=[], reduce_zero_label=True)
    loaded = LoadAnnotations()(results)["gt_seg_map"]
    assert loaded.tolist() == [[255, 0], [2, 255]]


def test_label_maps_of_cityscapes_are_found(tmp_path: Path) -> None:
    write_map(tmp_path / "ulm" / "ulm_000000_000019_gtFine_labelTrainIds.png", [[1, 2]])
    write_map(tmp_path / "ulm" / "ulm_000000_000019_gtFine_color.png", [[0, 0]])
    truth = open_ground_truth(tmp_path, CLASSES)
    image = "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"
    assert image in truth
    assert truth.read(image, (1, 2)).segments.tolist() == [[1, 2]]
    assert "ulm_000000_000020_leftImg8bit.png" not in truth


def test_unusable_label_maps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label maps as PNG files in .*, found none"):
        open_ground_truth(tmp_path, CLASSES)
    write_map(tmp_path / "a.png", [[0, 3]])
    Image.fromarray(np.zeros((1, 2, 3), np.uint8)).save(tmp_path / "colored.png")
    truth = open_ground_truth(tmp_path, CLASSES)
    for image, size, message in (
        ("a.jpg", (1, 2), r"classes below 3 in .*a\.png, .* got 3"),
        ("a.jpg", (2, 2), r"size \(2, 2\), got \(1, 2\)"),
        ("b.jpg", (2, 2), r"no ground truth of b$"),
        ("colored.jpg", (1, 2), r"gray PNG .*colored\.png, got RGB"),
    ):
        with pytest.raises(ValueError, match=message):
            truth.read(image, size)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such ground truth: .*nothing\.json"):
        open_ground_truth(tmp_path / "nothing.json", CLASSES)
    path = tmp_path / "truth.json"
    for content, message in (
        (b"no json", "to be a JSON file"),
        (b"\xff\xfe\x00", "to be a JSON file"),
        (b'{"images": []}', r"expected a COCO JSON file, but .* lacks 'annotations'"),
        (b"[1, 2]", "expected a COCO JSON object in .*, got a list"),
        (b'{"annotations": []}', r"segmentation \(instances\) in .*truth\.json, got none"),
        (b'{"annotations": [{"bbox": [], "id": 1}]}', "got bbox, id"),
        (b'{"annotations": [{"segments_info": []}]}', "lacks 'images'"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_ground_truth(path, CLASSES)
