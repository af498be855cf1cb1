"""Neutralisation as rows of a file and as tables on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

SETTINGS = ("source", "target", "chosen", "delta1", "delta2", "theta", "area", "empty_maps", "images", "target_images")
SIMILARITIES = ("ssim_samples", "ssim_representatives")
# score to heading
_SHOWN = {
    "clean": "clean",
    "adversarial": "adv.",
    "modified": "mod.",
    "modified_adversarial": "m-adv",
    "reneutralised": "rebl.",
    "strong": "strong",
    "adaptive": "adapt.",
    "target_modified": "target",
}


def neutralization_rows(results: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> list[dict[str, Any]]:
    """Flat rows: `SETTINGS`, then each score, ``<score>_low`` and ``<score>_high``, then `SIMILARITIES`.

    Args:
        results: From `BlobRow.result`.
        scores: Their names.
    """
    rows = []
    for result in results:
        row = {name: result[name] for name in SETTINGS}
        for score in scores:
            found = result["scores"][score]
            row |= {score: found["accuracy"], f"{score}_low": found["low"], f"{score}_high": found["high"]}
        rows.append(row | {name: result[name] for name in SIMILARITIES})
    return rows


def neutralization_table(results: Sequence[Mapping[str, Any]], protocol: str) -> Group:
    """The accuracies, without intervals; the file has these. A pair has a line of its own, however long its names are.

    Args:
        results: From `BlobRow.result`.
        protocol: In the title.
    """
    parts: list[RenderableType] = [
        Text(f"Neutralisation ({protocol} protocol, accuracy of the source class)", style="bold"),
        _columns(_HEADINGS),
    ]
    for (name, empty), rows in groupby(results, lambda row: (f"{row['source']} → {row['target']}", row["empty_maps"])):
        parts.append(Text.assemble((name, "bold"), f"  ({100 * empty:.1f} % empty maps)" if empty else ""))
        table = _columns([""] * len(_HEADINGS))
        for row in rows:
            values = [row["area"], *(row["scores"][score]["accuracy"] for score in _SHOWN)]
            table.add_row(f"  {row['chosen']}", *("–" if each is None else f"{100 * each:.1f}" for each in values))
        parts.append(table)
    searched = "; chosen: thresholds given, searched for the pair, or one triple for all pairs"
    caption = (
        "per cent; area: pixels blocked; adv.: attacked; mod.: blocked; m-adv: blocked, then attacked; rebl.: and"
        " blocked again; strong: strong attack; adapt.: one that knows the blob; target: other class, blocked"
        + (searched if len({row["chosen"] for row in results}) > 1 else "")
    )
    return Group(*parts, Text(caption, style="italic dim"))


_HEADINGS = ("chosen", "area", *_SHOWN.values())


def _columns(headings: Sequence[str]) -> Table:
    """Columns as wide as every other such table's, with or without words above them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(headings))
    for place, (heading, word) in enumerate(zip(headings, _HEADINGS, strict=True)):
        side: Literal["left", "right"] = "right" if place else "left"
        table.add_column(heading, justify=side, no_wrap=True, width=max(len(word), 5 if place else 7))
    return table
