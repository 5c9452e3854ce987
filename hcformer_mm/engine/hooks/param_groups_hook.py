"""ParamGroupsHook: parameter groups that a compiled training step can trace."""

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner


class ParamGroupsHook(Hook):
    """Turn the parameter groups of optimizers into plain dicts.

    MMEngine passes them as ConfigDicts, on which Dynamo fails for Adam and AdamW, with an error
    about ``UserDefinedDictVariable``.
    """

    # After every hook that could change the groups.
    priority = "LOWEST"

    def before_train(self, runner: Runner) -> None:
        """Replace the groups but keep their list, to which schedulers hold a reference."""
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for each in wrappers:
            groups = each.optimizer.param_groups
            groups[:] = [dict(group) for group in groups]
