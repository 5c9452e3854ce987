"""Files of results, read back by the tools that evaluate them."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from contextlib import redirect_stdout
from dataclasses import replace

import mmcv
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from panopticapi.evaluation import pq_compute
from PIL import Image
from pycocotools.coco import COCO

from hcformer_mm.apis import result_writer as result_writers
from hcformer_mm.apis.inputs import InputImage, open_images
from hcformer_mm.apis.result_writer import ResultWriter, segments_of, write_image
from hcformer_mm.datasets.checks import check_panoptic
from hcformer_mm.datasets.ground_truth import open_ground_truth
from hcformer_mm.utils.atomic_write import replacing
from hcformer_mm.visualization import FigureStyle, draw_figure, draw_panoptic
from tests.helpers.predictions import CLASSES, random_sample
from tests.helpers.tools import ROOT

SIZES = [(5, 7), (1, 1), (40, 3), (24, 33)]
IDS = {"cup": 47, "dog": 18, "field": 193, "sky": 187}


@pytest.fixture
def files(tmp_path):
    """Images of the sizes, and COCO annotations that list them in another order."""
    folder = tmp_path / "images"
    for i, (height, width) in enumerate(SIZES):
        image = np.full((height, width, 3), 40 * i, np.uint8)
        mmcv.imwrite(image, str(folder / f"p{i}.jpg"))
    images = [
        dict(id=900 - i, file_name=f"p{i}.jpg", height=size[0], width=size[1])
        for i, size in enumerate(SIZES)
    ]
    categories = [dict(id=IDS[name], name=name, isthing=1) for name in sorted(IDS, reverse=True)]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(dict(images=images, categories=categories, annotations=[])))
    return folder, path


def write(out, folder, samples=None, **options):
    images = open_images(folder)
    samples = samples or [random_sample(*size, seed=i) for i, size in enumerate(SIZES)]
    with ResultWriter(out, CLASSES, **options) as writer:
        for image, sample in zip(writer.accept(images), samples, strict=True):
            writer.add(image, sample)
    return samples


def read_json(path):
    return json.loads(path.read_text())


def test_names_of_any_bytes(tmp_path):
    """As older systems wrote them, in Latin-1 for example."""
    image = tmp_path / "images" / os.fsdecode(b"caf\xe9.png")
    image.parent.mkdir()
    write_image(image, np.zeros((5, 7, 3), np.uint8))
    write(tmp_path / "out", image, [random_sample(5, 7)], tables=["csv", "geojson"])
    _, *rows = (tmp_path / "out/objects.csv").read_bytes().splitlines()
    assert rows and all(row.startswith(b"caf\xe9.png,") for row in rows)
    (entry,) = read_json(tmp_path / "out/images.json")["images"]
    assert os.fsencode(entry["file_name"]) == b"caf\xe9.png"


def test_all_files_are_written(files, tmp_path):
    out = tmp_path / "deep" / "out"
    samples = write(out, files[0])
    pngs = [f"p{i}.png" for i in range(len(SIZES))]
    for folder in ("vis", "panoptic", "semantic"):
        assert sorted(path.name for path in (out / folder).iterdir()) == pngs
    assert sorted(path.name for path in out.glob("*.json")) == [
        "images.json",
        "instances.json",
        "panoptic.json",
    ]
    index = read_json(out / "images.json")
    assert index["images"] == [
        dict(id=i, file_name=f"p{i}.jpg", height=height, width=width)
        for i, (height, width) in enumerate(SIZES)
    ]
    assert index["categories"] == [dict(id=i, name=n) for i, n in enumerate(CLASSES.names)]
    drawn = np.asarray(Image.open(out / "vis" / "p3.png"))
    expected = draw_panoptic(
        open_images(files[0])[3].read_rgb(),
        segments_of(samples[3], CLASSES, score_thr=0.5),
        CLASSES,
    )
    assert np.array_equal(drawn, expected)
    for png, sample in zip(pngs, samples, strict=True):
        labels = Image.open(out / "semantic" / png)
        assert labels.mode == "L"
        assert np.array_equal(np.asarray(labels), sample.pred_sem_seg.sem_seg[0].numpy())


def test_tables(files, tmp_path):
    """A row and an outline for each segment; those of an earlier run are gone."""
    out = tmp_path / "out"
    samples = write(out, files[0], draw=False, tables=["csv"])
    with (out / "objects.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert not (out / "geojson").exists()
    entries = read_json(out / "panoptic.json")["annotations"]
    expected = [
        (f"p{i}.jpg", str(one["id"]), CLASSES.names[one["category_id"]], str(one["area"]), "")
        for i, entry in enumerate(entries)
        for one in entry["segments_info"]
    ]
    columns = ("image", "id", "class", "area", "score")
    assert [tuple(row[name] for name in columns) for row in rows] == expected
    assert {row["thing"] for row in rows if row["class"] in CLASSES.things} == {"1"}
    write(out, files[0], samples, tables=["geojson"])
    assert not (out / "objects.csv").exists()
    for i, entry in enumerate(entries):
        features = read_json(out / "geojson" / f"p{i}.geojson")["features"]
        measured = [one["properties"]["measurements"]["area"] for one in features]
        assert measured == [one["area"] for one in entry["segments_info"]]
    with pytest.raises(ValueError, match=r"tables among csv, geojson, got 'xlsx'"):
        write(out, files[0], samples, tables=["csv", "xlsx"])


def test_a_table_without_segments_has_its_head(tmp_path):
    with ResultWriter(tmp_path, CLASSES, tables=("csv",)):
        pass
    assert (tmp_path / "objects.csv").read_text().split("\n")[1:] == [""]


def test_drawings_follow_a_style(files, tmp_path):
    style = FigureStyle("contours", palette="petroff10", side=200, legend=True)
    samples = write(tmp_path, files[0], style=style)
    drawn = np.asarray(Image.open(tmp_path / "vis" / "p3.png"))
    segments = segments_of(samples[3], CLASSES, score_thr=0.5)
    image = open_images(files[0])[3].read_rgb()
    assert np.array_equal(drawn, draw_figure(image, segments, CLASSES, style))
    assert drawn.shape[1] >= 198  # 33 pixels, six times


def test_only_predicted_kinds_are_written(files, tmp_path):
    """A panoptic result alone; test_hcformer_inferencer.py has the other kinds alone."""
    samples = [random_sample(*size) for size in SIZES]
    for sample in samples:
        del sample.pred_instances, sample.pred_sem_seg
    write(tmp_path / "out", files[0], samples, draw=False)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"images.json", "panoptic", "panoptic.json"}


def test_panoptic_files_are_ground_truth_without_faults(files, tmp_path):
    out = tmp_path / "out"
    samples = write(out, files[0])
    assert check_panoptic(out / "panoptic.json", out / "panoptic", files[0]) == []
    truth = open_ground_truth(out / "panoptic.json", CLASSES)
    for i, (size, sample) in enumerate(zip(SIZES, samples, strict=True)):
        panoptic = truth.read(f"p{i}.jpg", size)
        classes = np.vectorize(lambda n, of=panoptic.categories: of.get(n, 4))(panoptic.segments)
        assert np.array_equal(classes, sample.pred_panoptic_seg.sem_seg[0].numpy() % 1000)


def test_panoptic_quality_of_files(files, tmp_path):
    """Results are perfect against themselves."""
    folder, annotations = files
    samples = write(tmp_path / "truth", folder, ann_file=annotations)
    truth = tmp_path / "truth" / "panoptic.json"
    write(tmp_path / "same", folder, samples, ann_file=truth)
    same = pq_compute(str(truth), str(tmp_path / "same" / "panoptic.json"))
    assert same["All"]["pq"] == 1


def test_instances_are_read_by_pycocotools(files, tmp_path):
    samples = write(tmp_path / "out", files[0], ann_file=files[1])
    with redirect_stdout(io.StringIO()):
        index = COCO(str(tmp_path / "out" / "images.json"))
        found = index.loadRes(str(tmp_path / "out" / "instances.json"))
    assert found.getImgIds() == [900, 899, 898, 897]
    for i, sample in enumerate(samples):
        instances = sample.pred_instances
        entries = found.imgToAnns[900 - i]
        assert [entry["score"] for entry in entries] == [0.25, 0.75, 0.5]
        names = [found.cats[entry["category_id"]]["name"] for entry in entries]
        assert names == ["dog", "cup", "dog"]
        for entry, mask in zip(entries, instances.masks, strict=True):
            assert np.array_equal(found.annToMask(entry), mask.numpy())
            assert entry["area"] == mask.sum()  # of the mask, not of a box


def test_ids_of_annotations(files, tmp_path):
    write(tmp_path / "out", files[0], ann_file=files[1])
    content = read_json(tmp_path / "out" / "panoptic.json")
    assert [image["id"] for image in content["images"]] == [900, 899, 898, 897]
    assert [entry["image_id"] for entry in content["annotations"]] == [900, 899, 898, 897]
    assert {entry["name"]: entry["id"] for entry in content["categories"]} == IDS
    assert [entry["isthing"] for entry in content["categories"]] == [1, 1, 0, 0]
    used = {
        info["category_id"] for entry in content["annotations"] for info in entry["segments_info"]
    }
    assert used == set(IDS.values())


def test_images_that_are_not_in_the_annotations(files, tmp_path):
    folder, path = files
    mmcv.imwrite(np.zeros((2, 2, 3), np.uint8), str(folder / "q.jpg"))
    writer = ResultWriter(tmp_path / "out", CLASSES, ann_file=path)
    with pytest.raises(ValueError, match=r"images of .*annotations\.json.* got .*q\.jpg"):
        writer.accept(open_images(folder))
    with pytest.raises(ValueError, match=r"annotations\.json.* got image 0 of"):
        writer.add(InputImage("0", 0, array=np.zeros((2, 2, 3), np.uint8)), random_sample(2, 2))
    assert not (tmp_path / "out").exists()


def test_images_of_another_set_with_the_same_names(files, tmp_path):
    folder, path = files
    content = read_json(path)
    content["images"][0].update(height=6)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"p0\.jpg of the .* has .* \(6, 7\), got \(5, 7"):
        write(tmp_path / "out", folder, ann_file=path)


def test_images_of_one_name_in_several_folders(tmp_path):
    """Named by their folders in every file, and matched with the annotations by them."""
    files = [tmp_path / f"data/{name}" for name in ("a/1.jpg", "b/1.jpg", "b/c/1.jpg")]
    for i, file in enumerate(files):
        mmcv.imwrite(np.full((4, 5 + i, 3), 50 * i, np.uint8), str(file))
    images = [
        dict(id=9 - i, file_name=str(file.relative_to(tmp_path / "data")), height=4, width=5 + i)
        for i, file in enumerate(files)
    ]
    categories = [dict(id=i, name=name, isthing=1) for name, i in IDS.items()]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(dict(images=images, categories=categories, annotations=[])))
    samples = [random_sample(4, 5 + i, seed=i) for i in range(3)]
    out = tmp_path / "out"
    write(out, files, samples, ann_file=path)
    for folder in ("vis", "panoptic", "semantic"):
        written = sorted(
            str(file.relative_to(out / folder)) for file in (out / folder).rglob("*.*")
        )
        assert written == ["a/1.png", "b/1.png", "b/c/1.png"]
    for i, name in enumerate(("a/1", "b/1", "b/c/1")):
        assert Image.open(out / "vis" / f"{name}.png").size == (5 + i, 4)
    assert read_json(out / "images.json")["images"] == images
    panoptic = read_json(out / "panoptic.json")
    assert [entry["image_id"] for entry in panoptic["annotations"]] == [9, 8, 7]
    assert panoptic["annotations"][2]["file_name"] == "b/c/1.png"
    assert check_panoptic(out / "panoptic.json", out / "panoptic", tmp_path / "data") == []


def test_images_that_the_annotations_do_not_tell_apart(files, tmp_path):
    folder, path = files
    (tmp_path / "more").mkdir()
    other = tmp_path / "more" / "p0.jpg"
    other.write_bytes((folder / "p0.jpg").read_bytes())
    writer = ResultWriter(tmp_path / "out", CLASSES, ann_file=path)
    message = r"entry of its own in .*annotations\.json .* got one for .*p0\.jpg and .*p0\.jpg"
    with pytest.raises(ValueError, match=message):
        writer.accept(open_images([folder, other]))
    content = read_json(path)
    for image, name in zip(content["images"], ("a/p0.jpg", "b/p0.jpg"), strict=False):
        image["file_name"] = name
    path.write_text(json.dumps(content))
    writer = ResultWriter(tmp_path / "out", CLASSES, ann_file=path)
    message = r"annotations\.json .* got .*more/p0\.jpg, which may be a/p0\.jpg or b/p0\.jpg"
    with pytest.raises(ValueError, match=message):
        writer.accept(open_images(other))


def test_nothing_to_write(files, tmp_path):
    sample = DetDataSample()
    sample.pred_instances = InstanceData(scores=torch.ones(1), bboxes=torch.ones(1, 4))
    with pytest.raises(ValueError, match="segments, masks or classes of pixels, got pred_instance"):
        write(tmp_path / "out", files[0], [sample] * len(SIZES))
    (tmp_path / "file").write_text("file")
    with pytest.raises(ValueError, match="expected a folder for the results, got the file"):
        ResultWriter(tmp_path / "file", CLASSES)
    message = r"a folder that can be written for the results, got .*file/out: Not a directory"
    with pytest.raises(ValueError, match=message), ResultWriter(tmp_path / "file/out", CLASSES):
        pytest.fail("before the model runs")


def test_json_files_are_those_of_the_json_module(files, tmp_path):
    """Although they are streamed: the writer keeps no entries."""
    samples = write(tmp_path / "out", files[0])
    for name in ("images", "panoptic", "instances"):
        text = (tmp_path / "out" / f"{name}.json").read_text()
        assert text == json.dumps(json.loads(text))
    del samples[1].pred_panoptic_seg
    samples[2].pred_instances = samples[2].pred_instances[:0]
    write(tmp_path / "some", files[0], samples)
    assert len(read_json(tmp_path / "some" / "panoptic.json")["annotations"]) == 3
    with ResultWriter(tmp_path / "none", CLASSES):
        pass
    assert read_json(tmp_path / "none" / "images.json")["images"] == []


def test_memory_does_not_grow_with_the_images(tmp_path):
    """10,000 images would take 300 MB if their entries were kept."""
    image = InputImage("0", 0, array=np.zeros((64, 64, 3), np.uint8))
    sample = random_sample(64, 64)
    del sample.pred_panoptic_seg, sample.pred_sem_seg
    with ResultWriter(tmp_path, CLASSES, draw=False) as writer:
        writer.add(image, sample)
        tracemalloc.start()
        for number in range(1, 201):
            writer.add(replace(image, name=str(number), number=number), sample)
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (tmp_path / "instances.json").stat().st_size > 500_000
    assert kept < 50_000 and peak < 500_000
    assert len(read_json(tmp_path / "instances.json")) == 603


def test_a_killed_run_leaves_no_unfinished_json(files, tmp_path):
    code = """
import os, signal, sys
from hcformer_mm.apis.inputs import open_images
from hcformer_mm.apis.result_writer import ResultWriter
from tests.helpers.predictions import CLASSES, random_sample
with ResultWriter(sys.argv[2], CLASSES) as writer:
    writer.add(open_images(sys.argv[1])[0], random_sample(5, 7))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", code, files[0], tmp_path / "out"], cwd=ROOT)
    assert run.returncode == -signal.SIGKILL
    left = sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*"))
    folders = ["panoptic", "semantic", "vis"]
    assert left == sorted([*folders, *(f"{folder}/p0.png" for folder in folders)])


def test_failed_images_are_listed(files, tmp_path):
    images = open_images(files[0])
    with ResultWriter(tmp_path, CLASSES) as writer:
        writer.add_failure(images[1], "broken")
        writer.add(images[0], random_sample(5, 7))
    content = read_json(tmp_path / "images.json")
    assert content["failed"] == [dict(file_name="p1.jpg", reason="broken")]
    assert [image["file_name"] for image in content["images"]] == ["p0.jpg"]


@pytest.mark.parametrize("again", [False, True])
def test_an_error_leaves_no_json(again, files, tmp_path):
    """Neither of this run nor of an earlier one."""
    out, samples = tmp_path / "out", [random_sample(*size) for size in SIZES]
    if again:
        write(out, files[0], samples)
        assert (out / "panoptic.json").is_file()
    with pytest.raises(ValueError, match="got nothing"):
        write(out, files[0], [*samples[:2], DetDataSample(), samples[3]])
    assert list(out.glob("*.json")) == []
    assert len(list((out / "vis").iterdir())) == (4 if again else 2)


@pytest.mark.parametrize("score_thr", [7, -0.5, float("nan")])
def test_scores_out_of_range(score_thr, tmp_path):
    message = f"expected score_thr from 0 to 1, got {score_thr}"
    with pytest.raises(ValueError, match=message):
        ResultWriter(tmp_path, CLASSES, score_thr=score_thr)
    with pytest.raises(ValueError, match=message):
        segments_of(random_sample(8, 8), CLASSES, score_thr=score_thr)


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.txt"
    with replacing(path) as unfinished:
        unfinished.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(OSError, match="disk full"), replacing(path) as unfinished:
        unfinished.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "first"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]

    def fail(image, target, *_, **__):
        target.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(result_writers.Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_image(tmp_path / "images" / "a.png", np.zeros((2, 2, 3), np.uint8))
    assert list((tmp_path / "images").iterdir()) == []
    with pytest.raises(ValueError, match=r"such as \.png, got .*a\.xyz"):
        write_image(tmp_path / "a.xyz", np.zeros((2, 2, 3), np.uint8))
