"""Filters, activations and features: what is shown, and what is left untouched."""

import pytest
import torch
from torch import nn

from lit_adv.explain import activations, features, filters
from lit_adv.models import Classifier


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(180, 7), nn.Linear(7, 4)
    )


def images(count=3):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_filters_on_one_scale_keep_their_order_of_size():
    model = network()
    found = filters(model)
    weight = model[0].weight.detach()
    assert found.layer == "0"
    assert (float(found.tiles.min()), float(found.tiles.max())) == (0, 1)
    back = found.tiles * (found.high - found.low)[:, None, None, None] + found.low[:, None, None, None]
    torch.testing.assert_close(back, weight)
    assert set(found.low.tolist()) == {float(weight.min())}


def test_each_filter_on_its_own_scale_and_a_constant_one_in_the_middle():
    model = network()
    model[0].weight.data[2] = 0.7
    found = filters(model, "0", scale="each")
    low, high = found.tiles.flatten(1).aminmax(dim=1)
    assert low.tolist() == [0, 0, 0.5, 0, 0]
    assert high.tolist() == [1, 1, 0.5, 1, 1]
    torch.testing.assert_close(found.high, model[0].weight.detach().flatten(1).amax(1))
    model[0].weight.data.fill_(-2)
    assert (filters(model).tiles == 0.5).all()


def test_activations_are_those_before_what_comes_behind_in_place():
    model = network().train()
    x = images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = activations(model, x, "1")
    assert (found < 0).any()
    assert model.training
    assert model[1].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()
    torch.testing.assert_close(found, model[1](model[0](x)))
    assert not found.requires_grad
    assert not model[1]._forward_hooks


def test_penultimate_features_are_what_the_last_linear_layer_gets():
    model = network().eval()
    x = images()
    torch.testing.assert_close(features(model, x), model[:5](x))
    torch.testing.assert_close(features(model, x, "0"), model[0](x).flatten(1))
    for name, size in (("small_cnn", 16), ("resnet20", 32), ("vgg16", 32)):
        classifier = Classifier(name, 4, size).eval()
        x = torch.rand(2, 3, size, size)
        last = [each for each in classifier.modules() if isinstance(each, nn.Linear)][-1]
        with torch.no_grad():
            torch.testing.assert_close(last(features(classifier, x)), classifier(x))


def test_hooks_go_when_the_model_fails():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 2), Broken())
    for call in (lambda: activations(model, images(), "0"), lambda: features(model, images())):
        with pytest.raises(RuntimeError, match="broken"):
            call()
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_bad_input_is_named():
    model = network()
    with pytest.raises(
        ValueError, match=r"filters: layer must name a convolution of the model, got '4' \(there are 0\)"
    ):
        filters(model, "4")
    with pytest.raises(ValueError, match="filters: scale must be one of all, each, got 'none'"):
        filters(model, scale="none")
    with pytest.raises(ValueError, match=r"layer must name a layer of the model, got '9' \(there are 0\)"):
        activations(model, images(), "9")
    with pytest.raises(ValueError, match="features: the model must call a linear layer"):
        features(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), images())
    unused = nn.Sequential(nn.Conv2d(3, 2, 3))
    unused.spare = nn.Identity()
    unused.forward = unused[0].forward
    with pytest.raises(ValueError, match="activations: the model does not call spare"):
        activations(unused, images(), "spare")
    with pytest.raises(ValueError, match=r"images must be a floating-point tensor \(B, C, H, W\)"):
        activations(model, images()[0], "0")
