"""Processes on the CPU learn what one of them learns from the same images, and end together."""

import re
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from hcformer_mm.datasets.shapes_writer import write_shapes
from hcformer_mm.engine import set_up_gloo
from hcformer_mm.engine.dist import wrap_blocks
from hcformer_mm.utils.config import build_without_weights, read_config
from tests.helpers import sharded_training
from tests.helpers.distributed_training import launch, train, write_config
from tests.helpers.models import SHAPES_CONFIG, data_sample, detector
from tests.helpers.tools import torchrun

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/distributed.md"
STEPS = 3
# Numbers of segments that each image keeps, and the weight of "no object". One process gets the
# first and the third of the four images, the other process gets the second and the fourth.
SCENARIOS = {
    "as_many": ((2, 2, 0, 0), 0.1),
    "one_has_none": ((3, 0, 2, 0), 1.0),
    "none_at_all": ((0, 0, 0, 0), 0.1),
    "different": ((3, 1, 2, 0), 0.1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images, and a config for each scenario."""
    folder = tmp_path_factory.mktemp("distributed")
    write_shapes(folder / "shapes", num_train=4, num_val=1, size=(64, 96), workers=1)
    for name, (segments, weight) in SCENARIOS.items():
        write_config(
            folder,
            name,
            segments,
            steps=STEPS,
            model__panoptic_head__no_object_weight=weight,
            default_hooks__checkpoint=None,
        )
    return folder


@pytest.fixture(scope="module")
def two_processes(folder):
    """Mean losses of two processes, for every scenario and step."""
    return {name: mean(*ranks) for name, ranks in launch(folder).items()}


def mean(*ranks):
    """Mean losses of processes, by step."""
    return [
        {name: sum(losses[name] for losses in step) / len(ranks) for name in step[0]}
        for step in zip(*ranks, strict=True)
    ]


@pytest.mark.parametrize("name", ["as_many", "one_has_none", "none_at_all"])
def test_loss_curve_is_that_of_one_process(folder, two_processes, name):
    """Images without objects do not stop DDP: every parameter gets a gradient."""
    alone = train(folder / f"{name}.py")
    together = two_processes[name]
    assert len(alone) == len(together) == STEPS
    for one, two in zip(alone, together, strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    # The images repeat, so the next loss shows what a step has learned.
    assert abs(alone[-1]["loss"] - alone[0]["loss"]) > 0.1


@pytest.mark.slow
def test_three_processes_one_without_objects(tmp_path):
    """They get images 1 and 4, 2 and 5, and 3 and 6."""
    write_shapes(tmp_path / "shapes", num_train=6, num_val=1, size=(64, 96), workers=1)
    write_config(
        tmp_path,
        "three",
        (3, 0, 1, 0, 0, 2),
        steps=STEPS,
        model__panoptic_head__no_object_weight=1.0,
        default_hooks__checkpoint=None,
    )
    alone = train(tmp_path / "three.py")
    together = mean(*launch(tmp_path, 3)["three"])
    for one, two in zip(alone, together, strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    assert abs(alone[-1]["loss"] - alone[0]["loss"]) > 0.1


@pytest.mark.slow
def test_resumed_processes_go_on_as_before(tmp_path):
    """Each has its own random numbers; the configs run in the order of their names."""
    write_shapes(tmp_path / "shapes", num_train=4, num_val=1, size=(64, 96), workers=1)
    options = dict(random_points=True, randomness=dict(seed=0, diff_rank_seed=True))
    options |= dict(train_dataloader__sampler__shuffle=True, default_hooks__checkpoint__interval=2)
    segments = (2, 2, 1, 3)
    write_config(tmp_path, "a_whole", segments, steps=5, **options)
    write_config(tmp_path, "b_first", segments, steps=2, **options)
    options |= dict(resume=True, load_from=str(tmp_path / "b_first/iter_2.pth"))
    write_config(tmp_path, "c_rest", segments, steps=5, **options)
    ranks = launch(tmp_path)
    for whole, first, rest in zip(*(ranks[name] for name in sorted(ranks)), strict=True):
        assert first + rest == whole
    one, two = ranks["a_whole"]
    assert one[0] != two[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rank, way, within",
    [(0, "error", 30), (1, "SIGKILL", 30), (1, "SIGSTOP", 5 + 30 + 60)],
    ids=["refuses", "died", "hangs"],
)
def test_a_process_that_ends_stops_the_others(rank, way, within, tmp_path):
    """One that hangs is noticed after the timeout of 5 seconds, and torchrun waits for 30 more."""
    write_shapes(tmp_path / "shapes", num_train=4, num_val=1, size=(64, 96), workers=1)
    record = tmp_path / "time.txt"
    hook = dict(type="Interrupt", rank=rank, way=way, record=str(record))
    options = dict(custom_hooks=[hook], env_cfg__dist_cfg__timeout=5)
    write_config(tmp_path, "ends", (2, 2, 0, 0), steps=1000, **options)
    with pytest.raises(AssertionError):
        launch(tmp_path)
    waited = time.time() - float(record.read_text())
    print(f"{way}: {waited:.1f} s")
    assert waited < within


def test_classification_is_normalized_in_each_process(folder, two_processes):
    """mmdet normalizes it so, as DETR does; images weigh more where a process has fewer objects."""
    alone = train(folder / "different.py")[0]
    together = two_processes["different"][0]
    apart = [key for key in alone if abs(alone[key] - together[key]) > 1e-4]
    assert apart == ["loss", "loss_cls", "d0.loss_cls"]


@pytest.mark.parametrize(
    "objects",
    [dict(things=0, stuff_label=None), dict(things=0), dict(stuff_label=None)],
    ids=["nothing", "stuff", "things"],
)
def test_every_parameter_takes_part(objects):
    """Otherwise DDP would wait for gradients that never come."""
    model = detector()
    samples = [data_sample((64, 96), **objects)] * 2
    loss, _ = model.parse_losses(model.loss(torch.rand(2, 3, 64, 96), samples))
    loss.backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


GLOO = dict(launcher="pytorch", env_cfg=dict(dist_cfg=dict(backend="gloo")))


@pytest.mark.parametrize("wrong", [dict(launcher="slurm"), dict(env_cfg=dict())])
def test_gloo_needs_torchrun_and_its_backend(wrong):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="expected launcher 'pytorch' and backend 'gloo'"):
        set_up_gloo(Config({**GLOO, **wrong}))


def test_one_process_needs_no_group():
    config = Config(dict(launcher="none"))
    set_up_gloo(config)
    assert "model_wrapper_cfg" not in config
    assert not torch.distributed.is_initialized()


def page_configs():
    """Configs in docs/distributed.md by strategy, on top of the Shapes config."""
    base = Config.fromfile(ROOT / SHAPES_CONFIG)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    found = {}
    for block in (block for block in blocks if "strategy" in block):
        config: dict = {}
        exec(block, dict(_base_=base), config)
        found[config["strategy"]["type"]] = config
    return found


def test_page_shows_configs(tmp_path):
    """DeepSpeed's inherits all but the clipping, which is an option of the strategy."""
    assert set(page_configs()) == {"FSDPStrategy", "DeepSpeedStrategy"}
    (block,) = re.findall(r"^```python\n([^`]*DeepSpeed.*?)^```", PAGE.read_text(), re.M | re.S)
    path = tmp_path / "config.py"
    path.write_text(f'_base_ = "{ROOT / SHAPES_CONFIG}"\n{block}')
    config, base = Config.fromfile(path), Config.fromfile(ROOT / SHAPES_CONFIG)
    assert config.strategy.gradient_clipping == base.optim_wrapper.clip_grad.max_norm
    assert set(config.optim_wrapper) == {"type", "optimizer", "paramwise_cfg"}
    assert config.optim_wrapper.paramwise_cfg == base.optim_wrapper.paramwise_cfg


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Losses and final parameters of whole and sharded models in two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    torchrun(sharded_training.__file__, folder)
    return {path.stem: torch.load(path) for path in folder.glob("*.pth")}


@pytest.mark.parametrize("kind", ["fsdp1", "fsdp2"])
def test_units_of_a_sharded_model_learn_what_the_whole_model_learns(steps, kind):
    """Backbone, neck and layers are units, so their outputs pass through FSDP's hooks.

    The scales are parameters of the backbone's unit, and the loss reads them outside of it.
    """
    (losses, parameters), (sharded_losses, sharded) = steps["whole"], steps[kind]
    assert sharded_losses == pytest.approx(losses, rel=1e-5)
    assert sharded.keys() == parameters.keys()
    before = dict(sharded_training.build().named_parameters())
    for name, expected in parameters.items():
        assert not before[name].requires_grad or not torch.equal(before[name], expected), name
        torch.testing.assert_close(sharded[name], expected, rtol=1e-5, atol=1e-5)


def documented_units():
    """Names of classes in docs/distributed.md."""
    return page_configs()["FSDPStrategy"]["strategy"]["model_wrapper"]["auto_wrap_policy"]["types"]


@pytest.mark.parametrize(
    "name",
    [
        "hcformer-plus_r50_8xb2-lsj-100e_coco-panoptic",
        pytest.param(
            "hcformer-plus_swin-s-p4-w7-224_8xb2-lsj-100e_coco-panoptic", marks=pytest.mark.slow
        ),
    ],
)
def test_units_keep_the_settings_of_parameters(name):
    """MMEngine looks for keys of ``paramwise_cfg`` in names, to which units add a part."""
    config = read_config(name)
    keys = sorted(sorted(config.optim_wrapper.paramwise_cfg.custom_keys), key=len, reverse=True)
    types = documented_units()
    units = []

    def key_in(name):
        return next((key for key in keys if key in name), None)

    def visit(module, name, wrapped):
        if wrap_blocks(module, False, 0, types=types):
            units.append(name)
            wrapped += "._fsdp_wrapped_module"
        for parameter, _ in module.named_parameters(recurse=False):
            assert key_in(f"{name}.{parameter}") == key_in(f"{wrapped}.{parameter}")
        for child, inner in module.named_children():
            visit(inner, f"{name}.{child}", f"{wrapped}.{child}")

    visit(build_without_weights(config), "", "")
    assert len(units) > 20 and ".backbone" in units


@pytest.mark.slow
def test_sharded_model_learns_the_same_and_is_loaded_by_one_process(tmp_path):
    """MMEngine's FSDP in two processes: two steps, and a checkpoint of the whole model."""
    write_shapes(tmp_path / "shapes", num_train=4, num_val=1, size=(64, 96), workers=1)
    segments = (2, 2, 0, 0)
    # MMEngine would clip by the norm of each process's shard.
    common = dict(optim_wrapper__clip_grad=None)
    write_config(tmp_path, "alone", segments, steps=3, **common)
    alone = train(tmp_path / "alone.py")
    (tmp_path / "alone.py").unlink()
    sharded = page_configs()["FSDPStrategy"]
    sharded["strategy"]["model_wrapper"]["device_id"] = "cpu"
    write_config(tmp_path, "sharded", segments, steps=2, **common, **sharded)
    for one, two in zip(alone, mean(*launch(tmp_path)["sharded"]), strict=False):
        assert two == pytest.approx(one, abs=1e-4)
    checkpoint = str(tmp_path / "sharded/iter_2.pth")
    write_config(tmp_path, "loaded", segments, steps=1, load_from=checkpoint, **common)
    assert train(tmp_path / "loaded.py")[0] == pytest.approx(alone[2], abs=1e-4)
