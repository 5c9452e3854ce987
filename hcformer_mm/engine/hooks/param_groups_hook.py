"""ParamGroupsHook: parameter groups that a compiled training step can read."""

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner


class ParamGroupsHook(Hook):
    """Turns the parameter groups of the optimizers into plain dicts.

    MMEngine hands them to the optimizer inside a config, which makes them dicts of its own class.
    Dynamo fails on those of Adam and AdamW, with an error about ``UserDefinedDictVariable``.
    """

    # After every hook that could change the groups.
    priority = "LOWEST"

    def before_train(self, runner: Runner) -> None:
        """Replace the groups; nobody else keeps them."""
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for each in wrappers:
            groups = each.optimizer.param_groups
            groups[:] = [dict(group) for group in groups]
