"""Gradient ascent and its regularisers on models whose answer is known."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from lit_adv.explain import PRESETS, Regularizers, activation_maximization
from lit_adv.explain.activation_maximization import _variation_gradient, blurred, without_smallest
from lit_adv.models import Classifier

PLAIN = Regularizers()


def linear(scale=0.01):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4)).double()
    model[1].weight.data.mul_(scale / float(model[1].weight.detach().abs().max()))
    return model


def weights(model, classes):
    return model[1].weight.detach()[classes].view(-1, 3, 8, 8)


def ascend(model, classes=(2, 0), **arguments):
    given = {"regularizers": PLAIN, "unit_gradient": False, "seed": 3, **arguments}
    return activation_maximization(model, (3, 8, 8), classes, **given)


def test_a_linear_score_with_decay_ends_where_both_are_even():
    """x = w / (2 lambda) with decay = 2 alpha lambda."""
    model = linear()
    alpha, weight_decay = 0.5, 0.05
    found = ascend(model, regularizers=Regularizers(decay=2 * alpha * weight_decay), step_size=alpha, steps=600)
    torch.testing.assert_close(found, 0.5 + weights(model, [2, 0]) / (2 * weight_decay), rtol=0, atol=1e-10)


def test_one_step_without_regularisers_adds_the_gradient():
    model = linear()
    first = ascend(model, steps=1, step_size=1e-12)
    second = ascend(model, steps=1, step_size=3.0)
    torch.testing.assert_close(second - first, 3 * weights(model, [2, 0]), rtol=0, atol=1e-10)
    scores = [float(model(ascend(model, (1,), steps=n, step_size=0.5))[0, 1].detach()) for n in range(1, 8)]
    assert all(b > a for a, b in pairwise(scores))
    # of root mean square 1 with unit_gradient
    step = ascend(model, steps=1, step_size=0.1, unit_gradient=True) - first
    torch.testing.assert_close(step.square().mean((1, 2, 3)).sqrt(), torch.full((2,), 0.1).double(), rtol=1e-6, atol=0)


def test_an_image_depends_on_its_class_and_the_seed_alone():
    model = linear()
    both, alone = ascend(model, (2, 0)), ascend(model, (0,))
    assert torch.equal(both[1], alone[0])
    with torch.inference_mode():
        assert torch.equal(ascend(model, (2, 0)), both)
    state = torch.get_rng_state()
    assert torch.equal(ascend(model, (2, 0)), both)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(ascend(model, (2, 0), seed=4, steps=1), ascend(model, (2, 0), steps=1))


def test_the_blur_is_scipys_and_keeps_constants_and_means():
    x = torch.rand(2, 3, 20, 15, generator=torch.Generator().manual_seed(0)).double()
    for deviation in (0.5, 1.0, 2.3):
        expected = gaussian_filter(x.numpy(), (0, 0, deviation, deviation), mode="nearest", truncate=4.0)
        reach = int(np.ceil(4 * deviation))
        # scipy rounds where we round up
        close = expected if int(4 * deviation + 0.5) == reach else None
        found = blurred(x, deviation)
        torch.testing.assert_close(found, torch.from_numpy(expected), atol=0 if close is not None else 1e-4, rtol=1e-4)
    assert torch.allclose(blurred(torch.full_like(x, 0.3), 1.0), torch.full_like(x, 0.3))
    inside = torch.zeros(1, 1, 31, 31).double()
    inside[:, :, 12:19, 12:19] = x[:1, :1, :7, :7]
    assert float(blurred(inside, 2.0).sum()) == pytest.approx(float(inside.sum()))


def test_exactly_the_stated_share_is_set_to_zero():
    x = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0)) + 0.01
    norms = x.norm(dim=1)
    for share in (0, 1, 37, 50, 100):
        found = without_smallest(x, norms, share)
        gone = (found == 0).all(1)
        assert gone.flatten(1).sum(1).tolist() == [share, share]
        if 0 < share < 100:
            assert all(norms[row][gone[row]].max() < norms[row][~gone[row]].min() for row in range(2))
        assert torch.equal(found[~gone[:, None].expand_as(x)], x[~gone[:, None].expand_as(x)])
    assert without_smallest(x, norms, 0) is x
    # through the whole ascent, where the mean is what a pixel without contrast has
    for rules in (Regularizers(small_norm=25), Regularizers(small_contribution=25)):
        found = ascend(linear(), regularizers=rules, steps=3)
        assert (found == 0.5).all(1).flatten(1).sum(1).tolist() == [16, 16]


def test_total_variation_is_the_gradient_of_the_sum_of_differences():
    x = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    (expected,) = torch.autograd.grad(x.diff(dim=2).abs().sum() + x.diff(dim=3).abs().sum(), x)
    torch.testing.assert_close(_variation_gradient(x.detach()), expected)
    rough, smooth = (
        ascend(linear(), regularizers=Regularizers(total_variation=weight), start=0.1, steps=20) for weight in (0, 1e-2)
    )
    assert smooth.diff(dim=2).abs().sum() < rough.diff(dim=2).abs().sum()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_class_is_what_the_network_then_sees(preset):
    torch.manual_seed(1)
    model = Classifier("small_cnn", 5, 16, 1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = activation_maximization(model, (1, 16, 16), range(5), regularizers=preset, steps=40)
    assert 0 <= found.min() < found.max() <= 1
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    start = activation_maximization(model, (1, 16, 16), range(5), steps=1, step_size=1e-9)
    with torch.no_grad():
        assert (model(found).diagonal() > model(start).diagonal() + 0.05).all()


def test_a_channel_is_ascended_at_the_middle_of_its_map():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(144, 2)).double()
    found = ascend(model, (3,), layer="0", start=0, steps=1, step_size=0.1)[0] - 0.5
    expected = torch.zeros(3, 8, 8).double()
    expected[:, 3:6, 3:6] = 0.1 * model[0].weight.detach()[3]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regularizers": "blur"}, "activation_maximization: regularizers must be one of blur_norm"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": 0}, "step_size must be above 0, got 0"),
        ({"classes": []}, r"classes must be one or more numbers >= 0, got \[\]"),
        ({"classes": [4]}, r"classes must be in \[0, 4\), got 4"),
        ({"mean": [0.5, 0.5]}, "mean must be one number or 3"),
        ({"layer": "none"}, "layer must name a layer of the model, got 'none'"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ascend(linear(), **arguments)


def test_bad_regularisers_are_named():
    for field, value in (("decay", 1), ("blur", -1), ("every", 0), ("small_norm", 101), ("total_variation", -1)):
        with pytest.raises(ValueError, match=f"Regularizers: {field} must be .*, got {value}"):
            Regularizers(**{field: value})


def test_a_layer_of_tokens_has_no_channels():
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(16, 5), nn.Flatten(1), nn.Linear(15, 3))
    with pytest.raises(ValueError, match=r"layer must give maps \(B, C, h, w\) or vectors \(B, D\), got \(1, 3, 5\)"):
        activation_maximization(tokens, (3, 4, 4), [0], layer="1")
