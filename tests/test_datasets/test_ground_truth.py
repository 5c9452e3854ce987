"""Ground truth of images: forms that ``--gt`` reads, images of several folders, panoptic files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hcformer_mm.datasets.ground_truth import open_ground_truth
from hcformer_mm.structures.panoptic import Classes
from tests.helpers.ground_truth import (
    CLASSES,
    write_instances,
    write_json,
    write_map,
    write_panoptic,
)


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
    text = path.read_text()
    for wrong in ('"id": [9],', ""):
        path.write_text(text.replace('"id": 9,', wrong))
        with pytest.raises(ValueError, match=r"truth.json to have a list of segments_info, each "):
            open_ground_truth(path, CLASSES).read("a.jpg", (4, 6))
    path.write_text(text.replace('"id": 71', '"id": 72'))
    with pytest.raises(ValueError, match=r"for category 71 \(not among the categories\)"):
        open_ground_truth(path, CLASSES).read("a.jpg", (4, 6))
    (tmp_path / "truth" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"truth/a\.png: expected an image"):
        truth.read("a.jpg", (4, 6))
    (tmp_path / "truth" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"truth/a\.png: the file does not exist"):
        truth.read("a.jpg", (4, 6))


@pytest.mark.parametrize("write", [write_panoptic, write_instances])
def test_image_that_is_missing_or_of_another_size(write: Any, tmp_path: Path) -> None:
    truth = open_ground_truth(write(tmp_path), CLASSES)
    with pytest.raises(ValueError, match=r"no ground truth of b.jpg$"):
        truth.read("b.jpg", (4, 6))
    with pytest.raises(ValueError, match=r"a\..* height and width, \(6, 4\), got \(4, 6\)"):
        truth.read("a.jpg", (6, 4))


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


def test_panoptic_png_of_other_segments(tmp_path: Path) -> None:
    """Ids that are stored as gray levels, for example."""
    path = write_panoptic(tmp_path)
    Image.fromarray(np.full((4, 6), 9, np.uint8)).save(tmp_path / "truth/a.png")
    with pytest.raises(ValueError, match=r"a\.png: expected an RGB PNG, whose colors are ids, got"):
        open_ground_truth(path, CLASSES).read("a.jpg", (4, 6))
    Image.fromarray(np.full((4, 6, 3), 9, np.uint8)).save(tmp_path / "truth/a.png")
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
