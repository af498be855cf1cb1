"""Logits over a temperature: what changes and what must not."""

import pytest
import torch

from lit_adv.models import Temperature, classifier


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    return classifier("small_cnn", 10, 8, 1).eval(), torch.rand(9, 1, 8, 8)


def test_logits_are_divided_and_predictions_stay(case):
    model, x = case
    for t in (0.5, 1, 40, 1e4):
        logits = Temperature(model, t)(x)
        torch.testing.assert_close(logits * t, model(x))
        assert torch.equal(logits.argmax(1), model(x).argmax(1))


def test_a_high_temperature_makes_the_softmax_uniform():
    logits = torch.linspace(-10, 10, 70).view(7, 10)
    soft = Temperature(torch.nn.Identity(), 1e4)(logits).softmax(1)
    assert (soft - 0.1).abs().max() < 1e-3
    torch.testing.assert_close(soft.sum(1), torch.ones(7))
    assert (logits.softmax(1) - 0.1).abs().max() > 0.05


@pytest.mark.parametrize("t", [0, -1, float("inf"), float("nan")])
def test_bad_temperatures(t):
    with pytest.raises(ValueError, match="Temperature: temperature must be above 0 and finite, got"):
        Temperature(torch.nn.Identity(), t)
