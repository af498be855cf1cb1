"""Transferability as rows of a file and as tables on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from lit_adv.metrics.transfer_matrix import summary

from .tables import percent, plain_table

NORMS = ("l0", "l2", "linf")
COLUMNS = (
    "region",
    "source",
    "victim",
    "attempted",
    "transferred",
    "transferability",
    "iterations",
    *(name for norm in NORMS for name in (norm, f"{norm}_std")),
    "compared",
    "kept",
    *(f"{norm}_reduced" for norm in NORMS),
)


def transfer_rows(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a region, source and victim, with the fields of `COLUMNS`.

    Args:
        results: What `TransferMatrix.compute` has given for each region.
    """
    return [
        {
            "region": region,
            "source": source,
            "victim": victim,
            **{name: found[name][row][column] for name in COLUMNS[3:]},
        }
        for region, found in results.items()
        for row, source in enumerate(found["sources"])
        for column, victim in enumerate(found["victims"])
    ]


def by_technique(found: Mapping[str, Any]) -> dict[str, Any]:
    """The matrix of the techniques, which the models' names have before the first ``/``.

    Args:
        found: From `TransferMatrix.compute`.

    Returns:
        ``sources`` and ``victims`` (techniques), ``attempted``, ``transferred`` and ``transferability`` over all their
        models together, where a model is not counted as its own victim.
    """
    sources, victims = (list(dict.fromkeys(map(_technique, found[side]))) for side in ("sources", "victims"))
    counts = {name: [[0] * len(victims) for _ in sources] for name in ("attempted", "transferred")}
    for row, source in enumerate(found["sources"]):
        for column, victim in enumerate(found["victims"]):
            if source == victim:
                continue
            for name, cells in counts.items():
                cells[sources.index(_technique(source))][victims.index(_technique(victim))] += found[name][row][column]
    shares = [
        [hit / tried if tried else None for hit, tried in zip(*rows, strict=True)]
        for rows in zip(counts["transferred"], counts["attempted"], strict=True)
    ]
    return {"sources": sources, "victims": victims, **counts, "transferability": shares}


def has_techniques(found: Mapping[str, Any]) -> bool:
    """Whether several models have one technique, so that a matrix of these says more."""
    return any(len(set(map(_technique, found[side]))) < len(found[side]) for side in ("sources", "victims"))


def transfer_tables(results: Mapping[str, Mapping[str, Any]]) -> Iterable[Table]:
    """The matrices, the sizes of what transfers, and how the regions compare with the global attack."""
    for region, found in results.items():
        grouped = has_techniques(found)
        matrix = _matrix(
            f"Transferability, region {region}: crafted on (row), tested on", by_technique(found) if grouped else found
        )
        if grouped:
            matrix.caption = f"{matrix.caption}; within a technique, of its other classifiers"
        yield matrix
    first = next(iter(results.values()))
    if len(first["sources"]) * len(first["victims"]) <= 16:
        yield _sizes(results)
    if len(results) > 1:
        yield _summary(results)


def _matrix(title: str, found: Mapping[str, Any]) -> Table:
    table = plain_table(title, "source", found["victims"])
    for source, shares in zip(found["sources"], found["transferability"], strict=True):
        table.add_row(source, *("–" if share is None else f"{100 * share:.0f} %" for share in shares))
    table.caption = "of the images that both classify rightly"
    return table


def _sizes(results: Mapping[str, Mapping[str, Any]]) -> Table:
    table = plain_table("What transfers to another model: mean (std)", "region", ("pair", "images", "L2", "Linf"))
    for region, found in results.items():
        for row in transfer_rows({region: found}):
            if row["source"] != row["victim"]:
                pair = f"{row['source']} > {row['victim']}"
                table.add_row(region, pair, str(row["transferred"]), _spread(row, "l2"), _spread(row, "linf"))
        table.add_section()
    return table


def _summary(results: Mapping[str, Mapping[str, Any]]) -> Table:
    headings = {
        "transferability": "transfers",
        "kept": "still\ntransfers",
        "l0_reduced": "smaller\nL0",
        "l2_reduced": "smaller\nL2",
        "linf_reduced": "smaller\nLinf",
    }
    table = plain_table("Regions against the global attack, all pairs together", "region", headings.values())
    for region, found in results.items():
        whole = summary(found)
        table.add_row(region, *(percent(whole[name]) for name in headings))
    return table


def _spread(row: Mapping[str, Any], norm: str) -> str:
    return "–" if row[norm] is None else f"{row[norm]:.3g} ({row[f'{norm}_std']:.2g})"


def _technique(name: str) -> str:
    return name.partition("/")[0]
