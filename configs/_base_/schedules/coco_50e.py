# The paper's training protocol on COCO (Appendix D.1): AdamW, batch 16, 50 epochs, learning rate
# divided by ten at 0.9 and 0.95 of the iterations, a tenth of it in the backbone.
_base_ = "../default_runtime.py"

max_iters = 368750

no_decay = dict(decay_mult=0.0)
# A custom key takes the place of norm_decay_mult, so the norms of the clustering modules, inside
# the backbone, have keys of their own (the longest key that is part of a name decides). BatchNorm
# of the ResNet is frozen; a backbone whose norms are trained needs keys for them too.
backbone = dict(lr_mult=0.1, decay_mult=1.0)
backbone_norm = dict(lr_mult=0.1, decay_mult=0.0)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    optimizer=dict(type="AdamW", lr=0.0001, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    paramwise_cfg=dict(
        custom_keys={
            "backbone": backbone,
            "fine_norm": backbone_norm,
            "coarse_norm": backbone_norm,
            "query_embed": no_decay,
            "query_feat": no_decay,
            "level_embed": no_decay,
        },
        norm_decay_mult=0.0,
    ),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
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
auto_scale_lr = dict(enable=False, base_batch_size=16)
