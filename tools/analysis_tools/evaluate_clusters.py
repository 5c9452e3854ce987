"""Score the clusters of every level on a config's test set, and attribute the model's errors."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import hcformer_mm.utils.threads  # noqa: F401

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.fileio import get
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner, autocast

from hcformer_mm.apis.result_writer import check_writable, write_image
from hcformer_mm.engine.run_checks.lookup import is_named
from hcformer_mm.engine.runner import (
    add_checkpoint_arguments,
    add_common_arguments,
    build_runner,
    check_settings,
    load_config,
)
from hcformer_mm.evaluation import ClusteringMetric
from hcformer_mm.structures.panoptic import Classes
from hcformer_mm.utils.arguments import number
from hcformer_mm.utils.atomic_write import replacing
from hcformer_mm.utils.config import naming
from hcformer_mm.utils.images import decode_image
from hcformer_mm.utils.strict_json import dumps
from hcformer_mm.visualization import fault_sheet

METRIC = "hcformer_mm.ClusteringMetric"
HOOK = "hcformer_mm.ClusterRecordHook"
# Metrics that count every image of their annotations, tested or not.
COUNT_ALL_IMAGES = ("CocoMetric", "CocoBoundaryMetric")


def json_file(text: str) -> Path:
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"expected a file *.json, got {text!r}")
    return Path(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--slic",
        action="store_true",
        help="also score SLIC superpixels, about as many as each level has clusters; takes seconds "
        "per large image on the CPU",
    )
    parser.add_argument(
        "--limit",
        type=number(int, 1),
        metavar="N",
        help="evaluate only N images, evenly spaced over the set, without CocoMetric's AP, which "
        "counts all images",
    )
    parser.add_argument(
        "--out", type=json_file, metavar="JSON", help="write all results to this file"
    )
    parser.add_argument(
        "--worst",
        nargs="?",
        type=number(int, 1),
        const=3,
        metavar="N",
        help="draw the N images (3 by default) that lose most PQ by each kind of fault, as "
        "<kind>_<rank>.png in the folder of the name of --out without .json",
    )
    args = parser.parse_args()
    if args.worst is not None and args.out is None:
        parser.error("expected --out with --worst, which names the folder of the drawings")
    return args


def clustering_metric(evaluators: list[ConfigDict]) -> dict[str, Any]:
    """Return the config of a ClusteringMetric that reads the ground truth of another metric."""

    def first(*names: str) -> ConfigDict | None:
        return next((evaluator for evaluator in evaluators if is_named(evaluator, *names)), None)

    def files(evaluator: ConfigDict, *names: str) -> dict[str, Any]:
        return {name: evaluator.get(name) for name in ("ann_file", "backend_args", *names)}

    if (panoptic := first("CocoPanopticMetric")) is not None:
        return dict(type=METRIC, ground_truth="panoptic", **files(panoptic, "seg_prefix"))
    if (semantic := first("IoUMetric", "SemSegMetric")) is not None:
        void = semantic.get("ignore_index")
        return dict(type=METRIC, ground_truth="semantic", ignore_index=void)
    if (instance := first(*COUNT_ALL_IMAGES)) is not None:
        return dict(type=METRIC, ground_truth="instance", **files(instance))
    raise ValueError(
        "expected a CocoPanopticMetric, IoUMetric, SemSegMetric or CocoMetric in test_evaluator, "
        f"which names the ground truth, got {[evaluator.get('type') for evaluator in evaluators]}; "
        f'add dict(type="{METRIC}", ground_truth=…) to it'
    )


def add_clusters(config: Config, *, slic: bool) -> str:
    """Add the hook that records clusters and the metric that scores them.

    Returns:
        The kind of ground truth of the metric.
    """
    given = config.test_evaluator
    evaluators = list(given) if isinstance(given, list | tuple) else [given]
    own = [evaluator for evaluator in evaluators if is_named(evaluator, "ClusteringMetric")]
    if not own:
        own = [clustering_metric(evaluators)]
        evaluators += own
    own[0]["slic"] = slic or own[0].get("slic", False)
    config.test_evaluator = evaluators
    hooks = list(config.get("custom_hooks") or [])
    if not any(is_named(hook, "ClusterRecordHook") for hook in hooks):
        config.custom_hooks = [*hooks, dict(type=HOOK)]
    if "panoptic_fusion_head" in config.model:
        config.model.test_cfg = {**(config.model.get("test_cfg") or {}), "candidates_on": True}
    return str(own[0]["ground_truth"])


def limit_images(config: Config, number: int) -> str:
    """Test only some images, evenly spaced, as neighbors are often alike; return what is tested."""
    dataset = config.test_dataloader.dataset
    if "pipeline" not in dataset:
        raise ValueError(
            f"expected a dataset with a pipeline for --limit, got {dataset.get('type')}, a wrapper"
        )
    check_settings(config, ["test"])
    listed = dataset.get("indices")
    if listed is None or isinstance(listed, int):  # so many from the start, or below 0 from the end
        with DefaultScope.overwrite_default_scope(config.get("default_scope")), naming(config):
            images = range(len(DATASETS.build({**dataset, "indices": None})))
        listed = images[listed:] if (listed or 0) < 0 else images[:listed]
    total = len(listed)
    number = min(number, total)
    dataset.indices = [listed[index * total // number] for index in range(number)]
    config.test_evaluator = [
        evaluator
        for evaluator in config.test_evaluator
        if not is_named(evaluator, *COUNT_ALL_IMAGES)
    ]
    return f"{number} of {total} images, evenly spaced"


def predict_again(runner: Runner, paths: Collection[str]) -> Iterator[DetDataSample]:
    """Predict some images of the test set once more."""
    loader = runner.test_loop.dataloader
    dataset = loader.dataset
    images = ((i, dataset.get_data_info(i)["img_path"]) for i in range(len(dataset)))
    for i in [i for i, path in images if path in paths]:
        with autocast(enabled=runner.test_loop.fp16), torch.no_grad():
            yield from runner.model.test_step(loader.collate_fn([dataset[i]]))


def draw_worst(runner: Runner, number: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Draw the worst images of each kind of fault; return path, loss and drawing of each."""
    metrics = runner.test_loop.evaluator.metrics
    metric = next(metric for metric in metrics if isinstance(metric, ClusteringMetric))
    classes = Classes.from_metainfo(metric.dataset_meta)
    report: dict[str, list[dict[str, Any]]] = {}
    of_image = defaultdict(list)
    for kind, images in metric.worst_images(number).items():
        report[kind] = []
        for rank, (path, loss, faults) in enumerate(images, start=1):
            sheet = str(folder / f"{kind}_{rank}.png")
            report[kind].append(dict(image=path, loss=loss, sheet=sheet))
            of_image[path].append((sheet, faults, f"{Path(path).stem}, {loss:.2f} of PQ"))
    for sample in predict_again(runner, of_image):
        segments = metric.segments(sample.to_dict())
        content = get(sample.img_path, backend_args=metric.backend_args)
        image = np.ascontiguousarray(decode_image(content, sample.img_path)[..., ::-1])
        for sheet, faults, note in of_image[sample.img_path]:
            write_image(sheet, fault_sheet(image, *segments, faults, classes=classes, note=note))
    return report


def evaluate(args: argparse.Namespace) -> None:
    config = load_config(args)
    truth = add_clusters(config, slic=args.slic)
    if args.worst is not None and truth != "panoptic":
        raise ValueError(
            f"expected panoptic ground truth with --worst, got {truth}, whose figures are no sums "
            "over segments; omit --worst"
        )
    if args.out is not None:  # an evaluation takes long
        check_writable(args.out.parent if args.worst is None else args.out.with_suffix(""))
    tested = "all images" if args.limit is None else limit_images(config, args.limit)
    runner = build_runner(config, ["test"], allow_partial=args.allow_partial)
    runner.logger.info(f"Clusters are evaluated on {tested}")
    metrics = runner.test()
    if args.out is not None and is_main_process():
        # NaN marks scores that are undefined on every image.
        figures = {name: float(value) for name, value in metrics.items()}
        report = dict(config=args.config, checkpoint=args.checkpoint, metrics=figures)
        if args.worst is not None:
            report["worst"] = draw_worst(runner, args.worst, args.out.with_suffix(""))
        with replacing(args.out) as unfinished:
            unfinished.write_text(dumps(report, indent=2) + "\n")


def main() -> None:
    args = parse_args()
    try:
        evaluate(args)
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"evaluate_clusters: {error}")


if __name__ == "__main__":
    main()
