"""RecognitionAccuracy against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from lit_adv.metrics import RecognitionAccuracy

CLASSES = ["clean", "pgd", "deepfool", "cw_l2", "cw_linf", "patch"]
PAPER = dict(zip(CLASSES, [1, 12, 4, 8, 12, 24], strict=True))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60),
    st.integers(1, 7),
)
@settings(max_examples=60)
def test_equals_scikit_learn_whatever_the_batches(pairs: list[tuple[int, int]], batch: int) -> None:
    true, recognised = np.array(pairs).T
    metric = RecognitionAccuracy(CLASSES, weights=PAPER)
    for start in range(0, len(pairs), batch):
        rows = slice(start, start + batch)
        metric.update(torch.from_numpy(recognised[rows]), torch.from_numpy(true[rows]))
    result = metric.compute()

    seen = np.unique(true)
    recall = recall_score(true, recognised, labels=seen, average=None, zero_division=0)
    weights = np.array(list(PAPER.values()))[seen]
    np.testing.assert_array_equal(result["confusion"], confusion_matrix(true, recognised, labels=range(6)))
    np.testing.assert_array_equal(result["counts"], np.bincount(true, minlength=6))
    np.testing.assert_allclose(result["per_class"][seen], recall, rtol=1e-12)
    assert result["per_class"].isnan().sum() == 6 - len(seen)
    assert result["micro"].item() == pytest.approx(accuracy_score(true, recognised), rel=1e-12)
    # balanced accuracy; scikit-learn's own function warns of classes that are only predicted
    assert result["macro"].item() == pytest.approx(recall.mean(), rel=1e-12)
    assert result["weighted"].item() == pytest.approx(np.average(recall, weights=weights), rel=1e-12)


def test_papers_total_from_one_image_a_class() -> None:
    """Souri et al. 2021, Table 3, CIFAR-10, (I_r, I_adv): the rates give the published 94.2 under these weights."""
    rates = [1.0, 0.999, 0.974, 0.966, 0.741, 0.999]
    metric = RecognitionAccuracy(CLASSES, weights=list(PAPER.values()))
    for attack, rate in enumerate(rates):
        hits = round(1000 * rate)
        prediction = torch.tensor([attack] * hits + [(attack + 1) % 6] * (1000 - hits))
        metric.update(prediction, torch.full((1000,), attack))
    result = metric.compute()
    assert result["weighted"].item() == pytest.approx(0.942, abs=7e-4)
    assert result["macro"].item() == pytest.approx(sum(rates) / 6)


def test_weighted_with_the_counts_is_micro() -> None:
    attack = torch.tensor([0, 1, 1, 2, 2, 2])
    metric = RecognitionAccuracy(["a", "b", "c"], weights={"c": 3, "a": 1, "b": 2})
    metric.update(torch.tensor([0, 1, 0, 2, 2, 0]), attack)
    result = metric.compute()
    assert result["weighted"].item() == pytest.approx(result["micro"].item(), rel=1e-12)
    assert result["micro"].item() == pytest.approx(4 / 6)


def test_without_weights_there_is_no_weighted_mean() -> None:
    metric = RecognitionAccuracy(["a", "b"])
    metric.update(torch.tensor([0]), torch.tensor([0]))
    assert metric.compute()["weighted"] is None


def test_empty_epoch_is_nan_everywhere() -> None:
    metric = RecognitionAccuracy(["a", "b"], weights=[1, 1])
    empty = torch.empty(0, dtype=torch.long)
    metric.update(empty, empty)
    result = metric.compute()
    assert all(math.isnan(result[name]) for name in ("micro", "macro", "weighted"))
    assert result["per_class"].isnan().all()
    assert result["confusion"].sum() == 0


def test_merge_and_reset() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, attack = torch.randint(0, 6, (2, 50), generator=generator)
    whole, first, second = (RecognitionAccuracy(CLASSES) for _ in range(3))
    whole.update(prediction, attack)
    first.update(prediction[:20], attack[:20])
    second.update(prediction[20:], attack[20:])
    first.merge_state(second)
    assert torch.equal(first.compute()["confusion"], whole.compute()["confusion"])
    first.reset()
    first.update(prediction[:1], attack[:1])
    assert first.compute()["counts"].sum() == 1


def test_forward_gives_the_batch_and_keeps_the_sum() -> None:
    metric = RecognitionAccuracy(["a", "b"])
    metric(torch.tensor([0, 0]), torch.tensor([0, 0]))
    batch = metric(torch.tensor([0, 0]), torch.tensor([1, 1]))
    assert batch["micro"] == 0
    assert metric.compute()["micro"] == 0.5


def test_result_is_a_copy() -> None:
    metric = RecognitionAccuracy(["a", "b"])
    metric.update(torch.tensor([0]), torch.tensor([0]))
    metric.compute()["confusion"].zero_()
    assert metric.confusion[0, 0] == 1


@pytest.mark.parametrize(
    ("prediction", "attack", "error", "message"),
    [
        (torch.zeros(2, 6), torch.zeros(2).long(), TypeError, "prediction must be a tensor of integers, got torch.fl"),
        (torch.zeros(2).bool(), torch.zeros(2).long(), TypeError, "prediction must be a tensor of integers"),
        ([0, 1], torch.zeros(2).long(), TypeError, "got list"),
        (torch.zeros(2, 1).long(), torch.zeros(2).long(), ValueError, r"must have shape \(B,\), got \(2, 1\)"),
        (torch.zeros(2).long(), torch.zeros(3).long(), ValueError, "attack must be as long as prediction, got 3 and 2"),
        (torch.tensor([0, 2]), torch.zeros(2).long(), ValueError, r"prediction must be in \[0, 2\), got 2"),
        (torch.zeros(2).long(), torch.tensor([0, -1]), ValueError, r"attack must be in \[0, 2\), got -1"),
    ],
)
def test_bad_batches_are_refused_and_not_counted(prediction, attack, error, message) -> None:
    metric = RecognitionAccuracy(["a", "b"])
    with pytest.raises(error, match=f"RecognitionAccuracy: .*{message}"):
        metric.update(prediction, attack)
    assert metric.confusion.sum() == 0


@pytest.mark.parametrize(
    ("classes", "weights", "message"),
    [
        (["a", "a"], None, "classes must be one or more different names"),
        ([], None, "classes must be one or more different names"),
        ("ab", None, "pass a list of names"),
        (["a", "b"], [1], "weights must be as many as classes, got 1 and 2"),
        (["a", "b"], {"a": 1, "c": 1}, "weights must name every class once"),
        (["a", "b"], [1, -1], "finite, >= 0 and not all 0"),
        (["a", "b"], [0, 0], "finite, >= 0 and not all 0"),
        (["a", "b"], [1, math.inf], "finite, >= 0 and not all 0"),
    ],
)
def test_bad_arguments_are_refused(classes, weights, message) -> None:
    with pytest.raises(ValueError, match=message):
        RecognitionAccuracy(classes, weights=weights)
