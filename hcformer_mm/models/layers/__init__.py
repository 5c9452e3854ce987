"""Modules that are not registered: clustering, deformable downsampling, attention, positions."""
