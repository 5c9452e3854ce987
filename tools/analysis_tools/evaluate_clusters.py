"""Score the clusters of every level on a config's test set, and split the loss among its parts."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process

from hcformer_mm.engine.runner import add_common_arguments, build_runner, load_config
from hcformer_mm.utils.atomic_write import replacing

METRIC = "hcformer_mm.ClusteringMetric"
HOOK = "hcformer_mm.ClusterRecordHook"
# Metrics that count every image of their annotations, tested or not.
OF_ALL_IMAGES = ("CocoMetric", "CocoBoundaryMetric")


def json_file(text: str) -> Path:
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"expected a file *.json, got {text!r}")
    return Path(text)


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--slic",
        action="store_true",
        help="score superpixels of SLIC, about as many as each level has clusters, as well; on the "
        "CPU that takes seconds for each large image",
    )
    parser.add_argument(
        "--limit",
        type=at_least_one,
        metavar="N",
        help="evaluate the first N images; without the host's AP, which counts all images",
    )
    parser.add_argument(
        "--out", type=json_file, metavar="JSON", help="write all figures to this file"
    )
    return parser.parse_args()


def is_a(config: dict, *names: str) -> bool:
    """Whether the type of a config, a name or a class, ends in one of the names."""
    kind = config["type"]
    return getattr(kind, "__name__", kind).rpartition(".")[2] in names


def clustering_metric(evaluators: list[ConfigDict]) -> dict[str, Any]:
    """A ClusteringMetric with the ground truth that the metrics of a config read."""
    for evaluator in evaluators:
        files = {name: evaluator.get(name) for name in ("ann_file", "backend_args")}
        if is_a(evaluator, "CocoPanopticMetric"):
            files["seg_prefix"] = evaluator.get("seg_prefix")
            return dict(type=METRIC, ground_truth="panoptic", **files)
    for evaluator in evaluators:
        if is_a(evaluator, "IoUMetric", "SemSegMetric"):
            void = evaluator.get("ignore_index", 255)
            return dict(type=METRIC, ground_truth="semantic", ignore_index=void)
    for evaluator in evaluators:
        files = {name: evaluator.get(name) for name in ("ann_file", "backend_args")}
        if is_a(evaluator, *OF_ALL_IMAGES):
            return dict(type=METRIC, ground_truth="instance", **files)
    raise ValueError(
        "expected a CocoPanopticMetric, IoUMetric, SemSegMetric or CocoMetric in test_evaluator, "
        f"to learn of the ground truth, got {[evaluator['type'] for evaluator in evaluators]}; put "
        f'a dict(type="{METRIC}", ground_truth=…) there'
    )


def add_clusters(config: Config, *, slic: bool) -> None:
    """Add the hook that records clusters and the metric that scores them."""
    given = config.test_evaluator
    evaluators = list(given) if isinstance(given, list | tuple) else [given]
    own = [evaluator for evaluator in evaluators if is_a(evaluator, "ClusteringMetric")]
    if not own:
        own = [clustering_metric(evaluators)]
        evaluators += own
    own[0]["slic"] = slic or own[0].get("slic", False)
    config.test_evaluator = evaluators
    hooks = list(config.get("custom_hooks") or [])
    if not any(is_a(hook, "ClusterRecordHook") for hook in hooks):
        config.custom_hooks = [*hooks, dict(type=HOOK)]


def limit_images(config: Config, number: int) -> None:
    """Test the first images alone."""
    dataset = config.test_dataloader.dataset
    if "pipeline" not in dataset:
        raise ValueError(
            f"expected one dataset with a pipeline for --limit, got {dataset['type']} around others"
        )
    dataset.indices = number
    config.test_evaluator = [
        evaluator for evaluator in config.test_evaluator if not is_a(evaluator, *OF_ALL_IMAGES)
    ]


def write(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, the whole of it or nothing."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")


def evaluate(args: argparse.Namespace) -> None:
    config = load_config(args)
    config.load_from = args.checkpoint
    add_clusters(config, slic=args.slic)
    if args.limit is not None:
        limit_images(config, args.limit)
    metrics = build_runner(config).test()
    if args.out is not None and is_main_process():
        # JSON knows no nan, which is what nothing in the data defines.
        figures = {
            name: None if math.isnan(value) else float(value) for name, value in metrics.items()
        }
        write(args.out, dict(config=args.config, checkpoint=args.checkpoint, metrics=figures))


def main() -> None:
    args = parse_args()
    try:
        evaluate(args)
    except (ValueError, TypeError, FileNotFoundError) as error:
        sys.exit(f"evaluate_clusters: {error}")


if __name__ == "__main__":
    main()
