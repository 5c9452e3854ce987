# The paper's schedule on COCO (Appendix D.1): 50 epochs of batch 16, learning rate divided by ten
# twice, "at 0.9 and 0.95": after the same 327,778 and 355,092 iterations as Mask2Former's.
_base_ = ["../default_runtime.py", "adamw.py"]

max_iters = 368750

param_scheduler = dict(
    type="MultiStepLR",
    by_epoch=False,
    begin=0,
    end=max_iters,
    milestones=[327778, 355092],
    gamma=0.1,
)

# Validate every 5000 iterations, and once more at the end.
interval = 5000
train_cfg = dict(
    type="IterBasedTrainLoop",
    max_iters=max_iters,
    val_interval=interval,
    dynamic_intervals=[(max_iters // interval * interval + 1, max_iters)],
)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(interval=interval))
