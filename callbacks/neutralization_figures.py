"""Neutralisation drawn: examples, what a class' images have in common, and the accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lit_adv.metrics import NeutralizationScore
from lit_adv.plots import RegionExample, Representatives, neutralization_figure, regions_figure, representatives_figure

from .blob_row import BlobRow
from .blob_search import RegionCounts
from .tables import percent

MOST = 6
"""Most pairs in a figure."""
_LEGEND = "below a pair: delta1 delta2 theta of its blob"
_WORDS = {
    "clean": "clean",
    "modified": "blocked",
    "adversarial": "attacked",
    "modified_adversarial": "blocked, then attacked",
    "reneutralised": "… and blocked again",
    "strong": "strong attack",
    "adaptive": "strong attack, knows the blob",
    "target_clean": "target class",
    "target_modified": "target class, blocked",
}
_CHOSEN = {"given": "thresholds given", "pair": "searched for the pair", "all": "searched for all pairs"}


def region_examples(
    name: str, row: BlobRow, pictures: Mapping[str, Tensor], right: Mapping[str, Tensor], count: int
) -> list[RegionExample]:
    """The first images of a batch with their regions.

    Args:
        name: Of the pair.
        row: The blob shown.
        pictures: Batches by the fields of `RegionExample`.
        right: By score, ``(B,)`` bool.
        count: Most examples.
    """
    found = []
    for place in range(min(count, len(pictures["image"]))):
        kept: dict[str, Any] = {field: each[place].float().cpu() for field, each in pictures.items()}
        captions = ["right" if right[score][place] else "wrong" for score in NeutralizationScore.SCORES[:4]]
        found.append(RegionExample(f"{name}\n{row.about}", **kept, captions=captions))
    return found


def examples_figure(examples: Sequence[RegionExample]) -> Figure:
    """Images, maps and regions."""
    return regions_figure(examples, f"Regions and the blob blocked ({_LEGEND})")


def common_figure(
    rows: Sequence[tuple[str, BlobRow, RegionCounts, Sequence[RegionExample]]],
) -> Figure:
    """Class representatives and blobs.

    Args:
        rows: Each pair's name, blob, counts and examples, the first of which lies under the blob.
    """
    panels = {}
    for name, row, counts, examples in rows:
        point = row.choice.point or row.given
        blob = row.choice.blob
        image = examples[0].image if examples else torch.zeros(1, *blob.shape)
        maps = counts.representatives(point.delta1, point.delta2)
        caption = f"{percent(float(blob.double().mean()))} blocked"
        panels[f"{name}\n{row.about}"] = Representatives(*maps, blob.float(), image, caption)
    return representatives_figure(panels, f"Class representatives and blobs\n({_LEGEND})")


def accuracies_figure(results: Sequence[Mapping[str, Any]], protocol: str) -> Figure:
    """Accuracies of the first pairs with their intervals.

    Args:
        results: From `BlobRow.result`.
        protocol: In the title.
    """
    accuracies = {f"{row['source']} → {row['target']}\n{_CHOSEN[row['chosen']]}": row["scores"] for row in results}
    few = dict(list(accuracies.items())[: 3 * MOST])
    return neutralization_figure(few, _WORDS, f"Neutralisation: {protocol} protocol")
