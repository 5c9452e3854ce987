# per_pixel.py with dilated convolutions instead of the last two downsamplings: output stride 8.
_base_ = "per_pixel.py"

model = dict(backbone=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)))
