"""The universal perturbation: against the paper's loop, closed forms, and what it costs."""

import dataclasses
import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_adv.attacks import DeepFool, Frame, RandomPixels, UniversalPerturbation, label_histogram


class Counting(nn.Module):
    """Counts the images that go through a model."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, x):
        self.rows += len(x)
        return self.inner(x)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def project(v, norm, eps):
    return v.clamp(-eps, eps) if norm == "linf" else v * min(1.0, eps / float(v.norm()))


def papers_loop(model, images, orders, norm, eps, deepfool):
    """Algorithm 1, a pass for each order, one image at a time; with the images DeepFool has sent through the model."""
    v, rows = torch.zeros_like(images[0]), 0
    for i in itertools.chain(*orders):
        x = images[i : i + 1]
        moved = (x + v).clamp(0, 1)
        nearest = deepfool.run(model, moved, predict(model, x))  # a fooled image comes back as it is
        v = project(v + (nearest.images - moved)[0], norm, eps)
        rows += int(nearest.forwards)
    return v, rows


@pytest.fixture
def case(net, pictures):
    return net().double(), pictures(12, dtype=torch.float64)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("linf", 1.0), ("l2", 0.1), ("l2", 50.0)])
def test_with_one_image_it_is_projected_deepfool(norm, eps, case):
    model, images = case
    for x in images[:2].split(1):
        for together in (1, 20):
            attack = UniversalPerturbation(norm=norm, eps=eps, passes=1, together=together).fit(model, [x])
            nearest = DeepFool(steps=10)(model, x, predict(model, x)) - x
            torch.testing.assert_close(attack.perturbation, project(nearest, norm, eps)[0], atol=1e-12, rtol=0)


def test_of_one_image_and_a_linear_model_in_closed_form(linear):
    model, images, _ = linear(0)
    w = (model.weight[1] - model.weight[0]).detach()
    for x in images.split(1):
        f = float(w @ x.flatten() + (model.bias[1] - model.bias[0]).detach())
        expected = (-1.02 * f / w.dot(w) * w).view_as(x[0])
        for eps in (100.0, 0.5 * float(expected.norm())):
            attack = UniversalPerturbation(norm="l2", eps=eps, passes=1).fit(model, [x])
            torch.testing.assert_close(attack.perturbation, project(expected, "l2", eps), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.15)])
def test_one_image_at_a_time_is_the_papers_loop(norm, eps, case):
    model, images = Counting(case[0]), case[1][:3]
    attack = UniversalPerturbation(norm=norm, eps=eps, passes=2, together=1, delta=0.0, overshoot=0.1, steps=4)
    attack = attack.fit(model, [images], seed=2)
    assert 0 < attack.rates[0] < 1
    assert attack.rates[0] <= attack.rates[1]  # so that the last pass is what is kept
    deepfool = DeepFool(steps=4, overshoot=0.1)
    agree = {}
    for orders in itertools.product(itertools.permutations(range(3)), repeat=2):
        v, rows = papers_loop(case[0], images, orders, norm, eps, deepfool)
        agree[orders] = torch.allclose(attack.perturbation, v, atol=1e-10, rtol=0) and model.rows == rows + 3 * 3
    assert any(agree.values())
    assert not any(agree[order, order] for order in itertools.permutations(range(3)))


def test_the_order_is_another_in_every_pass_and_for_every_seed(case):
    model, images = case
    kwargs = {"eps": 0.03, "together": 1, "delta": 0.0}
    fits = [UniversalPerturbation(**kwargs, passes=2).fit(model, [images], seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(fits[0].perturbation, fits[1].perturbation)
    assert not torch.equal(fits[0].perturbation, fits[2].perturbation)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0)])
def test_images_together_fool_as_many_as_one_at_a_time(norm, eps, net, pictures):
    model, images, others = net(), pictures(40), pictures(200, seed=1)
    rates = {}
    for together in (1, 20):
        attack = UniversalPerturbation(norm=norm, eps=eps, passes=2, delta=0.05, together=together)
        attack = attack.fit(model, images.split(15))
        rates[together] = float(attack.run(model, others, predict(model, others)).success.double().mean())
    assert rates[20] >= rates[1] - 0.05
    noise = UniversalPerturbation(norm=norm, eps=eps, perturbation=torch.randn(3, 8, 8).sign())
    assert rates[20] > 0.1 + float(noise.run(model, others, predict(model, others)).success.double().mean())


def test_rates_are_those_of_each_pass_and_the_best_is_kept(case):
    model, images = case
    attack = UniversalPerturbation(eps=0.04, passes=6, together=5, delta=0.0).fit(model, [images[:7], images[7:]])
    measured = attack.run(model, images, predict(model, images)).success.double().mean()
    assert 1 <= len(attack.rates) <= 6
    assert max(attack.rates) == float(measured)
    # a pass that was the last to be counted ends with the rate asked for
    early = UniversalPerturbation(eps=0.04, passes=6, together=5, delta=1 - attack.rates[0]).fit(model, [images])
    assert len(early.rates) == 1
    # the passes go on from each other
    for passes in range(1, len(attack.rates) + 1):
        shorter = dataclasses.replace(attack, passes=passes, perturbation=None).fit(model, [images])
        assert shorter.rates == attack.rates[:passes]


def test_passes_of_a_fit_are_at_the_floor(case):
    model, images = case
    clean = predict(model, images)
    counting = Counting(model)
    attack = UniversalPerturbation(eps=0.2, passes=1, together=12).fit(counting, [images])
    deepfool = DeepFool(steps=10).run(model, images, clean)
    assert counting.rows == 12 + int(deepfool.forwards.sum()) + 12  # clean, DeepFool, and whether v fools
    counting.rows = 0
    two = UniversalPerturbation(eps=0.2, passes=2, together=12, delta=0.0).fit(counting, [images])
    assert 0 < two.rates[0] < 1
    left = ~attack.run(model, images, clean).success
    moved = attack(model, images, clean)[left]
    second = DeepFool(steps=10).run(model, moved, clean[left])
    assert counting.rows == 3 * 12 + int(deepfool.forwards.sum() + second.forwards.sum())


def test_applied_it_asks_the_model_nothing(case):
    model, images = case
    v = torch.linspace(-0.2, 0.2, 64).view(1, 8, 8)
    attack = UniversalPerturbation(norm="linf", eps=0.15, perturbation=v)
    counting = Counting(model)
    out = attack(counting, images, predict(model, images))
    assert counting.rows == 0
    expected = (images + v.double().clamp(-0.15, 0.15)).clamp(0, 1)
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)


def test_targets(net, pictures):
    model, images = net(), pictures(30)
    attack = UniversalPerturbation(norm="l2", eps=2.0, delta=0.1).fit(model, [images], target=2)
    goal = torch.full((30,), 2)
    result = attack.run(model, images, predict(model, images), targets=goal)
    assert float(result.success.float().mean()) == pytest.approx(max(attack.rates))
    assert max(attack.rates) >= 0.9 > float((predict(model, images) == 2).float().mean())


def test_region(case):
    model, images = case
    attack = UniversalPerturbation(eps=0.3, passes=2).fit(model, [images], region=Frame(0.5))
    mask = Frame(0.5)(images)[0]
    assert bool((attack.perturbation != 0).any())
    assert bool((attack.perturbation * (1 - mask) == 0).all())
    drawn = UniversalPerturbation(eps=0.3, passes=2).fit(model, [images], region=RandomPixels(0.3), seed=1)
    assert bool((drawn.perturbation != 0).all(0).any())


@settings(max_examples=15)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(0, 1),
    together=st.integers(1, 5),
    channels=st.integers(1, 3),
    height=st.integers(4, 9),
    classes=st.integers(2, 4),
)
def test_perturbation_is_in_the_ball(norm, eps, together, channels, height, classes, net, pictures):
    model, images = net(channels, classes), pictures(4, channels, height, 7)
    attack = UniversalPerturbation(norm=norm, eps=eps, together=together, passes=2, steps=3).fit(model, [images])
    v = attack.perturbation
    assert v.shape == images.shape[1:]
    assert v.dtype == torch.float32
    assert float(v.abs().max() if norm == "linf" else v.norm()) <= eps * (1 + 1e-6)


def test_fit_takes_any_iterable_and_changes_nothing_else(net, pictures):
    model, images = net(), pictures(9)
    labels = torch.arange(9) % 4
    start = UniversalPerturbation(eps=0.1, passes=2)
    before = torch.get_rng_state(), random.getstate(), {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    expected = start.fit(model, [(images, labels)])
    for batches in (
        iter([(images[:4], labels[:4]), [images[4:], labels[4:]]]),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=2),
        [images],
    ):
        again = start.fit(model, batches)
        torch.testing.assert_close(again.perturbation, expected.perturbation)
        before_loader = torch.get_rng_state()  # a DataLoader draws a number of its own
    assert start.perturbation is None
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[2][key]) for key, value in model.state_dict().items())
    assert random.getstate() == before[1]
    start.fit(model, [images])
    assert torch.equal(torch.get_rng_state(), before_loader)
    torch.set_rng_state(before[0])


def test_label_histogram(case):
    model, images = case
    attack = UniversalPerturbation(eps=0.3, passes=2).fit(model, [images])
    found = label_histogram(attack, model, images.split(5))
    expected = torch.zeros(4, dtype=torch.int64)
    for x in images.split(1):
        before, after = predict(model, x), predict(model, attack(model, x, predict(model, x)))
        expected[after] += int(before != after)
    assert expected.sum() > 0
    assert torch.equal(found, expected)
    assert label_histogram(attack, model, []).shape == (0,)


def test_what_is_refused(case):
    model, images = case
    labels = predict(model, images)
    with pytest.raises(ValueError, match="UniversalPerturbation: perturbation must be fitted first, got None"):
        UniversalPerturbation()(model, images, labels)
    with pytest.raises(ValueError, match=r"perturbation must fit images of shape \(3, 8, 8\), got shape \(3, 4, 8\)"):
        UniversalPerturbation(perturbation=torch.zeros(3, 4, 8))(model, images, labels)
    for batches, message in (([], "none"), ([images[:0]], "none"), ([images, images[:, :, :4]], "shapes")):
        with pytest.raises(ValueError, match=f"batches must hold images of one shape, got {message}"):
            UniversalPerturbation().fit(model, batches)
    for fields, message in (
        ({"eps": 8}, r"eps must be in \[0, 1\] for linf"),
        ({"norm": "l1"}, "norm must be one of linf, l2"),
        ({"delta": 1.0}, r"delta must be in \[0, 1\)"),
        ({"passes": 0}, "passes must be at least 1, got 0"),
        ({"together": 0}, "together must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"perturbation": torch.zeros(8, 8)}, r"perturbation must be a floating-point tensor \(C, H, W\) or None"),
        ({"perturbation": torch.full((1, 2, 2), torch.nan)}, "perturbation must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            UniversalPerturbation(**fields)
