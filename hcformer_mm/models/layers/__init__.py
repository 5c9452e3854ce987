"""Modules that are not registered: clustering and deformable downsampling."""
