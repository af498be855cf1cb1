"""Victims and budgets against NumPy, row by row."""

import math

import numpy as np
import pytest
import torch

from lit_adv.metrics import BudgetError, VictimAccuracy

CLASSES, VICTIMS = ["clean", "pgd", "patch"], ["a", "b", "c"]


def columns(count=200):
    draws = np.random.default_rng(0)
    attack, victim, named = draws.integers(0, 3, (3, count))
    return attack, np.where(attack == 0, -1, victim), draws.integers(0, 2, count), named


def test_victims_held_out_count_in_no_accuracy():
    attack, victim, named, _ = columns()
    metric = VictimAccuracy(CLASSES, VICTIMS, ["c", "a"])  # b was held out
    for rows in (slice(0, 70), slice(70, None)):
        metric.update(*(torch.from_numpy(column[rows]) for column in (named, attack, victim)))
    found = metric.compute()
    answer = np.array([1, -2, 0])[victim]  # index into (c, a)
    known = (victim >= 0) & (answer >= 0)
    assert found["accuracy"].item() == pytest.approx((named == answer)[known].mean(), rel=1e-12)
    per_attack = [(named == answer)[known & (attack == one)].mean() for one in (1, 2)]
    np.testing.assert_allclose(found["per_attack"], [math.nan, *per_attack], rtol=1e-12)
    assert found["macro"].item() == pytest.approx(np.mean(per_attack), rel=1e-12)
    assert found["images"].tolist() == [0, *((known & (attack == one)).sum() for one in (1, 2))]
    # the row of b says what its images were taken for
    expected = [[((victim == true) & (named == one)).sum() for one in (0, 1)] for true in range(3)]
    assert found["confusion"].tolist() == expected


def test_clean_rows_have_no_victim():
    metric = VictimAccuracy(CLASSES, VICTIMS)
    metric.update(torch.tensor([0, 2]), torch.tensor([0, 0]), torch.tensor([-1, -1]))
    found = metric.compute()
    assert found["accuracy"].isnan()
    assert found["confusion"].sum() == 0


def test_budgets_count_where_the_attack_was_recognised():
    attack, _, _, prediction = columns()
    draws = np.random.default_rng(1)
    budget = np.where(attack == 0, math.nan, draws.choice([4.0, 8, 16], 200))
    estimate = budget * draws.choice([0.5, 0.7, 1, 1.5, 1.6], 200)
    estimate[prediction != attack] = math.nan  # whatever is said there does not matter
    metric = BudgetError(CLASSES)
    for rows in (slice(0, 70), slice(70, None)):
        metric.update(*(torch.from_numpy(column[rows]) for column in (estimate, budget, prediction, attack)))
    found = metric.compute()
    counted, right = attack > 0, (attack > 0) & (prediction == attack)
    ratio = np.maximum(estimate / budget, budget / estimate)
    near = ratio <= 1.5 + 1e-9
    assert found["mae"].item() == pytest.approx(np.abs(estimate - budget)[right].mean(), rel=1e-12)
    assert found["within"].item() == pytest.approx(near[right].mean(), rel=1e-12)
    assert found["within_all"].item() == pytest.approx((near & right).sum() / counted.sum(), rel=1e-12)
    for one in (1, 2):
        rows = right & (attack == one)
        assert found["per_attack"][one].item() == pytest.approx(np.abs(estimate - budget)[rows].mean(), rel=1e-12)
        assert found["per_attack_within"][one].item() == pytest.approx(near[rows].mean(), rel=1e-12)
        assert found["recognised"][one] == rows.sum()
        assert found["images"][one] == (attack == one).sum()
    assert found["per_attack"][0].isnan()


def test_exactly_the_factor_is_near():
    metric = BudgetError(["a"], factor=1.5)
    zeros = torch.zeros(3, dtype=torch.long)
    metric.update(torch.tensor([12.0, 8 / 1.5, 12.1]), torch.full((3,), 8.0), zeros, zeros)
    assert metric.compute()["within"].item() == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VictimAccuracy(CLASSES, ["a"], ["b"]), "named must be some of the victims a, got b"),
        (lambda: BudgetError(CLASSES, factor=1.0), "factor must be finite and above 1, got 1.0"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_batches_are_refused():
    one = torch.tensor([1])
    with pytest.raises(ValueError, match=r"VictimAccuracy: victim must be in \[0, 3\), got 3"):
        VictimAccuracy(CLASSES, VICTIMS).update(one, one, torch.tensor([3]))
    with pytest.raises(ValueError, match=r"VictimAccuracy: victim must be in \[0, 3\), got -2"):
        VictimAccuracy(CLASSES, VICTIMS).update(one, one, torch.tensor([-2]))
    with pytest.raises(ValueError, match="BudgetError: estimate and budget must be above 0"):
        BudgetError(CLASSES).update(torch.tensor([-1.0]), torch.tensor([3.0]), one, one)
    with pytest.raises(ValueError, match="BudgetError: estimate and budget must be as long as attack"):
        BudgetError(CLASSES).update(torch.tensor([1.0, 2]), torch.tensor([3.0]), one, one)
