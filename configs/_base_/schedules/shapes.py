# From scratch on two CPU cores in twenty minutes: few iterations, a short warm-up, cosine decay.
# For the runtimes of mmdet and mmseg alike; a leaf passes `checkpoints` to its hook.
max_iters = 3000
warmup = 100

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            "query_embed": dict(decay_mult=0.0),
            "query_feat": dict(decay_mult=0.0),
            "level_embed": dict(decay_mult=0.0),
        },
        norm_decay_mult=0.0,
        # The offsets get the largest gradients of all parameters.
        dcn_offset_lr_mult=0.1,
    ),
    clip_grad=dict(max_norm=1.0, norm_type=2),
)
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
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
checkpoints = dict(interval=500, max_keep_ckpts=1)
