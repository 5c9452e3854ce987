"""Runs of the command-line tools inside the process of the tests."""

import io
import json
import os
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization import Visualizer

ROOT = Path(__file__).parents[2]


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
