"""Neutralisation as rows of a file and as a table on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

SETTINGS = ("source", "target", "chosen", "delta1", "delta2", "theta", "area", "images", "target_images")
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


def neutralization_table(results: Sequence[Mapping[str, Any]], protocol: str) -> Table:
    """The accuracies, without intervals; the file has these.

    Args:
        results: From `BlobRow.result`.
        protocol: In the title.
    """
    title = f"Neutralisation ({protocol} protocol, accuracy of the source class)"
    style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "caption_justify": "left"}
    table = Table(title=title, pad_edge=False, padding=(0, 1, 0, 0), min_width=len(title), box=box.SIMPLE_HEAD, **style)
    table.add_column("pair", overflow="fold")
    table.add_column("chosen", no_wrap=True)
    for heading in ("area", *_SHOWN.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    before = None
    for row in results:
        name = f"{row['source']} → {row['target']}"
        if before not in (None, name):
            table.add_section()
        values = [row["area"], *(row["scores"][score]["accuracy"] for score in _SHOWN)]
        numbers = ("–" if value is None else f"{100 * value:.1f}" for value in values)
        table.add_row(name if name != before else "", row["chosen"], *numbers)
        before = name
    searched = "; chosen: thresholds given, searched for the pair, or one triple for all pairs"
    table.caption = (
        "per cent; area: pixels blocked; adv.: attacked; mod.: blocked; m-adv: blocked, then attacked; rebl.: and"
        " blocked again; strong: strong attack; adapt.: one that knows the blob; target: other class, blocked"
        + (searched if len({row["chosen"] for row in results}) > 1 else "")
    )
    return table
