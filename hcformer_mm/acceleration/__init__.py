"""Convolution-BatchNorm fusion, and inference and training made fast."""
