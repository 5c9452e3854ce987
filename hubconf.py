"""Entry points of ``torch.hub``; their options are those of ``hcformer_mm.create_model``.

model = torch.hub.load("path/of/a/clone", "hcformer_r50", "weights.pth", source="local")
"""

from hcformer_mm import create_model

dependencies = ["torch", "torchvision", "mmengine", "mmcv", "mmdet", "mmseg", "skimage"]


def hcformer_r50(pretrained=None, **options):
    """HCFormer with ResNet-50 for the panoptic classes of COCO; ``pretrained`` is a path."""
    return create_model("hcformer_r50", pretrained, **options)


def hcformer_swin_s(pretrained=None, **options):
    """HCFormer with Swin-S for the panoptic classes of COCO; ``pretrained`` is a path."""
    return create_model("hcformer_swin-s", pretrained, **options)


def hcformer_swin_l(pretrained=None, **options):
    """HCFormer with Swin-L for the panoptic classes of COCO; ``pretrained`` is a path."""
    return create_model("hcformer_swin-l", pretrained, **options)


def hcformer_plus_r50(pretrained=None, **options):
    """HCFormer+ with ResNet-50 for the panoptic classes of COCO; ``pretrained`` is a path."""
    return create_model("hcformer-plus_r50", pretrained, **options)


def hcformer_plus_swin_s(pretrained=None, **options):
    """HCFormer+ with Swin-S for the panoptic classes of COCO; ``pretrained`` is a path."""
    return create_model("hcformer-plus_swin-s", pretrained, **options)


def hcformer_plus_swin_l(pretrained=None, **options):
    """HCFormer+ with Swin-L for the panoptic classes of COCO; ``pretrained`` is a path."""
    return create_model("hcformer-plus_swin-l", pretrained, **options)
