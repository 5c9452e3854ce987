# HCFormer with a ResNet-50 for semantic segmentation; decode_head.num_classes is the dataset's.
_base_ = ["hcformer_semantic.py", "parts/resnet50.py"]

model = dict(backbone=_base_.hc_backbone, decode_head=dict(in_channels=_base_.hc_channels))
