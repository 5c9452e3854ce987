"""Fast tests report the metrics of plain tests; training and validation stay as they were."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine._strategy.deepspeed import MMDeepSpeedEngineWrapper
from mmengine.evaluator import BaseMetric
from mmengine.model import MMDistributedDataParallel
from mmengine.model.wrappers import MMFullyShardedDataParallel
from mmengine.registry import HOOKS, METRICS
from mmengine.runner import Runner, set_random_seed
from mmengine.runner import runner as runner_module
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from hcformer_mm.apis.inference import build_model
from hcformer_mm.engine import FastInferenceHook, FastTrainingHook
from hcformer_mm.engine.hooks.fast_inference_hook import unwrap
from hcformer_mm.utils.errors import InputError
from tests.helpers.conv_bn import overridden
from tests.helpers.models import SHAPES_CONFIG
from tests.helpers.predictions import diversify, outspoken_config
from tests.helpers.tools import quick_config

FCN = "configs/shapes/hc-fcn32s_r18_shapes-semantic.py"


@METRICS.register_module()
class HowItRuns(BaseMetric):
    """Reports whether the model is fused and channels-last, and which dtypes it computes in."""

    default_prefix = "how"
    model: Any
    activations: torch.dtype
    error: Exception | None = None

    def process(self, data_batch, data_samples):
        if self.error is not None:
            raise self.error
        backbone = self.model.backbone.backbone
        weight = next(m.weight for m in backbone.modules() if isinstance(m, nn.Conv2d))
        for sample in data_samples:
            segments, logits = sample.get("pred_instances"), sample.get("seg_logits")
            scores = segments["scores"] if logits is None else logits["data"]
            self.results.append(
                dict(
                    fused=not any(isinstance(m, _BatchNorm) for m in backbone.modules()),
                    channels_last=weight.is_contiguous(memory_format=torch.channels_last),
                    activations=str(type(self).activations),
                    scores=str(scores.dtype),
                )
            )

    def compute_metrics(self, results):
        assert all(result == results[0] for result in results)
        return results[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Weights of the panoptic model, with other BatchNorms than those of a new one."""
    model = build_model(outspoken_config())
    diversify(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0.0, 0.1)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


@pytest.fixture
def build(shapes, tmp_path, run_device, monkeypatch):
    """The runner of a config on three images, on each device."""
    monkeypatch.setattr(runner_module, "get_device", lambda: str(run_device))

    def runner(path=SHAPES_CONFIG, hooks=(), load_from=None):
        config = quick_config(shapes, tmp_path, path, hooks=hooks)
        if path == SHAPES_CONFIG:
            config.model.test_cfg.update(object_mask_thr=0.0, iou_thr=0.0)  # keeps every segment
        config.load_from = load_from
        config.test_evaluator = [dict(type="HowItRuns"), *config.test_evaluator]
        config.val_evaluator = config.test_evaluator
        built = Runner.from_cfg(config)
        HowItRuns.model, HowItRuns.error = built.model, None

        def note(module, args):
            HowItRuns.activations = args[0].dtype

        built.model.backbone.backbone.maxpool.register_forward_pre_hook(note)
        return built

    return runner


def hook(**options):
    return dict(type="hcformer_mm.FastInferenceHook", **options)


def how(metrics):
    """State of the model, dtypes, and the other metrics."""
    said = {key: metrics.pop(f"how/{key}") for key in ("fused", "channels_last")}
    types = [metrics.pop(f"how/{key}") for key in ("activations", "scores")]
    return said, [kind.removeprefix("torch.") for kind in types], metrics


PLAIN = dict(fused=False, channels_last=False)
FAST = dict(fused=True, channels_last=True)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_plain(model, before):
    """The model has the same values in the same memory layout."""
    assert list(model.state_dict()) == list(before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.is_contiguous(), name
    assert "test_step" not in vars(model)


def test_metrics_stay(build, checkpoint):
    expected = build(load_from=checkpoint)
    said, types, metrics = how(expected.test())
    assert (said, types) == (PLAIN, ["float32", "float32"])
    assert metrics["mIoU"] > 0
    before = state(expected.model)

    fast = build(load_from=checkpoint, hooks=[hook()])
    for _ in range(2):  # A runner may test again.
        said, types, others = how(fast.test())
        assert (said, types) == (FAST, ["float32", "float32"])
        assert others == pytest.approx(metrics, abs=0.05)  # per cent
        assert_plain(fast.model, before)


@pytest.mark.parametrize("path", [SHAPES_CONFIG, FCN])
@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16(build, path, fast):
    said, types, _ = how(build(path, hooks=[hook(fast=fast, dtype="bfloat16")]).test())
    assert said == (FAST if fast else PLAIN)
    assert types == ["bfloat16", "float32"]


def test_training_and_validation_are_left_alone(build):
    """The hook changes neither, and the model can be tested afterwards."""
    runners = [build(), build(hooks=[hook(dtype="bfloat16")])]
    said = []
    for runner in runners:
        HowItRuns.model = runner.model
        said.append(how(runner.val()))
        set_random_seed(0)
        runner.train()
    assert said[0] == said[1]
    assert said[1][:2] == (PLAIN, ["float32", "float32"])
    assert_plain(runners[1].model, state(runners[0].model))
    assert how(runners[1].test())[0] == FAST
    assert_plain(runners[1].model, state(runners[0].model))


def test_averaged_weights(build):
    """MMEngine's EMAHook exchanges weights before and after a test."""
    ema = dict(type="EMAHook", momentum=0.5)
    runners = [build(hooks=[ema]), build(hooks=[ema, hook()])]
    outputs = []
    for runner in runners:
        HowItRuns.model = runner.model
        set_random_seed(0)
        runner.train()
        logits = []
        handle = runner.model.panoptic_head.cls_embed.register_forward_hook(
            lambda module, args, output, logits=logits: logits.append(output)
        )
        before = state(runner.model)
        runner.call_hook("before_test_epoch")
        averaged = state(runner.model)
        runner.call_hook("after_test_epoch")
        assert any(not torch.equal(before[name], averaged[name]) for name in before)
        said, _, _ = how(runner.test_loop.run())
        handle.remove()
        assert_plain(runner.model, before)
        outputs.append(torch.cat(logits[-3:]))
    assert said == FAST
    # The last three are those of the images; the runs that fusing takes come before them.
    assert torch.allclose(*outputs, atol=1e-4 * outputs[0].abs().max())


def test_after_an_error(build, checkpoint):
    """The next run starts with the model as it was."""
    runner = build(load_from=checkpoint, hooks=[hook(dtype="bfloat16")])
    before = state(build(load_from=checkpoint).model)
    HowItRuns.model = runner.model
    HowItRuns.error = KeyError("of the metric")
    with pytest.raises(KeyError, match="of the metric"):
        runner.test()
    HowItRuns.error = None
    said, _, _ = how(runner.val())
    assert said == PLAIN
    assert list(runner.model.state_dict()) == list(before)
    assert "test_step" not in vars(runner.model)
    assert how(runner.test())[0] == FAST


def test_wrapped_and_compiled_models(build, checkpoint):
    """The inner model is prepared, and keeps a ``test_step`` of its own."""
    runner = build(load_from=checkpoint, hooks=[hook(dtype="bfloat16")])
    model = runner.model

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model

        def test_step(self, data):
            return self.module.test_step(data)

    steps = []
    step = model.test_step

    def own(data):
        steps.append(data)
        return step(data)

    model.test_step = own
    runner.model = Wrapper()
    runner.call_hook("before_run")
    said, types, _ = how(runner.build_test_loop(runner._test_loop).run())
    assert (said, types) == (FAST, ["bfloat16", "float32"])
    assert len(steps) == 3
    assert model.test_step is own


@pytest.fixture
def group():
    """A process group of this process alone, which sharding needs."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def fsdp1(model):
    return MMFullyShardedDataParallel(model, device_id="cpu")


def fsdp1_inside(model):
    """PyTorch's own class, which MMEngine does not register, around a part of the model."""
    model[0] = FullyShardedDataParallel(model[0], device_id="cpu")
    return model


def fsdp2(model):
    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


def deepspeed(model):
    return MMDeepSpeedEngineWrapper(model=SimpleNamespace(module=model))


@pytest.mark.parametrize("hook", [FastTrainingHook(), FastInferenceHook()])
@pytest.mark.parametrize("shard", [fsdp1, fsdp1_inside, fsdp2, deepspeed])
def test_sharded_models_are_refused(group, shard, hook):
    convolution = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    model = shard(nn.Sequential(convolution).eval())
    message = (
        rf"every process holds as a whole, got {type(model).__name__}; "
        rf"do not use {type(hook).__name__} \(--fast"
    )
    before = str(model)
    with pytest.raises(InputError, match=message):
        hook.before_train(SimpleNamespace(model=model))
        hook.before_test_iter(SimpleNamespace(model=model), 0)
    assert str(model) == before and not overridden(convolution)


def test_replicated_models_are_taken(group):
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    assert unwrap(MMDistributedDataParallel(model), "--fast") is model


def test_registered_and_checked():
    assert isinstance(HOOKS.build(hook()), FastInferenceHook)
    with pytest.raises(ValueError, match="one of float32, bfloat16, float16, got 'bf16'"):
        FastInferenceHook(dtype="bf16")
