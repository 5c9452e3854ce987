"""Files of the Shapes dataset, and the folder that they replace."""

import json

import numpy as np
import pytest
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as coco_mask

from hcformer_mm.datasets import shapes_writer
from hcformer_mm.datasets.shapes import METAINFO
from hcformer_mm.datasets.shapes_generator import GENERATOR_VERSION, render_scene
from hcformer_mm.datasets.shapes_writer import write_shapes

SIZE = (96, 128)


def write(out, **kwargs):
    write_shapes(out, **{"num_train": 2, "num_val": 1, "size": SIZE, "workers": 1, **kwargs})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    write(root, num_train=3, num_val=2, seed=7)
    return root


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_layout(root):
    names = {
        f"annotations/{kind}_{split}.json"
        for kind in ("panoptic", "instances")
        for split in ("train", "val")
    }
    for split, count in (("train", 3), ("val", 2)):
        for index in range(count):
            names |= {
                f"{split}/{index:06d}.jpg",
                f"annotations/panoptic_{split}/{index:06d}.png",
                f"semantic/{split}/{index:06d}.png",
            }
    assert set(contents(root)) == names


@pytest.mark.parametrize(("split", "number"), [("train", 0), ("val", 1)])
def test_files_hold_the_scenes(root, split, number):
    panoptic, instances = (
        json.loads((root / "annotations" / f"{kind}_{split}.json").read_text())
        for kind in ("panoptic", "instances")
    )
    for index, (image, annotation) in enumerate(
        zip(panoptic["images"], panoptic["annotations"], strict=True)
    ):
        scene = render_scene((7, number, index), size=SIZE)
        assert (image["height"], image["width"]) == scene.image.shape[:2]
        assert image["id"] == annotation["image_id"]
        pixels = np.asarray(Image.open(root / split / image["file_name"]), int)
        assert np.abs(pixels - scene.image).mean() < 12.0
        folder = root / "annotations" / f"panoptic_{split}"
        ids = rgb2id(np.asarray(Image.open(folder / annotation["file_name"])))
        semantic = np.asarray(Image.open(root / "semantic" / split / annotation["file_name"]))
        infos = annotation["segments_info"]
        assert len({info["id"] for info in infos}) == len(infos) == len(scene.segments)
        for info, segment in zip(infos, scene.segments, strict=True):
            np.testing.assert_array_equal(ids == info["id"], segment.mask)
            assert info["category_id"] == segment.label + 1
            assert (semantic[segment.mask] == segment.label).all()
            assert info["area"] == segment.mask.sum()
            rows, columns = np.nonzero(segment.mask)
            x, y, w, h = info["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + w - 1, y + h - 1) == (columns.max(), rows.max())
        things = [segment for segment in scene.segments if segment.is_thing]
        entries = [a for a in instances["annotations"] if a["image_id"] == image["id"]]
        for entry, segment in zip(entries, things, strict=True):
            np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), segment.mask)
            assert entry["category_id"] == segment.label + 1
    numbers = [a["id"] for a in instances["annotations"]]
    assert numbers == list(range(1, len(numbers) + 1))


def test_header(root):
    panoptic = json.loads((root / "annotations" / "panoptic_train.json").read_text())
    assert panoptic["info"]["version"] == GENERATOR_VERSION
    assert panoptic["info"]["seed"] == 7
    categories = panoptic["categories"]
    assert [c["id"] for c in categories] == list(range(1, 11))
    assert tuple(c["name"] for c in categories) == METAINFO["classes"]
    assert [c["isthing"] for c in categories] == [1] * 6 + [0] * 4
    instances = json.loads((root / "annotations" / "instances_train.json").read_text())
    assert instances["categories"] == categories[:6]


def test_ids_stay_unique_when_the_counter_wraps():
    scene = render_scene((7, 0, 0), size=SIZE)
    for index in (0, 255, 256, 100_000):
        ids = shapes_writer._segment_ids(scene, index)
        assert len(set(ids)) == len(ids)
        assert all(0 < i < 256**3 for i in ids)


def test_parallel_and_longer_runs_write_the_same(root, tmp_path):
    write(tmp_path / "b", num_train=4, num_val=2, seed=7, workers=2)
    first, second = contents(root), contents(tmp_path / "b")
    assert {name for name in second if "000003" in name} == set(second) - set(first)
    for name, content in first.items():
        if not name.endswith("_train.json"):
            assert second[name] == content, name


class TestTarget:
    def test_refuses_to_overwrite(self, tmp_path):
        out = tmp_path / "shapes"
        out.mkdir()
        (out / "thesis.txt").write_text("precious")
        with pytest.raises(FileExistsError, match="expected a new folder"):
            write(out)
        with pytest.raises(FileExistsError, match="expected a panoptic data set to overwrite"):
            write(out, overwrite=True)
        assert contents(out) == {"thesis.txt": b"precious"}

    def test_overwrites_its_own(self, tmp_path):
        out = tmp_path / "deep" / "shapes"
        write(out, num_train=3)
        write(out, num_train=1, overwrite=True)
        assert len(list((out / "train").iterdir())) == 1
        assert [path.name for path in out.parent.iterdir()] == ["shapes"]

    def test_failure_leaves_nothing_new(self, tmp_path, monkeypatch):
        out = tmp_path / "shapes"
        write(out)
        before = contents(out)

        def fail(seed, *, size):
            if seed[2] == 1:
                raise KeyboardInterrupt
            return render_scene(seed, size=size)

        monkeypatch.setattr(shapes_writer, "render_scene", fail)
        with pytest.raises(KeyboardInterrupt):
            write(out, overwrite=True)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "other")
        assert contents(out) == before
        assert [path.name for path in tmp_path.iterdir()] == ["shapes"]

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ({"num_train": 0}, "num_train of at least 1, got 0"),
            ({"workers": 0}, "workers of at least 1, got 0"),
            ({"seed": -1}, "seed of at least 0, got -1"),
            ({"seed": 2**32}, "seed below 2"),
            ({"size": (240, 63)}, "at least 64 pixels"),
        ],
    )
    def test_bad_arguments(self, tmp_path, argument, message):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "shapes", **argument)
        assert not list(tmp_path.iterdir())


def test_is_standard(root, monkeypatch):
    for name, value in (("NUM_TRAIN", 3), ("NUM_VAL", 2), ("SEED", 7), ("SIZE", SIZE)):
        monkeypatch.setattr(shapes_writer, name, value)
    assert shapes_writer.is_standard(root)
    for name, value in (("NUM_VAL", 3), ("SEED", 8), ("GENERATOR_VERSION", "0.9")):
        with monkeypatch.context() as other:
            other.setattr(shapes_writer, name, value)
            assert not shapes_writer.is_standard(root)
