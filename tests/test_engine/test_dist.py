"""Launchers and backends that machines without GPUs lack are refused in one sentence."""

import pytest
from mmengine.config import Config

from hcformer_mm.engine import dist
from hcformer_mm.utils.errors import InputError


@pytest.mark.parametrize(
    ("launcher", "backend"), [("pytorch", None), ("pytorch", "nccl"), ("slurm", "gloo")]
)
def test_gpus_that_are_not_there(launcher, backend, monkeypatch):
    monkeypatch.setattr(dist, "get_device", lambda: "cpu")
    config = Config(dict(launcher=launcher))
    if backend:
        config.env_cfg = dict(dist_cfg=dict(backend=backend))
    with pytest.raises(InputError, match=f"got '{launcher}' and '{backend or 'nccl'}'; start with"):
        dist.set_up_gloo(config)
