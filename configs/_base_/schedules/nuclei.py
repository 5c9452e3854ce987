# A tile has few nuclei, so a batch of small tiles replaces larger images.
_base_ = "shapes.py"

max_iters = 1500
warmup = 100
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=warmup),
    dict(
        type="CosineAnnealingLR",
        by_epoch=False,
        begin=warmup,
        end=max_iters,
        T_max=max_iters - warmup,
        eta_min_ratio=0.01,
    ),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
checkpoints = dict(interval=500, max_keep_ckpts=1)
