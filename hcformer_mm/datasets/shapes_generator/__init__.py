"""Renders the scenes of the Shapes dataset: pure functions from a seed to image and labels."""

from .figures import FIGURES
from .scene import GENERATOR_VERSION, Scene, Segment, render_scene
from .textures import STUFF_TEXTURES

__all__ = [
    "FIGURES",
    "GENERATOR_VERSION",
    "STUFF_TEXTURES",
    "Scene",
    "Segment",
    "render_scene",
]
