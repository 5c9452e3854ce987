"""Entry points of ``torch.hub``; their options are those of ``hcformer_mm.create_model``.

model = torch.hub.load("path/of/a/clone", "hcformer_r50", "weights.pth", source="local")
"""

from hcformer_mm import create_model

dependencies = ["torch", "torchvision", "mmengine", "mmcv", "mmdet", "mmseg", "skimage"]


def _entry(name, model, data="COCO"):
    def create(pretrained=None, **options):
        return create_model(name, pretrained, **options)

    create.__doc__ = f"{model} for the panoptic classes of {data}; ``pretrained`` is a path."
    return create


hcformer_r50 = _entry("hcformer_r50", "HCFormer with ResNet-50")
hcformer_mobilenetv4_s = _entry("hcformer_mobilenetv4-s", "HCFormer with MobileNetV4-Conv-S")
hcformer_swin_s = _entry("hcformer_swin-s", "HCFormer with Swin-S")
hcformer_swin_l = _entry("hcformer_swin-l", "HCFormer with Swin-L")
hcformer_plus_r50 = _entry("hcformer-plus_r50", "HCFormer+ with ResNet-50")
hcformer_plus_swin_s = _entry("hcformer-plus_swin-s", "HCFormer+ with Swin-S")
hcformer_plus_swin_l = _entry("hcformer-plus_swin-l", "HCFormer+ with Swin-L")
hcformer_tiny_shapes = _entry(
    "hcformer_tiny_shapes", "HCFormer with a half-width ResNet-18", "Shapes"
)
