"""A run whose model, config and data do not fit each other is refused before anything runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pycocotools.coco
import pytest
from mmdet.datasets import CocoPanopticDataset
from mmengine.config import Config
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.hub import get_config
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import Runner
from mmseg.datasets import ADE20KDataset
from torch import nn

from hcformer_mm.datasets import ShapesInstanceDataset, ShapesPanopticDataset
from hcformer_mm.engine import DataCheckHook
from hcformer_mm.engine.run_checks import annotations
from hcformer_mm.engine.runner import build_runner
from hcformer_mm.utils.errors import InputError
from tests.helpers.models import SEMANTIC_CONFIG
from tests.helpers.run_configs import Loop, head, maskformer
from tests.helpers.tools import INSTANCE_CONFIG, quick_config, run_tool, torchrun


def check(model, **datasets):
    """Run the hook on the datasets of these splits; the other loops are not built yet."""
    loops = {"_train_loop": dict(), "_val_loop": None, "_test_loop": dict()}
    for split, dataset in datasets.items():
        loops[f"_{split}_loop"] = Loop(None, SimpleNamespace(dataset=dataset))
    hook = HOOKS.build(dict(type="hcformer_mm.DataCheckHook"))
    hook.before_run(SimpleNamespace(model=model, cfg=Config(), **loops))


def dataset(cls, **options):
    """A dataset that has read nothing yet."""
    return cls(lazy_init=True, data_prefix=dict(), **options)


def test_what_fits_passes():
    check(
        maskformer(6, 4), train=dataset(ShapesPanopticDataset), val=dataset(ShapesPanopticDataset)
    )
    check(maskformer(80, 53), test=dataset(CocoPanopticDataset))
    check(maskformer(6, 0), train=dataset(ShapesInstanceDataset))


@pytest.mark.parametrize("part", ["panoptic_head", "panoptic_fusion_head"])
@pytest.mark.parametrize(("kind", "real"), [("things", 6), ("stuff", 4)])
def test_both_numbers_and_the_key_are_named(part, kind, real):
    model = maskformer(6, 4)
    setattr(getattr(model, part), f"num_{kind}_classes", 7)
    kind_of_class = "thing_classes" if kind == "things" else "stuff_classes"
    expected = (
        rf"model.{part}.num_{kind}_classes is 7, but ShapesPanopticDataset "
        rf"\(val_dataloader.dataset\) has {real} {kind_of_class}; "
        rf"set model.{part}.num_{kind}_classes={real}, or correct val_dataloader.dataset.metainfo"
    )
    with pytest.raises(InputError, match=expected) as raised:
        check(model, val=dataset(ShapesPanopticDataset))
    assert len(str(raised.value).splitlines()) == 1


def test_dataset_of_things_has_no_stuff():
    with pytest.raises(InputError, match=r"num_stuff_classes is 4, but .* has 0 stuff_classes"):
        check(maskformer(6, 4), train=dataset(ShapesInstanceDataset))


def test_segmentor():
    model = nn.Module()
    model.decode_head = head(num_classes=150)
    model.auxiliary_head = nn.ModuleList([head(num_classes=150), head(num_classes=19)])
    expected = r"model.auxiliary_head.1.num_classes is 19, but ADE20KDataset .* has 150 classes"
    with pytest.raises(InputError, match=expected) as raised:
        check(model, train=dataset(ADE20KDataset))
    assert len(str(raised.value).splitlines()) == 1
    model.auxiliary_head[1].num_classes = 150
    check(model, train=dataset(ADE20KDataset))


def test_wrappers_are_looked_into():
    wrapped = nn.Module()
    wrapped.module = maskformer(5, 4)
    shapes = dataset(ShapesPanopticDataset)
    repeated = RepeatDataset(shapes, 2, lazy_init=True)
    both = ConcatDataset([shapes, shapes], lazy_init=True)
    for outer, inner in ((repeated, 1), (both, 2)):
        with pytest.raises(InputError, match="num_things_classes is 5") as raised:
            check(wrapped, train=outer)
        assert str(raised.value).count("num_things_classes is 5") == 2 * inner


def test_stuff_before_things_is_refused():
    """The fusion head would take the first labels for things."""
    things, stuff = ("cat", "dog"), ("sky",)
    metainfo = dict(classes=stuff + things, thing_classes=things, stuff_classes=stuff)
    with pytest.raises(InputError, match="expected classes to be the things and then the stuff"):
        check(maskformer(2, 1), train=dataset(CocoPanopticDataset, metainfo=metainfo))


def test_one_class_without_a_comma_is_refused():
    metainfo = dict(classes=("cat"), thing_classes=("cat",), stuff_classes=())
    broken = dataset(CocoPanopticDataset)
    broken._metainfo = metainfo
    with pytest.raises(InputError, match=r"classes 'cat'; expected a tuple: \('cat',\)"):
        check(maskformer(1, 0), train=broken)


def test_other_models_and_datasets_are_left_alone():
    check(nn.Linear(1, 1), train=dataset(ShapesPanopticDataset))
    check(maskformer(3, 4), train=[1, 2, 3])
    check(maskformer(3, 4))


@pytest.mark.parametrize("run", ["train", "val", "test"])
def test_runner_refuses(shapes, tmp_path, run):
    config = quick_config(shapes, tmp_path)
    config.model.panoptic_head.num_things_classes = 5
    runner = Runner.from_cfg(config)
    with pytest.raises(InputError, match=r"panoptic_head.num_things_classes is 5") as raised:
        getattr(runner, run)()
    named = [
        split for split in ("train", "val", "test") if f"{split}_dataloader" in str(raised.value)
    ]
    assert named == (["train", "val"] if run == "train" else [run])
    assert runner.iter == 0


def test_class_that_the_file_lacks_is_refused(shapes, tmp_path):
    """After a misspelt class, labels would be those of other classes."""
    config = quick_config(shapes, tmp_path)
    meta = ShapesPanopticDataset.METAINFO
    config.test_dataloader.dataset.metainfo = dict(
        classes=("disk", *meta["classes"][1:]), thing_classes=("disk", *meta["thing_classes"][1:])
    )
    with pytest.raises(InputError, match=r"got no disk; set test_dataloader.dataset.metainfo to"):
        Runner.from_cfg(config).test()


def test_train_tool_refuses(shapes, tmp_path):
    """The runtime of a segmentor's config switches the hook on."""
    config = quick_config(shapes, tmp_path, SEMANTIC_CONFIG)
    config.model.decode_head.num_classes = 3
    config.dump(tmp_path / "config.py")
    expected = r"decode_head\.num_classes is 3, but ShapesSemanticDataset \(train_dataloader"
    with pytest.raises(SystemExit, match=expected):
        run_tool("tools/train.py", tmp_path / "config.py")
    assert not list(tmp_path.rglob("*.pth"))


def fewer_classes(config):
    """MMDetection would stop with ``KeyError``, before any hook."""
    meta = ShapesPanopticDataset.METAINFO
    root = config.train_dataloader.dataset.data_root
    content = json.loads(Path(root, "annotations/panoptic_train.json").read_text())
    used = {s["category_id"] for one in content["annotations"] for s in one["segments_info"]}
    names = {one["id"]: one["name"] for one in content["categories"]}
    left_out = next(names[one] for one in sorted(used) if names[one] in meta["stuff_classes"])
    config.train_dataloader.dataset.metainfo = dict(
        classes=tuple(name for name in meta["classes"] if name != left_out),
        stuff_classes=tuple(name for name in meta["stuff_classes"] if name != left_out),
    )
    return f"expected no segments in .*panoptic_train.json .* got {left_out}; add them to its"


def another_order(config):
    """The right number of classes, so that MMDetection and the model would take them."""
    meta = ShapesPanopticDataset.METAINFO
    grass, water, *rest = meta["stuff_classes"]
    stuff = (water, grass, *rest)
    config.train_dataloader.dataset.metainfo = dict(
        classes=(*meta["thing_classes"], *stuff), stuff_classes=stuff
    )
    return "which numbers labels, got 'water' in place of 'grass'; set train_dataloader"


def endless_epochs(config):
    config.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2)
    return "expected a sampler that ends an epoch .* got InfiniteSampler"


@pytest.mark.parametrize("change", [fewer_classes, another_order, endless_epochs])
def test_train_tool_refuses_in_one_sentence(shapes, tmp_path, change):
    """Also in a config whose own hooks replace those of the runtime."""
    config = quick_config(shapes, tmp_path, hooks=[])
    expected = change(config)
    config.dump(tmp_path / "config.py")
    with pytest.raises(SystemExit, match=expected) as raised:
        run_tool("tools/train.py", tmp_path / "config.py")
    assert str(raised.value).startswith("train: ")
    assert not list(tmp_path.rglob("*.pth"))


def test_joined_test_sets_are_refused(shapes, tmp_path):
    """``CocoMetric`` would score the second set against the first one's annotations."""
    config = quick_config(shapes, tmp_path, INSTANCE_CONFIG)
    dataset = config.test_dataloader.dataset
    config.test_dataloader.dataset = dict(type="ConcatDataset", datasets=[dataset, dataset])
    with pytest.raises(InputError, match="expected images with ids of their own"):
        build_runner(config, ["test"])


def test_several_datasets_are_scored_apart(shapes, tmp_path):
    """What the refusal proposes works: each dataset gets its own figures."""
    config = quick_config(shapes, tmp_path, INSTANCE_CONFIG)
    datasets, metrics = [], []
    for split in ("train", "val"):
        dataset = config.test_dataloader.dataset.to_dict()
        file = f"annotations/instances_{split}.json"
        datasets.append(dict(dataset, ann_file=file, data_prefix=dict(img=f"{split}/")))
        metrics.append(dict(config.test_evaluator[0].to_dict(), ann_file=f"{shapes}/{file}"))
    config.test_dataloader.dataset = dict(type="ConcatDataset", datasets=datasets)
    config.test_evaluator = dict(
        type="MultiDatasetsEvaluator", metrics=metrics, dataset_prefixes=["train", "val"]
    )
    scores = build_runner(config, ["test"]).test()
    assert {"train/coco/segm_mAP", "val/coco/segm_mAP"} <= set(scores)


def test_annotations_are_released_when_training_starts(shapes, tmp_path):
    """Also of files that no dataset has asked for."""
    config = quick_config(shapes, tmp_path, hooks=[])
    config.val_evaluator.append(
        dict(type="mmdet.CocoMetric", ann_file=f"{shapes}/annotations/instances_val.json")
    )
    runner = build_runner(config)
    annotations._handed_over["file.json"] = ("file.json", 0, 0), {}
    assert annotations._known
    runner.train()
    assert not annotations._known and not annotations._handed_over
    assert pycocotools.coco.json is json


def test_other_models_pass(shapes):
    """A Mask R-CNN of mmdet, trained by epochs, is checked for its data alone."""
    config = get_config("mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    for split in ("train", "val"):
        config[f"{split}_dataloader"].dataset.update(
            data_root=f"{shapes}/",
            ann_file=f"annotations/instances_{split}.json",
            data_prefix=dict(img=f"{split}/"),
            metainfo=dict(classes=ShapesInstanceDataset.METAINFO["classes"]),
        )
    config.val_evaluator.ann_file = f"{shapes}/annotations/instances_val.json"
    runner = SimpleNamespace(model=nn.Linear(1, 1), cfg=config)
    with DefaultScope.overwrite_default_scope("mmdet"):
        DataCheckHook().check(runner, ["train", "val"])
        config.val_dataloader.dataset.ann_file = "nowhere.json"
        with pytest.raises(InputError, match=r"nowhere.json: No such file"):
            DataCheckHook().check(runner, ["train", "val"])


REFUSED_RUN = """
import sys
from mmengine.config import Config
from mmengine.dist import get_rank

from hcformer_mm.engine.runner import build_runner
from hcformer_mm.utils.errors import InputError

config = Config.fromfile(f"{sys.argv[1]}/config.py")
config.launcher = "pytorch"
config.env_cfg.dist_cfg.backend = "gloo"
try:
    build_runner(config)
except InputError as error:
    open(f"{sys.argv[1]}/rank{get_rank()}.txt", "w").write(str(error))
"""


@pytest.mark.slow
def test_all_processes_refuse(shapes, tmp_path):
    """The main process reads the files, and all stop with its sentences."""
    config = quick_config(shapes, tmp_path)
    another_order(config)
    config.dump(tmp_path / "config.py")
    (tmp_path / "run.py").write_text(REFUSED_RUN)
    torchrun(tmp_path / "run.py", tmp_path)
    first, second = (tmp_path / f"rank{rank}.txt" for rank in (0, 1))
    assert "got 'water' in place of 'grass'" in first.read_text()
    assert first.read_text() == second.read_text()
