"""Paths inside a class, in plane regions whose shape is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_adv.attacks import DeepFool
from lit_adv.explain import class_paths, points_on_path


class Region(nn.Module):
    """Class 1 where a function of the two pixels is positive."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        f = 5 * self.inside(x.flatten(1))
        return torch.stack([-f, f], 1)


HALF = Region(lambda p: p[:, 0] - 0.2 * p[:, 1] - 0.05)
L = Region(lambda p: 0.3 - p.amin(1))
ISLANDS = Region(lambda p: (p[:, 0] - 0.5).abs() - 0.2)


def points(*places):
    return torch.tensor(places).view(len(places), 1, 1, 2)


def ones(count):
    return torch.ones(count, dtype=torch.int64)


@settings(max_examples=20)
@given(values=st.lists(st.floats(0.3125, 1, width=32), min_size=4, max_size=4))
def test_in_a_convex_region_the_straight_path_is_found_at_once(values):
    class Never(DeepFool):
        def _craft(self, problem):
            raise AssertionError("nothing is to be pulled")

    found = class_paths(HALF, points(values[:2]), points(values[2:]), ones(1), attack=Never())
    assert found.straight.all()
    assert found.connected.all()
    assert found.paths[0].shape == (2, 1, 1, 2)
    assert values[:2] == values[2:] or float(found.lengths) == pytest.approx(1)


def test_around_the_corner_of_an_l():
    starts = points((0.1, 0.9), (0.1, 0.1), (0.9, 0.2), (0.5, 0.5))
    ends = points((0.9, 0.1), (0.1, 0.8), (0.2, 0.9), (0.1, 0.1))
    found = class_paths(L, starts, ends, ones(4))
    assert found.straight.tolist() == [False, True, False, False]
    # the last pair's first image is not of the class
    assert found.connected.tolist() == [True, True, True, False]
    for row in (0, 2):
        path = found.paths[row]
        assert torch.equal(path[0], starts[row])
        assert torch.equal(path[-1], ends[row])
        assert len(path) > 2
        dense = points_on_path(path, 5000)
        assert (L(dense).argmax(1) == 1).all()
        assert float(dense.min()) >= 0
        length = (path[1:] - path[:-1]).flatten(1).norm(dim=1).sum() / (ends[row] - starts[row]).norm()
        assert float(found.lengths[row]) == pytest.approx(float(length), rel=1e-5)
        assert 1 < float(length) < 2
    # pairs do not depend on one another
    alone = class_paths(L, starts[2:3], ends[2:3], ones(1))
    assert torch.equal(alone.paths[0], found.paths[2])


def test_regions_that_are_not_connected():
    found = class_paths(ISLANDS, points((0.1, 0.5)), points((0.9, 0.5)), ones(1), depth=3)
    assert not found.straight.any()
    assert not found.connected.any()
    assert len(found.paths[0]) >= 2
    none = class_paths(L, points((0.1, 0.9)), points((0.9, 0.1)), ones(1), depth=0)
    assert not none.connected.any()
    assert len(none.paths[0]) == 2
    # a narrow gap is seen by so many points
    gap = Region(lambda p: (p[:, 0] - 0.503).abs() - 0.002)
    assert not class_paths(gap, points((0.1, 0.5)), points((0.9, 0.5)), ones(1), depth=1, samples=200).straight.any()
    empty = class_paths(L, points((0.1, 0.9))[:0], points((0.9, 0.1))[:0], ones(0))
    assert empty.paths == []


def test_no_more_points_than_a_chunk_are_made_at_once():
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                self.numbers = max(self.numbers, output.numel())
            return output

    starts, ends = (torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    with Largest() as largest:
        class_paths(Region(lambda p: p[:, 0] + 1), starts, ends, ones(4), samples=100, chunk_size=10)
    # 1600 points are looked at
    assert largest.numbers == 10 * 256


def test_points_are_equally_far_apart():
    path = points((0.0, 0.0), (0.0, 3.0), (1.0, 3.0))
    found = points_on_path(path, 5).flatten(1)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0], [0, 1], [0, 2], [0, 3], [1, 3]]))
    still = points_on_path(path[[0, 0]], 3)
    assert torch.equal(still, path[[0, 0, 0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": -1}, "class_paths: depth must be at least 0, got -1"),
        ({"samples": 1}, "class_paths: samples must be at least 2, got 1"),
        ({"chunk_size": 0}, "class_paths: chunk_size must be at least 1"),
        ({"classes": torch.tensor([2])}, r"class_paths: classes must be in \[0, 2\)"),
        ({"ends": points((0, 0), (1, 1))}, "class_paths: ends must have the shape of starts"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    given = {"starts": points((0.1, 0.1)), "ends": points((0.2, 0.1)), "classes": ones(1)} | arguments
    with pytest.raises(ValueError, match=message):
        class_paths(L, **given)
