# The paper's schedule for semantic segmentation (Appendix D.2): polynomial decay of the learning
# rate.
_base_ = ["../mmseg_runtime.py", "adamw.py"]

max_iters = 90000

# MMEngine's schedule is at zero one step before its end.
param_scheduler = dict(
    type="PolyLR", by_epoch=False, begin=0, end=max_iters + 1, power=0.9, eta_min=0
)
interval = 5000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=interval)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(interval=interval))
