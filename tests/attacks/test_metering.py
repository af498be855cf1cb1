"""Limits end a call with what has been found, costs are upper bounds, progress shows."""

import dataclasses
import itertools
import math
import time

import pytest
import torch
from torch import nn

from lit_adv.attacks import FGSM, PGD, Attack, CarliniWagnerL2, DeepFool


@pytest.fixture
def case(net, pictures):
    model, x = net(), pictures(12)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


class Slow(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        time.sleep(0.01)
        return self.inner(x)


@pytest.mark.parametrize("limit", [1, 4, 7])
@pytest.mark.parametrize(
    "attack", [PGD(steps=9, random_start=False, fold=False), CarliniWagnerL2(c=10.0, steps=20, abort_early=False)]
)
def test_no_image_takes_more_queries(attack, limit, case):
    result = attack.run(*case, max_queries=limit)
    assert result.queries.tolist() == [limit] * 12


def test_a_limited_call_returns_what_a_shorter_one_would(case):
    model, x, y = case
    whole = PGD(steps=30, step_size=1 / 255, random_start=False, fold=False)
    shorter = dataclasses.replace(whole, steps=6)
    cut = whole.run(model, x, y, max_queries=7)
    expected = shorter.run(model, x, y)
    # a success on the way is kept, else it is the last iterate that was looked at
    assert bool((cut.success >= expected.success).all())
    rest = ~cut.success
    assert torch.equal(cut.images[rest], expected.images[rest])


def test_a_limited_minimal_attack_keeps_the_smallest_success(case):
    model, x, y = case
    attack = CarliniWagnerL2(c=20.0, steps=200, search_steps=1, learning_rate=0.05, abort_early=False)
    norms, succeeded = [], []
    for limit in (2, 20, 60, 150):
        result = attack.run(model, x, y, max_queries=limit)
        assert torch.equal(result.images[~result.success], x[~result.success])
        norms.append(torch.where(result.success, result.norms["l2"], math.inf))
        succeeded.append(int(result.success.sum()))
    assert all(bool((later <= earlier + 1e-6).all()) for earlier, later in itertools.pairwise(norms))
    assert succeeded[-1] == 12


def test_of_several_candidates_of_an_image_the_best_is_kept(case):
    class Candidates(Attack):
        minimal_norm = True

        @classmethod
        def example(cls):
            return cls()

        def _craft(self, problem):
            rows = torch.arange(len(problem)).repeat_interleave(5)
            part = problem.take(rows)
            step = part.draws.uniform((1, 1, 1)) * 0 + torch.arange(1, 6).repeat(len(problem)).view(-1, 1, 1, 1) / 20
            while True:  # only a limit ends it
                part.logits((part.x + step * (1 - 2 * part.x.round())).clamp(0, 1))

    model, x, y = case
    result = Candidates().run(model, x, y, max_queries=14)
    assert result.queries.tolist() == [10] * 12
    steps = torch.arange(1, 6).view(5, 1, 1, 1, 1) / 20
    every = (x + steps * (1 - 2 * x.round())).clamp(0, 1)
    hits = torch.stack([model(each).argmax(1) != y for each in every])
    assert bool(hits.any(0).any())
    assert torch.equal(result.success, hits.any(0))
    for row in range(12):
        expected = every[hits[:, row].nonzero()[0, 0], row] if result.success[row] else x[row]
        torch.testing.assert_close(result.images[row], expected)


def test_time_is_up(case):
    model, x, y = case
    began = time.monotonic()
    result = PGD(steps=100_000, fold=False).run(Slow(model), x, y, max_seconds=0.2)
    assert time.monotonic() - began < 60
    assert 1 <= int(result.forwards.max()) < 1000
    assert bool((result.norms["linf"] <= 8 / 255 + 1e-6).all())


@pytest.mark.parametrize("field", ["max_queries", "max_seconds"])
def test_a_limit_must_be_positive(field, case):
    with pytest.raises(ValueError, match=f"PGD: {field} must be greater than 0, got 0"):
        PGD().run(*case, **{field: 0})


def test_cost_is_what_it_takes_at_most(case):
    model, x, y = case
    cost = PGD(steps=7, restarts=2).cost(model, x)
    assert (cost.forwards, cost.backwards, cost.images) == (16, 14, 12)
    assert 0 < cost.seconds < 60
    assert str(cost).startswith("at most 16 forward and 14 backward passes an image, up to ")
    found = DeepFool(steps=6).run(model, x, y)
    cost = DeepFool(steps=6).cost(model, x)
    assert int(found.backwards.max()) <= cost.backwards == 18
    empty = FGSM().cost(model, x[:0])
    assert (empty.images, empty.seconds) == (0, 0)


def test_cost_of_an_attack_that_cannot_know(case):
    class Unknown(FGSM):
        def _passes(self, classes):
            return None

    cost = Unknown().cost(*case[:2])
    assert math.isnan(cost.forwards)
    assert str(cost) == "unknown for 12 images"


def test_progress_is_shown_when_asked(case, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    PGD(steps=3).run(*case)
    assert capsys.readouterr().err == ""
    PGD(steps=3).run(*case, progress=True)
    assert "PGD" in capsys.readouterr().err


def test_a_curve_of_robust_accuracy(case):
    model, x, y = case
    y = y.clone()
    y[0] = (y[0] + 1) % 4  # misclassified, so never robust
    result = CarliniWagnerL2(c=1.0, steps=60, search_steps=4, learning_rate=0.05).run(model, x, y)
    radii = [0.0, 0.1, 0.3, 1.0, 50.0]
    curve = result.robust_accuracy(radii, "l2")
    norms = torch.where(result.success, result.norms["l2"], math.inf)
    assert curve.tolist() == pytest.approx([float((norms > radius).double().mean()) for radius in radii])
    assert curve[0] == pytest.approx(11 / 12)
    assert bool((curve.diff() <= 0).all())
    assert float(result.robust_accuracy(0.3, "l2")) == curve[2]
    with pytest.raises(ValueError, match="norm must be one of l0, l1, l2, linf, got 'l3'"):
        result.robust_accuracy(0.1, "l3")
    pgd = PGD(eps=8 / 255, steps=2, random_start=False).run(model, x, y)
    assert float(pgd.robust_accuracy(8 / 255)) == pytest.approx(1 - float(pgd.success.double().mean()))
    assert math.isnan(FGSM().run(model, x[:0], y[:0]).robust_accuracy(0.1))


def test_nan_is_no_success(case):
    class Broken(nn.Module):
        def forward(self, x):
            return x.new_full((len(x), 3), torch.nan)

    result = PGD(steps=2).run(Broken(), case[1], torch.ones(12).long())
    assert not bool(result.success.any())


def test_target_and_logits_are_told(case):
    model, x, y = case
    result = PGD(steps=2).run(model, x, y, targets=(y + 1) % 4)
    assert torch.equal(result.target, (y + 1) % 4)
    torch.testing.assert_close(result.logits, model(result.images).detach())
    assert PGD(steps=2).run(model, x, y).target.tolist() == [-1] * 12
    with pytest.raises(ValueError, match="PGD: labels and targets must be classes 0 to 3 of the model, got 0 to 9"):
        PGD(steps=2).run(model, x, torch.full_like(y, 9), targets=torch.zeros_like(y))
