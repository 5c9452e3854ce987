"""``tools/dataset_converters/to_panoptic.py``: annotations of other tools as panoptic sets."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import yaml
from PIL import Image

from hcformer_mm.datasets.checks import check_instances, check_panoptic
from hcformer_mm.datasets.sources.classes import read_classes
from tests.helpers.annotation_formats import (
    assert_same,
    read_split,
    save_map,
    write_classes,
    write_coco,
    write_labelme,
    write_masks,
    write_yolo,
)
from tests.helpers.panoptic_sets import GROUND, SKY, THING, drawing, write_panoptic_set

TOOL = "dataset_converters/to_panoptic.py"
SPLITS = ("train", "val")


@pytest.fixture
def convert(run_tool, tmp_path, capsys):
    """Run the converter and the checks of its result; returns what it prints and the result."""

    def convert(source, *arguments):
        out = tmp_path / "new"
        capsys.readouterr()
        run_tool(TOOL, source, *arguments, "--out", out, "--num-workers", 1)
        printed = capsys.readouterr().out
        annotations = out / "annotations"
        for split in SPLITS:
            panoptic = annotations / f"panoptic_{split}.json"
            faults = check_panoptic(panoptic, panoptic.with_suffix(""), out / split)
            if (instances := annotations / f"instances_{split}.json").exists():
                faults += check_instances(instances, out / split)
            assert not [fault for fault in faults if fault.severity != "note"]
        return printed, out

    return convert


FORMATS = {
    "masks, PNG of 8 bits": (partial(write_masks, suffixes=(".png", ".png")), "masks"),
    "masks, npz and npy": (partial(write_masks, suffixes=(".npz", ".npy")), "masks"),
    "masks, 16 bits and TIFF": (
        partial(write_masks, suffixes=(".png", ".tif"), offset=60_000),
        "masks",
    ),
    "labelme, masks": (partial(write_labelme, kind="mask"), "labelme"),
    "labelme, groups": (partial(write_labelme, kind="rectangle"), "labelme"),
    "YOLO": (write_yolo, "yolo"),
    "COCO, polygons": (partial(write_coco, kind="polygons"), "coco"),
    "COCO, run lengths": (partial(write_coco, kind="list"), "coco"),
    "COCO, compressed": (partial(write_coco, kind="text"), "coco"),
}


def places(source, folder):
    """Arguments that name a set in a folder."""
    if source == "masks":
        return folder / "images", folder / "objects", folder / "classes"
    return (folder / "data.yaml",) if source == "yolo" else (folder,)


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(convert, shapes, tmp_path, name):
    """Segments, classes and splits of the Shapes set are those of its other form."""
    write, source = FORMATS[name]
    write(shapes, tmp_path / "other", SPLITS)
    classes = write_classes(shapes, tmp_path / "classes.yaml")
    printed, out = convert(source, *places(source, tmp_path / "other"), "--classes", classes)
    for split in SPLITS:
        assert_same(shapes, out, split)
        assert f"{split}: 3 images, " in printed
    assert "inferred" not in printed


@pytest.fixture
def drawn(tmp_path):
    """Two images of a box on ground and sky; in the second, the box is a crowd."""
    root = tmp_path / "drawn"
    ids = drawing(THING, GROUND, SKY)
    write_panoptic_set(root, "train", {"1.jpg": ids, "2.jpg": drawing(THING, SKY, shift=3)})
    write_panoptic_set(root, "val", {"3.jpg": ids}, crowds=(THING,))
    return root


class TestClasses:
    def test_of_masks(self, convert, drawn, tmp_path):
        """Values that objects have are things; the printed file gives the same classes."""
        write_masks(drawn, tmp_path / "other", SPLITS, (".png", ".png"))
        arguments = places("masks", tmp_path / "other")
        printed, out = convert("masks", *arguments)
        assert "things: class 1 (3)\nstuff: class 2 (2), class 3 (3)" in printed
        text = printed.rpartition("--classes:\n")[2]
        assert yaml.safe_load(text) == {
            "things": {"class 1": 1},
            "stuff": {"class 2": 2, "class 3": 3},
        }
        first = (out / "annotations/panoptic_train.json").read_text()
        shutil.rmtree(out)
        (tmp_path / "classes.json").write_text(json.dumps(yaml.safe_load(text)))
        convert("masks", *arguments, "--classes", tmp_path / "classes.json")
        assert (out / "annotations/panoptic_train.json").read_text() == first

    def test_of_shapes_are_things(self, convert, drawn, tmp_path):
        write_labelme(drawn, tmp_path / "other", SPLITS, "mask")
        printed, _ = convert("labelme", tmp_path / "other", "--background", "rest")
        assert "things: box (3), ground (2), sky (3)\nstuff: rest (1)" in printed
        assert "things: [box, ground, sky]\nstuff: [rest]" in printed

    def test_isthing_of_categories(self, convert, drawn, tmp_path):
        write_coco(drawn, tmp_path / "other", SPLITS, "text")
        for path in (tmp_path / "other/annotations").iterdir():
            content = json.loads(path.read_text())
            for one in content["categories"]:
                one["isthing"] = int(one["name"] == "box")
            path.write_text(json.dumps(content))
        printed, out = convert("coco", tmp_path / "other")
        assert "things: [box]\nstuff: [ground, sky]" in printed
        for split in SPLITS:
            assert_same(drawn, out, split)

    def test_void_is_left_out(self, convert, drawn, tmp_path):
        write_yolo(drawn, tmp_path / "other", SPLITS)
        (tmp_path / "c.yaml").write_text("things: [box]\nstuff: [sky]\nvoid: [ground]")
        _, out = convert("yolo", tmp_path / "other/data.yaml", "--classes", tmp_path / "c.yaml")
        ((_, ids, infos),), _ = read_split(out, "val")
        assert len(infos) == 2
        assert np.array_equal(ids == 0, drawing(GROUND, SKY, THING) == GROUND)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("things: [box]\nstuff: [sky]", r"classes box, sky, got 'ground'; add it to things"),
            ("things: [box, box]\nstuff: [ground]", "with each class once, or mappings"),
            ("thing: [box]", "expected .*classes.yaml to have the lists things and stuff"),
            ("- box", "expected .*classes.yaml to have the lists"),
            ("things: [1]", "expected .*classes.yaml to have the lists"),
            ("things: box", "expected .*classes.yaml to have the lists"),
            ("{", "expected .*classes.yaml to have the lists"),
        ],
    )
    def test_refused(self, run_tool, drawn, tmp_path, text, message):
        write_labelme(drawn, tmp_path / "other", SPLITS, "mask")
        (tmp_path / "classes.yaml").write_text(text)
        out = tmp_path / "new"
        options = ("--classes", tmp_path / "classes.yaml", "--out", out, "--num-workers", 1)
        with pytest.raises(SystemExit, match=f"^to_panoptic: .*{message}"):
            run_tool(TOOL, "labelme", tmp_path / "other", *options)
        assert not out.exists()

    @pytest.mark.parametrize("text", ["things: [1]", "things: [a]\nstuff: [a]", "things: ab"])
    def test_refused_for_values(self, tmp_path, text):
        (tmp_path / "classes.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"expected .*classes\.yaml to have the lists things"):
            read_classes(tmp_path / "classes.yaml", by_value=True)


def labelme_shape(label, *points, kind="polygon", group=None):
    return dict(label=label, points=points, shape_type=kind, group_id=group)


@pytest.fixture
def draw(tmp_path, convert):
    """Convert labelme files of one image with some shapes; returns ids, names and the text."""

    def draw(*shapes, options=(), size=(40, 60)):
        folder = tmp_path / "labelme"
        for split in SPLITS:
            (folder / split).mkdir(parents=True)
            Image.new("RGB", size[::-1]).save(folder / split / "a.png")
            content = dict(imagePath="a.png", imageHeight=size[0], imageWidth=size[1])
            text = json.dumps(content | dict(shapes=shapes))
            (folder / split / "a.json").write_text(text)
        printed, out = convert("labelme", folder, *options)
        ((_, ids, infos),), categories = read_split(out, "train")
        names = {one["id"]: categories[one["category_id"]]["name"] for one in infos}
        return ids, names, printed

    return draw


class TestOverlaps:
    def test_smaller_lie_on_larger(self, draw):
        """Whatever their order; an object below others vanishes, and the report counts it."""
        ids, names, printed = draw(
            labelme_shape("leaf", [10, 10], [20, 20], kind="rectangle"),
            labelme_shape("tree", [0, 0], [30, 30], kind="rectangle"),
            labelme_shape("bud", [10, 10], [20, 20], kind="rectangle"),
        )
        assert {names[ids[15, 15]], names[ids[5, 5]]} == {"bud", "tree"}
        assert ids[35, 35] == 0
        assert sorted(names.values()) == ["bud", "tree"]
        assert "2 objects have no pixel: smaller ones hide them, or they lie outside" in printed

    def test_things_lie_on_stuff(self, draw, tmp_path):
        """Stuff of one class is one segment, and the background fills the rest."""
        (tmp_path / "c.yaml").write_text("things: [box]\nstuff: [sky]")
        ids, names, _ = draw(
            labelme_shape("sky", [12, 12], [18, 18], kind="rectangle"),
            labelme_shape("sky", [40, 0], [50, 10], kind="rectangle"),
            labelme_shape("box", [10, 10], [20, 20], kind="rectangle"),
            options=("--classes", tmp_path / "c.yaml", "--background", "ground"),
        )
        assert names[ids[15, 15]] == "box"
        assert (ids == ids[15, 15]).sum() == 100
        assert names[ids[5, 45]] == "sky"
        assert names[ids[0, 0]] == "ground"
        assert len(names) == 3

    def test_void_lies_among_stuff(self, draw, tmp_path):
        """Its pixels are neither the background nor the stuff around it."""
        (tmp_path / "c.yaml").write_text("things: [box]\nstuff: [sky]\nvoid: [unclear]")
        ids, names, _ = draw(
            labelme_shape("unclear", [10, 10], [20, 20], kind="rectangle"),
            labelme_shape("unclear", [50, 0], [60, 9], kind="rectangle"),
            labelme_shape("sky", [0, 0], [30, 30], kind="rectangle"),
            labelme_shape("box", [9, 9], [15, 25], kind="rectangle"),
            options=("--classes", tmp_path / "c.yaml", "--background", "ground"),
        )
        assert (ids == 0).sum() == 50 + 90
        assert ids[15, 18] == ids[5, 55] == 0
        assert [names[ids[place]] for place in ((5, 5), (20, 12), (35, 5))] == [
            *("sky", "box", "ground")
        ]


def test_labels_of_other_kinds(draw):
    square = ([0, 0], [9, 9])
    _, names, _ = draw(
        labelme_shape(3, *square, kind="rectangle"), labelme_shape("猫", *square, kind="circle")
    )
    assert "猫" in names.values()


def test_circles_and_groups(draw):
    ids, names, _ = draw(
        labelme_shape("disc", [30, 20], [30, 8], kind="circle"),
        labelme_shape("box", [0, 0], [5, 5], kind="rectangle", group=1),
        labelme_shape("box", [0, 30], [5, 30], [5, 35], [0, 35], group=1),
        labelme_shape("ball", [55, 0], [60, 5], kind="rectangle", group=1),
    )
    y, x = np.mgrid[:40, :60] + 0.5
    distance = np.hypot(x - 30, y - 20)
    disc = ids == ids[20, 30]
    assert disc[distance < 11.9].all()
    assert not disc[distance > 12.6].any()
    assert ids[2, 2] == ids[32, 2] > 0
    assert sorted(names.values()) == ["ball", "box", "disc"]


def test_crowds(convert, run_tool, drawn, tmp_path):
    """They stay crowds, below single objects, or become objects."""
    write_coco(drawn, tmp_path / "other", SPLITS, "list")
    classes = write_classes(drawn, tmp_path / "classes.yaml")
    arguments = ("coco", tmp_path / "other", "--classes", classes)
    printed, out = convert(*arguments)
    assert_same(drawn, out, "val")
    assert "1 crowds, which training leaves out; see --ignore-crowds" in printed
    shutil.rmtree(out)
    printed, out = convert(*arguments, "--ignore-crowds")
    ((_, _, infos),), _ = read_split(out, "val")
    assert not any(info["iscrowd"] for info in infos)


@pytest.mark.parametrize("part", ["", "annotations"])
def test_a_source_is_not_replaced(run_tool, drawn, tmp_path, part):
    """COCO's own folder has panoptic annotations, too."""
    write_coco(drawn, tmp_path / "coco", SPLITS, "text")
    (tmp_path / "coco/annotations/panoptic_val.json").touch()
    (tmp_path / "coco/captions.json").touch()
    classes = write_classes(drawn, tmp_path / "coco" / part / "classes.yaml")
    source = tmp_path / "coco" if not part else shutil.copytree(tmp_path / "coco", tmp_path / "b")
    options = ("--classes", classes, "--out", tmp_path / "coco", "--overwrite")
    with pytest.raises(SystemExit, match=r"^to_panoptic: expected --out without .*coco.* in it"):
        run_tool(TOOL, "coco", source, *options)
    assert (tmp_path / "coco/captions.json").exists()


class TestSplits:
    def test_fraction(self, run_tool, shapes, tmp_path):
        """The division depends on the seed alone, and every image is in one part."""
        write_coco(shapes, tmp_path / "other", ("train",), "text")
        (tmp_path / "other/annotations/instances_train.json").rename(
            tmp_path / "other/annotations/instances_default.json"
        )
        classes = write_classes(shapes, tmp_path / "classes.yaml")
        shutil.move(tmp_path / "other/images/train", tmp_path / "flat")
        shutil.rmtree(tmp_path / "other/images")
        shutil.move(tmp_path / "flat", tmp_path / "other/images")
        found = []
        for seed in (0, 0, 1):
            options = ("--classes", classes, "--seed", seed, "--val-fraction", 0.3, "--overwrite")
            options += ("--num-workers", 1, "--out", tmp_path / "new")
            run_tool(TOOL, "coco", tmp_path / "other", *options)
            parts = [
                {path.name for path in (tmp_path / "new" / split).iterdir()} for split in SPLITS
            ]
            assert len(parts[0]) == 2
            assert len(parts[0] | parts[1]) == 3
            found.append(parts)
        assert found[0] == found[1]

    def test_yolo_folders_of_exports(self, convert, drawn, tmp_path):
        """Folders of images and labels in those of splits, which data.yaml misplaces."""
        write_yolo(drawn, tmp_path / "flat", SPLITS)
        for split, name in zip(SPLITS, ("train", "valid"), strict=True):
            for kind in ("images", "labels"):
                shutil.copytree(tmp_path / "flat" / kind / split, tmp_path / "set" / name / kind)
        names = {i: name for i, name in enumerate(("box", "ground", "sky"))}
        content = dict(train="../train/images", val=["../valid/images"], names=names, nc=3)
        (tmp_path / "set/data.yaml").write_text(yaml.safe_dump(content))
        convert("yolo", tmp_path / "set/data.yaml")

    def test_yolo_lists_of_images(self, convert, drawn, tmp_path):
        write_yolo(drawn, tmp_path / "set", SPLITS)
        content = yaml.safe_load((tmp_path / "set/data.yaml").read_text())
        for split in SPLITS:
            images = sorted((tmp_path / "set/images" / split).iterdir())
            lines = [f"./images/{split}/{image.name}" for image in images[:-1]] + [str(images[-1])]
            # Some editors of Windows write a mark before the text.
            text = "\n".join(lines) + "\n\n"
            (tmp_path / "set" / f"{split}.txt").write_text(text, encoding="utf-8-sig")
            for file in (tmp_path / "set/labels" / split).iterdir():
                file.write_text(file.read_text(), encoding="utf-8-sig")
            content[split] = f"{split}.txt"
        (tmp_path / "set/data.yaml").write_text(yaml.safe_dump(content))
        convert("yolo", tmp_path / "set/data.yaml")

    def test_yolo_in_the_working_folder(self, convert, drawn, tmp_path, monkeypatch):
        """Labels are found from a relative path, too; outlines may be rounded beyond the image."""
        write_yolo(drawn, tmp_path / "other", SPLITS)
        (tmp_path / "other/labels/val/3.txt").write_text("0 -0.001 0 1.001 0 1 1.001 0 1")
        monkeypatch.chdir(tmp_path / "other")
        _, out = convert("yolo", "data.yaml")
        assert len(read_split(out, "train")[0][0][2]) == 3
        assert (read_split(out, "val")[0][0][1] > 0).all()

    def test_names_of_windows_and_two_files_of_a_split(self, convert, drawn, tmp_path):
        write_coco(drawn, tmp_path / "other", SPLITS, "text")
        annotations = tmp_path / "other/annotations"
        path = annotations / "instances_train.json"
        content = json.loads(path.read_text())
        folder = tmp_path / "other/images/train"
        for name, one in zip(("Train", "training"), content["images"], strict=True):
            (folder / "deep").mkdir(exist_ok=True)
            shutil.move(folder / one["file_name"], folder / "deep" / one["file_name"])
            image = one | dict(file_name=f"train\\deep\\{one['file_name']}")
            shapes = [a for a in content["annotations"] if a["image_id"] == one["id"]]
            part = content | dict(images=[image], annotations=shapes)
            (annotations / f"instances_{name}.json").write_text(json.dumps(part))
        path.unlink()
        _, out = convert("coco", tmp_path / "other")
        assert len(read_split(out, "train")[0]) == 2

    def test_maps_of_names_with_dots(self, convert, drawn, tmp_path):
        for name in ("1.2.jpg", "1.2.png"):
            for path in drawn.glob(f"**/2{name[3:]}"):
                path.rename(path.with_name(name))
        edit_json(
            drawn / "annotations/panoptic_train.json",
            lambda c: (
                c["images"][1].update(file_name="1.2.jpg"),
                c["annotations"][1].update(file_name="1.2.png"),
            ),
        )
        write_masks(drawn, tmp_path / "other", SPLITS, (".npy", ".npy"))
        path = tmp_path / "other/objects/val/3.npy"
        np.save(path, np.load(path) * 2**33)
        _, out = convert("masks", *places("masks", tmp_path / "other"))
        assert len(read_split(out, "train")[0]) == 2

    def test_nothing_to_divide(self, run_tool, drawn, tmp_path):
        write_labelme(drawn, tmp_path / "other", SPLITS, "mask")
        out = tmp_path / "new"
        with pytest.raises(SystemExit, match="expected no fraction for val, since the source has"):
            run_tool(TOOL, "labelme", tmp_path / "other", "--out", out, "--val-fraction", 0.5)
        with pytest.raises(SystemExit, match=r"at least 2 images to divide .*, got 1; correct the"):
            run_tool(TOOL, "labelme", tmp_path / "other/val", "--out", out)
        assert not out.exists()


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


class TestBadInput:
    """One sentence that names the file, the id, what was expected and what to do."""

    @pytest.fixture
    def refuse(self, run_tool, tmp_path):
        def refuse(source, message):
            arguments = places(source, tmp_path / "other")
            options = ("--out", tmp_path / "new", "--num-workers", 1)
            with pytest.raises(SystemExit, match=f"^to_panoptic: .*{message}") as raised:
                run_tool(TOOL, source, *arguments, *options)
            assert "\n" not in str(raised.value)
            assert not [path for path in tmp_path.iterdir() if "new" in path.name]

        return refuse

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.pop("imagePath"), "1.json to be labelme's, .* got KeyError: 'imagePath'"),
            (lambda c: c.update(imagePath="no.jpg"), r"1.json: .*no.jpg: the file does not exist"),
            (
                lambda c: c.update(imageHeight=50),
                r"1.json: expected the height and width \(48, 64\) of .*jpg, got \(50, 64\); take",
            ),
            (
                lambda c: c["shapes"][1].update(shape_type="linestrip"),
                "1.json: expected a polygon, .* as shape 1, got linestrip; draw it anew",
            ),
            (
                lambda c: c["shapes"][1].update(shape_type="point", points=[[1, 1]]),
                "got point; draw",
            ),
            (
                lambda c: c["shapes"][1].update(mask="?"),
                "1.json: expected a polygon, .* as shape 1, got a mask that cannot be read",
            ),
            (
                lambda c: c["shapes"][1].update(shape_type="polygon"),
                "1.json: expected a polygon of x, y of at least 3 points.*; correct annotation 1",
            ),
            (
                lambda c: c["shapes"][1].update(shape_type="circle", points=[[0, 0], [9e9, 0]]),
                "1.json: expected polygons within the image .*; correct annotation 1",
            ),
        ],
    )
    def test_labelme(self, refuse, drawn, tmp_path, change, message):
        write_labelme(drawn, tmp_path / "other", SPLITS, "mask")
        edit_json(tmp_path / "other/train/1.json", change)
        refuse("labelme", message)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.pop("images"), "instances_train.json to have a list of images"),
            (
                lambda c: c["annotations"][1].update(category_id=7),
                "train.json: expected the annotation 2 to have .* got 1 and 7; correct it",
            ),
            (lambda c: c["images"][1].update(id=1), "several images have the id 1: .*lists all"),
            (lambda c: c["categories"][1].update(id=10), "several categories have the id 10"),
            (
                lambda c: c["images"][0].update(file_name="../train/1.jpg"),
                "expected images below the folder of their split, got the name ../train/1.jpg",
            ),
            (
                lambda c: c["annotations"][1].update(image_id=7),
                "train.json: expected the annotation 2 to have .* got 7 and 30; correct it",
            ),
            (
                lambda c: c["annotations"][1]["segmentation"].update(counts="123"),
                "train.json: expected run lengths of all pixels .*; correct annotation 2",
            ),
            (
                lambda c: c["annotations"][1].update(segmentation=[]),
                "train.json: expected polygons or run lengths .*; correct annotation 2",
            ),
        ],
    )
    def test_coco(self, refuse, drawn, tmp_path, change, message):
        write_coco(drawn, tmp_path / "other", SPLITS, "text")
        edit_json(tmp_path / "other/annotations/instances_train.json", change)
        refuse("coco", message)

    @pytest.mark.parametrize(
        ("line", "got"),
        [
            ("0 0.5 0.5 0.1 0.1", "'0 0.5 0.5 0.1 0.1'"),
            ("9 0 0 1 0 1 1", "'9 0 0 1 0 1 1'"),
            ("0 0 0 64 0 64 48", "'0 0 0 64 0 64 48'"),
            ("0 0 0 nan 0 1 1", "'0 0 0 nan 0 1 1'"),
            ("box", "'box'"),
            ("inf 0 0 1 0 1 1", "'inf 0 0 1 0 1 1'"),
            ("0.5 0 0 1 0 1 1", "'0.5 0 0 1 0 1 1'"),
        ],
    )
    def test_yolo(self, refuse, drawn, tmp_path, line, got):
        write_yolo(drawn, tmp_path / "other", SPLITS)
        file = tmp_path / "other/labels/train/1.txt"
        file.write_text("\n" + line)
        message = f"1.txt: expected the number of a class, .* in line 2, got {got}; correct"
        refuse("yolo", message)

    def test_yolo_of_other_encodings(self, refuse, drawn, tmp_path):
        write_yolo(drawn, tmp_path / "other", SPLITS)
        (tmp_path / "other/labels/train/1.txt").write_text("0 0 0 0 1", encoding="utf-16")
        refuse("yolo", "1.txt: expected the number of a class, .* in line 1, got ")

    def test_yolo_without_labels(self, refuse, drawn, tmp_path):
        write_yolo(drawn, tmp_path / "other", SPLITS)
        shutil.rmtree(tmp_path / "other/labels")
        refuse("yolo", "expected annotations of some of the 3 images, got none; correct")

    def test_yolo_without_folders(self, refuse, drawn, tmp_path):
        write_yolo(drawn, tmp_path / "other", SPLITS)
        shutil.rmtree(tmp_path / "other/images/val")
        refuse(
            "yolo",
            "expected a folder or a list of images for 'images/val' of .*data.yaml, got none at",
        )
        (tmp_path / "other/images/val").write_text("./none.jpg")
        refuse("yolo", "none.jpg")
        (tmp_path / "other/images/val").write_text("")
        refuse("yolo", "got none")
        (tmp_path / "other/data.yaml").write_text("train: images")
        refuse("yolo", "expected .*data.yaml to be YOLO's, .* got KeyError: 'names'")
        (tmp_path / "other/data.yaml").write_text("names: [box]")
        refuse("yolo", "expected .*data.yaml to be YOLO's, .* got KeyError: 'train'")

    @pytest.mark.parametrize(
        ("file", "pixels", "message"),
        [
            ("objects/train/1.npy", np.zeros((48, 63), int), r"1.npy: .*\(48, 64\).*\(48, 63\)"),
            ("objects/train/1.npy", np.zeros((48, 64, 3), int), r"1.npy, got .*\(48, 64, 3\)"),
            ("objects/train/1.npy", np.full((48, 64), 0.5), "whole numbers .*1.npy, got float64"),
            ("objects/train/1.npy", np.full((48, 64), -1), "whole numbers .*1.npy, got int64"),
            (
                "objects/train/1.npy",
                np.full((48, 64), 7),
                "1.npy: expected a class of things .* object 7, got class 2 in .*; correct one",
            ),
            ("objects/train/2.png", np.ones((48, 64), int), "expected one file .*; give the map"),
        ],
    )
    def test_masks(self, refuse, run_tool, drawn, tmp_path, file, pixels, message):
        write_masks(drawn, tmp_path / "other", SPLITS, (".npy", ".npy"))
        path = tmp_path / "other" / file
        if path.suffix == ".npy":
            np.save(path, pixels)
        else:
            save_map(path, pixels)
        refuse("masks", message)

    def test_archives_of_several_arrays(self, refuse, drawn, tmp_path):
        write_masks(drawn, tmp_path / "other", SPLITS, (".npz", ".npz"))
        np.savez(tmp_path / "other/objects/train/1.npz", np.zeros((48, 64)), np.zeros((48, 64)))
        refuse("masks", "expected one array of numbers in .*1.npz, got .*; save the map as a PNG")
        path = tmp_path / "other/objects/train/1.npz"
        np.savez(path, np.full((48, 64), None))
        refuse("masks", "expected one array of numbers in .*1.npz, got .*allow_pickle")
