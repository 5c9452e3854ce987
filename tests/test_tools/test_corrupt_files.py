"""Every tool answers a broken file with one sentence that names it, and runs no code from it."""

import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.models import SHAPES_CONFIG
from tests.helpers.tools import ROOT, quick_config, run_tool
from tests.test_checkpoints.test_io import Touch

CONFIG = ROOT / SHAPES_CONFIG
IMAGE = ("--shape", 64, 96)
BENCHMARK = (*IMAGE, "--threads", 1, "--repeats", 1, "--warmup", 0)

# Command lines of all tools that read configs and checkpoints, in terms of both.
MODELS = {
    "visualize": lambda c, w, d: (
        *("tools/visualize_clusters.py", c, w, "--img", d, "--out", d / "o"),
    ),
    "image_demo": lambda c, w, d: ("demo/image_demo.py", d, c, w, "--out", d / "o"),
    "explorer": lambda c, w, d: ("demo/explorer.py", c, w, "--device", "cpu"),
    "export": lambda c, w, d: ("tools/deployment/export.py", c, w, "--format", "onnx", *IMAGE),
    "benchmark": lambda c, w, d: (
        *("benchmarks/benchmark.py", "model", c, "--checkpoints", w, *BENCHMARK),
    ),
}
CONVERTERS = {
    "convert": lambda c, w, d: (
        *("tools/model_converters/hcformer_d2_to_mm.py", w, d / "o.pth", "--config", c),
    ),
    "revert": lambda c, w, d: (
        *("tools/model_converters/hcformer_d2_to_mm.py", "--reverse", w, d / "o.pth"),
    ),
    "warm_start": lambda c, w, d: (
        *("tools/model_converters/warm_start.py", w, d / "o.pth", "--config", c),
    ),
    "publish": lambda c, w, d: ("tools/misc/publish_model.py", w, d / "o.pth"),
}
RUNS = {
    "test": lambda c, w, d: ("tools/test.py", c, w, "--work-dir", d / "o"),
    "evaluate": lambda c, w, d: (
        *("tools/analysis_tools/evaluate_clusters.py", c, w, "--work-dir", d / "o"),
    ),
    "resume": lambda c, w, d: ("tools/train.py", c, "--work-dir", d / "o", "--resume", w),
    "load_from": lambda c, w, d: (
        *("tools/train.py", c, "--work-dir", d / "o", "--cfg-options", f"load_from={w}"),
    ),
    "pretrained": lambda c, w, d: ("tools/train.py", c, "--work-dir", d / "o"),
}
OTHERS = {
    "get_flops": lambda c, w, d: ("tools/analysis_tools/get_flops.py", c, *IMAGE),
    "benchmark_train": lambda c, w, d: ("benchmarks/benchmark.py", "train", c, *BENCHMARK),
}
READ_CONFIGS = {
    **MODELS,
    "warm_start": CONVERTERS["warm_start"],
    **{name: RUNS[name] for name in ("test", "evaluate", "resume")},
    **OTHERS,
}


def save(path, **entries):
    torch.save(dict(meta={}, state_dict=dict(weight=torch.ones(64)), **entries), path)
    return path.read_bytes()


def flip(data):
    """Another bit in the middle of the weights."""
    place = data.index(np.ones(64, np.float32).tobytes()) + 130
    return data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :]


CHECKPOINTS = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>404 not found</html>"),
    "truncated": lambda path: path.write_bytes(save(path)[:700]),
    "flipped": lambda path: path.write_bytes(flip(save(path))),
    "list": lambda path: torch.save([1, 2], path),
    "code": lambda path: save(path, extra=Touch(path.with_name("marker"))),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Touch(path.with_name("marker")))),
}
CONFIGS = {
    "missing.py": None,
    "folder.py": "folder",
    "empty.py": b"",
    "syntax.py": b"model = dict(\ntype=",
    "raises.py": b"model = dict(type=unknown)",
    "base.py": b'_base_ = "nowhere.py"',
    "binary.py": b"\x80\x04\x00\xff\xfe" * 9,
    "list.json": b"[1, 2]",
    "cut.json": b'{"model": {"type": ',
    "broken.yaml": b"model: [1, 2\n  x: }",
    "text.txt": b"model = dict()",
    "no_model.py": b"optim_wrapper = dict()",
    "wrong_model.py": b'model = dict(type="mmdet.NoSuchDetector")',
}
READ_JSON = {
    "draw": lambda file, w, d: (
        *("tools/visualize_clusters.py", CONFIG, w, "--img", d / "a.png", "--out", d / "o"),
        *("--gt", file),
    ),
    "image_demo": lambda file, w, d: (
        *("demo/image_demo.py", d, CONFIG, w, "--out", d / "o", "--ann-file", file),
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an image, in which the tools run."""
    Image.fromarray(np.full((64, 96, 3), 127, np.uint8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(*command):
    """The sentence with which a tool refuses a command line."""
    with pytest.raises(SystemExit) as stopped:
        run_tool(*command)
    message = stopped.value.code
    assert isinstance(message, str)  # printed to standard error, with exit code 1
    assert re.match(r"[a-z0-9_]+: ", message)
    assert "Traceback" not in message and len(message) < 1000
    return message


def pairs(tools, faults, one, some):
    """All pairs; by default one tool with all faults, and all tools with some."""
    return [
        pytest.param(tool, fault, marks=[pytest.mark.slow] * (tool != one and fault not in some))
        for tool in tools
        for fault in faults
    ]


@pytest.mark.parametrize(
    ("tool", "fault"),
    pairs(READ_CONFIGS, CONFIGS, "get_flops", ("missing.py", "raises.py", "wrong_model.py")),
)
def test_configs(tool, fault, folder):
    path, content = folder / fault, CONFIGS[fault]
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    weights = folder / "x.pth"
    save(weights)
    assert str(path) in refuse(*READ_CONFIGS[tool](path, weights, folder))


@pytest.mark.parametrize(
    ("tool", "fault"),
    pairs({**MODELS, **CONVERTERS}, CHECKPOINTS, "publish", ("missing", "code")),
)
def test_checkpoints(tool, fault, folder):
    path = folder / "weights.pth"
    CHECKPOINTS[fault](path)
    command = {**MODELS, **CONVERTERS}[tool](CONFIG, path, folder)
    assert str(path) in refuse(*command)
    assert not list(folder.glob("o*"))
    assert not (folder / "marker").exists()


@pytest.mark.parametrize("key", ["ann_file", "proposal_file"])
def test_annotations_that_run_code(key, shapes, folder):
    """MMEngine's datasets unpickle a file with this suffix."""
    config = quick_config(shapes, folder / "o")
    config.train_dataloader.dataset[key] = str(folder / "annotations.pkl")
    CHECKPOINTS["pickle"](folder / "annotations.pkl")
    config.dump(folder / "quick.py")
    message = refuse("tools/train.py", folder / "quick.py")
    assert f"expected no pickle in train_dataloader.dataset.{key}" in message
    assert not (folder / "marker").exists()


@pytest.mark.parametrize(
    ("tool", "fault"),
    [
        ("test", "code"),
        ("evaluate", "truncated"),
        ("resume", "code"),
        ("load_from", "pickle"),
        ("pretrained", "code"),
    ],
)
def test_checkpoints_of_runs(tool, fault, shapes, folder):
    """All runs read checkpoints by one function."""
    path, config = folder / "weights.pth", quick_config(shapes, folder / "o")
    if tool == "pretrained":
        init = dict(type="Pretrained", checkpoint=str(path))
        config.model.backbone.backbone.init_cfg = init
    config.dump(folder / "quick.py")
    CHECKPOINTS[fault](path)
    message = refuse(*RUNS[tool](folder / "quick.py", path, folder))
    assert f": expected {path} to be" in message or f": expected {path} to hold only" in message
    assert not (folder / "marker").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "content"),
    [
        ("draw", b'{"images": [{"id": 1'),
        ("image_demo", b"\x80\x04\x00\xff"),
        ("image_demo", b"[1]"),
    ],
)
def test_annotations_of_models(tool, content, checkpoint, folder):
    path, weights = folder / "x.json", checkpoint(SHAPES_CONFIG)
    path.write_bytes(content)
    assert str(path) in refuse(*READ_JSON[tool](path, weights, folder))
    assert not list(folder.glob("o/*.json"))


def test_annotations_of_models_run_no_code(checkpoint, folder):
    path, weights = folder / "x.pkl", checkpoint(SHAPES_CONFIG)
    path.write_bytes(pickle.dumps(Touch(folder / "marker")))
    assert str(path) in refuse(*READ_JSON["image_demo"](path, weights, folder))
    assert not (folder / "marker").exists()
