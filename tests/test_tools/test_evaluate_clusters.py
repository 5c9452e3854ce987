"""Scores of clusters from the command line, for each task, with mmdet and mmseg."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image

from hcformer_mm.evaluation import ClusteringMetric
from hcformer_mm.evaluation.measures.panoptic_faults import KINDS, MISSED
from tests.helpers.tools import ROOT, loader_options

CONFIGS = Path(__file__).parents[2] / "configs/shapes"
LEVELS = ("level_1", "level_2", "level_3")


@pytest.fixture
def arguments(shapes, checkpoint, tmp_path):
    """Make the command line for a config of ``configs/shapes`` with random weights."""

    def make(name, *options, overrides=()):
        config = CONFIGS / f"{name}.py"
        annotations = shapes / "annotations"
        files = {
            "panoptic": [
                f"test_evaluator.0.ann_file={annotations}/panoptic_val.json",
                f"test_evaluator.0.seg_prefix={annotations}/panoptic_val/",
                f"test_evaluator.1.ann_file={annotations}/instances_val.json",
            ],
            "instance": [f"test_evaluator.ann_file={annotations}/instances_val.json"],
        }.get(name.rpartition("-")[2], [])
        return [
            *map(str, (config, checkpoint(config), "--work-dir", tmp_path / "work", *options)),
            "--cfg-options",
            *loader_options(shapes),
            *files,
            *overrides,
        ]

    return make


@pytest.fixture
def run(run_tool):
    return lambda arguments: run_tool("analysis_tools/evaluate_clusters.py", *arguments)


def test_panoptic(arguments, run, tmp_path, capfd):
    out = tmp_path / "new/scores.json"
    command = arguments("hcformer_r18_shapes-panoptic", "--slic", "--out", out)
    run(command)
    report = json.loads(out.read_text())
    assert report["config"] == command[0] and report["checkpoint"] == command[1]
    metrics = report["metrics"]
    for name in ("PQ", "PQ_th", "PQ_st"):
        ours = metrics[f"clusters/prediction/{name}"]
        assert ours == pytest.approx(metrics[f"coco_panoptic/{name}"])
    assert metrics["clusters/prediction/mIoU"] == pytest.approx(metrics["sem_seg/mIoU"], abs=0.011)
    assert "coco/segm_mAP" in metrics
    for partition in ("cells", *LEVELS, "slic_1", "slic_3"):
        assert metrics[f"clusters/{partition}/ASA"] > 0
    lost = sum(
        metrics[f"clusters/blame/mIoU/{part}"] for part in ("stem", *LEVELS, "classification")
    )
    assert lost == pytest.approx(100 - metrics["clusters/prediction/mIoU"])
    printed = capfd.readouterr().out
    for words in ("ground truth", "SLIC 2", "decoding costs", "classification costs"):
        assert words in printed
    assert [path.name for path in out.parent.iterdir()] == ["scores.json"]


def test_worst_images_are_drawn(arguments, run, tmp_path):
    """Untrained, the model finds nothing above its threshold. The drawings are as the JSON says."""
    out = tmp_path / "scores.json"
    run(arguments("hcformer_r18_shapes-panoptic", "--worst", 2, "--out", out))
    report = json.loads(out.read_text())
    faults = {
        kind: report["metrics"][f"clusters/blame/PQ/classification/{kind}"]
        for kind in report["worst"]
    }
    share = report["metrics"]["clusters/blame/PQ/classification"]
    assert sum(faults.values()) == pytest.approx(share, abs=1e-9)
    assert list(faults) == list(KINDS)
    drawn = []
    for kind, images in report["worst"].items():
        for rank, image in enumerate(images, start=1):
            assert image["sheet"] == str(tmp_path / f"scores/{kind}_{rank}.png")
            assert Path(image["image"]).exists() and image["loss"] > 0
            assert Image.open(image["sheet"]).width > 3 * 640
            drawn.append(image["sheet"])
    assert sorted(drawn) == sorted(map(str, (tmp_path / "scores").iterdir()))
    assert len({image["image"] for image in report["worst"][MISSED]}) == 2


def test_worst_images_need_panoptic_ground_truth_and_a_folder(arguments, run, tmp_path, capsys):
    command = arguments("hcformer_r18_shapes-panoptic", "--worst")
    with pytest.raises(SystemExit):
        run(command)
    assert "expected --out with --worst" in capsys.readouterr().err
    options = ("--worst", "--out", tmp_path / "scores.json")
    with pytest.raises(SystemExit, match="panoptic ground truth with --worst, got semantic, whose"):
        run(arguments("hc-fcn32s_r18_shapes-semantic", *options))


@pytest.mark.parametrize(("out", "options"), [("scores.json", ["--worst"]), ("scores/a.json", [])])
def test_files_that_cannot_be_written_are_refused_at_once(out, options, arguments, run, tmp_path):
    (tmp_path / "scores").touch()
    command = arguments("hcformer_r18_shapes-panoptic", *options, "--out", tmp_path / out)
    with pytest.raises(SystemExit, match=f"can be written for the results, got {tmp_path}/scores:"):
        run(command)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("config", "figure", "metric"),
    [
        ("hcformer_r18_shapes-instance", "AP", "coco/segm_mAP"),
        ("hcformer_r18_shapes-semantic", "mIoU", "mIoU"),
        ("hc-fcn32s_r18_shapes-semantic", "mIoU", "mIoU"),
    ],
)
def test_other_tasks(config, figure, metric, arguments, run, tmp_path):
    out = tmp_path / "scores.json"
    run(arguments(config, "--out", out))
    metrics = json.loads(out.read_text())["metrics"]
    ours = metrics[f"clusters/prediction/{figure}"]
    assert ours == pytest.approx(metrics[metric] * (100 if figure == "AP" else 1), abs=0.051)
    reached = [metrics[f"clusters/{stage}/{figure}"] for stage in ("cells", *LEVELS)]
    assert reached == sorted(reached, reverse=True) and reached[0] > reached[-1]
    lost = [value for name, value in metrics.items() if name.startswith("clusters/blame/")]
    assert len(lost) == 6
    assert not any("slic" in name for name in metrics)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ann_file=x.pkl", r"expected no pickle in test_dataloader\.dataset\.ann_file"),
        ("type=CocoPanopticDatset", r"test_dataloader\.dataset\.type, .*did you mean mmdet\.CocoP"),
        ("pipelin=[]", r"test_dataloader\.dataset, got 'pipelin'"),
    ],
)
def test_datasets_are_checked_before_their_images_are_counted(arguments, run, override, message):
    overrides = [f"test_dataloader.dataset.{override}"]
    options = ("--limit", 2)
    with pytest.raises(SystemExit, match=f"^evaluate_clusters: .*{message}"):
        run(arguments("hcformer_r18_shapes-panoptic", *options, overrides=overrides))


def test_limit(arguments, run, shapes, tmp_path, monkeypatch, capfd):
    """Every second of four images is scored, without AP, which would count the others as missed."""
    root = tmp_path / "shapes"
    shutil.copytree(shapes, root)
    for folder, suffix in (("val", "jpg"), ("annotations/panoptic_val", "png")):
        shutil.copy(root / folder / f"000000.{suffix}", root / folder / f"4.{suffix}")
    annotations = root / "annotations"
    for kind in ("panoptic", "instances"):
        file = annotations / f"{kind}_val.json"
        content = json.loads(file.read_text())
        content["images"].append({**content["images"][0], "id": 99, "file_name": "4.jpg"})
        if kind == "panoptic":
            fourth = {**content["annotations"][0], "image_id": 99, "file_name": "4.png"}
            content["annotations"].append(fourth)
        file.write_text(json.dumps(content))
    scored = []
    score = ClusteringMetric._score
    monkeypatch.setattr(
        ClusteringMetric,
        "_score",
        lambda metric, sample, clusters: (
            scored.append(Path(sample["img_path"]).name) or score(metric, sample, clusters)
        ),
    )
    overrides = [
        f"test_dataloader.dataset.data_root={root}/",
        f"test_evaluator.0.ann_file={annotations}/panoptic_val.json",
        f"test_evaluator.0.seg_prefix={annotations}/panoptic_val",
        f"test_evaluator.1.ann_file={annotations}/instances_val.json",
    ]
    out = tmp_path / "scores.json"
    options = ("--limit", 2, "--out", out)
    run(arguments("hcformer_r18_shapes-panoptic", *options, overrides=overrides))
    assert scored == ["000000.jpg", "000002.jpg"]
    assert "evaluated on 2 of 4 images, evenly spaced" in capfd.readouterr().out
    metrics = json.loads(out.read_text())["metrics"]
    assert "coco_panoptic/PQ" in metrics and "coco/segm_mAP" not in metrics
    assert (2 * metrics["clusters/cells/clusters"]).is_integer()


@pytest.mark.parametrize(
    ("indices", "expected"),
    [(None, [0, 1]), (2, [0, 1]), (-2, [1, 2]), ([2, 0, 1, 1], [2, 1])],
)
def test_limit_chooses_among_the_images_that_the_dataset_lists(indices, expected, shapes):
    """In ``indices``: so many from the start, or below 0 from the end, or a list."""
    config = Config.fromfile(CONFIGS / "hcformer_r18_shapes-panoptic.py")
    config.test_dataloader.dataset.update(data_root=f"{shapes}/", indices=indices)
    tool = runpy.run_path(ROOT / "tools/analysis_tools/evaluate_clusters.py")
    number = 3 if indices is None else 4 if isinstance(indices, list) else 2
    assert tool["limit_images"](config, 2) == f"2 of {number} images, evenly spaced"
    assert config.test_dataloader.dataset.indices == expected


def test_config_with_the_metric(arguments, run, tmp_path):
    """A ClusteringMetric in the config is kept, and none is added."""
    out = tmp_path / "scores.json"
    overrides = [
        "test_evaluator.type=hcformer_mm.ClusteringMetric",
        "test_evaluator.ground_truth=semantic",
        "test_evaluator.prefix=mine",
        "test_evaluator._delete_=True",
    ]
    command = arguments("hc-fcn32s_r18_shapes-semantic", "--out", out, overrides=overrides)
    run(command)
    metrics = json.loads(out.read_text())["metrics"]
    figures = [name for name in metrics if "/" in name]
    assert figures and all(name.startswith("mine/") for name in figures)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("fcn32s_r18_shapes-semantic", [], "expected hcformer_mm.HCBackbone with"),
        (
            "hc-fcn32s_r18_shapes-semantic",
            ["test_evaluator.type=mmseg.DepthMetric"],
            r"expected a CocoPanopticMetric, .* got \['mmseg.DepthMetric'\]; add",
        ),
        (
            "hcformer_r18_shapes-panoptic",
            ["test_evaluator.0.ann_file=None"],
            "expected ann_file and seg_prefix, got None and",
        ),
    ],
)
def test_clear_errors(config, overrides, message, arguments, run):
    with pytest.raises(SystemExit, match=f"evaluate_clusters: .*{message}"):
        run(arguments(config, overrides=overrides))


@pytest.mark.parametrize(
    ("option", "message"),
    [(["--limit", "0"], "from 1 on, got '0'"), (["--out", "a.md"], "got 'a.md'")],
)
def test_bad_arguments(option, message, arguments, run, capsys):
    with pytest.raises(SystemExit):
        run(arguments("hc-fcn32s_r18_shapes-semantic", *option))
    assert message in capsys.readouterr().err
