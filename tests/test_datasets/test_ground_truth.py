"""Ground truth of images in the three forms that ``--gt`` reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from hcformer_mm.datasets.ground_truth import open_ground_truth
from hcformer_mm.evaluation.measures import MaskAP
from hcformer_mm.structures.panoptic import Classes
from tests.helpers.label_maps import SIZES

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
    for image in ("a.jpg", "a", tmp_path / "elsewhere" / "a.jpg"):
        truth.check([image])
    for other in ("b.jpg", "a.b"):
        with pytest.raises(ValueError, match=f"truth.json has no ground truth of {other}$"):
            truth.check(["a", other])
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
    with pytest.raises(ValueError, match=r"no ground truth of b.jpg$"):
        truth.read("b.jpg", (4, 6))
    with pytest.raises(ValueError, match=r"a\..* height and width, \(6, 4\), got \(4, 6\)"):
        truth.read("a.jpg", (6, 4))


def test_label_maps(tmp_path: Path) -> None:
    write_map(tmp_path / "maps" / "a.png", [[0, 2, 255]])
    truth = open_ground_truth(tmp_path / "maps", CLASSES)
    panoptic = truth.read("elsewhere/a.jpg", (1, 3))
    assert panoptic.segments.tolist() == [[0, 2, 255]]
    assert panoptic.categories == {0: 0, 2: 2}
    assert panoptic.ignore.tolist() == [[False, False, True]]
    # A palette does not matter: pixels are indices.
    image = Image.fromarray(np.array([[0, 2, 1]], np.uint8), mode="P")
    image.putpalette([9, 8, 7, 6, 5, 4, 3, 2, 1])
    image.save(tmp_path / "maps" / "a.png")
    assert truth.read("a.jpg", (1, 3)).segments.tolist() == [[0, 2, 1]]


def test_label_maps_of_cityscapes_are_found(tmp_path: Path) -> None:
    write_map(tmp_path / "ulm" / "ulm_000000_000019_gtFine_labelTrainIds.png", [[1, 2]])
    write_map(tmp_path / "ulm" / "ulm_000000_000019_gtFine_color.png", [[0, 0]])
    truth = open_ground_truth(tmp_path, CLASSES)
    image = "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"
    assert truth.read(image, (1, 2)).segments.tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="no ground truth of ulm_000000_000020_left"):
        truth.check(["ulm_000000_000020_leftImg8bit.png"])


def test_unusable_label_maps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label maps as PNG files in .*, found none"):
        open_ground_truth(tmp_path, CLASSES)
    write_map(tmp_path / "a.png", [[0, 3]])
    Image.fromarray(np.zeros((1, 2, 3), np.uint8)).save(tmp_path / "colored.png")
    truth = open_ground_truth(tmp_path, CLASSES)
    for image, size, message in (
        ("a.jpg", (1, 2), r"labels below 3, .* in .*a\.png, got 3"),
        ("a.jpg", (2, 2), r"a\.png of .*, \(2, 2\), got \(1, 2\)"),
        ("b.jpg", (2, 2), r"no ground truth of b.jpg$"),
        ("colored.jpg", (1, 2), r"per pixel in .*colored\.png, got 3 ch"),
    ):
        with pytest.raises(ValueError, match=message):
            truth.read(image, size)


NONE = b'{"images": [], "categories": [{"id": 1, "name": "disc"}], "annotations": [%s]}'


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such ground truth: .*nothing\.json"):
        open_ground_truth(tmp_path / "nothing.json", CLASSES)
    path = tmp_path / "truth.json"
    for content, message in (
        (b'{"images": [{"id"', r"expected .*truth\.json to be a COCO JSON file"),
        (NONE % b"", r"segmentation \(instances\) in .*truth\.json, got none"),
        (NONE % b'{"image_id": 1, "bbox": []}', "got bbox, image_id"),
        (
            NONE % b'{"image_id": 1, "segments_info": []}',
            r"expected .*truth\.json to have a list of annotations, each with file_name",
        ),
        (
            NONE % b'{"image_id": 1, "file_name": "a.png", "segments_info": []}',
            r"annotations of the images of .*truth\.json alone, .* ids \[1\]",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_ground_truth(path, CLASSES)


def shifted(number: int) -> list[list[int]]:
    return [[number, 0], [0, 0]]


def write_folders(folder: Path, form: str, names: tuple[str, ...]) -> Path:
    """Ground truth of images of several folders: the first pixel is a disc in one of them alone."""
    images = [dict(id=i, file_name=name, height=2, width=2) for i, name in enumerate(names)]
    annotations: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        png = Path(name).with_suffix(".png")
        label = 2 if number == len(names) - 1 else 0
        if form == "maps":
            write_map(folder / "truth" / png, shifted(label))
            continue
        category = {0: 4, 2: 71}[label]
        one = dict(id=number + 1, image_id=number, category_id=category, file_name=str(png))
        if form == "panoptic":
            path = folder / "truth" / png
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((2, 2, 3), (9, 0, 0), np.uint8)).save(path)
            one["segments_info"] = [{"id": 9, "category_id": category}]
        else:
            one["segmentation"] = [[0, 0, 2, 0, 2, 2, 0, 2]]
        annotations.append(one)
    if form == "maps":
        return folder / "truth"
    return write_json(folder, images=images, annotations=annotations)


FORMS = ["panoptic", "instances", "maps"]


@pytest.mark.parametrize("form", FORMS)
def test_images_of_one_name_in_several_folders(form: str, tmp_path: Path) -> None:
    truth = open_ground_truth(
        write_folders(tmp_path, form, ("a/0001.jpg", "b/x/0001.jpg", "c/x/0001.jpg")), CLASSES
    )
    images = [f"/images/val/{name}/0001.jpg" for name in ("a", "b/x", "c/x")]
    found = [truth.read(image, (2, 2)) for image in images]
    assert [set(one.categories.values()) & {2} for one in found] == [set(), set(), {2}]
    truth.check(images)
    for image in ("0001.jpg", "/images/d/0001.jpg", "/images/x/0001.jpg"):
        with pytest.raises(ValueError, match=r"which image of .*truth.*, which may be "):
            truth.read(image, (2, 2))


@pytest.mark.parametrize("form", FORMS)
def test_ground_truth_is_of_one_image(form: str, tmp_path: Path) -> None:
    """An image of another folder is found by its name, but not two images of one name."""
    truth = open_ground_truth(write_folders(tmp_path, form, ("a/0001.jpg",)), CLASSES)
    truth.check(["/elsewhere/0001.jpg"])
    with pytest.raises(ValueError, match=r"got one for a/0001\.jpg and b/0001\.jpg; name images"):
        truth.check(["a/0001.jpg", "b/0001.jpg"])


def test_entries_of_one_image(tmp_path: Path) -> None:
    """Of two entries, one would be lost."""
    for form in FORMS[:2]:
        with pytest.raises(ValueError, match=r"once in .*truth\.json, got a\.jpg twice"):
            open_ground_truth(write_folders(tmp_path, form, ("a.jpg", "a.jpg")), CLASSES)


def test_images_that_differ_in_suffix(tmp_path: Path) -> None:
    for form in FORMS[:2]:
        truth = open_ground_truth(write_folders(tmp_path, form, ("a.png", "a.jpg")), CLASSES)
        found = [truth.read(f"x/a.{end}", (2, 2)).categories for end in ("png", "jpg")]
        assert [set(one.values()) for one in found] == [{0}, {2}]


@given(
    SIZES.flatmap(lambda size: arrays(np.uint8, size) | arrays(np.uint16, size)),
    st.sampled_from([1, 3, 254, 255, 256, 300, 65535]),
    st.booleans(),
)
def test_label_maps_of_any_values(tmp_path: Path, pixels: Any, number: int, reduced: bool) -> None:
    """Every pixel is void or has its class, or a sentence names the file."""
    Image.fromarray(pixels).save(tmp_path / "a.png")
    classes = Classes([str(i) for i in range(number)])
    truth = open_ground_truth(tmp_path, classes, reduce_zero_label=reduced)
    values = pixels.astype(int)
    void = (values == 65535) | ((values == 255) & (number <= 255)) | ((values == 0) & reduced)
    expected = values - reduced
    ambiguous = pixels.dtype == np.uint8 and number > 255 and (pixels == 255).any()
    if ambiguous or (expected[~void] >= number).any():
        with pytest.raises(ValueError, match=r"expected .*a\.png"):
            truth.read("a.jpg", pixels.shape)
        return
    found = truth.read("a.jpg", pixels.shape)
    assert np.array_equal(found.ignore, void)
    label = 255 if number <= 255 else 65535
    assert np.array_equal(found.segments, np.where(void, label, expected))
    assert found.categories == {int(i): int(i) for i in np.unique(expected[~void])}


@given(
    SIZES.flatmap(lambda size: arrays(np.bool_, st.tuples(st.integers(0, 4), *map(st.just, size)))),
    st.data(),
)
def test_instances_of_any_masks(tmp_path: Path, masks: Any, data: st.DataObject) -> None:
    """The smallest of several instances is on top, and pixels of several, and crowds, are void."""
    size = masks.shape[1:]
    crowds = [data.draw(st.booleans()) for _ in masks]
    encoded = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    content = dict(
        images=[dict(id=1, file_name="a.jpg", height=size[0], width=size[1])],
        annotations=[
            dict(
                id=number,
                image_id=1,
                category_id=71,
                iscrowd=int(crowd),
                segmentation={**one, "counts": one["counts"].decode()},
            )
            for number, (one, crowd) in enumerate(zip(encoded, crowds, strict=True), start=1)
        ],
    )
    content["annotations"].append(  # of another image, so that the file is one of instances
        dict(id=9, image_id=2, category_id=71, iscrowd=0, segmentation=rle(0))
    )
    content["images"].append(dict(id=2, file_name="b.jpg", height=4, width=6))
    path = write_json(tmp_path, **content)
    found = open_ground_truth(path, CLASSES).read("a.jpg", size)
    objects = [mask for mask, crowd in zip(masks, crowds, strict=True) if not crowd]
    claims = np.sum([np.zeros(size, int), *objects], axis=0)
    hidden = np.any([np.zeros(size, bool), *masks[np.array(crowds, bool)]], axis=0)
    assert np.array_equal(found.ignore, (claims > 1) | hidden)
    assert np.array_equal(found.segments > 0, claims > 0)
    for y, x in zip(*np.nonzero(claims), strict=True):
        area = min(mask.sum() for mask in objects if mask[y, x])
        visible = found.segments == found.segments[y, x]
        assert any(mask.sum() == area and mask[visible].all() for mask in objects if mask[y, x])


BOX = [1, 0, 5, 0, 5, 3, 1, 3]


@pytest.mark.parametrize(
    "segmentation",
    [
        pytest.param([[0, 0, 3, 3]], id="two points, a box for pycocotools"),
        pytest.param([BOX, [0, 0, 3, 3]], id="two points beside a polygon"),
        pytest.param([[0, 0, 3]], id="odd"),
        pytest.param([[0, 0, 3, 0, 3, 3, 1]], id="odd and long"),
        pytest.param([[]], id="no point"),
        pytest.param([], id="no polygon"),
        pytest.param(None, id="none"),
        pytest.param(BOX, id="no list of lists"),
        pytest.param("box", id="text"),
        pytest.param(dict(counts=[24]), id="no size"),
        pytest.param(dict(size=[6, 4], counts=[24]), id="other size"),
        pytest.param(dict(size=[4, 6], counts=[20]), id="short runs"),
        pytest.param(dict(size=[4, 6], counts=[20, 20]), id="long runs"),
        pytest.param(dict(size=[4, 6], counts=[26, -2]), id="negative runs"),
        pytest.param(dict(size=[4, 6], counts=rle(1)["counts"] + "a0"), id="compressed, too long"),
    ],
)
def test_instances_that_pycocotools_misreads(segmentation: Any, tmp_path: Path) -> None:
    content = json.loads(write_instances(tmp_path).read_text())
    content["annotations"][1]["segmentation"] = segmentation
    path = write_json(tmp_path, **content)
    message = r"truth\.json: expected polygons of three points or more, .* of annotation 2, got "
    with pytest.raises(ValueError, match=message):
        open_ground_truth(path, CLASSES).read("a.jpg", (4, 6))
    with pytest.raises(ValueError, match=message):
        MaskAP(str(path), ("sand", "disc")).truth(dict(img_id=3))


@pytest.mark.parametrize(
    "segmentation",
    [
        [BOX],
        [[1.0, 0.0, 5.0, 0.0, 5.0, 3.0, 1.0, 3.0]],
        [[1, 0, 3, 0, 3, 3, 1, 3], [3, 0, 5, 0, 5, 3, 3, 3]],
        dict(size=[4, 6], counts=[4, 3, 1, 3, 1, 3, 1, 3, 5]),
        rle(),
        [[2, 2, 2, 2, 2, 2]],
    ],
    ids=["polygon", "floats", "parts", "runs", "empty", "no area"],
)
def test_instances_are_those_of_pycocotools(segmentation: Any, tmp_path: Path) -> None:
    content = json.loads(write_instances(tmp_path).read_text())
    content["annotations"] = [
        dict(id=1, image_id=3, category_id=71, segmentation=segmentation, iscrowd=0)
    ]
    path = write_json(tmp_path, **content)
    expected = COCO(path).annToMask(content["annotations"][0])
    found = open_ground_truth(path, CLASSES).read("a.jpg", (4, 6))
    assert np.array_equal(found.segments > 0, expected)
    assert np.array_equal(MaskAP(str(path), ("disc",)).truth(dict(img_id=3)).segments, expected)


def test_panoptic_png_of_other_segments(tmp_path: Path) -> None:
    """Ids that are stored as gray levels, for example."""
    path = write_panoptic(tmp_path)
    Image.fromarray(np.full((4, 6), 9, np.uint8)).save(tmp_path / "truth/a.png")
    with pytest.raises(ValueError, match=r"expected segment 261 of .*json in .*a\.png, whose"):
        open_ground_truth(path, CLASSES).read("a.jpg", (4, 6))
    path.write_text(path.read_text().replace('"id": 261', f'"id": {2**24 + 261}'))
    with pytest.raises(ValueError, match=rf"expected segment {2**24 + 261} of .*json in"):
        open_ground_truth(path, CLASSES).read("a.jpg", (4, 6))


@pytest.mark.parametrize("write", [write_panoptic, lambda folder: folder / "truth"])
def test_damaged_pngs_are_named(write: Any, tmp_path: Path) -> None:
    """Whatever is cut off or flipped, the result is right or a sentence names the file."""
    path = write_panoptic(tmp_path)
    if write is not write_panoptic:
        path = write(tmp_path)
        write_map(path / "a.png", [[0, 1, 2, 0, 1, 2]] * 4)
    truth = open_ground_truth(path, CLASSES)
    png = tmp_path / "truth/a.png"
    whole = png.read_bytes()
    before = truth.read("a.jpg", (4, 6))
    refused = 0
    for at in range(0, len(whole), 3):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]):
            png.write_bytes(damaged)
            try:
                found = truth.read("a.jpg", (4, 6))
            except ValueError as error:
                assert str(png) in str(error)
                refused += 1
            else:
                assert np.array_equal(found.segments, before.segments)
    assert refused > len(whole) / 3
