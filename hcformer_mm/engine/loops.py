"""The loops of a runner, none of which is built by asking."""

from mmengine.runner import BaseLoop, Runner


def built_loops(runner: Runner) -> dict[str, BaseLoop]:
    """Loops that a runner has built, by split; its properties would build the others."""
    loops = {split: getattr(runner, f"_{split}_loop") for split in ("train", "val", "test")}
    return {split: loop for split, loop in loops.items() if isinstance(loop, BaseLoop)}
