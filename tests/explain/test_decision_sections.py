"""Sections of decision regions: planes, class maps against a loop, straightness."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.explain import (
    adversarial_plane,
    bend_of_boundary,
    boundary_distance,
    decision_section,
    random_plane,
    sphere_labels,
)
from tests.explain.geometry_models import Affine, Sphere, pictures


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_sections_of_an_affine_classifier(seed):
    model, x = Affine(seed, 2), pictures(3, seed)
    boundary = boundary_distance(model, x)
    planes = adversarial_plane(boundary, seed=seed), random_plane(x, seed=seed)
    for number, plane in enumerate(planes):
        first, second = (part.flatten(1) for part in plane)
        torch.testing.assert_close(first.norm(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)
        torch.testing.assert_close(second.norm(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)
        assert float((first * second).sum(1).abs().max()) < 1e-12
        section = decision_section(model, boundary.points, plane, 2 * boundary.distances, cells=31)
        assert float(bend_of_boundary(section, boundary.classes, window=1).max()) < 1
        # the middle is on the border
        around = section[:, 14:17, 14:17].flatten(1)
        assert all(len(row.unique()) == 2 for row in around)
        if not number:
            # u1 leads from the image straight to the other class
            assert torch.equal(section[:, :, 0], boundary.classes[:, None].expand(3, 31))
            assert torch.equal(section[:, :, 16], boundary.rivals[:, None].expand(3, 31))


def test_a_section_is_a_loop_over_its_points():
    model, x = Affine(2), pictures(2)
    plane, radii = random_plane(x), torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = decision_section(model, x, plane, radii, cells=5, chunk_size=7)
    for row in range(2):
        for down in range(5):
            for across in range(5):
                s, t = ((across - 2) / 2, (2 - down) / 2)
                point = x[row] + radii[row] * (s * plane.first[row] + t * plane.second[row])
                assert int(found[row, down, across]) == int(model(point[None]).argmax())
    assert len(found.unique()) > 1
    assert decision_section(model, x[:0], random_plane(x[:0]), radii[:0], cells=5).shape == (0, 5, 5)


def test_planes_depend_on_image_and_seed_alone():
    x = pictures(3)
    whole, part, other = random_plane(x, seed=1), random_plane(x[2:], seed=1), random_plane(x, seed=2)
    assert torch.equal(whole.second[2:], part.second)
    assert not torch.equal(whole.first, other.first)
    boundary = boundary_distance(Affine(), x)
    again = adversarial_plane(boundary.take(torch.tensor([2])), seed=1)
    assert torch.equal(adversarial_plane(boundary, seed=1).second[2:], again.second)


def test_how_far_a_border_is_from_a_line():
    rows, columns = torch.meshgrid(torch.arange(21) - 10, torch.arange(21) - 10, indexing="ij")
    straight = (columns > 0).long()
    slanted = (3 * columns + 2 * rows > 1).long()
    hook = (columns > rows.abs()).long()
    bends = bend_of_boundary(torch.stack([straight, slanted, hook, 0 * rows]), torch.zeros(4).long(), window=1)
    assert float(bends[0]) == 0
    assert 0 < float(bends[1]) < 1
    assert float(bends[2]) > 3
    assert bends[3].isnan()
    # a stair far from the middle is outside the window
    far = straight.clone()
    far[:3] = 1
    assert float(bend_of_boundary(far[None], torch.tensor([0]))) == 0
    assert float(bend_of_boundary(far[None], torch.tensor([0]), window=1)) > 1


def test_a_section_that_is_bent():
    # through the centre of a sphere's boundary the border is a circle of radius R: t^2 / (2 R) from its tangent
    model, x = Sphere(1.0), torch.full((1, 1, 2, 2), 0.4, dtype=torch.float64)
    boundary = boundary_distance(model, x)
    section = decision_section(model, boundary.points, adversarial_plane(boundary), torch.tensor([0.8]), cells=81)
    sagitta = (1 - math.sqrt(1 - 0.4**2)) / 0.02
    # between a third and two thirds of it on either side of the fitted line
    assert sagitta / 3 - 1 < float(bend_of_boundary(section, boundary.classes)) < 2 * sagitta / 3 + 1


def test_points_of_a_sphere():
    seen = []

    class Halves(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.stack([x[:, 0, 0, 0], -x[:, 0, 0, 0], x[:, 0, 0, 0] - 9], 1)

    found = sphere_labels(Halves(), (1, 2, 3), 2.5, count=2000, chunk_size=700, seed=4)
    assert found.dtype == torch.int64
    assert int(found.sum()) == 2000
    assert int(found[2]) == 0
    # half of them on either side, within four standard deviations
    assert abs(int(found[0]) - 1000) < 4 * math.sqrt(500)
    points = torch.cat(seen)
    torch.testing.assert_close(points.flatten(1).norm(dim=1), torch.full((2000,), 2.5))
    assert float(points.mean(0).abs().max()) < 4 * 2.5 / math.sqrt(6 * 2000)
    assert torch.equal(found, sphere_labels(Halves(), (1, 2, 3), 2.5, count=2000, chunk_size=2000, seed=4))
    assert not torch.equal(found, sphere_labels(Halves(), (1, 2, 3), 2.5, count=2000, seed=5))
    assert sphere_labels(Halves(), (1, 2, 3), 0.1, count=10, center=torch.ones(1, 2, 3)).tolist() == [10, 0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, p, r: decision_section(Affine(), x, p, r, cells=4), "cells must be odd and at least 3"),
        (lambda x, p, r: decision_section(Affine(), x, p, r[:1], cells=5), "plane and radii must fit centers"),
        (lambda x, p, r: bend_of_boundary(r, r, window=0), r"window must be in \(0, 1\], got 0"),
        (lambda x, p, r: sphere_labels(Affine(), (1, 4, 4), -1), "radius must be at least 0"),
        (lambda x, p, r: sphere_labels(Affine(), (1, 4, 4), 1, count=0), "count must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    x = pictures(2)
    with pytest.raises(ValueError, match=message):
        call(x, random_plane(x), torch.ones(2))
