"""Counts from which gradient masking is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_adv.metrics.checks import check_names


class MaskingCounts(Metric):
    """What gradients and answers of one classifier did on a set of images, as counts.

    Of every two attacks the images that are robust under both are counted, so that differences of accuracies have the
    intervals of paired images. All states are whole numbers, summed over processes, but for the linearisation gaps,
    which are kept one by one for their median: any number of processes gives the numbers of one, to the last bit.

    Args:
        attacks: Names of the attacks; ``clean`` comes before them.
        others: Names of what else takes passes.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: A name that is there twice, or ``clean``.
    """

    SINGLE = ("images", "attacked", "entries", "zero_entries", "zero_images", "searched", "found")
    EXCHANGED = ("shared", "crossed", "own", "crossed_and_own")

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    both: Tensor
    passes: Tensor
    single: Tensor
    exchanged: Tensor
    classes: Tensor
    gaps: list[Tensor]

    def __init__(self, attacks: Sequence[str], others: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = check_names("MaskingCounts", "attacks and clean", ["clean", *attacks])
        self.spenders = check_names("MaskingCounts", "attacks and others", [*attacks, *others])
        long = torch.long
        size = len(self.names)
        self.add_state("both", torch.zeros(size, size, dtype=long), dist_reduce_fx="sum")
        self.add_state("passes", torch.zeros(len(self.spenders), 3, dtype=long), dist_reduce_fx="sum")
        self.add_state("single", torch.zeros(len(self.SINGLE), dtype=long), dist_reduce_fx="sum")
        self.add_state("exchanged", torch.zeros(len(self.EXCHANGED), dtype=long), dist_reduce_fx="sum")
        self.add_state("classes", torch.zeros((), dtype=long), dist_reduce_fx="max")
        self.add_state("gaps", [], dist_reduce_fx="cat")

    def update(
        self,
        right: Tensor,
        fooled: Mapping[str, Tensor],
        passes: Mapping[str, Tensor],
        zeros: Tensor,
        entries: int,
        gaps: Tensor,
        found: Tensor,
        exchanged: Tensor,
        classes: int,
    ) -> None:
        """Count a batch of B images, R of which the classifier has right; only those are attacked. All may be empty.

        Args:
            right: ``(B,)`` bool.
            fooled: For every attack, ``(R,)`` bool.
            passes: By spender, ``(N, 2)`` int64: forward and backward passes of the images it has worked on.
            zeros: ``(R,)`` int64: entries of the gradient that are exactly 0.
            entries: Of an image's gradient.
            gaps: ``(R,)``: relative linearisation gaps.
            found: ``(S,)`` bool: where random search succeeds, of the images it was asked for.
            exchanged: ``(T, 2)`` bool: of images that a second network has right too, whether it is fooled by the
                first one's examples, and by its own.
            classes: K; 0 where no image was seen.

        Raises:
            ValueError: An attack is missing or unknown, or a length differs.
        """
        attacked = int(right.sum())
        if set(fooled) != set(self.names[1:]):
            raise ValueError(
                f"MaskingCounts: fooled must be of the attacks {', '.join(self.names[1:])}, got {', '.join(fooled)}"
            )
        for name, column in {**fooled, "zeros": zeros, "gaps": gaps}.items():
            if column.shape != (attacked,):
                raise ValueError(
                    f"MaskingCounts: {name} must have shape ({attacked},), one for each image that is classified"
                    f" rightly, got {tuple(column.shape)}"
                )
        held = [torch.ones(attacked, dtype=torch.bool, device=right.device), *(~fooled[n] for n in self.names[1:])]
        robust = torch.stack(held)
        # not in place, here and below: Lightning may have reset these in inference mode
        self.both = self.both + (robust[:, None] & robust).sum(-1)
        spent = torch.zeros_like(self.passes)
        for name, each in passes.items():
            place = self.spenders.index(name)
            spent[place, 0] = len(each)
            spent[place, 1:] = each.sum(0)
        self.passes = self.passes + spent
        whole = (zeros == entries).sum() if entries else 0
        numbers = (len(right), attacked, entries * attacked, int(zeros.sum()), int(whole), len(found), int(found.sum()))
        self.single = self.single + torch.tensor(numbers, device=self.single.device)
        crossed, own = exchanged.unbind(1)
        counts = (len(exchanged), int(crossed.sum()), int(own.sum()), int((crossed & own).sum()))
        self.exchanged = self.exchanged + torch.tensor(counts, device=self.exchanged.device)
        self.classes = self.classes.clamp(min=classes)
        self.gaps.append(gaps.double())

    def nothing(self) -> None:
        """Count an empty batch: a process may get no image."""
        none = torch.zeros(0, dtype=torch.bool, device=self.both.device)
        self.update(
            none,
            dict.fromkeys(self.names[1:], none),
            {},
            none.long(),
            0,
            none.double(),
            none,
            none.view(0, 2),
            0,
        )

    def compute(self) -> dict[str, Any]:
        """The counts as plain numbers.

        Returns:
            The names in `SINGLE` and `EXCHANGED`, ``classes``, ``names``, ``both`` (a list of rows, in the order of
            ``names``), ``passes`` (by spender ``images``, ``forwards`` and ``backwards``) and ``gaps``, a sorted
            float64 tensor.
        """
        gaps = torch.cat(self.gaps) if isinstance(self.gaps, list) else self.gaps
        columns = ("images", "forwards", "backwards")
        return {
            **dict(zip(self.SINGLE, self.single.tolist(), strict=True)),
            **dict(zip(self.EXCHANGED, self.exchanged.tolist(), strict=True)),
            "classes": int(self.classes),
            "names": self.names,
            "both": self.both.tolist(),
            "passes": {
                name: dict(zip(columns, row, strict=True))
                for name, row in zip(self.spenders, self.passes.tolist(), strict=True)
            },
            "gaps": gaps.sort().values.cpu(),
        }
