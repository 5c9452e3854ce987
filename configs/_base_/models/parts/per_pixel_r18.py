# Parts of a small per-pixel classifier to train from scratch on Shapes: a ResNet-18 of half the
# width, so that output stride 8 takes minutes on a CPU core, and heads of a quarter of the width.
small_data_preprocessor = dict(size_divisor=32)
small_norm = dict(type="BN", requires_grad=True)
small_backbone = dict(
    depth=18, stem_channels=32, base_channels=32, norm_cfg=small_norm, init_cfg=None
)
small_head = dict(in_channels=256, channels=128, num_classes=10, norm_cfg=small_norm)
small_auxiliary_head = dict(in_channels=128, channels=64, num_classes=10, norm_cfg=small_norm)
