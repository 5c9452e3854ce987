"""Where pictures come from: files, folders, videos, arrays, streams."""

from itertools import islice
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest

from hcformer_mm.apis.pictures import Picture, open_pictures, with_unique_names


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Four pictures, and what is none."""
    folder = tmp_path / "pictures"
    (folder / "deeper.png").mkdir(parents=True)
    for i, name in enumerate(["b.PNG", "a.bmp", "c.x.png", "d.png"]):
        mmcv.imwrite(pixels(3 + i, 5, seed=i), str(folder / name))
    (folder / "notes.txt").write_text("notes")
    (folder / ".hidden.png").write_bytes((folder / "d.png").read_bytes())
    return folder


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "street.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (48, 32))
    assert writer.isOpened()
    for i in range(7):
        writer.write(np.full((32, 48, 3), 30 * i, np.uint8))
    writer.release()
    return path


def names(pictures):
    return [picture.name for picture in pictures]


def test_a_file(folder):
    for given in (folder / "c.x.png", str(folder / "c.x.png"), [folder / "c.x.png"]):
        (picture,) = open_pictures(given)
        assert (picture.name, picture.number) == ("c.x", 0)
        assert (picture.path, picture.file_name) == (folder / "c.x.png", "c.x.png")
        assert np.array_equal(picture.read(), pixels(5, 5, seed=2))
        assert np.array_equal(picture.read_rgb(), pixels(5, 5, seed=2)[..., ::-1])
        assert picture.read_rgb().flags.c_contiguous


def test_an_array():
    (picture,) = open_pictures(pixels(1, 1))
    assert (picture.name, picture.path, picture.file_name) == ("0", None, "0.png")
    assert np.array_equal(picture.read(), pixels(1, 1))


def test_a_folder_by_name(folder):
    pictures = open_pictures(folder)
    assert [picture.path.name for picture in pictures] == ["a.bmp", "b.PNG", "c.x.png", "d.png"]
    assert [picture.number for picture in pictures] == [0, 1, 2, 3]


def test_a_list_is_known_beforehand(folder):
    pictures = open_pictures([folder / "d.png", pixels(3, 4), folder])
    assert isinstance(pictures, list)
    assert names(pictures) == ["d", "1", "a", "b", "c.x", "d"]
    assert [picture.number for picture in pictures] == list(range(6))
    assert open_pictures([]) == []


@pytest.mark.parametrize("opened", [False, True])
def test_a_video_frame_by_frame(video, opened):
    pictures = open_pictures(mmcv.VideoReader(str(video)) if opened else video)
    assert not isinstance(pictures, list)
    pictures = list(pictures)
    expected = [str(i) if opened else f"street_{i:06}" for i in range(7)]
    assert names(pictures) == expected
    assert pictures[3].file_name == f"{expected[3]}.png"
    for i, picture in enumerate(pictures):
        assert picture.read().shape == (32, 48, 3)
        assert abs(picture.read().astype(int) - 30 * i).max() <= 3  # JPEG


def test_a_video_that_breaks_off(video):
    content = video.read_bytes()
    video.write_bytes(content[: len(content) * 9 // 10])
    with pytest.warns(UserWarning, match=r"street\.avi says that it has 7 frames, and [1-6] could"):
        assert 0 < len(list(open_pictures(video))) < 7


def test_a_video_without_frames(tmp_path):
    path = tmp_path / "empty.avi"
    cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (48, 32)).release()
    with pytest.raises(ValueError, match=r"expected (frames in|a video that).*empty\.avi"):
        list(open_pictures(path))


def test_a_video_among_pictures(video, folder):
    pictures = list(open_pictures([folder / "d.png", video, pixels(2, 2)]))
    assert names(pictures) == ["d", *(f"street_{i:06}" for i in range(7)), "8"]
    assert [picture.number for picture in pictures] == list(range(9))


def test_streams_are_read_when_needed():
    asked = []

    def frames():
        while True:
            asked.append(len(asked))
            yield pixels(2, 3, seed=len(asked))

    pictures = open_pictures(frames())
    assert asked == []
    assert names(islice(with_unique_names(pictures), 3)) == ["0", "1", "2"]
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("as_path", [False, True])
@pytest.mark.parametrize("url", ["https://x.org/cat.jpg", "s3://bucket/cat.jpg"])
def test_urls_are_refused(url, as_path):
    with pytest.raises(ValueError, match=r"got the URL .*cat\.jpg: nothing is downloaded"):
        open_pictures(Path(url) if as_path else url)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("", ValueError, "the path of a picture, got an empty one"),
        ("nowhere.png", FileNotFoundError, r"no such picture: nowhere\.png"),
        (["nowhere.png"], FileNotFoundError, r"no such picture: nowhere\.png"),
        (7, ValueError, "a path, an array, a video, or several of these, got int"),
        (None, ValueError, "got NoneType"),
        ([[pixels(2, 2)]], ValueError, "expected a path or an array as picture, got list"),
        (np.zeros((4, 4)), ValueError, r"uint8 array \(H, W, 3\), BGR, got float64 \(4, 4\)"),
        (pixels(4, 4)[..., :1], ValueError, r"got uint8 \(4, 4, 1\)"),
        (pixels(4, 4).astype(float), ValueError, r"got float64 \(4, 4, 3\)"),
        (pixels(0, 4), ValueError, r"got uint8 \(0, 4, 3\)"),
        (pixels(4, 4)[None], ValueError, r"got \(1, 4, 4, 3\); give several as a list"),
    ],
)
def test_no_pictures(given, error, message):
    with pytest.raises(error, match=message):
        open_pictures(given)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"expected pictures \(\.jpg.*got none"):
        open_pictures(tmp_path)
    for content in (b"text", b""):
        (tmp_path / "text.png").write_bytes(content)
        (picture,) = open_pictures(tmp_path)
        with pytest.raises(ValueError, match=r"that OpenCV can read, got .*text\.png"):
            picture.read()
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(ValueError, match=r"a video that OpenCV can read, got .*text\.mp4"):
        open_pictures(tmp_path / "text.mp4")


def test_names_that_collide(folder):
    mmcv.imwrite(pixels(2, 2), str(folder / "d.jpg"))
    pictures = open_pictures(folder)
    message = r"got .*d\.jpg and .*d\.png, whose results would both be called d"
    with pytest.raises(ValueError, match=message):
        with_unique_names(pictures)
    checked = with_unique_names(iter(pictures))
    assert names(islice(checked, 4)) == ["a", "b", "c.x", "d"]
    with pytest.raises(ValueError, match=message):
        next(checked)
    one = [Picture("1", 0, path=Path("1.png")), Picture("1", 1, array=pixels(1, 1))]
    with pytest.raises(ValueError, match=r"got 1\.png and picture 1 of the input"):
        with_unique_names(one)
    assert with_unique_names(one[:1]) == one[:1]
