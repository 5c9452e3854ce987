"""Modules that are not registered: clustering, deformable downsampling and attention."""
