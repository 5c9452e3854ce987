_base_ = ["per_pixel_d8.py", "parts/per_pixel_heads.py"]

model = dict(decode_head=dict(type="mmseg.PSPHead", **_base_.psp_head))
