"""Images are read to their end, and what cannot be read is told apart."""

import os
import pickle

import mmcv
import numpy as np
import pytest
import tifffile
from PIL import Image

from hcformer_mm.datasets.checks import check_image
from hcformer_mm.datasets.checks.files import UnreadableError, image_size


@pytest.fixture(params=["jpg", "png", "webp"])
def image(request, tmp_path):
    path = tmp_path / "folder" / f"image.{request.param}"
    path.parent.mkdir()
    Image.effect_noise((40, 30), 50).convert("RGB").save(path)
    return path


@pytest.mark.parametrize("size", [None, (30, 40)])
def test_clean(image, size):
    assert check_image(image, size) == []


def test_another_size(image):
    (fault,) = check_image(image, (40, 30))
    assert (fault.kind, fault.severity) == ("size", "error")
    assert fault.message == "expected height and width (40, 30), got (30, 40)"


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_image_that_lies_on_its_side_is_turned(tmp_path, orientation, suffix):
    """As mmcv turns it before it meets its annotations, if its OpenCV turns the format."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    size = mmcv.imread(str(path)).shape[:2]
    assert suffix == "webp" or size == ((40, 30) if orientation > 3 else (30, 40))
    assert check_image(path, size) == []


@pytest.mark.parametrize("kept", [0, 5, 100, -50])
def test_every_part_of_a_file_is_needed(image, kept):
    image.write_bytes(image.read_bytes()[:kept])
    (fault,) = check_image(image)
    assert (fault.kind, fault.severity) == ("unreadable file", "error")


@pytest.mark.parametrize(
    "entry", [b"\3\0\0\0\1\0\0\0\0", b"\3\0\0\0\1\0\t\0\0", b"\2\0\0\0\4six\0"]
)
def test_orientations_that_do_not_exist(tmp_path, entry):
    """0, 9 and a text."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0" + entry + bytes(4)
    Image.new("RGB", (40, 30)).save(tmp_path / "image.jpg", exif=exif)
    assert mmcv.imread(str(tmp_path / "image.jpg")).shape[:2] == (30, 40)
    assert check_image(tmp_path / "image.jpg", (30, 40)) == []


def test_an_error_reaches_the_process_that_waits(image):
    """Workers send it as a pickle, and would take the pool down otherwise."""
    image.write_bytes(b"")
    with pytest.raises(UnreadableError, match=f"{image}: expected an image") as caught:
        image_size(image)
    received = pickle.loads(pickle.dumps(caught.value))
    assert (str(received), received.fault) == (str(caught.value), caught.value.fault)


@pytest.mark.parametrize("name", ["../image.jpg", "image.bmp", "image.BMP"])
def test_a_missing_file_is_looked_for_near(image, name, monkeypatch):
    # Nor is its folder listed, which takes long for each of many missing files.
    monkeypatch.setattr(os, "scandir", None)
    near = image.parent.parent / "image.jpg" if name[0] == "." else image.with_name(name)
    missing = image.parent / (near.name if name[0] == "." else "image.gif")
    for path in (image.parent.parent, image.parent):
        (path / "image.jpg").unlink(missing_ok=True)
    image.unlink(missing_ok=True)
    Image.new("RGB", (4, 3)).save(near)
    (fault,) = check_image(missing)
    assert fault.message == f"the file does not exist, but {near} does"


def test_a_missing_file(image):
    (fault,) = check_image(image.parent / "other.jpg")
    assert fault.kind == "missing file"
    assert fault.message == "the file does not exist"


def test_very_large_images_are_not_refused(image, monkeypatch):
    """Pillow refuses them, but OpenCV reads them."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (fault,) = check_image(image)
    assert (fault.kind, fault.severity) == ("too large to check", "warning")


def test_images_of_several_bands(tmp_path):
    """Pillow opens no TIFF files of several bands."""
    path = tmp_path / "field.tif"
    image = np.zeros((30, 40, 5), np.uint16)
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig")
    assert check_image(path, (30, 40)) == []
    (fault,) = check_image(path, (40, 30))
    assert fault.kind == "size"
    path.write_bytes(path.read_bytes()[:-20])
    (fault,) = check_image(path, (30, 40))
    assert fault.kind == "unreadable file"
