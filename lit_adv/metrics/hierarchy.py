"""How nearly right an attack is named: its family first, then the algorithm within it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_adv.metrics.checks import ratio_dtype
from lit_adv.metrics.confusion import ConfusionCounts


class HierarchicalRecognition(ConfusionCounts):
    """Recognition in the tree root - family - attack class, so that a near miss counts for more than a far one.

    Hierarchical precision, recall and F1 are those of Kiritchenko et al. 2006 ("Learning and evaluation in the presence
    of class hierarchies", Canadian AI): with T and P the true and the recognised class together with the families above
    them, the root left out, ``hP = sum |T and P| / sum |P|`` and ``hR = sum |T and P| / sum |T|`` over all images, and
    F1 their harmonic mean. A class without a family stands directly below the root, and is its own family in the other
    scores.

    Args:
        classes: Names of the A attack classes, in the order of their indices.
        families: Family of each class that has one, by name.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If `classes` repeats a name, or `families` knows a class that there is not, or has a family with the
            name of a class without one.
    """

    def __init__(self, classes: Sequence[str], families: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(classes, **kwargs)
        alone = set(self.classes) - set(families)
        if not set(families) <= set(self.classes) or alone & set(families.values()):
            raise ValueError(
                f"HierarchicalRecognition: families must give families to classes ({', '.join(self.classes)}) and none "
                f"of them the name of a class without family, got {dict(families)}"
            )
        self.family_of = tuple(families.get(name, name) for name in self.classes)
        self.families = tuple(dict.fromkeys(self.family_of))
        self._family = [self.families.index(name) for name in self.family_of]
        # a class without family is one node of the tree below the root, any other two
        self._depth = [1 if name in alone else 2 for name in self.classes]

    def compute(self) -> dict[str, Tensor]:
        """Return the scores of all images so far, for F families; what no image was seen of is nan.

        Returns:
            precision, recall, f1: scalars, hierarchical.
            family: scalar, mean over the families seen of the share of their images whose family was named right.
            family_micro: scalar, the same share of all images alike.
            algorithm: scalar, share of images whose class is right among those whose family is right, over the families
                of several classes.
            per_family: (F,), share of each family's images whose family was named right.
            per_family_algorithm: (F,), share of those whose class is right as well.
            counts: (F,) int64, images of each family.
        """
        dtype, device = ratio_dtype(self.confusion.device), self.confusion.device
        family, depth = torch.tensor(self._family, device=device), torch.tensor(self._depth, device=device)
        same = family[:, None] == family[None, :]
        exact = torch.eye(len(self.classes), dtype=torch.bool, device=device)
        # nodes that two classes share: the family, and the class itself where it is another node
        shared = same.long() + (exact & (depth == 2)[:, None]).long()
        overlap = (self.confusion * shared).sum().to(dtype)
        precision = overlap / (self.confusion * depth[None, :]).sum().to(dtype)
        recall = overlap / (self.confusion * depth[:, None]).sum().to(dtype)

        def by_family(rows: Tensor) -> Tensor:
            return rows.new_zeros(len(self.families)).index_add(0, family, rows)

        counts = by_family(self.confusion.sum(1))
        right = by_family((self.confusion * same).sum(1))
        named = by_family(self.confusion.diagonal())
        several = by_family(torch.ones_like(family)) > 1
        per_family = right.to(dtype) / counts.to(dtype)
        return {
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
            "family": per_family.nanmean(),
            "family_micro": right.sum().to(dtype) / counts.sum().to(dtype),
            "algorithm": (named * several).sum().to(dtype) / (right * several).sum().to(dtype),
            "per_family": per_family,
            "per_family_algorithm": named.to(dtype) / right.to(dtype),
            "counts": counts,
        }
