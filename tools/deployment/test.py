"""Test an exported model with the metrics of its config."""

import argparse
import sys
from pathlib import Path
from typing import Any

import hcformer_mm.utils.threads  # noqa: F401

import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData

from hcformer_mm.deployment.export import load_exported
from hcformer_mm.engine.completion import complete_evaluators, complete_pipelines
from hcformer_mm.utils.arguments import add_cfg_options
from hcformer_mm.utils.config import read_config
from hcformer_mm.utils.progress import progress


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("config", help="config file, name of a config of this package, or package::path")
    add("file", type=Path, help="file exported with --dynamic --with-postprocess --uint8")
    add_cfg_options(parser)
    return parser.parse_args()


def evaluate(config: Any, file: Path) -> dict[str, float]:
    """Metrics of the config's test set by name."""
    run = load_exported(file)
    complete_pipelines(config)
    complete_evaluators(config)
    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmdet")):
        loader = Runner.build_dataloader(config.test_dataloader)
        evaluator = Evaluator(config.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in progress(loader, len(loader)):
        for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
            rgb = image.flip(0).permute(1, 2, 0)[None].contiguous()  # files are loaded as BGR
            results = {k: x[0] for k, x in run(rgb, torch.tensor(sample.ori_shape)).items()}
            if "panoptic" in results:
                sample.pred_panoptic_seg = PixelData(sem_seg=results["panoptic"][None])
            if "semantic" in results:
                semantic = results["semantic"][None].long()
                # Metrics of mmdet and of mmseg read it by different names.
                sample.pred_sem_seg = PixelData(sem_seg=semantic, data=semantic)
            if "masks" in results:
                there = results["labels"] >= 0
                sample.pred_instances = InstanceData(
                    masks=results["masks"][results["mask_index"][there]],
                    bboxes=results["boxes"][there],
                    labels=results["labels"][there],
                    scores=results["scores"][there],
                )
        evaluator.process(batch["data_samples"], batch)
    return evaluator.evaluate(len(loader.dataset))


def main() -> None:
    args = parse_args()
    try:
        for name, value in evaluate(read_config(args.config, args.cfg_options), args.file).items():
            print(f"{name}: {value:.4g}")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"test: {error}")


if __name__ == "__main__":
    main()
