# What the heads of a model with and without clusters have in common: all but their type.
fcn_head = dict(num_convs=2, concat_input=True)
psp_head = dict(pool_scales=(1, 2, 3, 6))
# Of a map of stride 8, in MMSegmentation. The paper explains a loss of mIoU of HC-Deeplabv3 by how
# large they are for a map of stride 32, so it kept its own there (the largest is 24 in its text).
aspp_head = dict(dilations=(1, 12, 24, 36))
