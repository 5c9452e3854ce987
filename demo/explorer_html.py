"""HTML and CSS of the explorer's page."""

from html import escape

from exploration import Exploration, Step, light_up, trace
from page import data_uri
from PIL import Image


def levels_html(exploration: Exploration, level: int) -> str:
    """List of the numbers of clusters of every level, with the shown level emphasized."""
    items = []
    kinds = ["cell", *["cluster"] * exploration.num_levels, "segment"]
    for i, (count, kind) in enumerate(zip(exploration.counts(), kinds, strict=False)):
        items.append(
            f'<li data-level="{i}" data-count="{count}"{" class=shown" if i == level else ""}>'
            f"<b>{count:,}</b> {kind}{'s' * (count != 1)}</li>"
        )
    return f'<ol class="levels">{"".join(items)}</ol>'


def path_html(exploration: Exploration, pixel: tuple[int, int] | None) -> str:
    """Path of a pixel: its cluster at every level, and the weights of each step."""
    if pixel is None:
        return '<p class="hint">Click a pixel of the image to follow it through the levels.</p>'
    steps = {step.level: step for step in trace(exploration, pixel)}
    columns = []
    for level, labels in enumerate(exploration.maps):
        share = (labels == labels[pixel]).mean()
        if level in steps:
            title, body = f"Level {level}", weights_html(steps[level])
        elif level == 0:
            title = "Finest cell"
            body = f"<p>The path of the pixel begins in cell {steps[1].cell}.</p>"
        else:
            title, body = "Prediction", prediction_html(exploration, pixel)
        lit = data_uri(Image.fromarray(light_up(exploration, level, pixel)), "png")
        columns.append(
            f'<figure data-level="{level}"><figcaption><b>{title}</b>'
            f"<span>{share:.2%} of image</span></figcaption>"
            f'<img src="{lit}" alt="{title}, lit">{body}</figure>'
        )
    y, x = pixel
    return f'<div class="path" data-pixel="{y},{x}">{"".join(columns)}</div>'


def weights_html(step: Step) -> str:
    """Table of the weights of one step, laid out like the candidates."""
    rows = []
    for i in range(3):
        cells = []
        for j in range(3):
            place = (step.candidates[0] + i, step.candidates[1] + j)
            if not step.inside[i, j]:
                cells.append('<td class="outside" title="outside the map"></td>')
                continue
            weight = float(step.weights[i, j])
            chosen = " class=chosen" if place == step.chosen else ""
            dark = "; color: white" if weight > 0.75 else ""
            cells.append(
                f'<td{chosen} data-weight="{weight!r}" title="cell {place}: {weight:.2g}" '
                f'style="background: rgb(37 99 235 / {weight:.3f}){dark}">{weight:.2f}</td>'
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f"<p>{step.cell} → <b>{step.chosen}</b> of {step.size[0]}×{step.size[1]}</p>"
        f'<table class="weights">{"".join(rows)}</table>'
    )


def prediction_html(exploration: Exploration, pixel: tuple[int, int]) -> str:
    """Predicted class of a pixel, and the confidence in it."""
    segment = int(exploration.prediction.segments[pixel])
    category = exploration.prediction.categories.get(segment)
    if category is None:
        return '<p class="predicted">No class: void</p>'
    sure = exploration.confidence
    confidence = "" if sure is None else f", confidence {sure[pixel]:.2f}"
    name = exploration.classes.names[category]
    color = ", ".join(map(str, exploration.classes.colors()[category]))
    kind = "thing" if name in exploration.classes.things else "stuff"
    return (
        f'<p class="predicted"><i style="background: rgb({color})"></i>'
        f"<b>{escape(name)}</b> {kind if exploration.classes.things else 'class'}{confidence}</p>"
    )


CSS = """
.gradio-container { max-width: 1480px !important;
  --faint: color-mix(in srgb, var(--body-text-color) 62%, transparent); }
#head h1 { font-size: 1.35rem; font-weight: 650; margin: 0; }
#head p, #notes p, #path p, #path figcaption span { color: var(--faint); margin: 0; }
#notes p { font-size: .85rem; line-height: 1.45; margin-bottom: .5rem; }
#notes b { color: var(--body-text-color); font-weight: 600; }
#shown img { max-height: 62vh; object-fit: contain; }
.levels { display: flex; flex-wrap: wrap; gap: .4rem; padding: 0; list-style: none; }
.levels li { margin: 0 !important; padding: .1rem .75rem; border-radius: 99px; color: var(--faint);
  background: var(--background-fill-secondary); font-variant-numeric: tabular-nums; }
.levels li.shown { background: var(--primary-600); color: white; }
.levels li.shown b { color: white; }
.path { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 1rem; }
.path figure { margin: 0; display: flex; flex-direction: column; gap: .35rem; }
.path figcaption { display: flex; justify-content: space-between; align-items: baseline; }
.path figcaption span, .path p { font-size: .85rem; }
.path img { width: 100%; max-height: 320px; object-fit: contain; border-radius: 6px; margin: 0; }
.path table.weights { border: none !important; border-collapse: separate; border-spacing: 3px;
  width: 100%; margin: 0; table-layout: fixed; font-variant-numeric: tabular-nums; }
.path table.weights tr { border: none; background: none; }
.path table.weights td { text-align: center; padding: .2rem 0; border-radius: 4px;
  border: 1px solid var(--border-color-primary); font-size: .85rem; }
.path td.chosen { outline: 2px solid var(--body-text-color); outline-offset: -1px;
  font-weight: 700; }
.path td.outside { background: repeating-linear-gradient(135deg,
  var(--border-color-primary) 0 2px, transparent 2px 7px); }
.predicted i { display: inline-block; width: .9em; height: .9em; border-radius: 3px;
  margin-right: .4em; vertical-align: -.08em; }
.predicted b { color: var(--body-text-color); font-size: 1.1rem; }
.hint { text-align: center; padding: 2rem 0; }
"""

NOTES = """
<p>Level 0 shows the <b>cells</b> of the finest feature map. At each level, a cell is assigned to
the nine cells around its parent in the next coarser map (blue frame) with the <b>weights</b> of
eq. (3) of the paper, which sum to 1; hatched candidates lie outside the map. The cell belongs to
the candidate with the largest weight (bold frame), and all pixels that end in one cell are a
<b>cluster</b>. The head groups the coarsest clusters into <b>segments</b>.</p>
"""
