"""Evaluation of shares of images in several processes.

As a script under torchrun, ``shards.py FOLDER`` evaluates its process's share of the samples of
every case and writes the metrics to ``rank<rank>.json`` in the folder.
"""

import json
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.dist import get_rank

from tests.helpers.clustering_samples import CLASSES, THINGS, evaluate, metric, samples
from tests.helpers.panoptic_sets import (
    GROUND,
    SKY,
    THING,
    drawing,
    metainfo,
    predicted,
    write_panoptic_set,
)
from tests.helpers.tools import torchrun

GROUPS = [(THING,), (GROUND, SKY), (), (THING, SKY), (GROUND,), (), (GROUND, SKY)]
"""Segments of each image: of two processes one sees no thing of the first six, nor does the last of
three."""


def drawn(folder):
    """Files and samples of images that lack things, stuff or both."""
    ids = {f"{i}.jpg": drawing(*segments) for i, segments in enumerate(GROUPS)}
    files = write_panoptic_set(folder / f"drawn{get_rank()}", "val", ids)
    given = [predicted(drawing(*segments, shift=3 * i), i + 1) for i, segments in enumerate(GROUPS)]
    return files, given


def cases(folder):
    """Metrics, metainfo and samples of every case, by name."""
    clusters, instances = metric(folder), metric(folder, "instance")
    panoptic = {key: clusters[key] for key in ("ann_file", "seg_prefix")}
    ours = dict(type="hcformer_mm.CocoPanopticMetric")
    truth = dict(ann_file=instances["ann_file"])
    masks = [
        dict(type="mmdet.CocoMetric", metric="segm", **truth),
        dict(type="hcformer_mm.CocoBoundaryMetric", **truth),
    ]
    semantic = dict(type="mmdet.SemSegMetric", prefix="sem_seg")
    every = samples(folder)
    (ann_file, seg_prefix), given = drawn(folder)
    lacking = [dict(ours, ann_file=ann_file, seg_prefix=seg_prefix)]
    return {
        "panoptic": ([dict(ours, **panoptic), *masks, semantic, clusters], CLASSES, every),
        "instance": ([*masks, instances], CLASSES[:THINGS], every),
        "fewer images than processes": ([dict(ours, **panoptic), clusters], CLASSES, every[:1]),
        "groups that a process lacks": (lacking, metainfo()["classes"], given),
        "void alone": (lacking, metainfo()["classes"], given[2:3]),
    }


def evaluate_shares(folder):
    """Metrics of every case, of the shares that MMEngine's sampler gives to this process."""
    found = {}
    for name, (metrics, classes, given) in cases(folder).items():
        share = [given[index] for index in DefaultSampler(given, shuffle=False)]
        found[name] = evaluate(metrics, share, len(given), classes=classes)
    return found


def launch(folder, processes):
    """Evaluate in several processes and return the metrics of each."""
    torchrun(__file__, folder, processes)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


def main():
    from hcformer_mm.engine import set_up_gloo

    folder = Path(sys.argv[1])
    set_up_gloo(Config(dict(launcher="pytorch", env_cfg=dict(dist_cfg=dict(backend="gloo")))))
    metrics = evaluate_shares(folder)
    (folder / f"rank{get_rank()}.json").write_text(json.dumps(metrics, default=float))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
