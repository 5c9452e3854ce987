"""Loading of images and of annotations: files that are broken or of another size."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hcformer_mm.datasets import (
    LoadImageFromFile,
    LoadInstanceAnnotations,
    LoadPanopticAnnotations,
    transforms,
)
from tests.helpers.pipelines import HEIGHT, SIZE, WIDTH, save


def test_images_are_loaded_as_by_mmcv(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    path = save(tmp_path / "image.png", image)
    found = LoadImageFromFile(to_float32=True)(dict(img_path=path))
    assert found["img"].dtype == np.float32
    assert (found["img"][..., ::-1] == image).all()
    assert found["img_shape"] == found["ori_shape"] == SIZE
    gray = LoadImageFromFile(color_type="grayscale")(dict(img_path=path))
    assert gray["img"].shape == SIZE
    assert LoadImageFromFile(ignore_empty=True)(dict(img_path="none.png")) is None


def test_truncated_images_are_refused(tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(
        path
    )
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"complete image .*, got .*image\.jpg; replace"):
        LoadImageFromFile()(dict(img_path=str(path)))
    assert LoadImageFromFile(ignore_empty=True)(dict(img_path=str(path))) is None


def test_panoptic_files_that_cannot_be_read_are_refused(tiny, tmp_path):
    path = tmp_path / "ids.png"
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    content = Path(save(path, noise)).read_bytes()
    results = tiny["mmdet"] | dict(seg_map_path=str(path), ori_shape=(60, 80))
    LoadPanopticAnnotations()(dict(results))
    for broken in (content[: len(content) // 2], b"", b"no image"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"expected .*ids\.png"):
            LoadPanopticAnnotations()(dict(results))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ids\.png of the image's .*, \(80, 60\), got \(60, 80\)"):
        LoadPanopticAnnotations()(results | dict(ori_shape=(80, 60)))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_panoptic_files_of_one_row_or_column_are_refused(size, tiny, tmp_path):
    path = save(tmp_path / "ids.png", np.zeros((*size, 3), np.uint8))
    with pytest.raises(ValueError, match=r"ids\.png of two rows and two columns at least, got \("):
        LoadPanopticAnnotations()(tiny["mmdet"] | dict(seg_map_path=path, ori_shape=size))


def test_polygons_for_another_size_are_refused(tiny):
    """As of images that were made smaller after they were annotated."""
    results = tiny["mmdet"] | dict(height=2 * HEIGHT, width=2 * WIDTH)
    step = LoadInstanceAnnotations(with_bbox=True, with_mask=True)
    with pytest.raises(
        ValueError, match=rf"annotations of .*\({HEIGHT}, {WIDTH}\), got \({2 * HEIGHT}"
    ):
        step(results | dict(ori_shape=(HEIGHT, WIDTH)))


def test_masks_of_another_size_are_refused(tiny):
    """mmdet reshapes them, which scrambles the mask of an image that lies on its side."""
    results = tiny["mmdet"] | dict(ori_shape=(WIDTH, HEIGHT), height=WIDTH, width=HEIGHT)
    step = LoadInstanceAnnotations(with_bbox=True, with_mask=True)
    problem = r"annotations of .*image\.jpg .*height and width, \(2000, 1500\), got \(1500, 2000\)"
    with pytest.raises(ValueError, match=problem):
        step(results)
    broken = results["instances"][0] | dict(mask=dict(size=[6, 6], counts="?"))
    results["instances"] = [broken, *results["instances"][1:]]
    with pytest.raises(ValueError, match=r"the annotations of .*image\.jpg to be readable"):
        step(results)


def test_bands_of_images(tmp_path):
    image = np.random.default_rng(0).integers(0, 60000, (*SIZE, 5), dtype=np.uint16)
    path = str(tmp_path / "field.tif")
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig")
    found = LoadImageFromFile(bands=5)(dict(img_path=path))
    assert found["img"].dtype == np.uint16
    assert (found["img"] == image).all()
    assert found["img_shape"] == found["ori_shape"] == SIZE
    found = LoadImageFromFile(to_float32=True, bands=5)(dict(img_path=path))
    assert found["img"].dtype == np.float32
    with pytest.raises(ValueError, match=r"expected 3 bands in .*field\.tif"):
        LoadImageFromFile(bands=3)(dict(img_path=path))
    # mmdet's preprocessor would take three of the bands without a word.
    with pytest.raises(ValueError, match=r"at most 3 bands in .*field\.tif, .* 5\); .* set bands"):
        LoadImageFromFile(False, "unchanged", "tifffile")(dict(img_path=path))


@pytest.mark.parametrize(
    ("bands", "rgb", "shown"),
    [
        (None, (), (2, 1, 0)),
        (1, (), (0, 0, 0)),
        (2, (), (0, 1, 1)),
        (3, (), (2, 1, 0)),
        (5, (), (0, 1, 2)),
        (5, [4, 1, 0], (4, 1, 0)),
    ],
)
def test_bands_that_are_shown(bands, rgb, shown):
    assert LoadImageFromFile(bands=bands, rgb=rgb).rgb == shown


@pytest.mark.parametrize(("bands", "rgb"), [(5, (3, 4, 5)), (5, (1, 2)), (0, ())])
def test_bands_that_are_not_there(bands, rgb):
    with pytest.raises(ValueError, match="three of the bands from 0 to"):
        LoadImageFromFile(bands=bands, rgb=rgb)


def test_arrays_that_a_model_does_not_take():
    usual, five = LoadImageFromFile(), LoadImageFromFile(bands=5)
    usual.check(np.zeros((2, 3, 3), np.uint8), "image 0")
    for kind in (np.uint8, np.uint16, np.float32):
        five.check(np.zeros((2, 3, 5), kind), "image 0")
    message = (
        r"array \(H, W, 3\), BGR, of uint8, or a tensor \(3, H, W\), RGB, as image 0, got uint16"
    )
    with pytest.raises(ValueError, match=message):
        usual.check(np.zeros((2, 3, 3), np.uint16), "image 0")
    message = (
        r"array \(H, W, 5\) of uint8 or uint16 or float32, or a tensor \(5, H, W\), as image 0"
    )
    for image in (np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3, 5)), np.zeros((2, 3), np.uint8)):
        with pytest.raises(ValueError, match=message):
            five.check(image, "image 0")


def test_errors_without_a_message_are_named_by_their_kind(tiny, monkeypatch):
    def fails(*args, **options):
        raise EOFError

    monkeypatch.setattr(transforms.fileio, "get", fails)
    with pytest.raises(ValueError, match=r"expected ids\.png to be readable: EOFError"):
        LoadPanopticAnnotations()(tiny["mmdet"] | dict(seg_map_path="ids.png"))
