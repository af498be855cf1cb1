"""HierarchicalRecognition against sets of ancestors, image by image, and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score

from lit_adv.metrics import HierarchicalRecognition

CLASSES = ["clean", "pgd", "bim", "deepfool", "ddn", "square"]
FAMILIES = {"pgd": "iterative", "bim": "iterative", "deepfool": "minimal", "ddn": "minimal", "square": "black_box"}


def ancestors(name):
    """The class and the families above it, the root left out (Kiritchenko et al. 2006)."""
    return {name} | ({f"family {FAMILIES[name]}"} if name in FAMILIES else set())


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=50), st.integers(1, 7))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_equals_sets_of_ancestors_and_scikit_learn(pairs, batch):
    metric = HierarchicalRecognition(CLASSES, FAMILIES)
    true, named = np.array(pairs).T
    for start in range(0, len(pairs), batch):
        rows = slice(start, start + batch)
        metric.update(torch.from_numpy(named[rows]), torch.from_numpy(true[rows]))
    found = {name: value.numpy() for name, value in metric.compute().items()}

    sets = [(ancestors(CLASSES[t]), ancestors(CLASSES[p])) for t, p in pairs]
    shared = sum(len(t & p) for t, p in sets)
    precision, recall = shared / sum(len(p) for _, p in sets), shared / sum(len(t) for t, _ in sets)
    assert found["precision"] == pytest.approx(precision, rel=1e-12)
    assert found["recall"] == pytest.approx(recall, rel=1e-12)
    if shared:
        assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-12)
    else:
        assert math.isnan(found["f1"])

    family = np.array([FAMILIES.get(name, name) for name in CLASSES])
    assert found["family_micro"] == pytest.approx(accuracy_score(family[true], family[named]), rel=1e-12)
    recall = recall_score(family[true], family[named], labels=np.unique(family[true]), average="macro", zero_division=0)
    assert found["family"] == pytest.approx(recall, rel=1e-12)
    right = (family[true] == family[named]) & np.isin(family[true], ["iterative", "minimal"])
    expected = (true == named)[right].mean() if right.any() else math.nan
    np.testing.assert_allclose(found["algorithm"], expected, rtol=1e-12)
    for number, name in enumerate(metric.families):
        rows = family[true] == name
        assert found["counts"][number] == rows.sum()
        inside = rows & (family[named] == name)
        np.testing.assert_allclose(found["per_family"][number], inside.sum() / rows.sum() if rows.any() else math.nan)
        within = (true == named)[inside].mean() if inside.any() else math.nan
        np.testing.assert_allclose(found["per_family_algorithm"][number], within)


def test_a_near_miss_counts_for_more_than_a_far_one():
    scores = []
    for named in (1, 2, 3, 0):  # right; another of the family; of another family; clean
        metric = HierarchicalRecognition(CLASSES, FAMILIES)
        metric.update(torch.tensor([named, 5]), torch.tensor([1, 5]))
        found = metric.compute()
        scores.append((found["precision"].item(), found["recall"].item()))
    assert scores == [(1, 1), (3 / 4, 3 / 4), (2 / 4, 2 / 4), (2 / 3, 2 / 4)]  # clean is one node, an attack two


def test_empty_epoch_is_nan_everywhere():
    metric = HierarchicalRecognition(CLASSES, FAMILIES)
    empty = torch.empty(0, dtype=torch.long)
    metric.update(empty, empty)
    found = metric.compute()
    assert all(value.isnan().all() for name, value in found.items() if name != "counts")
    assert found["counts"].sum() == 0


@pytest.mark.parametrize(
    ("families", "message"),
    [
        ({"pgd": "a", "fgsm": "a"}, "families must give families to classes"),
        ({"pgd": "clean"}, "none of them the name of a class without family"),
    ],
)
def test_families_that_do_not_fit_are_refused(families, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalRecognition(["clean", "pgd"], families)


def test_a_class_may_have_its_family_s_name():
    metric = HierarchicalRecognition(["clean", "patch", "lavan"], {"patch": "patch", "lavan": "patch"})
    metric.update(torch.tensor([1, 2]), torch.tensor([2, 2]))
    assert metric.compute()["precision"] == 3 / 4


def test_bad_indices_are_refused_by_name():
    with pytest.raises(ValueError, match=r"HierarchicalRecognition: prediction must be in \[0, 6\), got 6"):
        HierarchicalRecognition(CLASSES, FAMILIES).update(torch.tensor([6]), torch.tensor([0]))
