"""Pure functions that render scenes of the Shapes dataset from a seed."""

from .figures import FIGURES
from .scene import GENERATOR_VERSION, Scene, Segment, render_scene
from .textures import STUFF_TEXTURES

__all__ = ["FIGURES", "GENERATOR_VERSION", "STUFF_TEXTURES", "Scene", "Segment", "render_scene"]
