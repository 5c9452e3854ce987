"""The two photographs that demo/photographs.py writes."""

import json

import photographs

from hcformer_mm.datasets.checks import check_panoptic
from hcformer_mm.utils.config import build_without_weights, read_config


def test_photographs_and_their_config(tmp_path):
    config = read_config(photographs.write(tmp_path, 40))
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert (
        check_panoptic(tmp_path / "panoptic.json", tmp_path / "panoptic", tmp_path / "images") == []
    )
    classes = [
        [photographs.CLASSES[segment["category_id"]] for segment in entry["segments_info"]]
        for entry in content["annotations"]
    ]
    assert sorted(classes[0]) == ["cloth"] + 24 * ["coin"]
    assert sorted(classes[1]) == ["cup", "floor", "saucer", "spoon", "table"]
    head = build_without_weights(config).panoptic_head
    assert head.num_things_classes == 4 and head.num_stuff_classes == 3
    assert head.num_queries > 25
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        (scale,) = (step.scale for step in loader.dataset.pipeline if "scale" in step)
        assert scale == (384, 303)
    assert config.param_scheduler[1].end == config.train_cfg.max_iters == 40
