"""Curvature of boundaries: flat ones, spheres from both sides, an ellipsoid, a kink."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_adv.explain import boundary_curvature, boundary_distance
from tests.explain.geometry_models import Affine, Sphere, pictures


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_an_affine_boundary_is_flat(seed):
    model = Affine(seed)
    found = boundary_curvature(model, boundary_distance(model, pictures(3, seed)), directions=3, iterations=4)
    for name in ("random", "top", "top_quotient"):
        assert float(getattr(found, name).abs().max()) < 1e-9, name
    assert found.random.shape == (3, 3)
    assert float(found.settled.min()) > 1 - 1e-9


# the point is allowed to be a little off the boundary
@pytest.mark.parametrize("tolerance", [1e-6, 1e-2])
@pytest.mark.parametrize(("radius", "sign"), [(3.0, 1), (1.0, -1)])
def test_sphere(radius, sign, tolerance):
    # + 1 / R where the class is inside, - 1 / R from outside
    model, x = Sphere(radius), pictures(3)
    boundary = boundary_distance(model, x, tolerance=tolerance)
    found = boundary_curvature(model, boundary, reach=0.1, directions=4, iterations=3)
    for name in ("random", "top", "top_quotient"):
        values = getattr(found, name)
        torch.testing.assert_close(values, torch.full_like(values, sign / radius), rtol=0.01, atol=0)


def test_the_most_bent_direction_of_an_ellipsoid():
    # f = sum a_i x_i^2 - 1 has the curvatures a_j / sqrt(a_0) at the end of its first axis
    a = torch.tensor([4.0, 0.4, 5.0, 0.2, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64)

    class Ellipsoid(nn.Module):
        def forward(self, x):
            f = (a * x.flatten(1).square()).sum(1) - 1
            return torch.stack([torch.zeros_like(f), f], 1)

    x = torch.zeros(1, 1, 2, 4, dtype=torch.float64)
    x[0, 0, 0, 0] = 0.45
    found = boundary_curvature(Ellipsoid(), boundary_distance(Ellipsoid(), x), directions=100)
    assert float(found.top_quotient) == pytest.approx(2.5, rel=1e-6)
    assert float(found.top) == pytest.approx(2.5, rel=0.01)
    assert abs(float(found.top_directions[0, 0, 0, 2])) == pytest.approx(1, abs=1e-6)
    assert float(found.settled) == pytest.approx(1, abs=1e-6)
    assert 0.09 < float(found.random.min()) < float(found.random.max()) < 2.51
    # of random directions at right angles to the normal, the mean of the principal curvatures
    assert float(found.random.mean()) == pytest.approx(float(a[1:].mean()) / 2, abs=0.1)


def test_a_kink_is_the_steeper_the_smaller_the_step():
    class Corner(nn.Module):
        """The rival's region is an edge that points at the image."""

        def forward(self, x):
            f = x.flatten(1)[:, 0] - 0.7 - x.flatten(1)[:, 1:].sub(0.5).abs().sum(1)
            return torch.stack([torch.zeros_like(f), f], 1)

    x = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    boundary = boundary_distance(Corner(), x)
    values = [
        float(boundary_curvature(Corner(), boundary, reach=reach, directions=1).random) for reach in (0.1, 0.2, 0.4)
    ]
    assert values[0] < values[1] < values[2] < 0


def test_rows_stay_in_place_and_depend_on_image_and_seed_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 30), nn.Tanh(), nn.Linear(30, 3)).double()
    x = pictures(4)
    own = model(x).argmax(1)
    # the second image is of another class, and so has no boundary point
    found = boundary_distance(model, x, torch.where(torch.arange(4) == 1, (own + 1) % 3, own))
    whole = boundary_curvature(model, found, directions=2, iterations=3, seed=5, chunk_size=2)
    assert whole.random.isnan().all(1).tolist() == [False, True, False, False]
    assert whole.top.isnan().tolist() == [False, True, False, False]
    along = (whole.top_directions * found.normals).flatten(1).sum(1)[[0, 2, 3]]
    assert float(along.abs().max()) < 1e-12
    last = boundary_curvature(model, found.take(torch.tensor([3])), directions=2, iterations=3, seed=5)
    torch.testing.assert_close(last.random, whole.random[3:], rtol=1e-6, atol=1e-9)
    other = boundary_curvature(model, found.take(torch.tensor([3])), directions=2, iterations=3, seed=6)
    assert not torch.allclose(last.random, other.random, rtol=1e-6)
    none = boundary_curvature(model, found.take(torch.tensor([1])), directions=2)
    assert none.random.isnan().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"directions": 0}, "boundary_curvature: directions must be at least 1, got 0"),
        ({"reach": 0}, "boundary_curvature: reach must be above 0"),
        ({"iterations": 0}, "boundary_curvature: iterations must be at least 1"),
        ({"precision": "x"}, "boundary_curvature: precision must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    model = Affine()
    boundary = boundary_distance(model, pictures(1))
    with pytest.raises(ValueError, match=message):
        boundary_curvature(model, boundary, **arguments)
