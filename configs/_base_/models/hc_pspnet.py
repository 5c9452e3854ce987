_base_ = ["per_pixel_hc.py", "parts/per_pixel_heads.py"]

model = dict(decode_head=dict(type="hcformer_mm.HCPSPHead", **_base_.psp_head))
