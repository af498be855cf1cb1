"""Random search: points of the ball, one image like another, and how often it finds what is there."""

import pytest
import torch
from torch import nn

from lit_adv.attacks import RandomSearch
from lit_adv.attacks.random_search import RandomSearch as Here


class Seen(nn.Module):
    """Says class 0 until the mean of the image is above a limit, and keeps what it is asked."""

    def __init__(self, limit):
        super().__init__()
        self.limit, self.asked = limit, []

    def forward(self, x):
        self.asked.append(x.clone())
        margin = x.mean((1, 2, 3)) - self.limit
        return torch.stack([-margin, margin], 1)


def test_points_are_in_the_ball_half_of_them_at_its_corners():
    model, eps = Seen(2.0), 0.1
    x = torch.full((3, 1, 4, 4), 0.5)
    x[0] = 0.02
    RandomSearch(eps=eps, draws=40, fold=False)(model, x, torch.zeros(3, dtype=torch.int64), seed=0)
    points = torch.stack(model.asked[:40])
    delta = points - x
    assert float(delta.abs().max()) <= eps + 1e-6
    assert points.min() >= 0
    corner = (delta[:, 1:].abs() - eps).abs() < 1e-6
    assert corner[::2].all()
    assert not corner[1::2].any(-1).all()
    # uniform in the ball: variance eps^2 / 3
    assert float(delta[1::2, 1:].std()) == pytest.approx(eps / 3**0.5, rel=0.1)
    assert float((delta[::2, 1:] > 0).float().mean()) == pytest.approx(0.5, abs=0.06)
    # no two points are the same
    assert len({point.numpy().tobytes() for point in delta[:, 1]}) == 40


def test_the_first_success_ends_an_image_and_failures_come_as_the_best_point():
    x = torch.full((6, 1, 2, 2), 0.5)
    x[:3] = 0.1
    model, attack = Seen(0.53), RandomSearch(eps=0.1, draws=30)
    seeds = torch.arange(6)
    result = attack.run(model, x, torch.zeros(6, dtype=torch.int64), seed=seeds)
    assert result.success.tolist() == [False] * 3 + [True] * 3
    assert result.forwards[:3].tolist() == [30] * 3
    assert (result.forwards[3:] < 30).all()
    assert result.backwards.sum() == 0
    # alone, image by image: the same
    for row in range(6):
        alone = Seen(0.53)
        one = attack.run(alone, x[row : row + 1], torch.zeros(1, dtype=torch.int64), seed=seeds[row : row + 1])
        assert torch.equal(one.images[0], result.images[row])
        assert int(one.forwards) == int(result.forwards[row])
        asked = torch.cat(alone.asked[:-1]).mean((1, 2, 3))
        assert float(one.images.mean()) == pytest.approx(float(asked.max()), abs=1e-7)


def test_bad_fields():
    assert Here is RandomSearch
    for fields, words in (
        ({"eps": 8}, r"RandomSearch: eps must be in \[0, 1\] for linf, got 8"),
        ({"draws": 0}, "RandomSearch: draws must be at least 1, got 0"),
        ({"max_queries": 0}, "RandomSearch: max_queries must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            RandomSearch(**fields)
