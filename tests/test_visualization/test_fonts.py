"""Fonts of class names in every script."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from hcformer_mm.structures.panoptic import Classes, Panoptic
from hcformer_mm.visualization import draw_panoptic
from hcformer_mm.visualization import fonts as fonts_module
from hcformer_mm.visualization.fonts import font, fonts_for

CAT, DOG = "猫", "🐕"


def write_font(path: Path, characters: str) -> str:
    """Write a font whose characters are all solid boxes, and whose other glyph is empty."""
    pen = TTGlyphPen(None)
    for move, point in zip("MLLL", ((0, 0), (0, 700), (700, 700), (700, 0)), strict=True):
        pen.moveTo(point) if move == "M" else pen.lineTo(point)
    pen.closePath()
    box = pen.glyph()
    names = [f"u{ord(one):05X}" for one in characters]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({ord(c): n for c, n in zip(characters, names, strict=True)})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **dict.fromkeys(names, box)})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (800, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable(dict(familyName=path.stem, styleName="Regular"))
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200)
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fonts of the system, none at first."""
    files: list[str] = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda fontext: files)
    fonts_for.cache_clear()
    return files


def test_font_of_the_system_that_has_the_characters(system: list[str], tmp_path: Path) -> None:
    system += [write_font(tmp_path / "a.ttf", "x"), write_font(tmp_path / "b.ttf", CAT)]
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    system.append(str(tmp_path / "broken.ttf"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = fonts_for(("cat", "кот", "γάτα", CAT, " ", ""))
    assert chosen == {
        **dict.fromkeys(("cat", "кот", "γάτα", " ", "")),  # DejaVu Sans
        CAT: str(tmp_path / "b.ttf"),
    }


def test_regular_fonts_come_first(system: list[str], tmp_path: Path) -> None:
    for name in ("Han-Black.ttf", "Han-Regular.ttf"):
        system.append(write_font(tmp_path / name, CAT))
    assert fonts_for((CAT,)) == {CAT: str(tmp_path / "Han-Regular.ttf")}


def test_the_given_font_comes_first(system: list[str], tmp_path: Path) -> None:
    given = write_font(tmp_path / "given.ttf", "cat")
    system.append(write_font(tmp_path / "other.ttf", CAT))
    assert fonts_for(("cat", "dog", CAT), given) == {"cat": given, "dog": None, CAT: system[0]}


@pytest.mark.filterwarnings("error")
def test_characters_that_no_font_has_are_named_once(system: list[str], tmp_path: Path) -> None:
    system.append(write_font(tmp_path / "han.ttf", CAT))
    with pytest.warns(UserWarning, match=f"no font of this system has {DOG} of the class names"):
        chosen = fonts_for(("a", CAT, f"{CAT}{DOG}"))
    assert chosen[f"{CAT}{DOG}"] == system[0], "as many characters as possible"
    fonts_for(("a", CAT, f"{CAT}{DOG}"))  # without a warning


@pytest.mark.filterwarnings("error")
def test_joiners_and_spaces_need_no_glyph(system: list[str]) -> None:
    assert fonts_for(("a\u200db \ufe0f\u3000",)) == {"a\u200db \ufe0f\u3000": None}


def test_names_are_drawn_in_their_font(system: list[str], tmp_path: Path) -> None:
    system.append(write_font(tmp_path / "han.ttf", CAT))
    image = np.full((120, 160, 3), 100, np.uint8)
    panoptic = Panoptic(np.ones((120, 160), int), {1: 0})
    palette = [(9, 9, 9)]
    drawn, again, elsewhere = (
        draw_panoptic(image, panoptic, Classes([CAT], palette=palette, font=file), text=40)
        for file in (None, system[0], write_font(tmp_path / "none.ttf", "x"))
    )
    white = (drawn > 200).all(-1)
    # The box of 700 by 700 units of the font is solid.
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    inside = white[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert inside.mean() > 0.95 and 24 < len(rows) < 34
    assert np.array_equal(again, drawn) and np.array_equal(elsewhere, drawn)


def test_files_that_are_no_fonts(tmp_path: Path) -> None:
    (tmp_path / "a.ttf").write_bytes(b"no font")
    for file in ("a.ttf", "missing.ttf"):
        with pytest.raises(ValueError, match=rf"expected a font that scales, got .*{file}"):
            fonts_for(("cat",), str(tmp_path / file))


def test_sizes_and_weights() -> None:
    assert font(20).size == 20
    assert font(20, bold=True).getname() == ("DejaVu Sans", "Bold")
    assert fonts_module.font(20) is font(20)
