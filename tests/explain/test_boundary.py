"""Distance to the boundary and angle: against closed forms of affine classifiers and of a sphere."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_adv.attacks import DDN, FGSM, DeepFool
from lit_adv.explain import boundary_angle, boundary_distance
from lit_adv.explain.boundary import crossing
from tests.explain.geometry_models import Affine, Sphere, pictures


def nearest(model, x):
    """min over k of |f_k| / ||w_k||, a row and a class at a time."""
    logits, weight = model(x).detach(), model.weight.detach()
    found = []
    for row in logits:
        own = int(row.argmax())
        others = [k for k in range(len(row)) if k != own]
        found.append(min(float((row[own] - row[k]) / (weight[own] - weight[k]).norm()) for k in others))
    return torch.tensor(found, dtype=torch.float64)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 6))
def test_affine_classifier(seed, classes):
    model, x = Affine(seed, classes), pictures(4, seed)
    found = boundary_distance(model, x, tolerance=0)
    assert found.found.all()
    torch.testing.assert_close(found.distances, nearest(model, x), atol=1e-12, rtol=1e-12)
    assert float((found.cosines - 1).abs().max()) < 1e-12
    assert float(found.angles.max()) < 1e-12
    assert float(found.ties.max()) < 1e-12
    assert (found.attack_distances >= found.distances).all()
    torch.testing.assert_close(found.ratios, found.distances / x.flatten(1).norm(dim=1))
    logits = model(found.points).detach()
    pair = torch.stack([found.classes, found.rivals], 1)
    assert torch.equal(logits.topk(2).indices.sort(1).values, pair.sort(1).values)


def test_where_the_box_stops_the_attack_the_nearest_point_is_found_outside():
    # dark pixels that the way to the boundary would make darker
    model, x = Affine(3), pictures(8, 3, 0, 0.2)
    x[:, :, :2] = 0
    found = boundary_distance(model, x, tolerance=0, rounds=30)
    assert float(found.points.min()) < -0.01
    torch.testing.assert_close(found.distances, nearest(model, x), atol=1e-12, rtol=1e-12)
    assert float((found.attack_distances / found.distances).max()) > 1.05
    unturned = boundary_distance(model, x, rounds=0)
    assert float(unturned.cosines.min()) < 0.99
    assert (unturned.distances >= found.distances - 1e-9).all()
    assert not unturned.rounds.any()
    assert found.rounds.any()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_of_an_affine_boundary_one_turn_takes_away_what_a_slightly_tilted_attack_left(dtype, most):
    class Tilted(DeepFool):
        def _craft(self, problem):
            r = super()._craft(problem) - problem.x
            across = torch.randn(r.shape, generator=torch.Generator().manual_seed(0)).to(r)
            tilt = 0.01 * r.flatten(1).norm(dim=1) / across.flatten(1).norm(dim=1)
            return problem.x + 1.1 * r + tilt.view(-1, 1, 1, 1) * across

    # so that nothing meets the edge of the box
    model, x = Affine(4, dtype=dtype), pictures(6, 4, 0.4, 0.6).to(dtype)
    unturned = boundary_distance(model, x, attack=Tilted(), rounds=0, precision="model")
    assert 0.001 < float(unturned.angles.max()) < 0.014
    found = boundary_distance(model, x, attack=Tilted(), precision="model")
    assert found.found.all()
    assert float(found.angles.max()) < most


@pytest.mark.parametrize("radius", [1.0, 3.0])
def test_sphere(radius):
    x = pictures(5)
    found = boundary_distance(Sphere(radius), x)
    norms = x.flatten(1).norm(dim=1)
    torch.testing.assert_close(found.distances, (radius - norms).abs(), atol=1e-6, rtol=0)
    r = (found.points - x).flatten(1)
    torch.testing.assert_close(
        (r * x.flatten(1)).sum(1).abs() / (r.norm(dim=1) * norms), torch.ones_like(norms), atol=1e-6, rtol=0
    )
    assert float(found.cosines.min()) > 1 - 1e-6
    assert float(found.ties.max()) < 1e-6
    assert found.classes.tolist() == [int(radius < 2)] * 5
    assert found.rivals.tolist() == [int(radius > 2)] * 5


def test_a_bad_start_is_turned_towards_the_nearest_point():
    class Sideways(DeepFool):
        """Crosses the sphere along the first pixel alone."""

        def _craft(self, problem):
            far = problem.x.clone()
            far[:, :, 0, 0] = 1
            return far

    x = torch.full((1, 1, 2, 2), 0.4, dtype=torch.float64)
    before = boundary_distance(Sphere(1.0), x, attack=Sideways(), rounds=0)
    assert float(before.cosines) < 0.9
    after = boundary_distance(Sphere(1.0), x, attack=Sideways())
    assert float(after.cosines) > 0.9999
    assert float(after.distances) == pytest.approx(0.2, abs=1e-4)
    assert float(after.attack_distances) == pytest.approx(0.6)


def test_in_the_models_own_precision():
    model, x = Affine(dtype=torch.float32), pictures().float()
    found = boundary_distance(model, x, precision="model")
    assert found.points.dtype == torch.float32
    assert float(found.ties.max()) < 1e-5
    wide = boundary_distance(model, x)
    assert wide.points.dtype == torch.float64
    assert float(wide.ties.max()) < 1e-6
    torch.testing.assert_close(found.distances.double(), wide.distances, atol=1e-5, rtol=0)
    # the weights rounded to float32 are the classifier
    torch.testing.assert_close(wide.distances, nearest(model.double(), x.double()), atol=1e-6, rtol=0)


def test_an_image_does_not_depend_on_its_batch_and_the_model_is_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = pictures(7).float()
    with torch.inference_mode():
        whole = boundary_distance(model, x, attack=DDN(steps=20), chunk_size=3)
    parts = [boundary_distance(model, x[place : place + 1], attack=DDN(steps=20)) for place in range(7)]
    for name in ("distances", "cosines", "points"):
        torch.testing.assert_close(getattr(whole, name), torch.cat([getattr(each, name) for each in parts]))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())


def test_what_is_not_found_is_nan():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([1.0, 0.0]).to(x).expand(len(x), 2) + 0 * x.sum((1, 2, 3))[:, None]

    found = boundary_distance(Constant(), pictures(2))
    assert not found.found.any()
    for name in ("distances", "attack_distances", "cosines", "ties", "ratios", "points", "normals"):
        assert getattr(found, name).isnan().all(), name
    # of an image that is not of the class there is nothing to leave
    model, x = Affine(), pictures(3)
    own = model(x).argmax(1)
    other = torch.where(torch.arange(3) == 1, (own + 1) % 4, own)
    assert boundary_distance(model, x, other).found.tolist() == [True, False, True]
    assert len(boundary_distance(model, x[:0]).distances) == 0


def test_angle_between_any_r_and_the_normal():
    model, x = Affine(1, 2), pictures(1)
    weight = (model.weight[1] - model.weight[0]).detach().view(1, 1, 4, 4)
    across = torch.ones_like(weight) - weight * (weight.sum() / weight.square().sum())
    own = torch.zeros(1, dtype=torch.int64)
    for turn in (0, 1e-9, 0.3, math.pi / 2, math.pi):
        r = math.cos(turn) * weight / weight.norm() + math.sin(turn) * across / across.norm()
        cosine, angle = boundary_angle(model, x, x + r, own)
        assert float(angle.detach()) == pytest.approx(turn, abs=1e-12, rel=1e-6)
        assert float(cosine) == pytest.approx(math.cos(turn), abs=1e-12)
    cosine, angle = boundary_angle(model, x, x, own)
    assert cosine.isnan()
    assert angle.isnan()


def test_crossing_needs_few_steps_and_stops_row_by_row():
    calls = []

    def value(t):
        calls.append(t.clone())
        return torch.stack([t[0] - 0.3, t[1] ** 3 - 0.5, torch.where(t[2] < 0.7, -1.0, 1.0)])

    low, high = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    found, left = crossing(value, low, high, 1e-12)
    assert float(found[0]) == pytest.approx(0.3, abs=1e-12)
    assert float(found[1]) == pytest.approx(0.5 ** (1 / 3), abs=1e-9)
    # a jump has no value near 0, but its place is known
    assert float(found[2]) == pytest.approx(1, abs=0.31)
    assert float(left[2]) == 1
    assert len(calls) < 125


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attack": FGSM(eps=0.1)}, "attack must look for a small L2 perturbation"),
        ({"attack": DeepFool(norm="linf")}, "attack must look for a small L2 perturbation"),
        ({"rounds": -1}, "rounds must be at least 0, got -1"),
        ({"tolerance": -1}, "tolerance must be at least 0"),
        ({"tolerance": math.nan}, "tolerance must be at least 0"),
        ({"precision": "half"}, "precision must be one of float64, model, got 'half'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"classes": torch.tensor([0, 9])}, r"classes must be in \[0, 4\), the network's, got 0 to 9|labels"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        boundary_distance(Affine(), pictures(2), **arguments)


def test_a_network_that_cannot_be_in_float64_says_so():
    class Stubborn(Affine):
        def forward(self, x):
            return x.flatten(1) @ torch.ones(16, 2) * self.weight[0, 0]

    with pytest.raises(ValueError, match="boundary_distance: precision must be model for this network, got float64"):
        boundary_distance(Stubborn(dtype=torch.float32), pictures(2).float())
