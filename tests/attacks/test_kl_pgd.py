"""The inner attack of TRADES against its own loop, and what it must not look at."""

import pytest
import torch

from lit_adv.attacks import KLPGD, PGD, Center
from lit_adv.attacks.randomness import Draws, row_seeds


def divergence(p, z):
    return (p * (p.log() - z.log_softmax(1))).sum(1)


def test_it_is_the_ascent_of_the_divergence(net, pictures):
    model, x = net().double(), pictures(5, dtype=torch.float64)
    y = torch.zeros(5, dtype=torch.int64)
    attack = KLPGD(eps=0.05, step_size=0.02, steps=4)
    p = model(x).softmax(1).detach()
    moved = (x + 0.001 * Draws(row_seeds(x, 3)).normal((3, 8, 8), torch.float64)).clamp(0, 1)
    for _ in range(4):
        moved = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(p, model(moved)).sum(), moved)
        moved = (moved.detach() + 0.02 * gradient.sign()).clamp(x - 0.05, x + 0.05).clamp(0, 1)
    result = attack.run(model, x, y, seed=3)
    torch.testing.assert_close(result.images, moved.detach(), atol=1e-12, rtol=0)
    assert (result.forwards == 5).all()
    assert (result.backwards == 4).all()


def test_no_label_leaks_into_it(net, pictures):
    model, x = net(), pictures(4)
    first, second = (KLPGD()(model, x, torch.full((4,), label), seed=0) for label in (0, 3))
    assert torch.equal(first, second)
    first, second = (PGD()(model, x, torch.full((4,), label), seed=0) for label in (0, 3))
    assert not torch.equal(first, second)


def test_it_moves_the_answer_further_than_its_start(net, pictures):
    model, x = net(), pictures(6)
    p = model(x).softmax(1).detach()
    moved = KLPGD(eps=0.05, step_size=0.01)(model, x, torch.zeros(6, dtype=torch.int64), seed=0)
    assert (divergence(p, model(moved)) > 1e-3).all()


def test_with_targets_it_goes_to_them(net, pictures):
    model, x = net(), pictures(6)
    y = model(x).argmax(1)
    targets = (y + 1) % 4
    result = KLPGD(eps=0.5, step_size=0.05, steps=30).run(model, x, y, targets=targets, seed=0)
    assert result.success.float().mean() > 0.5


def test_region_and_l2(net, pictures):
    model, x = net(), pictures(3)
    y = model(x).argmax(1)
    result = KLPGD(norm="l2", eps=0.5, step_size=0.2).run(model, x, y, region=Center(4), seed=0)
    assert (result.norms["l2"] <= 0.5 + 1e-5).all()
    assert (result.norms["l0"] <= 16).all()
    # noise larger than the ball
    small = KLPGD(norm="l2", eps=0.01, step_size=0.0, noise=1.0).run(model, x, y, seed=0)
    assert (small.norms["l2"] <= 0.01 + 1e-5).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise": 0.0}, "KLPGD: noise must be above 0, got 0"),
        ({"steps": 0}, "KLPGD: steps must be at least 1, got 0"),
        ({"eps": 8.0}, r"KLPGD: eps must be in \[0, 1\] for linf, got 8"),
        ({"norm": "l1"}, "KLPGD: norm must be one of linf, l2"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        KLPGD(**fields)
