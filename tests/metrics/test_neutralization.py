"""NeutralizationScore against counting, its intervals against published numbers (two processes: test_checks)."""

import pytest
import torch

from lit_adv.metrics import NeutralizationScore, wilson_interval


def test_wilson_interval_against_published_numbers() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81/263, 15/148, 0/20, 1/29
    low, high = wilson_interval(torch.tensor([81, 15, 0, 1]), torch.tensor([263, 148, 20, 29]))
    assert [round(float(end), 4) for end in low] == [0.2553, 0.0624, 0.0, 0.0061]
    assert [round(float(end), 4) for end in high] == [0.3662, 0.1605, 0.1611, 0.1718]


def test_wilson_interval_solves_its_equation() -> None:
    # the ends are where the share lies z standard errors away, the error being that of the end itself
    right, images, z = torch.tensor([3, 30, 99]), torch.tensor([7, 32, 100]), 2.5758293035489004
    for end in wilson_interval(right, images, 0.99):
        distance = (right.double() / images - end).abs() / (end * (1 - end) / images).sqrt()
        torch.testing.assert_close(distance, torch.full((3,), z, dtype=torch.float64), rtol=1e-6, atol=0)
    low, high = wilson_interval(torch.tensor([0, 5, 0]), torch.tensor([5, 5, 0]))
    assert low[0] == 0
    assert high[1] == 1
    assert low[2].isnan()
    assert high[2].isnan()


def test_scores_of_different_images() -> None:
    metric = NeutralizationScore()
    metric.update({"clean": torch.tensor([True, True, False]), "adversarial": torch.tensor([False, True, False])})
    metric.update({"clean": torch.tensor([True]), "modified": torch.tensor([], dtype=torch.bool)})
    found = metric.compute()
    assert list(found) == ["clean", "adversarial", "modified", "modified_adversarial", "reneutralised"]
    assert (found["clean"]["accuracy"], found["clean"]["images"]) == (0.75, 4)
    assert (found["adversarial"]["accuracy"], found["adversarial"]["images"]) == (1 / 3, 3)
    assert found["modified"] == {"accuracy": None, "low": None, "high": None, "images": 0}
    assert found["clean"]["low"] < 0.75 < found["clean"]["high"]
    wide = NeutralizationScore(confidence=0.5)
    wide.update({"clean": torch.tensor([True, True, False, True])})
    assert wide.compute()["clean"]["low"] > found["clean"]["low"]
    metric.reset()
    metric.update({"clean": torch.tensor([False])})
    assert metric.compute()["clean"]["images"] == 1


def test_bad_input_is_named() -> None:
    metric = NeutralizationScore(["clean"])
    with pytest.raises(ValueError, match=r"NeutralizationScore: right must be of clean, got 'dirty'"):
        metric.update({"clean": torch.tensor([True]), "dirty": torch.tensor([True])})
    with pytest.raises(ValueError, match=r"right\['clean'\] must be bool of shape \(B,\), got torch.int64"):
        metric.update({"clean": torch.tensor([1])})
    assert int(metric.images) == 0
    with pytest.raises(ValueError, match=r"NeutralizationScore: scores must be one or more different names"):
        NeutralizationScore(["clean", "clean"])
    with pytest.raises(ValueError, match=r"NeutralizationScore: confidence must be in \(0, 1\), got 95"):
        NeutralizationScore(confidence=95)
