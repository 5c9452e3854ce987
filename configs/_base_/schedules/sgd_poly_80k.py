# PSPNet's protocol as MMSegmentation carries it, for all per-pixel classifiers: "the training
# protocol follows [72]" (paper, Appendix F.1). PSPNet itself was trained for 90k iterations on
# Cityscapes and for 150k on ADE20K; mmseg's nearest schedules are 80k and 160k.
_base_ = "../mmseg_runtime.py"

max_iters = 80000

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0005),
    clip_grad=None,
)
param_scheduler = dict(
    type="PolyLR", by_epoch=False, begin=0, end=max_iters, power=0.9, eta_min=1e-4
)
interval = 8000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=interval)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(interval=interval))
# Cityscapes: four GPUs of two images.
auto_scale_lr = dict(enable=False, base_batch_size=8)
