# Settings that a head shares with its clustered variant.
fcn_head = dict(num_convs=2, concat_input=True)
psp_head = dict(pool_scales=(1, 2, 3, 6))
# mmseg's dilations for stride 8. The paper explains the lower mIoU of HC-Deeplabv3 by dilations
# that are large for stride 32, so it did not adapt them (the largest is 24 in its text).
aspp_head = dict(dilations=(1, 12, 24, 36))
