"""Mixed precision trains on CPUs, in bfloat16, and GPUs keep MMEngine's."""

import math

import pytest
import torch
from mmengine.config import Config

from hcformer_mm.engine import mixed_precision
from hcformer_mm.engine.mixed_precision import BFloat16OptimWrapper, complete_optim_wrapper
from hcformer_mm.engine.runner import build_runner
from hcformer_mm.utils.errors import InputError
from tests.helpers.exporting import TINY
from tests.helpers.tools import quick_config, read_scalars

AMP = dict(type="AmpOptimWrapper", loss_scale="dynamic", optimizer=dict(type="SGD", lr=0.1))


@pytest.fixture
def on(monkeypatch):
    """Pretend a type of device."""
    return lambda device: monkeypatch.setattr(mixed_precision, "get_device", lambda: device)


def completed(**options):
    config = Config(dict(default_scope="mmdet", optim_wrapper={**AMP, **options}))
    return complete_optim_wrapper(config), config.optim_wrapper


@pytest.mark.parametrize("options", [{}, dict(dtype="bfloat16"), dict(use_fsdp=True)])
def test_cpus_train_in_bfloat16(on, options):
    on("cpu")
    sentence, wrapper = completed(**options)
    assert sentence == "Mixed precision: bfloat16 on cpu, without loss scaling"
    assert wrapper == dict(type="hcformer_mm.BFloat16OptimWrapper", optimizer=AMP["optimizer"])
    again = Config(dict(optim_wrapper=wrapper))
    assert complete_optim_wrapper(again) == sentence and again.optim_wrapper == wrapper


@pytest.mark.parametrize(
    ("options", "dtype"), [({}, "float16"), (dict(dtype="bfloat16"), "bfloat16")]
)
def test_gpus_keep_the_wrapper_of_mmengine(on, options, dtype):
    on("cuda")
    sentence, wrapper = completed(**options)
    assert sentence.startswith(f"Mixed precision: {dtype} on cuda, with loss")
    assert wrapper == {**AMP, **options}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_full_precision_stays(on, device):
    on(device)
    assert completed(type="OptimWrapper") == (None, {**AMP, "type": "OptimWrapper"})
    assert complete_optim_wrapper(Config(dict(model=dict()))) is None


def test_cpus_refuse_float16(on):
    on("cpu")
    with pytest.raises(InputError, match=r"'bfloat16' for mixed precision on a CPU, got 'float16'"):
        completed(dtype="float16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
def test_losses_are_finite(shapes, tmp_path):
    config = quick_config(shapes, tmp_path)
    config.merge_from_dict({**TINY, "model.train_cfg.num_points": 256})
    config.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
    config.train_cfg.max_iters = 3
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    config.default_hooks.logger.interval = 1
    runner = build_runner(config, splits=("train",))
    assert isinstance(runner.optim_wrapper, BFloat16OptimWrapper)
    dtypes = set()
    runner.model.backbone.backbone.layer1.register_forward_hook(
        lambda module, args, output: dtypes.add(output.dtype)
    )
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    runner.train()
    assert dtypes == {torch.bfloat16}
    losses = [row["loss"] for row in read_scalars(tmp_path) if "loss" in row]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    for name, parameter in runner.model.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.isfinite().all()
        assert not torch.equal(parameter, before[name]), name
    (log,) = tmp_path.glob("*/*.log")
    assert "Mixed precision: bfloat16 on cpu, without loss scaling" in log.read_text()
