"""Counts of masking: those of a plain loop, the same on one process and on two."""

import pytest
import torch

from lit_adv.metrics import MaskingCounts

ATTACKS = ["fgsm", "pgd"]


def batch(seed, size):
    """A batch of arguments of `update`, and what is true of each image."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(size, generator=generator) < 0.7
    count = int(right.sum())
    fooled = {name: torch.rand(count, generator=generator) < 0.5 for name in ATTACKS}
    left = int((~fooled["pgd"]).sum())
    passes = {name: torch.randint(1, 9, (count, 2), generator=generator) for name in ATTACKS}
    passes["search"] = torch.randint(1, 9, (left, 2), generator=generator)
    zeros = torch.randint(0, 5, (count,), generator=generator)
    exchanged = torch.rand(count // 2, 2, generator=generator) < 0.4
    return {
        "right": right,
        "fooled": fooled,
        "passes": passes,
        "zeros": zeros,
        "entries": 4,
        "gaps": torch.rand(count, generator=generator, dtype=torch.float64),
        "found": torch.rand(left, generator=generator) < 0.3,
        "exchanged": exchanged,
        "classes": 5,
    }


def made(batches):
    metric = MaskingCounts(ATTACKS, ["search"])
    metric.nothing()
    for each in batches:
        metric.update(**each)
    return metric.compute()


def test_counts_are_those_of_a_loop():
    batches = [batch(0, 23), batch(1, 9), batch(2, 1)]
    found = made(batches)
    table = [[0] * 3 for _ in range(3)]
    for each in batches:
        for image in range(int(each["right"].sum())):
            held = [True, not each["fooled"]["fgsm"][image], not each["fooled"]["pgd"][image]]
            for one in range(3):
                for other in range(3):
                    table[one][other] += held[one] and held[other]
    assert found["names"] == ("clean", "fgsm", "pgd")
    assert found["both"] == table
    assert (found["images"], found["attacked"], found["classes"]) == (33, table[0][0], 5)
    assert found["entries"] == 4 * table[0][0]
    assert found["zero_entries"] == sum(int(each["zeros"].sum()) for each in batches)
    assert found["zero_images"] == sum(int((each["zeros"] == 4).sum()) for each in batches) > 0
    assert found["searched"] == table[2][2]
    assert found["found"] == sum(int(each["found"].sum()) for each in batches)
    rows = [row for each in batches for row in each["exchanged"].tolist()]
    assert found["shared"] == len(rows)
    assert (found["crossed"], found["own"]) == tuple(sum(column) for column in zip(*rows, strict=True))
    assert found["crossed_and_own"] == sum(one and other for one, other in rows)
    for name in (*ATTACKS, "search"):
        spent = torch.cat([each["passes"][name] for each in batches])
        assert list(found["passes"][name].values()) == [len(spent), *spent.sum(0).tolist()]
    assert torch.equal(found["gaps"], torch.cat([each["gaps"] for each in batches]).sort().values)


def test_nothing_is_counted_as_nothing():
    found = made([])
    assert found["images"] == found["entries"] == found["classes"] == len(found["gaps"]) == 0
    assert found["both"] == [[0] * 3] * 3


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="MaskingCounts: attacks and clean must be one or more different names"):
        MaskingCounts(["clean"])
    metric, given = MaskingCounts(ATTACKS, ["search"]), batch(0, 9)
    with pytest.raises(ValueError, match="MaskingCounts: fooled must be of the attacks fgsm, pgd, got fgsm"):
        metric.update(**{**given, "fooled": {"fgsm": given["fooled"]["fgsm"]}})
    with pytest.raises(ValueError, match=r"MaskingCounts: gaps must have shape \(\d,\), one for each image that is"):
        metric.update(**{**given, "gaps": given["gaps"][1:]})
