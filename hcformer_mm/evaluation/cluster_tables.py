"""Scores of clusters and the split of losses as tables of text."""

from collections.abc import Iterable, Mapping

from tabulate import tabulate

from .error_attribution import DECODING, GROUND_TRUTH, PREDICTION, Blame


def pieces_table(metrics: Mapping[str, float]) -> str:
    """Figures ``<pieces>/<score>`` as a table of text: a row of each pieces, scores as columns."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        piece, *path, score = name.split("/")
        if not path:
            rows.setdefault(piece, {})[score] = value
    # From the ground truth down to the prediction, as the stages follow each other.
    ends = {name: rows.pop(name) for name in (GROUND_TRUTH, PREDICTION) if name in rows}
    ordered = {GROUND_TRUTH: ends.get(GROUND_TRUTH), **rows, PREDICTION: ends.get(PREDICTION)}
    shown = {name: values for name, values in ordered.items() if values is not None}
    columns = dict.fromkeys(score for values in rows.values() for score in values)
    return tabulate(
        [
            [name.replace("slic", "SLIC").replace("_", " "), *map(values.get, columns)]
            for name, values in shown.items()
        ],
        # Long names in two lines.
        headers=["", *(name.replace("_", "\n") if len(name) > 8 else name for name in columns)],
        floatfmt=".1f",
    )


def blame_table(blames: Iterable[Blame]) -> str:
    """What each part costs, as a table of text: a row of each figure, parts as columns."""
    rows = [
        {
            "": blame.figure,
            "reached": blame.stages[PREDICTION],
            "lost": blame.total,
            DECODING: blame.decoding,
            **blame.shares,
        }
        for blame in blames
    ]
    return tabulate(
        [list(row.values()) for row in rows],
        headers=[name.replace("_", " ") for name in rows[0]],
        floatfmt=".1f",
    )
