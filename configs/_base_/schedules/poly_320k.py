# The schedule for semantic segmentation, of 320k iterations.
_base_ = "poly_90k.py"

max_iters = 320000
param_scheduler = dict(end=max_iters + 1)
train_cfg = dict(max_iters=max_iters)
