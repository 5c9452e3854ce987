"""Fonts of the texts in drawings."""

import unicodedata
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont


@lru_cache
def font(size: int, *, bold: bool = False, file: str | None = None) -> ImageFont.FreeTypeFont:
    """Load a font file, or DejaVu Sans, which comes with matplotlib, ``size`` pixels high.

    Raises:
        ValueError: ``file`` is not a font.
    """
    wanted = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    try:
        return ImageFont.truetype(file or font_manager.findfont(wanted), size)
    except OSError as error:
        raise ValueError(f"expected a font that scales, got {file}: {error}") from None


@lru_cache
def fonts_for(names: tuple[str, ...], given: str | None = None) -> Mapping[str, str | None]:
    """Choose a font that has the characters of each name; warn once if there is none.

    Args:
        names: The names that will be written.
        given: File of the preferred font.

    Returns:
        By name, the first that lacks the fewest of its characters among the given file, DejaVu Sans
        (None) and the fonts of the system.

    Raises:
        ValueError: ``given`` is not a font.
    """
    if given is not None:
        font(16, file=given)
    known = [given, None] if given else [None]
    characters = {name: frozenset(filter(_is_drawn, name)) for name in names}
    if any(all(has - _characters(file) for file in known) for has in characters.values()):
        known += _system_fonts()
    chosen = {
        name: min(known, key=lambda file: len(has - _characters(file)))
        for name, has in characters.items()
    }
    lost = {one for name, has in characters.items() for one in has - _characters(chosen[name])}
    if lost:
        warnings.warn(
            f"no font of this system has {' '.join(sorted(lost))} of the class names, which are "
            "drawn as squares; install one that has, or give its file as font",
            stacklevel=2,
        )
    return chosen


def _is_drawn(character: str) -> bool:
    """Whether a character needs a glyph, unlike spaces, joiners and variation selectors."""
    return unicodedata.category(character)[0] not in "ZC" and not "\ufe00" <= character <= "\ufe0f"


@lru_cache
def _characters(file: str | None) -> frozenset[str]:
    """Characters of a font; none if its glyphs do not scale, as those of some emoji fonts."""
    try:
        file = file or font_manager.findfont("DejaVu Sans")
        font(16, file=file)
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (RuntimeError, OSError, ValueError):
        return frozenset()


def _system_fonts() -> list[str]:
    """Files of the fonts of the system, regular ones first."""
    files = font_manager.findSystemFonts(fontext="ttf")
    return sorted(files, key=lambda file: ("Regular" not in Path(file).name, file))
