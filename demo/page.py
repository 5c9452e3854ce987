"""One HTML page of tables and images, which a browser shows without a server and without files."""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from hcformer_mm.utils.atomic_write import replacing

WIDTH = 1600
"""Largest width of an embedded image, in pixels; it links to the file at full size."""

CSS = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
.tables { display: flex; flex-wrap: wrap; gap: 2rem; align-items: start; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #8885; text-align: right; }
th:first-child, td:first-child { text-align: left; font-weight: normal; }
figure { margin: 0 0 2rem; }
figure img { max-width: 100%; height: auto; border-radius: 4px; }
figcaption { padding: .4rem 0; }
pre { padding: .8rem 1rem; overflow-x: auto; background: #8882; border-radius: 4px; }
"""

Table = Sequence[Sequence[str]]
"""Rows of cells; the first row is the header."""


def write_page(
    path: Path,
    title: str,
    *,
    intro: str,
    tables: Mapping[str, Table],
    sections: Mapping[str, Mapping[str, Path]],
    commands: Sequence[str] = (),
) -> None:
    """Write a page.

    Args:
        path: The HTML file.
        title: Its title.
        intro: What it shows.
        tables: Table of each caption.
        sections: For each heading, image file of each caption; a heading without any is left out.
        commands: What the reader can run next.
    """
    parts = [f"<h1>{escape(title)}</h1><p>{escape(intro)}</p>", '<div class="tables">']
    parts += [_table(caption, rows) for caption, rows in tables.items()]
    parts.append("</div>")
    for heading, figures in sections.items():
        if not figures:
            continue
        parts.append(f"<h2>{escape(heading)}</h2>")
        parts += [_figure(caption, image, path.parent) for caption, image in figures.items()]
    if commands:
        parts.append(f"<h2>Next</h2><pre>{escape(chr(10).join(commands))}</pre>")
    page = (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{CSS}</style><body>{''.join(parts)}</body></html>\n"
    )
    with replacing(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _table(caption: str, rows: Table) -> str:
    cells = [
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th"] + ["td"] * len(rows), rows, strict=False)
    ]
    lines = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><caption>{escape(caption)}</caption>{lines}</table>"


def _figure(caption: str, file: Path, folder: Path) -> str:
    image = Image.open(file).convert("RGB")
    image.thumbnail((WIDTH, 100 * WIDTH), Image.Resampling.LANCZOS)
    source = data_uri(image, "webp", quality=85)
    link = Path(os.path.relpath(file, folder)).as_posix()
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><a href="{escape(link)}">'
        f'<img src="{source}" width="{image.width}" height="{image.height}" '
        f'alt="{escape(caption)}" loading="lazy"></a></figure>'
    )


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """Data URI of an image, encoded as Pillow encodes this kind of file."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
