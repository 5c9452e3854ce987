"""Input images: files, folders, videos, arrays and streams."""

import io
from itertools import islice
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_image

from hcformer_mm.apis.inputs import InputImage, open_images, with_unique_names
from tests.helpers.predictions import write_video


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Four images and other files."""
    folder = tmp_path / "images"
    (folder / "deeper.png").mkdir(parents=True)
    for i, name in enumerate(["b.PNG", "a.bmp", "c.x.png", "d.png"]):
        mmcv.imwrite(pixels(3 + i, 5, seed=i), str(folder / name))
    (folder / "notes.txt").write_text("notes")
    (folder / ".hidden.png").write_bytes((folder / "d.png").read_bytes())
    return folder


@pytest.fixture
def video(tmp_path):
    frames = (np.full((32, 48, 3), 30 * i, np.uint8) for i in range(7))
    return write_video(tmp_path / "street.avi", frames)


def names(images):
    return [image.name for image in images]


def test_a_file(folder):
    for given in (folder / "c.x.png", str(folder / "c.x.png"), [folder / "c.x.png"]):
        (image,) = open_images(given)
        assert (image.name, image.number) == ("c.x", 0)
        assert (image.path, image.file_name) == (folder / "c.x.png", "c.x.png")
        assert np.array_equal(image.read(), pixels(5, 5, seed=2))
        assert np.array_equal(image.read_rgb(), pixels(5, 5, seed=2)[..., ::-1])
        assert image.read_rgb().flags.c_contiguous


def test_an_array():
    (image,) = open_images(pixels(1, 1))
    assert (image.name, image.path, image.file_name) == ("0", None, "0.png")
    assert np.array_equal(image.read(), pixels(1, 1))


def test_a_folder_by_name(folder):
    images = open_images(folder)
    assert [image.path.name for image in images] == ["a.bmp", "b.PNG", "c.x.png", "d.png"]
    assert [image.number for image in images] == [0, 1, 2, 3]


def test_a_list_is_known_beforehand(folder):
    images = open_images([folder / "d.png", pixels(3, 4), folder])
    assert isinstance(images, list)
    assert names(images) == ["d", "1", "a", "b", "c.x", "d"]
    assert [image.number for image in images] == list(range(6))
    assert open_images([]) == []


@pytest.mark.parametrize("opened", [False, True])
def test_a_video_frame_by_frame(video, opened):
    images = open_images(mmcv.VideoReader(str(video)) if opened else video)
    assert not isinstance(images, list)
    images = list(images)
    expected = [str(i) if opened else f"street_{i:06}" for i in range(7)]
    assert names(images) == expected
    assert images[3].file_name == f"{expected[3]}.png"
    for i, image in enumerate(images):
        assert image.read().shape == (32, 48, 3)
        assert abs(image.read().astype(int) - 30 * i).max() <= 3  # JPEG


def test_a_video_that_breaks_off(video):
    content = video.read_bytes()
    video.write_bytes(content[: len(content) * 9 // 10])
    with pytest.warns(UserWarning, match=r"expected 7 frames in .*street\.avi, read [1-6]"):
        assert 0 < len(list(open_images(video))) < 7


def test_a_video_without_frames(tmp_path):
    path = tmp_path / "empty.avi"
    cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (48, 32)).release()
    with pytest.raises(ValueError, match=r"expected (frames in|a video that).*empty\.avi"):
        list(open_images(path))


def test_a_video_among_images(video, folder):
    images = list(open_images([folder / "d.png", video, pixels(2, 2)]))
    assert names(images) == ["d", *(f"street_{i:06}" for i in range(7)), "8"]
    assert [image.number for image in images] == list(range(9))


def test_streams_are_read_when_needed():
    asked = []

    def frames():
        while True:
            asked.append(len(asked))
            yield pixels(2, 3, seed=len(asked))

    images = open_images(frames())
    assert asked == []
    assert names(islice(with_unique_names(images), 3)) == ["0", "1", "2"]
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("as_path", [False, True])
@pytest.mark.parametrize("url", ["https://x.org/cat.jpg", "s3://bucket/cat.jpg"])
def test_urls_are_refused(url, as_path):
    with pytest.raises(ValueError, match=r"got the URL .*cat\.jpg: nothing is downloaded"):
        open_images(Path(url) if as_path else url)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("", ValueError, "the path of an image, got an empty one"),
        ("nowhere.png", FileNotFoundError, r"no such image: nowhere\.png"),
        (["nowhere.png"], FileNotFoundError, r"no such image: nowhere\.png"),
        (7, ValueError, r"a path, bytes, .*, or several of these, got int"),
        (None, ValueError, "got NoneType"),
        ([[pixels(2, 2)]], ValueError, "a path, bytes or pixels as image, got list"),
        (np.zeros((4, 4)), ValueError, r"image \(H, W, 3\) per array, got float64 \(4, 4\)"),
        (pixels(0, 4), ValueError, r"got uint8 \(0, 4, 3\)"),
        (pixels(4, 4)[None], ValueError, r"got uint8 \(1, 4, 4, 3\); give several as a list"),
        (torch.zeros(2, 3, 4, 4), ValueError, r"image \(3, H, W\) per tensor, got torch.float32"),
        (io.BytesIO(b"\n"), ValueError, "got BytesIO; give the bytes of an open file"),
        (bytearray(b"1"), ValueError, "got bytearray; give the bytes"),
        (Image.new("F", (4, 4)), ValueError, "8- or 16-bit integers, got float32; scale"),
    ],
)
def test_no_images(given, error, message):
    with pytest.raises(error, match=message):
        open_images(given)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"expected images \(\.jpg.*got none"):
        open_images(tmp_path)
    for content in (b"text", b""):
        (tmp_path / "text.png").write_bytes(content)
        (image,) = open_images(tmp_path)
        with pytest.raises(ValueError, match=r"that OpenCV can read, got .*text\.png"):
            image.read()
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(ValueError, match=r"a video that OpenCV can read, got .*text\.mp4"):
        open_images(tmp_path / "text.mp4")


def test_names_of_a_list_are_distinct(folder):
    """By their folders, and by their suffixes if need be; where stems are distinct, they stay."""
    for name in ("0/a.bmp", "0/d.png", "1/2/d.png", "1/2/e.png"):
        mmcv.imwrite(pixels(2, 2), str(folder / name))
    images = open_images([folder / "0", folder / "1" / "2", pixels(2, 2)])
    assert names(images) == ["0/a", "0/d", "1/2/d", "1/2/e", "4"]
    assert [image.file_name for image in images[1:3]] == ["0/d.png", "1/2/d.png"]
    assert [image.number for image in images] == list(range(5))
    images = open_images([folder / "1" / ".." / "0" / "d.png", folder / "d.png"])
    assert names(images) == ["0/d", "d"]
    mmcv.imwrite(pixels(2, 2), str(folder / "d.jpg"))
    images = open_images(folder)
    assert names(images) == ["a.bmp", "b.PNG", "c.x.png", "d.jpg", "d.png"]
    assert [image.file_name for image in images] == names(images)
    (folder / "0" / "d.png").rename(folder / "0" / "1.png")
    assert names(open_images([folder / "0" / "1.png", pixels(2, 2)])) == ["1.png", "1"]


def test_names_that_collide(folder):
    twice = [folder / "d.png"] * 2
    message = r"got .*d\.png and .*d\.png, whose results would both be called d"
    images = open_images(twice)
    with pytest.raises(ValueError, match=message):
        with_unique_names(images)
    checked = with_unique_names(open_images(iter([folder / "a.bmp", *twice])))
    assert names(islice(checked, 2)) == ["a", "d"]
    with pytest.raises(ValueError, match=message):
        next(checked)
    one = [InputImage("1", 0, path=Path("1.png")), InputImage("1", 1, array=pixels(1, 1))]
    with pytest.raises(ValueError, match=r"got 1\.png and image 1 of the input"):
        with_unique_names(one)
    assert with_unique_names(one[:1]) == one[:1]


def test_links_to_nothing_are_broken_images(tmp_path):
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (image,) = open_images(tmp_path)
    with pytest.raises(ValueError, match=r"lost\.jpg: No such file"):
        image.read()


def test_broken_files(folder):
    """OpenCV fills the rest of a truncated file with gray."""
    whole = pixels(60, 80)
    mmcv.imwrite(whole, str(folder / "whole.jpg"))
    content = (folder / "whole.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(content[: len(content) // 2])
    (image,) = open_images(folder / "half.jpg")
    with pytest.raises(ValueError, match=r"a complete image .*half\.jpg"):
        image.read()
    (folder / "half.jpg").unlink()
    with pytest.raises(ValueError, match=r"expected an image, got .*half\.jpg: No such file"):
        image.read()


def test_more_than_8_bits(folder):
    sensor = pixels(6, 5).astype(np.uint16) * 16
    mmcv.imwrite(sensor, str(folder / "sensor.png"))
    (image,) = open_images(folder / "sensor.png")
    with pytest.warns(UserWarning, match="12 bits"):
        assert np.array_equal(image.read(), pixels(6, 5))


def test_files_in_memory(folder):
    content = (folder / "d.png").read_bytes()
    (image,) = open_images(content)
    assert (image.name, image.path, image.file_name) == ("0", None, "0.png")
    assert np.array_equal(image.read(), pixels(6, 5, seed=3))
    (image,) = open_images(content[:-20])
    with pytest.raises(ValueError, match=r"a complete image .* got image 0 of the input"):
        image.read()


def test_members_of_an_archive(folder):
    """They have a name without a file."""
    path = Path("shard.tar/a/7.cls.png")
    image = InputImage("7.cls", 3, path=path, content=(folder / "d.png").read_bytes())
    assert (image.file_name, image.source) == ("7.cls.png", str(path))
    assert np.array_equal(image.read(), pixels(6, 5, seed=3))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"])
def test_images_of_pillow_are_read_as_their_files(mode, tmp_path):
    image = Image.fromarray(pixels(5, 7)[..., ::-1])
    if mode == "I;16":
        image = Image.fromarray(pixels(5, 7)[..., 0].astype(np.uint16) * 257)
    image.convert(mode).save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as opened:
        (one,) = open_images(opened)
    assert (one.name, one.file_name) == ("0", "0.png")
    assert np.array_equal(one.read(), mmcv.imread(str(tmp_path / "image.png")))


def test_broken_images_of_pillow(folder):
    file = folder / "broken.png"
    file.write_bytes((folder / "d.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"expected a whole image of Pillow, got .*PngImage"):
        open_images([Image.open(file)])


def test_images_of_pillow_are_turned_upright_as_their_files(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = Image.fromarray(pixels(2, 3)).resize((40, 24))
    smooth.save(tmp_path / "image.jpg", exif=exif, quality=100)
    (one,) = open_images(Image.open(tmp_path / "image.jpg"))
    expected = mmcv.imread(str(tmp_path / "image.jpg"))
    assert one.read().shape == expected.shape == (40, 24, 3)
    assert abs(one.read().astype(int) - expected).max() <= 1  # of two JPEG libraries


def test_twelve_bits_of_pillow(folder):
    image = Image.fromarray(pixels(6, 5)[..., 0].astype(np.uint16) * 16)
    with pytest.warns(UserWarning, match="12 bits"):
        (one,) = open_images(image)
    assert np.array_equal(one.read(), np.repeat(pixels(6, 5)[..., :1], 3, axis=2))


def test_tensors_as_of_torchvision(folder):
    content = (folder / "d.png").read_bytes()
    tensor = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    (one,) = open_images(tensor)
    assert np.array_equal(one.read(), mmcv.imfrombytes(content))
    assert names(open_images([tensor, tensor])) == ["0", "1"]
    five = torch.arange(5)[:, None, None].expand(5, 2, 3)
    (one,) = open_images(five)
    assert one.read()[0, 0].tolist() == [0, 1, 2, 3, 4]


def test_drawings_of_bands_and_of_other_types():
    image = np.zeros((2, 2, 5), np.uint16)
    image[0, 0] = [100, 200, 300, 400, 1100]
    assert InputImage("0", 0, array=image, rgb=(4, 0, 1)).read_rgb()[0, 0].tolist() == [255, 23, 46]
    gray = np.array([[0, 0.5], [1, 2]], np.float32)
    expected = np.repeat([[[0], [63]], [[127], [255]]], 3, axis=2)
    assert np.array_equal(InputImage("0", 0, array=gray).read_rgb(), expected)
