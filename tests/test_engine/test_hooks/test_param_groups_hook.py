"""Parameter groups as MMEngine builds them, and as Dynamo reads them."""

from types import SimpleNamespace

import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from torch import nn

from hcformer_mm.engine.hooks.param_groups_hook import ParamGroupsHook


def wrapper(model):
    return build_optim_wrapper(
        model,
        # As in a config file; MMEngine then makes the groups ConfigDicts, too.
        ConfigDict(
            optimizer=dict(type="AdamW", lr=0.1, weight_decay=0.5),
            paramwise_cfg=dict(bias_decay_mult=0.0),
        ),
    )


def step(model, optim_wrapper):
    torch.manual_seed(0)
    optim_wrapper.update_params(model(torch.randn(5, 3)).square().sum())
    return [parameter.detach().clone() for parameter in model.parameters()]


def model():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_groups_become_plain_and_stay_the_same():
    """Schedulers hold on to the list of groups."""
    first, second = model(), model()
    ours, theirs = wrapper(first), wrapper(second)
    groups = ours.optimizer.param_groups
    assert not all(type(group) is dict for group in groups)
    ParamGroupsHook().before_train(SimpleNamespace(optim_wrapper=ours))
    assert ours.optimizer.param_groups is groups
    assert all(type(group) is dict for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    for got, expected in zip(step(first, ours), step(second, theirs), strict=True):
        torch.testing.assert_close(got, expected)


def test_several_optimizers():
    ours = OptimWrapperDict(one=wrapper(model()), two=wrapper(model()))
    ParamGroupsHook().before_train(SimpleNamespace(optim_wrapper=ours))
    for each in ours.values():
        assert all(type(group) is dict for group in each.optimizer.param_groups)


def test_adamw_is_compiled():
    linear = model()
    optim_wrapper = wrapper(linear)
    ParamGroupsHook().before_train(SimpleNamespace(optim_wrapper=optim_wrapper))
    compiled = torch.compile(step, backend="aot_eager")(linear, optim_wrapper)
    other = model()
    for got, expected in zip(compiled, step(other, wrapper(other)), strict=True):
        torch.testing.assert_close(got, expected)
