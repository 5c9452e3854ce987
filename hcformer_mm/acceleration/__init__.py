"""Fusion of convolution and BatchNorm, fast inference and fast training."""
