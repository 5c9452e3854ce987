"""Pixels of any depth become 8 bits, as the bits of the file say."""

import io
import warnings

import cv2
import mmcv
import numpy as np
import pytest
import tifffile
from PIL import Image

from hcformer_mm.utils import images
from hcformer_mm.utils.images import decode_bands, decode_image, is_truncated, to_uint8

SHAPE = (37, 53, 3)


def encode(image, suffix, **options):
    content = io.BytesIO()
    image.save(content, suffix, **options)
    return content.getvalue()


def scene():
    """A smooth image, whose files are larger than their headers."""
    y, x, band = np.indices(SHAPE)
    return Image.fromarray((90 + 60 * np.sin(x / 9 + band) + 60 * np.cos(y / 7)).astype(np.uint8))


def turned():
    """EXIF data of an image that lies on its side, with a thumbnail of its own markers."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "\xff\xd8\xff\xda\xff\xd9"
    return exif


FILES = {
    "jpeg": lambda: encode(scene(), "jpeg"),
    "progressive": lambda: encode(scene(), "jpeg", progressive=True),
    "exif": lambda: encode(scene(), "jpeg", exif=turned()),
    "cmyk": lambda: encode(scene().convert("CMYK"), "jpeg"),
    "gray jpeg": lambda: encode(scene().convert("L"), "jpeg"),
    "png": lambda: encode(scene(), "png"),
    "rgba": lambda: encode(scene().convert("RGBA"), "png"),
    "gray with alpha": lambda: encode(scene().convert("LA"), "png"),
    "palette": lambda: encode(scene().quantize(16), "png"),
    "bilevel": lambda: encode(scene().convert("1"), "png"),
    "16 bits": lambda: encode(Image.fromarray(np.uint16(scene().convert("L")) * 257), "png"),
    "tiff": lambda: encode(scene(), "tiff"),
    "bmp": lambda: encode(scene(), "bmp"),
    "webp": lambda: encode(scene(), "webp"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_are_decoded_as_by_mmcv(kind):
    content = FILES[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decode_image(content, "photo")
    assert (found == mmcv.imfrombytes(content)).all()
    assert found.shape == (SHAPE[1], SHAPE[0], 3) if kind == "exif" else SHAPE


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_twelve_bits_are_not_black(suffix):
    gray = np.asarray(scene().convert("L"))
    gray = gray + (gray == gray.max()) * (255 - gray)
    content = encode(Image.fromarray(gray.astype(np.uint16) * 16), suffix)
    assert mmcv.imfrombytes(content).max() < 16
    with pytest.warns(UserWarning, match="use 12 bits"):
        found = decode_image(content, "photo")
    assert (found == gray[..., None]).all()


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("kept", [0.3, 0.97])
def test_truncated_files_are_refused(kind, kept):
    content = FILES[kind]()
    with pytest.raises(ValueError, match=r"complete image that OpenCV can read, got a/photo"):
        decode_image(content[: int(len(content) * kept)], "a/photo")


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "exif", "cmyk", "png", "palette"])
def test_truncated_files_are_known_without_decoding(kind):
    content = FILES[kind]()
    assert not is_truncated(content)
    assert not is_truncated(content + b"\0\0 a camera's trailer \xff\xda, or a video")
    assert all(is_truncated(content[:end]) for end in (-20, len(content) * 2 // 3))


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8"])
def test_other_files_are_refused(content):
    with pytest.raises(ValueError, match="got a/photo; replace"):
        decode_image(content, "a/photo")


@pytest.mark.parametrize("bits", [10, 12, 14, 15])
@pytest.mark.parametrize("dtype", [np.uint16, np.dtype(">u2"), np.int32])
def test_bits_of_a_sensor_are_stretched(bits, dtype):
    image = np.array([[0, 2**bits - 1], [2 ** (bits - 1), 2 ** (bits - 8)]], dtype)
    with pytest.warns(UserWarning, match=rf"of an image use {bits} bits"):
        found = to_uint8(image)
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 255], [128, 1]]


def test_full_and_small_ranges_are_read_as_opencv_reads_them():
    random = np.random.default_rng(0)
    full = random.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    full[0, 0] = 65535
    eight = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (to_uint8(full) == full // 256).all()
        assert to_uint8(eight) is eight
        assert (to_uint8(eight.astype(np.uint16)) == eight).all()
        assert not to_uint8(np.zeros((2, 2), np.uint16)).any()
        assert to_uint8(np.zeros((0, 2), np.uint16)).shape == (0, 2)
        assert to_uint8(np.array([[True, False]])).tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.zeros((2, 2), np.float32), "8- or 16-bit integers, got float32"),
        (np.array([[-1, 3]], np.int16), "values from -1 to 3"),
        (np.array([[70000, 3]], np.int32), "values from 3 to 70000"),
    ],
)
def test_other_values_are_refused(image, problem):
    with pytest.raises(ValueError, match=problem):
        to_uint8(image)


def tiff(image, **options):
    content = io.BytesIO()
    tifffile.imwrite(content, image, photometric="minisblack", **options)
    return content.getvalue()


def bands(number, dtype=np.uint16):
    return np.random.default_rng(0).integers(0, 60000, (11, 13, number)).astype(dtype)


LAYOUTS = {
    "interleaved": lambda image: tiff(image, planarconfig="contig"),
    "compressed": lambda image: tiff(image, planarconfig="contig", compression="zlib"),
    "planes": lambda image: tiff(np.moveaxis(image, -1, 0), planarconfig="separate"),
    "pages": lambda image: tiff(np.moveaxis(image, -1, 0)),
    "big endian": lambda image: tiff(image, planarconfig="contig", byteorder=">"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bands_are_read_as_they_are_stored(layout):
    content = LAYOUTS[layout](bands(5))
    found = decode_bands(content, "field.tif", 5)
    assert found.dtype == np.uint16
    assert found.flags.c_contiguous
    assert (found == bands(5)).all()
    with pytest.raises(ValueError, match=r"expected 4 bands in field\.tif, .* \(11, 13, 5\)"):
        decode_bands(content, "field.tif", 4)
    with pytest.raises(ValueError, match=r"expected a complete image, got field\.tif: "):
        decode_bands(content[: len(content) * 2 // 3], "field.tif", 5)


def test_errors_without_a_message_are_named_by_their_kind(monkeypatch):
    def fails(content):
        raise EOFError

    monkeypatch.setattr(images, "stored_pixels", fails)
    with pytest.raises(ValueError, match=r"complete image, got field\.tif: EOFError; replace"):
        decode_bands(b"", "field.tif", 5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bands_that_opencv_misreads_are_refused(layout):
    """OpenCV takes the first of several pages, and the wrong pixels of planes."""
    content = LAYOUTS[layout](bands(5))
    with pytest.raises(ValueError, match=r"colors of field\.tif in .*, got \(.*5.*\) \(axes .*; a"):
        decode_image(content, "field.tif")


@pytest.mark.parametrize("number", [1, 3, 4])
def test_colors_of_16_bits_keep_them(number):
    """Three bands are BGR, as everywhere in OpenMMLab; others have the order of the file."""
    image = bands(number)
    stored = image[..., ::-1] if number == 3 else image
    options = dict(planarconfig="contig") if number > 1 else {}
    found = decode_bands(tiff(stored if number > 1 else stored[..., 0], **options), "photo", number)
    assert (found == image).all()
    png = cv2.imencode(".png", image[..., [2, 1, 0, 3]] if number == 4 else image)[1].tobytes()
    found = decode_bands(png, "photo", number)
    assert found.dtype == np.uint16
    assert (found == image).all()
    with pytest.raises(ValueError, match="complete image, got photo: OpenCV cannot read it"):
        decode_bands(png[:-20], "photo", number)


@pytest.mark.parametrize(("dtype", "read"), [(np.float64, np.float32), (np.int32, np.float32)])
def test_other_types_of_bands_are_float32(dtype, read):
    found = decode_bands(tiff(bands(2, dtype), planarconfig="contig"), "field.tif", 2)
    assert found.dtype == read
    assert (found == bands(2)).all()


def test_bands_that_mean_something_else_are_refused():
    with pytest.raises(
        ValueError, match=r"upright pixels of real numbers in field\.tif, .*complex"
    ):
        decode_bands(tiff(bands(2, np.complex64), planarconfig="contig"), "field.tif", 2)
    for content, number in (
        (encode(scene(), "jpeg", exif=turned()), 3),
        (tiff(bands(2), planarconfig="contig", extratags=[(274, "H", 1, 6, True)]), 2),
    ):
        with pytest.raises(ValueError, match=r"upright pixels .* of orientation 6; save"):
            decode_bands(content, "photo", number)


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_orientations_that_turn_nothing(orientation):
    content = tiff(bands(2), planarconfig="contig", extratags=[(274, "H", 1, orientation, True)])
    assert (decode_bands(content, "field.tif", 2) == bands(2)).all()


def test_colors_of_16_bits_in_files_of_two_bands_are_refused():
    """OpenCV reads 8 bits of them."""
    content = tiff(bands(2), planarconfig="contig")
    assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED).dtype == np.uint8
    with pytest.raises(ValueError, match=r"1, 3 or 4 interleaved bands, got \(11, 13, 2\)"):
        decode_image(content, "field.tif")
