"""Inputs by the thousand, as one command line names them."""

import io
import tarfile
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest

from hcformer_mm.apis.inputs import with_unique_names
from hcformer_mm.apis.sources import open_sources
from tests.helpers.predictions import write_video


def pixels(value, height=4, width=5):
    return np.full((height, width, 3), value, np.uint8)


def write_shard(path, members):
    """A tar file of members, bytes by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path


def png(value):
    return cv2.imencode(".png", pixels(value))[1].tobytes()


@pytest.fixture
def tree(tmp_path):
    """Images in folders in folders, and files that are none."""
    root = tmp_path / "tree"
    for i, name in enumerate(("b.png", "a/1.png", "a/c/2.png", "a/.x.png", "a/.x/1.png")):
        mmcv.imwrite(pixels(10 * i), str(root / name))
    (root / "a/notes.txt").write_text("notes")
    return root


def found(*inputs):
    """Names and first values of the images of inputs."""
    sources = open_sources(inputs)
    images = list(with_unique_names(sources.images))
    assert [image.number for image in images] == list(range(len(images)))
    assert sources.total == len(images)
    return {image.name: int(image.read()[0, 0, 0]) for image in images}


def test_folders_in_folders(tree):
    assert found(tree) == {"1": 10, "2": 20, "b": 0}
    assert found(tree / "a/c", tree / "b.png") == {"2": 20, "b": 0}
    assert found(tree / "a/.x") == {"1": 40}  # named, so not hidden


def test_links_to_folders_are_followed(tree, tmp_path):
    """But not around in circles."""
    mmcv.imwrite(pixels(90), str(tmp_path / "other/9.png"))
    (tree / "a/link").symlink_to(tmp_path / "other")
    (tmp_path / "other/back").symlink_to(tree / "a")
    (tree / "itself").symlink_to(tree)
    assert found(tree) == {"1": 10, "2": 20, "9": 90, "b": 0}


def test_images_of_one_name_are_called_by_their_paths(tree):
    mmcv.imwrite(pixels(90), str(tree / "a/b.png"))
    assert found(tree) == {"a/1": 10, "a/b": 90, "a/c/2": 20, "b": 0}
    assert [image.file_name for image in open_sources([tree]).images][1] == "a/b.png"


def test_lists(tree, tmp_path, monkeypatch):
    """A line is whatever the command line can be, but for lists; files that are missing fail."""
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("tree/b.png\n\n  tree/a/c  \ntree/a/?.png\nnowhere.png\nlist.txt\n")
    *images, missing, itself = open_sources(["list.txt"]).images
    assert [image.name for image in images] == ["b", "2", "1"]
    with pytest.raises(ValueError, match=r"got nowhere\.png: No such file"):
        missing.read()
    with pytest.raises(ValueError, match=r"a complete image that OpenCV can read, got list\.txt"):
        itself.read()


def test_lists_of_other_systems(tree):
    """A byte order mark, carriage returns, and comments."""
    file = tree / "list.txt"
    file.write_bytes(f"\ufeff{tree}/b.png\r\n# {tree}\r\n\r\n{tree}/a/1.png \r\n".encode())
    assert found(file) == {"b": 0, "1": 10}


def test_patterns(tree, tmp_path):
    assert found(f"{tree}/**/*.png") == {"1": 10, "2": 20, "b": 0}
    assert found(f"{tree}/a/{{1..1}}.png") == {"1": 10}
    mmcv.imwrite(pixels(7), str(tmp_path / "odd[1].png"))
    assert found(tmp_path / "odd[1].png") == {"odd[1]": 7}
    with pytest.raises(ValueError, match=r"expected images, shards or videos in .*x\*, got none"):
        open_sources([f"{tree}/x*"])
    with pytest.raises(FileNotFoundError, match=r"no such image, .*: .*2\.png"):
        open_sources([f"{tree}/a/{{1..2}}.png"])


def test_shards(tmp_path):
    """Images of the key's first suffix; other members and their likes are left alone."""
    first = {"x/0.png": png(1), "x/0.json": b"{}", "x/0.seg.png": png(9), "1.PNG": png(2)}
    write_shard(tmp_path / "s-08.tar", first)
    write_shard(tmp_path / "s-09.tar", {"0.png": png(3), "cut.png": png(4)[:-20]})
    write_shard(tmp_path / "s-10.tar", {"0.png": png(5)})
    pattern = f"{tmp_path}/s-{{08..10}}.tar"
    images = open_sources([pattern]).images
    names = ["s-08/x/0", "s-08/1", "s-09/0", "s-09/cut", "s-10/0"]
    assert [image.name for image in images] == names
    assert images[0].file_name == "s-08/x/0.png" and images[1].file_name == "s-08/1.PNG"
    with pytest.raises(ValueError, match=r"expected a complete image .*s-09\.tar/cut\.png"):
        images.pop(3).read()
    assert [int(image.read()[0, 0, 0]) for image in images] == [1, 2, 3, 5]
    assert [image.name for image in open_sources([tmp_path]).images] == names
    write_shard(tmp_path / "more/s-10.tar", {"0.png": png(6)})
    assert found(tmp_path / "more", tmp_path / "s-10.tar") == {"more/s-10/0": 6, "s-10/0": 5}
    assert found(write_shard(tmp_path / "S.TAR", {"0.png": png(7)})) == {"S/0": 7}


def test_members_stay_inside_of_the_results(tmp_path):
    members = {"../../0.png": png(1), "/tmp/1.png": png(2), "./a/../2.png": png(3)}
    write_shard(tmp_path / "s.tar", members)
    assert found(tmp_path / "s.tar") == {"s/0": 1, "s/tmp/1": 2, "s/a/2": 3}


def test_shards_that_are_cut_off_or_empty(tmp_path):
    """Whole members are images, and the shard fails."""
    shard = write_shard(tmp_path / "s.tar", {"0.png": png(1), "1.png": bytes(4000)})
    shard.write_bytes(shard.read_bytes()[:3000])
    (tmp_path / "t.tar").write_bytes(b"no tar file")
    whole, *_, broken = open_sources([shard]).images
    assert whole.name == "s/0" and broken.name == "s"
    with pytest.raises(ValueError, match=r"expected a whole file, got .*s\.tar: unexpected end"):
        broken.read()
    (broken,) = open_sources([tmp_path / "t.tar"]).images
    with pytest.raises(ValueError, match=r"whole file, got .*t\.tar: .*header"):
        broken.read()
    for members in ({}, {"0.json": b"{}", "0.rgb.png": png(1)}):
        write_shard(tmp_path / "t.tar", members)
        (broken,) = open_sources([tmp_path / "t.tar"]).images
        with pytest.raises(ValueError, match=r"none of its members has the suffix of an image"):
            broken.read()
    (tmp_path / "t.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"without compression, got .*t\.tar\.gz; decompress it"):
        open_sources([tmp_path / "t.tar.gz"])


def test_videos(tree, tmp_path):
    for folder in ("u", "v"):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "street.avi", (pixels(30 * i, 32, 48) for i in range(3)))
    numbers = [f"street_{i:06}" for i in range(3)]
    assert list(found(tmp_path / "u")) == numbers
    both = found(tmp_path / "v", tree / "b.png", tmp_path / "u")
    assert list(both) == [*(f"v/{n}" for n in numbers), "tree/b", *(f"u/{n}" for n in numbers)]
    (tmp_path / "u/broken.mp4").write_bytes(b"no video")
    *_, broken = sorted(
        open_sources([tmp_path / "u"]).images, key=lambda image: image.name[0] < "c"
    )
    with pytest.raises(ValueError, match=r"whole file, got .*broken\.mp4: expected a video that"):
        broken.read()


def test_videos_that_are_missing(tree):
    """In a list, and by a link in a folder."""
    (tree / "c.mp4").symlink_to("nowhere.mp4")
    (tree / "list.txt").write_text("nowhere.mp4\n")
    for inputs in ([tree / "list.txt"], [tree]):
        missing = open_sources(inputs).images[-1]
        with pytest.raises(ValueError, match=r"got .*\.mp4: No such file"):
            missing.read()


def test_shards_that_vanish(tmp_path):
    shard = write_shard(tmp_path / "s.tar", {"0.png": png(1)})
    (image,) = open_sources([shard]).images
    shard.unlink()
    with pytest.raises(ValueError, match=r"expected an image, got .*s\.tar/0\.png: No such file"):
        image.read()


def test_the_digest_tells_inputs_apart(tree):
    one = open_sources([tree]).digest
    assert open_sources([tree / "a", tree / "b.png"]).digest == one
    assert open_sources([tree / "b.png", tree / "a"]).digest != one
    alike = [open_sources([tree / name]).digest for name in ("a/1.png", "a/.x/1.png")]
    assert alike[0] != alike[1]
    mmcv.imwrite(pixels(1), str(tree / "a/3.png"))
    assert open_sources([tree]).digest != one
    digests = [
        open_sources([write_shard(tree / "0.tar", {name: png(1)})]).digest
        for name in ("1.png", "2.png")
    ]
    assert digests[0] != digests[1]


@pytest.mark.parametrize("name", ["nowhere.png", "nowhere"])
def test_inputs_that_are_missing(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no such image, .*: .*{name}"):
        open_sources([tmp_path / name])
    with pytest.raises(ValueError, match=r"expected images, shards or videos in .*, got none"):
        open_sources([tmp_path])
