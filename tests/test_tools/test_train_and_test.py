"""tools/train.py and tools/test.py, from data to metrics, on a few images of the Shapes set."""

import pickle
import runpy
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.runner import Runner

from hcformer_mm.checkpoints.io import load_checkpoint
from hcformer_mm.deployment import export
from hcformer_mm.engine.runner import load_config
from tests.helpers.exporting import confident, lively_model
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG
from tests.helpers.tools import (
    ROOT,
    loader_options,
    quick_config,
    read_metrics,
    read_scalars,
    run_tool,
)

PER_PIXEL = "configs/shapes/hc-fcn32s_r18_shapes-semantic.py"


@pytest.fixture(scope="module")
def small_shapes(shapes):
    """The images as options of a config."""
    evaluators = [
        f"{split}_evaluator.{option}"
        for split in ("val", "test")
        for option in (
            f"0.ann_file={shapes}/annotations/panoptic_val.json",
            f"0.seg_prefix={shapes}/annotations/panoptic_val/",
            f"1.ann_file={shapes}/annotations/instances_val.json",
        )
    ]
    return [*loader_options(shapes), *evaluators]


def train(work_dir, options, *arguments, config=SHAPES_CONFIG, iterations=2):
    schedule = [f"train_cfg.max_iters={iterations}", f"train_cfg.val_interval={iterations}"]
    return run_tool(
        *("tools/train.py", config, "--work-dir", work_dir, *arguments),
        *("--cfg-options", *options, *schedule, "train_dataloader.batch_size=2"),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_shapes):
    work_dir = tmp_path_factory.mktemp("work_dirs")
    train(work_dir, small_shapes)
    return work_dir


def used_config(work_dir):
    (path,) = work_dir.glob("*/vis_data/config.py")
    return Config.fromfile(path)


def test_training_leaves_a_checkpoint(trained):
    checkpoint = load_checkpoint(trained / "iter_2.pth")
    names = checkpoint["state_dict"]
    assert "backbone.backbone.layer2.0.conv1.conv_offset.weight" in names
    assert "backbone.clusterings.0.scale" in names
    assert checkpoint["meta"]["dataset_meta"]["classes"][:2] == ("disc", "box")


def test_training_resumes(trained, small_shapes, tmp_path):
    # It removes the checkpoint that it resumes from, so not from the one that other tests need.
    shutil.copy(trained / "iter_2.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_2.pth"))
    assert "resumed" in train(tmp_path, small_shapes, "--resume", iterations=3)
    assert (tmp_path / "iter_3.pth").is_file()


def test_a_training_that_has_saved_nothing_begins_from_load_from_again(tmp_path):
    """A job that always starts with --resume would otherwise begin from random weights."""
    resume = runpy.run_path(str(ROOT / "tools/train.py"))["resume"]

    def settings(load_from, checkpoint="auto"):
        config = Config(dict(work_dir=str(tmp_path), load_from=load_from))
        resume(config, checkpoint)
        return config.resume, config.load_from

    assert settings("warm.pth") == (False, "warm.pth")
    assert settings(None) == (True, None)  # the hook tells that there is nothing
    assert settings("warm.pth", "iter_2.pth") == (True, "iter_2.pth")
    (tmp_path / "last_checkpoint").touch()
    assert settings("warm.pth") == (True, None)


def test_test_reports_all_metrics_and_dumps_predictions(trained, small_shapes, tmp_path):
    dump = tmp_path / "predictions.pkl"
    run_tool(
        *("tools/test.py", SHAPES_CONFIG, trained / "iter_2.pth", "--work-dir", tmp_path),
        *("--out", dump, "--show-dir", "images", "--cfg-options", *small_shapes),
        "model.test_cfg.object_mask_thr=1",  # images without segments are drawn too
    )
    scores = read_metrics(tmp_path)
    for name in ("PQ", "PQ_th", "PQ_st"):
        assert 0 <= scores[f"coco_panoptic/{name}"] <= 100
    assert "coco/segm_mAP" in scores
    assert 0 <= scores["sem_seg/mIoU"] <= 100
    assert len(pickle.loads(dump.read_bytes())) == 3
    assert len(list(tmp_path.glob("*/images/**/*.jpg"))) == 3


class Images(BaseDataset):
    """Images of a test, with the label maps ``maps/*.png``."""

    def load_data_list(self):
        return [dict(img_path=path, seg_map_path="maps/1.png") for path in self.ann_file.split()]


@pytest.mark.parametrize(
    ("folder", "part", "message"),
    [
        ("out", "name", "images of different names for --x, .*, got a/1.jpg and b/1.jpg; use"),
        ("out", "stem", "images of different names for --x, .*, got a/1.jpg and c/1.png; use"),
        ("maps", "name", "another folder than that of images or label maps for --x, got maps"),
        ("b/../c", "name", "another folder than that of images or label maps for --x, got b"),
    ],
)
def test_files_of_a_test_replace_no_others(folder, part, message):
    dataset = Images("a/1.jpg a/1.jpg c/1.png" + " b/1.jpg" * (part == "name"))
    runner = Namespace(test_loop=Namespace(dataloader=Namespace(dataset=dataset)))
    check = runpy.run_path(ROOT / "tools/test.py")["check_files"]
    with pytest.raises(ValueError, match=f"expected {message}"):
        check(runner, "--x", Path(folder), part)


def test_test_in_bfloat16_and_fast(trained, small_shapes, tmp_path):
    run_tool(
        *("tools/test.py", SHAPES_CONFIG, trained / "iter_2.pth", "--work-dir", tmp_path),
        *("--fast", "--dtype", "bfloat16", "--cfg-options", *small_shapes),
    )
    assert "coco_panoptic/PQ" in read_metrics(tmp_path)
    check, _, fast = used_config(tmp_path).custom_hooks
    assert check.type == "hcformer_mm.DataCheckHook"
    assert fast == dict(type="hcformer_mm.FastInferenceHook", fast=True, dtype="bfloat16")


def test_augmented_test_with_all_other_options(trained, small_shapes, tmp_path):
    """All metrics read the merged results, and files hold them."""
    dump = tmp_path / "predictions.pkl"
    run_tool(
        *("tools/test.py", SHAPES_CONFIG, trained / "iter_2.pth", "--work-dir", tmp_path, "--tta"),
        *("--fast", "--dtype", "bfloat16", "--out", dump, "--show-dir", "images"),
        *("--cfg-options", *small_shapes, "test_dataloader.batch_size=2"),
    )
    scores = read_metrics(tmp_path)
    assert {"coco_panoptic/PQ", "coco/segm_mAP", "sem_seg/mIoU"} <= scores.keys()
    predictions = pickle.loads(dump.read_bytes())
    assert len(predictions) == 3
    for prediction in predictions:
        assert prediction["pred_panoptic_seg"]["sem_seg"].shape[1:] == prediction["ori_shape"]
        assert "view" not in prediction
    assert len(list(tmp_path.glob("*/images/**/*.jpg"))) == 3


def test_fast_training(small_shapes, tmp_path):
    options = ["norm_eval=True", "norm_cfg.type=BN", "norm_cfg.requires_grad=False"]
    options = [f"model.backbone.backbone.{option}" for option in options]
    train(tmp_path, [*small_shapes, *options], "--fast", iterations=1)
    names = load_checkpoint(tmp_path / "iter_1.pth")["state_dict"]
    assert "backbone.backbone.layer1.0.bn1.weight" in names
    assert used_config(tmp_path).custom_hooks[-1].type == "hcformer_mm.FastTrainingHook"


def test_per_pixel_classifier(shapes, tmp_path):
    """It logs its losses, and is tested in windows and on probabilities."""
    options = loader_options(shapes)
    train(tmp_path, [*options, "default_hooks.logger.interval=1"], config=PER_PIXEL)
    *training, validation = read_scalars(tmp_path)
    for record in training[:2]:
        names = {"decode.loss_ce", "decode.loss_scale", "aux.loss_ce"}
        assert names <= record.keys()
        assert record["loss"] == pytest.approx(sum(record[name] for name in names), rel=1e-4)
    assert training[0]["decode.loss_scale"] == pytest.approx(0.1 * 3 * 0.1)
    assert 0 <= validation["mIoU"] <= 100

    windows = ["mode=slide", "crop_size=(128,128)", "stride=(96,96)"]
    run_tool(
        *("tools/test.py", PER_PIXEL, tmp_path / "iter_2.pth", "--work-dir", tmp_path / "test"),
        *("--cfg-options", *options, *(f"model.test_cfg.{option}" for option in windows)),
        *("model.decode_head.mask_space=probability", "--show-dir", "images"),
    )
    assert 0 <= read_metrics(tmp_path / "test")["mIoU"] <= 100
    assert len(list((tmp_path / "test").glob("*/images/*.png"))) == 3

    run_tool(
        *("tools/test.py", PER_PIXEL, tmp_path / "iter_2.pth", "--work-dir", tmp_path / "tta"),
        *("--tta", "--fast", "--out", tmp_path / "label_maps", "--cfg-options", *options),
    )
    assert 0 <= read_metrics(tmp_path / "tta")["mIoU"] <= 100
    assert len(list((tmp_path / "label_maps").glob("*.png"))) == 3


def test_auto_scale_lr_needs_a_base_batch_size(tmp_path):
    with pytest.raises(SystemExit, match=r"expected auto_scale_lr\.base_batch_size"):
        run_tool("tools/train.py", SHAPES_CONFIG, "--work-dir", tmp_path, "--auto-scale-lr")


def test_a_work_dir_that_is_a_file(tmp_path):
    file = tmp_path / "results"
    file.touch()
    with pytest.raises(SystemExit, match=r"^train: .*File exists: '.*results'"):
        run_tool("tools/train.py", SHAPES_CONFIG, "--work-dir", file)


def test_a_checkpoint_at_a_url_is_no_path():
    """A path would lose the second slash."""
    given = dict(config=SHAPES_CONFIG, checkpoint="https://a.org/b.pth", work_dir=None)
    config = load_config(Namespace(**given, cfg_options=None, launcher="none", local_rank=0))
    assert config.load_from == "https://a.org/b.pth"


def test_dump_must_be_a_pickle():
    with pytest.raises(SystemExit, match=r"expected --out to end in \.pkl"):
        run_tool("tools/test.py", SHAPES_CONFIG, "x.pth", "--out", "x.json")


@pytest.fixture
def quick(shapes, tmp_path):
    """A config that is tested on three images by mIoU."""
    quick_config(shapes, tmp_path / "work_dir").dump(tmp_path / "quick.py")
    return tmp_path / "quick.py"


def test_checkpoints_of_other_classes_are_refused(quick, checkpoint):
    weights = checkpoint("configs/shapes/hcformer_r18_shapes-instance.py")
    match = r"^test: .*instance\.pth does not fit .*cls_embed\.weight \(7, 128\) for \(11, 128\)"
    with pytest.raises(SystemExit, match=match):
        run_tool("tools/test.py", quick, weights)


def test_checkpoints_with_classes_in_another_order_are_refused(quick, trained, tmp_path):
    """Their shapes are the same, and every score would be that of another class."""
    content = load_checkpoint(trained / "iter_2.pth")
    first, second, *rest = content["meta"]["dataset_meta"]["classes"]
    content["meta"]["dataset_meta"]["classes"] = (second, first, *rest)
    torch.save(content, tmp_path / "swapped.pth")
    match = r"on the classes box, disc, .*, but the dataset has disc, box, .*--allow-partial"
    tool = "tools/analysis_tools/evaluate_clusters.py"
    with pytest.raises(SystemExit, match=match):
        run_tool(tool, quick, tmp_path / "swapped.pth")
    assert not list((tmp_path / "work_dir").glob("*/*.json"))
    run_tool(tool, quick, tmp_path / "swapped.pth", "--allow-partial")
    assert "mIoU" in read_metrics(tmp_path / "work_dir")


@pytest.mark.slow
def test_fine_tuning_starts_from_other_classes(quick, checkpoint, tmp_path):
    weights = checkpoint("configs/shapes/hcformer_r18_shapes-instance.py")
    printed = run_tool("tools/train.py", quick, "--cfg-options", f"load_from={weights}")
    assert "2 of another shape: panoptic_head.cls_embed.weight (7, 128) for (11, 128)" in printed
    assert (tmp_path / "work_dir" / "iter_2.pth").is_file()


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (SHAPES_CONFIG, ("coco_panoptic/PQ", "coco/segm_mAP", "sem_seg/mIoU")),
        (SEMANTIC_CONFIG, ("mIoU", "aAcc")),
    ],
)
def test_exported_files_have_the_metrics_of_the_model(
    path, names, shapes, small_shapes, tmp_path, monkeypatch
):
    """With the model itself in place of the file."""
    model = lively_model(Config.fromfile(ROOT / path))
    confident(model)
    options = loader_options(shapes)
    if path == SHAPES_CONFIG:
        model.test_cfg.object_mask_thr = model.panoptic_fusion_head.test_cfg.object_mask_thr = 0.2
        options = [*small_shapes, "model.test_cfg.object_mask_thr=0.2"]
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "model.pth")
    run_tool(
        *("tools/test.py", path, tmp_path / "model.pth", "--work-dir", tmp_path),
        *("--cfg-options", *options),
    )
    expected = read_metrics(tmp_path)

    exported = export.ExportableModel(model, with_postprocess=True, uint8=True).eval()
    monkeypatch.setattr(export, "load_exported", lambda path: torch.no_grad()(exported))
    output = run_tool("tools/deployment/test.py", path, "model.onnx", "--cfg-options", *options)
    found = dict(line.split(": ") for line in output.splitlines() if ": " in line)
    assert expected[names[-1]] > 0
    for name in names:
        assert float(found[name]) == pytest.approx(expected[name], abs=0.006), name


def test_exported_files_get_the_pixels_of_the_model(small_shapes, monkeypatch):
    """Those of 10 to 16 bits too, which mmcv's step reads in another way."""
    monkeypatch.setattr(export, "load_exported", lambda path: None)
    pipelines = []
    monkeypatch.setattr(
        Runner, "build_dataloader", lambda loader: pipelines.append(loader.dataset.pipeline)
    )
    with pytest.raises(AttributeError):  # there is no loader
        run_tool("tools/deployment/test.py", SHAPES_CONFIG, "x", "--cfg-options", *small_shapes)
    assert pipelines[0][0].type == "hcformer_mm.LoadImageFromFile"
