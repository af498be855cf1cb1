"""Gradient maps against the method's formulas, captum and autograd, and what they leave untouched."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_adv.explain import deconvnet, gradient_saliency, guided_backpropagation, neuron_gradient
from lit_adv.explain.rectifiers import rectifier_rule
from lit_adv.models import Classifier

RULES = ("gradient", "deconvnet", "guided")


def images(count=3, channels=3, side=12, dtype=torch.float64):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)


def network(seed=0, act=nn.ReLU):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        act(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        act(),
        nn.Flatten(),
        nn.Linear(72, 4),
    ).double()


@pytest.mark.parametrize(
    "call",
    [
        F.relu,
        torch.relu,
        lambda z: z.relu(),
        lambda z: F.relu(z.clone(), inplace=True),
        lambda z: z.clone().relu_(),
        lambda z: torch.relu_(z.clone()),
        nn.ReLU(),
        lambda z: nn.ReLU(inplace=True)(z.clone()),
        torch.nn.functional.relu_,
    ],
)
@pytest.mark.parametrize("rule", RULES)
def test_the_three_formulas_however_the_rectifier_is_called(call, rule):
    z = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    incoming = torch.tensor([1.0, -1.0, 2.0, -3.0, 4.0, 0.0], dtype=torch.float64)
    with rectifier_rule("test", nn.Identity(), rule):
        output = call(z * 1)
    assert output.tolist() == [0, 0, 0, 1, 2, 3]
    (found,) = torch.autograd.grad(output, z, incoming)
    expected = {
        "gradient": [0.0, 0, 0, -3, 4, 0],
        "deconvnet": [1.0, 0, 2, 0, 4, 0],
        "guided": [0.0, 0, 0, 0, 4, 0],
    }[rule]
    assert found.tolist() == expected


@pytest.mark.parametrize("act", [nn.ReLU6(), F.relu6, nn.ReLU6(inplace=True), lambda z: F.hardtanh(z, 0.0, 6.0)])
def test_a_clipped_rectifier_is_closed_above_its_end_too(act):
    z = torch.tensor([-1.0, 2.0, 7.0, 3.0], dtype=torch.float64, requires_grad=True)
    incoming = torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    for rule, expected in (("guided", [0, 1, 0, 0]), ("deconvnet", [1, 1, 1, 0])):
        with rectifier_rule("test", nn.Identity(), rule):
            output = act(z * 1)
        assert output.tolist() == [0, 2, 6, 3]
        assert torch.autograd.grad(output, z, incoming)[0].tolist() == expected


def test_a_shortcut_sees_what_an_activation_in_place_has_made():
    class Block(nn.Module):
        def forward(self, x):
            y = x * 1
            return F.relu(y, inplace=True) * 2 + y

    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    for rule in RULES:
        with rectifier_rule("test", Block(), rule):
            output = Block()(x)
        assert output.tolist() == [0, 6]
        assert torch.autograd.grad(output.sum(), x)[0].tolist() == ([3, 3] if rule == "deconvnet" else [0, 3])


def test_captum_agrees_where_all_rectifiers_are_modules():
    attr = pytest.importorskip("captum.attr")
    model, x, labels = network().eval(), images(), torch.tensor([1, 3, 0])
    for ours, theirs in (
        (deconvnet, attr.Deconvolution),
        (guided_backpropagation, attr.GuidedBackprop),
        (lambda *args: gradient_saliency(*args)[:, None], lambda model: attr.Saliency(model)),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *args, **named: None)
            expected = theirs(copy.deepcopy(model)).attribute(x.clone().requires_grad_(), target=labels).detach()
        found = ours(model, x, labels)
        expected = expected.abs().amax(1, keepdim=True) if found.shape[1] == 1 else expected
        assert expected.any()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_functions_and_modules_give_the_same_where_captum_would_not():
    class Functions(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            x = F.relu(self.layers[1](self.layers[0](x)), inplace=True)
            return self.layers[7](torch.relu(self.layers[4](F.max_pool2d(x, 2))).flatten(1))

    model, x = network().eval(), images()
    for explain in (deconvnet, guided_backpropagation):
        torch.testing.assert_close(explain(Functions(model), x), explain(model, x))
    # one module in several places
    shared = copy.deepcopy(model)
    shared[2] = shared[5] = nn.ReLU(inplace=True)
    torch.testing.assert_close(guided_backpropagation(shared, x), guided_backpropagation(model, x))


def test_a_linear_model_has_its_weights_whatever_the_image():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 4)).double()
    x, labels = images(side=4), torch.tensor([2, 0, 3])
    weights = model[1].weight.detach()[labels].view(3, 3, 4, 4)
    assert torch.equal(gradient_saliency(model, x, labels), weights.abs().amax(1))
    assert torch.equal(gradient_saliency(model, 1 - x, labels), weights.abs().amax(1))
    for explain in (deconvnet, guided_backpropagation):
        assert torch.equal(explain(model, x, labels), weights)


def test_guided_is_the_gradient_where_all_that_comes_back_is_positive():
    model, x = network().eval(), images()
    plain = neuron_gradient(model, x, "7", torch.zeros(3, 1, dtype=torch.int64))
    assert not torch.allclose(guided_backpropagation(model, x, torch.zeros(3, dtype=torch.int64)), plain)
    with torch.no_grad():
        for name in (0, 4, 7):
            model[name].weight.abs_()
        model[1].weight.abs_()
    labels = torch.zeros(3, dtype=torch.int64)
    plain = neuron_gradient(model, x, "7", labels[:, None])
    assert torch.equal(guided_backpropagation(model, x, labels), plain)
    # without a rectifier all rules are the gradient
    smooth = network(act=nn.Tanh).eval()
    plain = neuron_gradient(smooth, x, "7", labels[:, None])
    for explain in (deconvnet, guided_backpropagation):
        assert torch.equal(explain(smooth, x, labels), plain)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "small_cnn"])
def test_values_stay_and_the_model_is_left_as_it_was(name, rule):
    torch.manual_seed(0)
    model = Classifier(name, 4, 32).eval()
    x = images(2, side=32, dtype=torch.float32)
    expected = model(x)
    with rectifier_rule("test", model, rule):
        assert torch.equal(model(x), expected)
    model.train()
    before = copy.deepcopy(model.state_dict())
    modules = list(model.modules())
    guided_backpropagation(model, x)
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(module.training for module in modules)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(each._forward_hooks or each._backward_hooks or each._forward_pre_hooks for each in modules)


def test_rules_end_with_an_exception():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            F.relu(self.conv(x))
            raise RuntimeError("broken")

    model = Broken().double()
    for call in (
        lambda: guided_backpropagation(model, images()),
        lambda: neuron_gradient(model, images(), "conv", torch.zeros(3, 3, dtype=torch.int64), rule="deconvnet"),
    ):
        with pytest.raises(RuntimeError, match="broken"):
            call()
    assert not model.conv._forward_hooks
    z = torch.tensor([-1.0], requires_grad=True)
    assert torch.autograd.grad(F.relu(z), z)[0] == 0
    z = torch.tensor([1.0], requires_grad=True)
    assert torch.autograd.grad(F.relu(z), z, torch.tensor([-1.0]))[0] == -1


def test_a_neuron_is_the_one_that_is_named():
    model, x = network().eval(), images()
    units = torch.tensor([[0, 1, 2], [7, 0, 0], [3, 2, 1]])
    found = neuron_gradient(model, x, "4", units)
    for row, (channel, u, v) in enumerate(units.tolist()):
        one = x[row : row + 1].clone().requires_grad_()
        (expected,) = torch.autograd.grad(model[:5](one)[0, channel, u, v], one)
        torch.testing.assert_close(found[row], expected[0])
        # rows and columns beyond its field: 3 + 2 * (2 + 1) pixels behind a pooling
        assert not expected[0, :, 2 * u + 8 :].any()


def test_each_image_is_treated_by_itself_and_in_inference_mode():
    model, x = network().train(), images()
    found = guided_backpropagation(model, x)
    with torch.inference_mode():
        inside = guided_backpropagation(model, images())
    assert torch.equal(found, inside)
    for row in range(3):
        torch.testing.assert_close(found[row], guided_backpropagation(model, x[row : row + 1])[0])
    assert gradient_saliency(model, x[:0]).shape == (0, 12, 12)


def test_bad_input_is_named():
    model, x = network(), images()
    with pytest.raises(ValueError, match=r"deconvnet: classes must be in \[0, 4\), got 0 to 4"):
        deconvnet(model, x, torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match=r"neuron_gradient: units must be places in \(8, 3, 3\), the output of 4"):
        neuron_gradient(model, x, "4", torch.full((3, 3), 3))
    with pytest.raises(ValueError, match="neuron_gradient: rule must be one of gradient, deconvnet, guided, got 'x'"):
        neuron_gradient(model, x, "4", torch.zeros(3, 3, dtype=torch.int64), rule="x")
    with pytest.raises(ValueError, match="neuron_gradient: units must be int64"):
        neuron_gradient(model, x, "4", torch.zeros(3, 3))
    with pytest.raises(ValueError, match="image 1 gives NaN"):
        gradient_saliency(model, torch.where(torch.arange(3)[:, None, None, None] == 1, torch.nan, x))
