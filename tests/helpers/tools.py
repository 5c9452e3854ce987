"""Quick runs of configs, and of the command-line tools inside the process of the tests."""

import io
import itertools
import json
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization import Visualizer

from tests.helpers.models import SHAPES_CONFIG

ROOT = Path(__file__).parents[2]
INSTANCE_CONFIG = "configs/shapes/hcformer_r18_shapes-instance.py"
RUN_NUMBERS = itertools.count()


def run_tool(path, *arguments):
    """Run a tool as from the command line, and return what it prints.

    MMEngine finds loggers, message hubs and visualizers by name; those of earlier runs are dropped.
    """
    for cls in (MMLogger, MessageHub, Visualizer, *Visualizer.__subclasses__()):
        cls._instance_dict.clear()
    output = io.StringIO()
    argv = [str(ROOT / path), *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ),
        redirect_stdout(output),
        redirect_stderr(output),
    ):
        runpy.run_path(argv[0], run_name="__main__")
    return output.getvalue()


def quick_config(root, work_dir, path=SHAPES_CONFIG, *, batch_size=1, hooks=None):
    """A Shapes config for two iterations on images of at most 128x96 pixels in this process.

    Args:
        root: Folder of the data set.
        work_dir: Folder of logs and checkpoints.
        path: A Shapes config; one without stuff is evaluated by COCO's metric, others by mIoU.
        batch_size: Images of a batch in training.
        hooks: Configs of the custom hooks; None keeps those of the config.
    """
    config = Config.fromfile(ROOT / path)
    config.work_dir = str(work_dir)
    config.experiment_name = config.visualizer.name = f"{Path(work_dir).name}-{next(RUN_NUMBERS)}"
    for split in ("train", "val", "test"):
        loader = config[f"{split}_dataloader"]
        loader.update(batch_size=1, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f"{root}/"
        for step in loader.dataset.pipeline:
            if "scale" in step:
                step.scale = (128, 96)
    config.train_dataloader.batch_size = batch_size
    metric = dict(type="mmseg.IoUMetric" if "decode_head" in config.model else "mmdet.SemSegMetric")
    if path == INSTANCE_CONFIG:
        file = f"{root}/annotations/instances_val.json"
        metric = dict(type="mmdet.CocoMetric", ann_file=file, metric="segm")
    config.val_evaluator = config.test_evaluator = [metric]
    config.train_cfg.update(max_iters=2, val_interval=2)
    config.default_hooks.checkpoint = dict(type="CheckpointHook", interval=2, by_epoch=False)
    if hooks is not None:
        config.custom_hooks = list(hooks)
    config.randomness = dict(seed=0)
    return config


def torchrun(script, folder, processes=2):
    """Run a script on a folder in several processes of torchrun."""
    rendezvous = ("--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0")
    arguments = (f"--nproc_per_node={processes}", *rendezvous, script, str(folder))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=folder,  # MMEngine collects results in ./.dist_test
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-5000:]


def loader_options(root):
    """Options that let all dataloaders of a config read a data set in this process."""
    return [
        f"{split}_dataloader.{option}"
        for split in ("train", "val", "test")
        for option in (f"dataset.data_root={root}/", "num_workers=0", "persistent_workers=False")
    ]


def read_metrics(work_dir):
    """The metrics of the only test in a work directory, from <time>/<time>.json."""
    (log,) = (path for path in work_dir.glob("*/*.json") if path.stem == path.parent.name)
    return json.loads(log.read_text())


def read_scalars(work_dir):
    """What all runs in a work directory have logged, from <time>/vis_data/scalars.json."""
    return [
        json.loads(line)
        for path in sorted(work_dir.glob("*/vis_data/scalars.json"))
        for line in path.read_text().splitlines()
    ]
