"""Objectives against slow loops over the papers' formulas and against what their sign must say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.attacks.objectives import margin, objective

quick = settings(max_examples=60)
logit = st.floats(-30, 30)
rows = st.integers(2, 7).flatmap(
    lambda classes: st.tuples(st.lists(logit, min_size=classes, max_size=classes), st.integers(0, classes - 1))
)
EXACT, SUFFICIENT = ("f2", "f3", "f6", "f7"), ("f1", "f4", "f5")


def slow(name, z, own, targeted):
    """The method's formulas, signs corrected, in plain Python. Wanted is the class to reach."""
    others = [value for k, value in enumerate(z) if k != own]
    top = max(z)
    total = sum(math.exp(value - top) for value in z)
    probability = [math.exp(value - top) / total for value in z]
    best = max(range(len(z)), key=lambda k: (k != own, z[k]))
    wanted, rival = (own, best) if targeted else (best, own)
    log_wanted = z[wanted] - top - math.log(total)
    softplus = lambda v: max(v, 0) + math.log1p(math.exp(-abs(v)))  # noqa: E731
    return {
        "f1": -log_wanted / math.log(2) - 1,
        "f2": max(probability[rival] - probability[wanted], 0),
        "f3": softplus(probability[rival] - probability[wanted]) - math.log(2),
        "f4": max(0.5 - probability[wanted], 0),
        "f5": -math.log(2) - log_wanted,
        "f6": max(z[rival] - z[wanted], 0),
        "f7": softplus(z[rival] - z[wanted]) - math.log(2),
        "margin": max(others) - z[own] if targeted else z[own] - max(others),
        "ce": (1 if targeted else -1) * (math.log(total) + top - z[own]),
    }[name]


def fast(name, z, own, targeted, confidence=0.0):
    logits = torch.tensor([z], dtype=torch.float64)
    return float(objective(name, confidence=confidence)(logits, torch.tensor([own]), targeted))


@quick
@given(row=rows, targeted=st.booleans())
def test_agree_with_the_formulas(row, targeted):
    z, own = row
    for name in ("f1", "f2", "f3", "f4", "f5", "f6", "f7", "margin", "ce"):
        assert fast(name, z, own, targeted) == pytest.approx(slow(name, z, own, targeted), rel=1e-9, abs=1e-9), name


@quick
@given(row=rows, targeted=st.booleans())
def test_signs_say_whether_the_attack_has_succeeded(row, targeted):
    z, own = row
    others = [value for k, value in enumerate(z) if k != own]
    gap = z[own] - max(others) if targeted else max(others) - z[own]
    if abs(gap) < 1e-6:
        return  # a tie, within rounding
    for name in EXACT:
        value = fast(name, z, own, targeted)
        if gap > 0:
            assert value <= 1e-12, name
        elif gap < -1e-3 and max(abs(v) for v in z) < 10:  # softmax may round to a tie beyond
            assert value > 0, name
    for name in SUFFICIENT:
        if fast(name, z, own, targeted) < -1e-9:
            assert gap > 0, name
    wanted = own if targeted else max((k for k in range(len(z)) if k != own), key=lambda k: z[k])
    probability = float(torch.tensor(z, dtype=torch.float64).softmax(0)[wanted])
    if abs(probability - 0.5) > 1e-9:
        for name in SUFFICIENT:
            assert (fast(name, z, own, targeted) <= 0) == (probability > 0.5), name


@quick
@given(row=rows, targeted=st.booleans(), confidence=st.floats(0, 10))
def test_confidence_is_where_f6_ends(row, targeted, confidence):
    z, own = row
    reached = -slow("margin", z, own, targeted)
    value = fast("f6", z, own, targeted, confidence)
    assert value == pytest.approx(-min(reached, confidence))
    assert (value == -confidence) == (reached >= confidence)


@quick
@given(row=rows, targeted=st.booleans(), shift=st.sampled_from([-1e6, -50.0, 1e3]))
def test_a_constant_changes_nothing(row, targeted, shift):
    z, own = row
    for name in ("f1", "f2", "f3", "f4", "f5", "f6", "f7", "margin", "ce"):
        moved = fast(name, [value + shift for value in z], own, targeted)
        assert moved == pytest.approx(fast(name, z, own, targeted), rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize("targeted", [False, True])
def test_dlr(targeted):
    z = [3.0, -1.0, 2.5, 0.5, 1.0]
    ordered = sorted(z, reverse=True)
    for own in range(5):
        if targeted:
            best = max(value for k, value in enumerate(z) if k != own)
            expected = (best - z[own]) / (ordered[0] - 0.5 * (ordered[2] + ordered[3]))
        else:
            best = max(value for k, value in enumerate(z) if k != own)
            expected = (z[own] - best) / (ordered[0] - ordered[2])
        assert fast("dlr", z, own, targeted) == pytest.approx(expected)
        # neither a shift nor a factor changes it
        assert fast("dlr", [100 + 7 * value for value in z], own, targeted) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["ce", "margin", "dlr", "f1", "f2", "f3", "f4", "f5", "f6", "f7"])
@pytest.mark.parametrize("targeted", [False, True])
def test_gradients_are_finite_and_of_one_row(name, targeted):
    for scale in (1.0, 1e4):
        logits = scale * torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
        logits.requires_grad_()
        losses = objective(name)(logits, torch.arange(5), targeted)
        assert losses.shape == (5,)
        (gradient,) = torch.autograd.grad(losses[2], logits)
        assert bool(torch.isfinite(gradient).all())
        assert not gradient[[0, 1, 3, 4]].any()


def test_margin_of_two_classes():
    logits = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    assert margin(logits, torch.tensor([0, 1]), False).tolist() == [-2, 2]
    assert margin(logits, torch.tensor([0, 1]), True).tolist() == [2, -2]


def test_bad_names_and_confidences_are_refused():
    with pytest.raises(ValueError, match=r"PGD: objective must be one of ce, margin, .*got 'hinge'"):
        objective("hinge", "PGD")
    for name, confidence in (("f7", 1.0), ("f6", -1.0), ("ce", 0.1), ("f6", math.nan), ("f6", math.inf)):
        with pytest.raises(ValueError, match="confidence must be 0 unless objective is f6"):
            objective(name, confidence=confidence)
