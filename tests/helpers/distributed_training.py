"""Training runs in one process, or in those that torchrun starts, which record their losses.

As a script, ``distributed_training.py FOLDER`` runs every config in the folder and writes the
losses of all steps to ``<config>.rank<rank>.json``.
"""

import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from panopticapi.utils import rgb2id
from PIL import Image

from hcformer_mm.engine import set_up_gloo
from hcformer_mm.engine.runner import build_runner
from hcformer_mm.utils.errors import InputError
from tests.helpers.models import SHAPES_CONFIG
from tests.helpers.tools import ROOT, torchrun

rand = torch.rand


def fixed_points(*size, **options):
    """Replace ``torch.rand`` by the same numbers at each call and for each image or mask.

    So the points at which a mask is compared do not depend on the batch.
    """
    shape = size if isinstance(size[0], int) else size[0]
    points = rand(shape[1:], generator=torch.Generator().manual_seed(0))
    return points.expand(shape).contiguous()


class Recorder(Hook):
    """Keeps the losses of each step."""

    def __init__(self):
        self.steps = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.steps.append({name: float(value.detach()) for name, value in outputs.items()})


@HOOKS.register_module()
class Interrupt(Hook):
    """Ends a process after the first iteration, by a signal or an error, and records the time."""

    def __init__(self, rank, way, record):
        self.rank = rank
        self.way = way
        self.record = Path(record)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if get_rank() == self.rank:
            self.record.write_text(str(time.time()))
            if self.way == "error":
                raise InputError("refused by one process")
            os.kill(os.getpid(), signal.Signals[self.way])


def write_config(folder, name, segments, *, steps, **changes):
    """Write a config that trains on the first ``len(segments)`` Shapes in ``folder``.

    Args:
        folder: Holds the set as ``shapes``.
        name: Name of the config.
        segments: Number of segments that each image keeps; one batch has all images.
        steps: Number of iterations.
        changes: Options of the config, with ``__`` for a dot.
    """
    root = folder / "shapes"
    content = json.loads((root / "annotations/panoptic_train.json").read_text())
    maps = root / "annotations" / name
    maps.mkdir()
    for annotation, number in zip(content["annotations"], segments, strict=True):
        assert number <= len(annotation["segments_info"])
        del annotation["segments_info"][number:]
        file = annotation["file_name"]
        colors = np.array(Image.open(root / "annotations/panoptic_train" / file))
        kept = np.isin(rgb2id(colors), [segment["id"] for segment in annotation["segments_info"]])
        Image.fromarray(colors * kept[..., None].astype(colors.dtype)).save(maps / file)
    (root / f"annotations/{name}.json").write_text(json.dumps(content))
    config = Config.fromfile(ROOT / SHAPES_CONFIG)
    config.merge_from_dict(
        {
            "model.backbone.backbone.norm_cfg.requires_grad": False,
            "model.backbone.backbone.norm_eval": True,
            "model.panoptic_head.transformer_decoder.num_layers": 1,
            "model.train_cfg.num_points": 256,
            "train_dataloader.dataset.data_root": f"{root}/",
            "train_dataloader.dataset.ann_file": f"annotations/{name}.json",
            "train_dataloader.dataset.data_prefix.seg": f"annotations/{name}/",
            "train_dataloader.sampler.shuffle": False,
            "train_dataloader.batch_size": len(segments),
            "train_dataloader.num_workers": 0,
            "train_dataloader.persistent_workers": False,
            "env_cfg.dist_cfg.backend": "gloo",
            "train_cfg.max_iters": steps,
            "randomness": dict(seed=0),
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )
    # With one size and no flip, an image does not depend on the others of its batch.
    resize, flip = config.train_dataloader.dataset.pipeline[2:4]
    resize.update(scale=(96, 64), keep_ratio=False)
    flip.prob = 0.0
    # The full rate from the beginning, so that a step shows in the next loss.
    config.param_scheduler = None
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    config.dump(folder / f"{name}.py")


def train(path, launcher="none"):
    """Run a config and return its losses, one dict per step."""
    config = Config.fromfile(path)
    config.launcher = launcher
    config.work_dir = str(path.with_suffix(""))
    config.experiment_name = f"{path.stem}-{launcher}"
    set_up_gloo(config)
    if launcher != "none":
        config.train_dataloader.batch_size //= torch.distributed.get_world_size()
    recorder = Recorder()
    runner = build_runner(config)
    runner.register_hook(recorder)
    patch = mock.patch("torch.rand", fixed_points)
    with nullcontext() if config.get("random_points") else patch:
        runner.train()
    return recorder.steps


def launch(folder, processes=2):
    """Run all configs of a folder in processes and return their losses by name and rank."""
    torchrun(__file__, folder, processes)
    return {
        path.stem: [
            json.loads(path.with_suffix(f".rank{rank}.json").read_text())
            for rank in range(processes)
        ]
        for path in folder.glob("*.py")
    }


def main():
    for path in sorted(Path(sys.argv[1]).glob("*.py")):
        steps = train(path, "pytorch")
        rank = torch.distributed.get_rank()
        path.with_suffix(f".rank{rank}.json").write_text(json.dumps(steps))
        torch.distributed.barrier()  # the next config may read what this one writes
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
