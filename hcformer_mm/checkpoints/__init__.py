"""Checkpoints: safe loading, writing, conversion, warm starts and publishing."""
