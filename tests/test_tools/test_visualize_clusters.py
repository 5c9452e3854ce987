"""The tool on an untrained model: what it draws is checked where the geometry says what it is."""

import copy
import importlib.util
import itertools
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from PIL import Image
from torch import nn

from hcformer_mm.visualization import Classes

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/shapes/hcformer_r18_shapes-panoptic.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "visualize_clusters", ROOT / "tools/visualize_clusters.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config() -> Config:
    config = Config.fromfile(CONFIG)
    init_default_scope("mmdet")
    return config


@pytest.fixture(scope="module")
def model(config: Config) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(config.model).eval()


@pytest.fixture(scope="module")
def checkpoint(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "untrained.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {}}, path)
    return path


@pytest.fixture
def classes() -> Classes:
    return Classes(["cup", "field"], frozenset(["cup"]))


def write_picture(path: Path, height: int, width: int) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def write_ground_truth(folder: Path, name: str, height: int, width: int, **changes) -> Path:
    """A picture whose left half is a disc and whose right half is sand, in COCO's format."""
    segments = np.zeros((height, width, 3), np.uint8)
    segments[:, : width // 2] = (5, 1, 0)  # id 5 + 256
    segments[:, width // 2 :] = (9, 0, 0)
    (folder / "panoptic").mkdir()
    Image.fromarray(segments).save(folder / "panoptic" / f"{Path(name).stem}.png")
    content = {
        "images": [{"id": 3, "file_name": name, "height": height, "width": width}],
        "categories": [{"id": 71, "name": "disc", "isthing": 1}, {"id": 4, "name": "sand"}],
        "annotations": [
            {
                "image_id": 3,
                "file_name": f"{Path(name).stem}.png",
                "segments_info": [
                    {"id": 261, "category_id": 71},
                    {"id": 9, "category_id": 4},
                ],
            }
        ],
    }
    path = folder / "panoptic.json"
    path.write_text(json.dumps(content | changes))
    return path


def run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["visualize_clusters", *map(str, arguments)])
    tool.main()


def test_sheets_are_written(
    tool: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [write_picture(tmp_path / f"{name}.png", 150, 210) for name in "ab"]
    gt = write_ground_truth(tmp_path, "a.png", 150, 210)
    out = tmp_path / "deep" / "out"

    run(tool, monkeypatch, CONFIG, checkpoint, "--img", *pictures, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png"]
    without = np.asarray(Image.open(out / "a.png"))
    # A picture of 210 pixels is enlarged 6 times; four columns, two rows.
    assert without.shape[1] > 4 * 6 * 210
    assert 2 * 6 * 150 < without.shape[0] < 3 * 6 * 150

    run(tool, monkeypatch, CONFIG, checkpoint, "--img", pictures[0], "--gt", gt, "--out", out)
    with_gt = np.asarray(Image.open(out / "a.png"))
    assert with_gt.shape[1] == without.shape[1]
    assert with_gt.shape[0] > 3 * 6 * 150


def test_labels_honour_resize_and_padding(tool: ModuleType) -> None:
    """A picture of 33×47, resized to 50×71 and padded to 64×96, at stride 4."""
    torch.manual_seed(0)
    levels = [torch.rand(1, 9, 16, 24), torch.rand(1, 9, 8, 12), torch.rand(1, 9, 4, 6)]
    result = DetDataSample(
        metainfo=dict(ori_shape=(33, 47), img_shape=(50, 71), batch_input_shape=(64, 96))
    )
    labels = tool.picture_clusters(result, tuple(levels))
    cells = [level[0] for level in tool.hierarchical_clusters(levels, dense=False)]

    assert [level.shape for level in labels] == [(33, 47)] * 3
    for level in range(3):
        same = set()
        for y, x in itertools.product(range(33), range(47)):
            row, col = int((y + 0.5) * 50 / 33) // 4, int((x + 0.5) * 71 / 47) // 4
            same.add((int(labels[level][y, x]), int(cells[level][row, col])))
        # One to one: equal regions, numbered anew.
        assert len(same) == len({a for a, _ in same}) == len({b for _, b in same})


def test_clusters_of_the_model_belong_to_the_picture(
    tool: ModuleType, config: Config, model: nn.Module, tmp_path: Path
) -> None:
    path = write_picture(tmp_path / "a.png", 150, 210)
    inputs = tool.make_pipeline(config)(dict(img_path=str(path), img_id=0))
    result, assignments = tool.segment(model, inputs)
    labels = tool.picture_clusters(result, assignments)
    #   150×210 becomes 183×256 (keeping its ratio in 192×256), which is padded to 192×256
    assert tuple(result.batch_input_shape) == (192, 256)
    assert [tuple(level.shape) for level in assignments] == [
        (1, 9, 48, 64),
        (1, 9, 24, 32),
        (1, 9, 12, 16),
    ]
    assert [level.shape for level in labels] == [(150, 210)] * 3
    counts = [len(np.unique(level)) for level in labels]
    assert counts[0] > counts[1] > counts[2] > 1
    assert not model.backbone._forward_hooks


def test_prediction(tool: ModuleType, classes: Classes) -> None:
    result = DetDataSample()
    assert tool.predicted(result, classes) is None
    result.pred_sem_seg = PixelData(sem_seg=torch.tensor([[[1, 0]]]))
    assert tool.predicted(result, classes).categories == {0: 0, 1: 1}
    # The third cup, the field, and void, whose label is the number of classes.
    result.pred_panoptic_seg = PixelData(sem_seg=torch.tensor([[[3000, 1, 2]]]))
    prediction = tool.predicted(result, classes)
    assert prediction.categories == {3000: 0, 1: 1}
    assert prediction.segments.tolist() == [[3000, 1, 2]]


def test_ground_truth(tool: ModuleType, tmp_path: Path) -> None:
    path = write_ground_truth(tmp_path, "a.jpg", 4, 6)
    truth = tool.GroundTruth(path, Classes(["sand", "box", "disc"]))
    panoptic = truth.read(tmp_path / "somewhere" / "a.jpg", (4, 6))
    assert panoptic.segments.tolist() == [[261] * 3 + [9] * 3] * 4
    assert panoptic.categories == {261: 2, 9: 0}


def test_unusable_ground_truth(tool: ModuleType, tmp_path: Path) -> None:
    path = write_ground_truth(tmp_path, "a.jpg", 4, 6)
    truth = tool.GroundTruth(path, Classes(["sand", "disc"]))
    with pytest.raises(tool.UsageError, match=r"no ground truth of b\.jpg"):
        truth.read(Path("b.jpg"), (4, 6))
    with pytest.raises(tool.UsageError, match=r"of the picture's size \(6, 4\), got \(4, 6\)"):
        truth.read(Path("a.jpg"), (6, 4))
    with pytest.raises(tool.UsageError, match=r"no class for \['disc'\]"):
        tool.GroundTruth(path, Classes(["sand"])).read(Path("a.jpg"), (4, 6))
    (tmp_path / "panoptic" / "a.png").unlink()
    with pytest.raises(tool.UsageError, match=r"missing: .*panoptic/a\.png"):
        truth.read(Path("a.jpg"), (4, 6))
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(tool.UsageError, match="no COCO panoptic JSON: it lacks 'categories'"):
        tool.GroundTruth(path, Classes(["sand"]))


def test_files_are_checked_first(tool: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "a.png", 4, 6)
    arguments = Namespace(config=CONFIG, checkpoint=checkpoint, img=[picture], gt=None)
    tool.check_files(arguments)
    arguments.gt = tmp_path / "nothing.json"
    with pytest.raises(tool.UsageError, match=r"no such file: .*nothing\.json"):
        tool.check_files(arguments)
    arguments.gt, arguments.img = None, [picture, tmp_path / "x" / "a.jpg"]
    arguments.img[1].parent.mkdir()
    write_picture(arguments.img[1], 4, 6)
    with pytest.raises(tool.UsageError, match=r"several pictures would be drawn into a\.png"):
        tool.check_files(arguments)


def test_error_ends_in_one_line(
    tool: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"visualize_clusters: no such file: nothing\.jpg"):
        run(tool, monkeypatch, CONFIG, checkpoint, "--img", "nothing.jpg", "--out", out)
    assert not out.exists()


def test_model_without_clusters(
    tool: ModuleType, config: Config, tmp_path: Path, model: nn.Module
) -> None:
    flat_config = copy.deepcopy(config)
    flat_config.model.backbone.hierarchical_level = 0
    flat = MODELS.build(flat_config.model).eval()
    path = write_picture(tmp_path / "a.png", 40, 60)
    inputs = tool.make_pipeline(config)(dict(img_path=str(path), img_id=0))
    with pytest.raises(tool.UsageError, match="the backbone HCBackbone clusters nothing"):
        tool.segment(flat, inputs)


class Harmful:
    """Pickles into a call of ``eval``."""

    def __reduce__(self) -> tuple:
        return eval, ("1 + 1",)


def test_checkpoints_that_are_refused(
    tool: ModuleType, model: nn.Module, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.pth"
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    del weights["panoptic_head.query_embed.weight"]
    torch.save({"state_dict": weights}, path)
    with pytest.raises(tool.UsageError, match="does not fit the config") as error:
        tool.load_weights(model, path)
    assert "query_embed" in str(error.value)
    torch.save({"state_dict": {}, "meta": Harmful()}, path)
    with pytest.raises(tool.UsageError, match="to hold weights, plain values and logs"):
        tool.load_weights(model, path)


def test_checkpoint_with_training_logs(
    tool: ModuleType, model: nn.Module, checkpoint: Path, tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    history = HistoryBuffer([0.5, 0.25], [1, 1])
    content["message_hub"] = {"log_scalars": {"loss": history}, "lr": np.float64(0.1)}
    content["meta"] = {"dataset_meta": {"classes": ("a", "b"), "thing_classes": ("a",)}}
    path = tmp_path / "trained.pth"
    torch.save(content, path)
    meta = tool.load_weights(model, path)
    classes = tool.read_classes(Config({}), meta)
    assert (classes.names, classes.things) == (("a", "b"), frozenset("a"))


def test_failed_write_leaves_nothing(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Image.Image, target: Path, **_: object) -> None:
        target.write_bytes(b"half of it")
        raise OSError("disk full")

    tool.save(np.zeros((3, 4, 3), np.uint8), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        tool.save(np.ones((3, 4, 3), np.uint8), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before
