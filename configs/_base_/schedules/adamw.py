# The paper's optimizer, for every dataset (Appendix D): AdamW, a tenth of the learning rate before
# the head (backbone, clustering modules and the encoder of HCFormer+), no weight decay on norms and
# embeddings, gradients of the whole model clipped, mixed precision.
before_head = dict(lr_mult=0.1, decay_mult=1.0)
before_head_no_decay = dict(lr_mult=0.1, decay_mult=0.0)
no_decay = dict(decay_mult=0.0)

# A custom key overrides norm_decay_mult, so the norms of backbone and neck need their own keys; the
# longest key in a parameter's name decides. The BatchNorm of ResNets is frozen by default. Other
# names of norms need keys too.
norms_before_head = (
    "downsample.1.",  # ResNet, where it is not frozen
    *(f".bn{i}.{name}" for i in (1, 2, 3) for name in ("weight", "bias")),
    *("fine_norm", "coarse_norm"),  # clustering modules
    *("patch_embed.norm", "downsample.norm", "backbone.norm"),  # Swin
    *("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),  # its blocks
    *("relative_position_bias_table", "absolute_pos_embed"),
    "neck.input_proj.gn",  # HCFormer+, of any depth up to 24
    *(f"neck.encoder.layers.{i}.norms" for i in range(24)),
)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    optimizer=dict(type="AdamW", lr=0.0001, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    paramwise_cfg=dict(
        custom_keys={
            **dict.fromkeys(("backbone", "neck.input_proj", "neck.encoder"), before_head),
            **dict.fromkeys(norms_before_head, before_head_no_decay),
            **dict.fromkeys(("query_embed", "query_feat", "level_embed"), no_decay),
        },
        norm_decay_mult=0.0,
    ),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
