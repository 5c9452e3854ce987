# The schedule on COCO, 4 times as long.
_base_ = "coco_50e.py"

max_iters = 4 * _base_.max_iters
interval = _base_.interval

param_scheduler = dict(
    end=max_iters, milestones=[4 * milestone for milestone in _base_.param_scheduler.milestones]
)
train_cfg = dict(
    max_iters=max_iters,
    dynamic_intervals=[(max_iters // interval * interval + 1, max_iters)],
)
