# A tile has few nuclei, so a batch of small tiles replaces larger images.
_base_ = "shapes.py"

max_iters = 1500
param_scheduler = _base_.param_scheduler
param_scheduler[-1].update(end=max_iters, T_max=max_iters - _base_.warmup)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
