_base_ = ["per_pixel_d8.py", "parts/per_pixel_heads.py"]

model = dict(decode_head=dict(type="mmseg.ASPPHead", **_base_.aspp_head))
