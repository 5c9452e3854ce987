"""ParamGroupsHook: parameter groups that a compiled training step can read."""

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner


class ParamGroupsHook(Hook):
    """Turn the parameter groups of optimizers into plain dicts.

    MMEngine passes them on as ConfigDicts. With those of Adam and AdamW, Dynamo fails with an error
    about ``UserDefinedDictVariable``.
    """

    # After every hook that could change the groups.
    priority = "LOWEST"

    def before_train(self, runner: Runner) -> None:
        """Replace the groups inside their list, to which schedulers hold on."""
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for each in wrappers:
            groups = each.optimizer.param_groups
            groups[:] = [dict(group) for group in groups]
