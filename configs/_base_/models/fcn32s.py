_base_ = ["per_pixel.py", "parts/per_pixel_heads.py"]

model = dict(decode_head=dict(type="mmseg.FCNHead", **_base_.fcn_head))
