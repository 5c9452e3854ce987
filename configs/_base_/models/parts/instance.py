# Changes of the model from COCO panoptic to COCO instances.
coco_things = dict(num_things_classes=80, num_stuff_classes=0)
things_alone = dict(
    panoptic_head=coco_things,
    panoptic_fusion_head=coco_things,
    test_cfg=dict(panoptic_on=False, semantic_on=False),
)
