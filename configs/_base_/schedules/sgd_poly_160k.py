# The schedule of sgd_poly_80k.py over 160k iterations.
_base_ = "sgd_poly_80k.py"

max_iters = 160000
param_scheduler = dict(end=max_iters)
train_cfg = dict(max_iters=max_iters)
# ADE20K: four GPUs of four images.
auto_scale_lr = dict(base_batch_size=16)
