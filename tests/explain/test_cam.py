"""Class activation maps against captum, pytorch-grad-cam and a loop, and what they leave untouched."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_adv.explain import grad_cam, grad_cam_plus_plus
from lit_adv.models import classifier

BOTH = pytest.mark.parametrize("cam", [grad_cam, grad_cam_plus_plus])


class Net(nn.Module):
    """Two convolutions, the later one first in `named_modules`, an activation in place, batch norm and dropout."""

    def __init__(self, seed=0, classes=4, inplace=True, spread=1.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.second = nn.Conv2d(5, 6, 3, padding=1)
            self.first = nn.Conv2d(3, 5, 3, padding=1)
            self.bn = nn.BatchNorm2d(5)
            self.act = nn.ReLU(inplace=inplace)
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(24, classes)
            self.bn.running_mean.uniform_(-0.3, 0.3)
            self.head.weight.data.mul_(spread)

    def forward(self, x):
        hidden = self.second(self.act(self.bn(self.first(x))))
        hidden = nn.functional.adaptive_avg_pool2d(self.act(hidden), 2)
        return self.head(self.drop(torch.tanh(hidden).flatten(1)))


def images(count=3, height=9, width=12, seed=1, dtype=torch.float64):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def enlarged(raw, size):
    """Bilinear with aligned corners, then min-max; by NumPy."""
    raw = np.asarray(raw, dtype=float)

    def along(values, count):
        old = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
        return np.stack([np.interp(np.linspace(0, 1, count), old, column) for column in values.T], 1)

    big = along(along(raw, size[0]).T, size[1]).T
    span = big.max() - big.min()
    return (big - big.min()) / span if span > 1e-12 * abs(big).max() else np.zeros(size)


def loop(model, image, label, normalise, plus_plus, rectified=True):
    """The method's formulas image by image and channel by channel, in float64; the gradient by autograd alone."""
    hidden = model.second(torch.relu(model.bn(model.first(image[None]))))
    # a rectifier behind the leaf does nothing where the leaf has been through one
    hidden = (hidden.relu() if rectified else hidden).detach().requires_grad_()
    pooled = nn.functional.adaptive_avg_pool2d(hidden if rectified else torch.relu(hidden), 2)
    model.head(torch.tanh(pooled).flatten(1))[0, label].backward(inputs=[hidden])
    maps, gradient = hidden.detach()[0].numpy(), hidden.grad[0].numpy()
    raw = np.zeros(maps.shape[1:])
    for a, g in zip(maps, gradient, strict=True):
        weight = g.mean()
        if plus_plus:
            alpha = np.zeros_like(g)
            for place, value in np.ndenumerate(g):
                bottom = 2 * value**2 + value**3 * a.sum()
                alpha[place] = value**2 / (bottom if bottom else 1)
            if normalise:
                alpha /= alpha.sum() or 1
            weight = (alpha * np.maximum(g, 0)).sum()
        raw += weight * a
    return enlarged(np.maximum(raw, 0), image.shape[1:])


@given(st.integers(0, 10_000), st.integers(1, 13), st.integers(1, 13), st.booleans(), st.sampled_from([None, "second"]))
@settings(max_examples=25)
def test_equals_a_loop(seed, height, width, normalise, layer):
    model, x = Net(seed).double().eval(), images(2, max(height, 2), max(width, 2), seed)
    labels = torch.tensor([seed % 4, (seed + 1) % 4])
    plain = grad_cam(model, x, labels, layer=layer)
    plus = grad_cam_plus_plus(model, x, labels, layer=layer, normalise_alpha=normalise)
    for row, label in enumerate(labels.tolist()):
        where = (model, x[row], label)
        np.testing.assert_allclose(plain[row], loop(*where, False, False, layer is None), atol=1e-9)
        np.testing.assert_allclose(plus[row], loop(*where, normalise, True, layer is None), atol=1e-7)


# the last convolution, and where its maps go on to the pooling
LAYERS = {
    "small_cnn": ("network.features.6", "network.features.7"),
    "resnet18": ("network.layer4.1.conv2", "network.layer4"),
    "mobilenet_v2": ("network.features.18.0", "network.features"),
    "vgg16": ("network.features.28", "network.features.29"),
    "densenet121": ("network.features.denseblock4.denselayer16.conv2", "network.features"),
}


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_grad_cam_equals_captum_on_our_classifiers(name, by_name):
    attr = pytest.importorskip("captum.attr")
    last = LAYERS[name][not by_name]
    torch.manual_seed(0)
    model = classifier(name, 10, image_size=48).double().eval()
    if name == "vgg16" and by_name:
        # captum sees what the activation in place has made of the layer's output
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
    x = images(2, 48, 48)
    labels = torch.tensor([3, 7])
    layer = model.get_submodule(last)
    raw = attr.LayerGradCam(model, layer).attribute(x, target=labels, relu_attributions=True).detach()
    found = grad_cam(model, x, labels, layer=last if by_name else None)
    assert (raw > 0).any()
    for row in range(2):
        np.testing.assert_allclose(found[row], enlarged(raw[row, 0], (48, 48)), atol=1e-8)
    assert torch.equal(found, grad_cam(model, x, labels, layer=last))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_behind_a_mean_over_the_map_it_is_the_class_activation_map(name):
    """Zhou et al. 2016: such a network's own linear layer, put on each place of the maps, is the map."""
    torch.manual_seed(0)
    model = classifier(name, 5, image_size=96).double().eval()
    kept = {}
    pooling = model.network.avgpool if name == "resnet18" else model.network.features
    pooling.register_forward_hook(lambda module, inputs, output: kept.update(before=inputs[0], behind=output))
    x, label = images(2, 96, 96), 3
    model(x)
    maps = kept["before" if name == "resnet18" else "behind"].detach()
    linear = model.network.fc if name == "resnet18" else model.network.classifier[1]
    raw = torch.einsum("k,bkij->bij", linear.weight[label].detach(), maps).relu()
    assert maps.min() == 0
    assert (raw > 0).any()
    found = grad_cam(model, x, torch.full((2,), label))
    for row in range(2):
        np.testing.assert_allclose(found[row], enlarged(raw[row], (96, 96)), atol=1e-8)


@BOTH
def test_rectified_maps_of_a_block_that_has_no_layer_for_it(cam):
    """Addition and rectifier are functions in the block's forward; the block's output is rectified."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

        def forward(self, x):
            return torch.relu_(self.bn(self.conv(x)) + x)

    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(True), Block(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 9, 4)
    ).double()
    x, labels = images(6, 9, 8), torch.arange(6) % 4
    found = cam(model, x, labels)
    assert torch.equal(found, cam(model, x, labels, layer="2"))
    assert not torch.equal(found, cam(model, x, labels, layer="2.bn"))


@BOTH
def test_gates_of_one_place_are_no_maps(cam):
    """Squeeze and excitation by convolutions: they are called last, and their maps have one place."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)

        def forward(self, x):
            maps = self.conv(x).relu()
            return maps * self.gate(maps.mean((2, 3), keepdim=True)).sigmoid()

    torch.manual_seed(2)
    model = nn.Sequential(Gated(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).double()
    x, labels = images(4), torch.arange(4)
    found = cam(model, x, labels)
    assert found.any()
    assert torch.equal(found, cam(model, x, labels, layer="0"))
    # what has one place everywhere is looked at all the same
    assert not cam(model, images(2, 3, 3)).any()


@BOTH
def test_weights_made_by_a_parametrisation_are_no_maps(cam):
    torch.manual_seed(3)
    head = nn.utils.parametrizations.spectral_norm(nn.Conv2d(5, 3, 3))
    plain = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2), head, nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    )
    # three images, three maps of 3 x 3 and weights (3, 5, 3, 3)
    x, labels = images(3, 12, 12), torch.arange(3)
    assert torch.equal(cam(plain.double(), x, labels), cam(plain, x, labels, layer="4"))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_layer_takes_no_hook_and_does_no_harm():
    scripted = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), torch.rand(1, 3, 9, 9))
    model = nn.Sequential(scripted, nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    x = images(dtype=torch.float32)
    model(x)
    assert torch.equal(grad_cam(model, x), grad_cam(model, x, layer="2"))


@pytest.mark.parametrize("seed", range(3))
def test_grad_cam_plus_plus_equals_pytorch_grad_cam(seed):
    library = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    # its 1e-6 in the denominator is nothing to gradients of this size
    model, x = Net(seed, inplace=False, spread=1e4).double().eval(), images(2)
    with library.GradCAMPlusPlus(model, [model.second]) as reference:
        wanted = [targets.ClassifierOutputTarget(2)] * 2
        reference(x, wanted)
        maps, gradient = (
            part[0]
            for part in (reference.activations_and_grads.activations, [reference.activations_and_grads.gradients[0]])
        )
        weights = reference.get_cam_weights(x, [model.second], wanted, maps.numpy(), gradient.numpy())
    raw = np.maximum((weights[..., None, None] * maps.numpy()).sum(1), 0)
    found = grad_cam_plus_plus(model, x, torch.tensor([2, 2]), layer="second", normalise_alpha=False)
    assert (raw > 0).any()
    for row in range(2):
        np.testing.assert_allclose(found[row], enlarged(raw[row], x.shape[2:]), atol=1e-6)


def test_dividing_alpha_by_its_sum_matters():
    # a small gradient makes alpha 1/2 everywhere, with or without
    model, x = Net(3, spread=100).double(), images(8)
    one, other = (grad_cam_plus_plus(model, x, normalise_alpha=choice) for choice in (True, False))
    assert (one - other).abs().max() > 0.05


@BOTH
def test_the_maps_behind_the_convolution_called_last_are_found(cam):
    model, x = Net(), images(dtype=torch.float32)
    # called twice, and last behind the convolution called last
    assert torch.equal(cam(model, x), cam(model, x, layer="act"))
    for other in ("first", "second", "bn"):
        assert not torch.equal(cam(model, x), cam(model, x, layer=other))


@BOTH
def test_an_activation_in_place_changes_nothing(cam):
    x = images()
    torch.testing.assert_close(cam(Net().double(), x), cam(Net(inplace=False).double(), x), rtol=0, atol=0)


@BOTH
def test_from_0_to_1_and_image_by_image(cam):
    model, x = Net(7).double(), images(6)
    whole = cam(model, x)
    assert whole.shape == (6, 9, 12)
    assert torch.equal(whole.flatten(1).amin(1), torch.zeros(6, dtype=x.dtype))
    assert set(whole.flatten(1).amax(1).tolist()) <= {0.0, 1.0}
    assert whole.max() == 1
    for row in range(6):
        torch.testing.assert_close(cam(model, x[row : row + 1])[0], whole[row], rtol=0, atol=1e-10)
    assert cam(model, x[:0]).shape == (0, 9, 12)


@BOTH
def test_predictions_are_explained_unless_told_otherwise(cam):
    model, x = Net().double(), images(8)
    predicted = model.eval()(x).argmax(1)
    assert torch.equal(cam(model, x), cam(model, x, predicted))
    assert not torch.equal(cam(model, x), cam(model, x, (predicted + 1) % 4))


@BOTH
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12])
def test_the_size_of_the_gradient_plays_no_part(cam, factor):
    """A classifier that is sure has tiny gradients; squares of them underflow."""
    model, labels = Net(2), torch.zeros(3).long()
    model.head.weight.data.mul_(factor)
    found = cam(model, images(dtype=torch.float32), labels)
    # nothing underflows there
    wanted = cam(model.double(), images(dtype=torch.float32).double(), labels)
    assert wanted.flatten(1).amax(1).min() == 1
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-4)


@BOTH
def test_a_constant_map_is_0_everywhere(cam):
    flat = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    same = torch.full((2, 3, 5, 7), 0.3)
    assert not cam(flat, same).any()
    flat[3].weight.data.zero_()  # no gradient at all
    assert not cam(flat, images(2, dtype=torch.float32)).any()
    assert cam(flat, torch.rand(2, 3, 1, 1)).shape == (2, 1, 1)


def test_one_by_one_maps_and_channels():
    torch.manual_seed(0)
    model = classifier("small_cnn", 2, image_size=8, in_channels=1)
    found = grad_cam_plus_plus(model, torch.rand(1, 1, 8, 8))
    assert found.shape == (1, 8, 8)
    assert found.isfinite().all()


@BOTH
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_is_left_as_it_was(cam, mode):
    model = Net().train()
    model.bn.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    generator = torch.get_rng_state()
    with mode():
        x = images(dtype=torch.float32)
        found = cam(model, x)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        assert found.is_inference() == (mode is torch.inference_mode)
    assert not found.requires_grad
    torch.testing.assert_close(found, cam(model, images(dtype=torch.float32)), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), generator)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.first.weight.grad is None
    assert not any(module._forward_hooks for module in model.modules())


@BOTH
def test_nothing_stays_behind_after_an_error(cam):
    model = Net().train()

    def fail(*_):
        raise RuntimeError("broken")

    handle = model.head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        cam(model, images(dtype=torch.float32))
    handle.remove()
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


@BOTH
def test_frozen_weights_and_reduced_precision(cam):
    model, x = Net(), images(dtype=torch.float32)
    wanted = cam(model, x)
    assert torch.equal(cam(model.requires_grad_(False), x), wanted)
    found = cam(model.bfloat16(), x)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert cam(model, x.bfloat16()).dtype == torch.float32


@BOTH
def test_what_cannot_be_explained_is_named(cam):
    model, x = Net(), images(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"layer must name a layer of the model, got 'third' .* second, first\)"):
        cam(model, x, layer="third")
    with pytest.raises(ValueError, match=r"must have a convolution, got Sequential .*there are 0, 1\)"):
        cam(nn.Sequential(nn.Flatten(), nn.Linear(324, 2)), x)
    with pytest.raises(ValueError, match=r"layer must give maps \(B, K, h, w\), got \(3, 4\) from head"):
        cam(model, x, layer="head")
    assert not model.head._forward_hooks
    model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="does not call unused"):
        cam(model, x, layer="unused")
    with pytest.raises(ValueError, match=r"classes must be an int64 tensor of shape \(3,\)"):
        cam(model, x, torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"classes must be in \[0, 4\), got 0 to 4"):
        cam(model, x, torch.tensor([0, 4, 1]))
    with pytest.raises(ValueError, match="images must be a floating-point tensor"):
        cam(model, (x * 255).to(torch.uint8))
    with pytest.raises(ValueError, match=r"must give logits \(3, K\), got \(3, 4, 1\)"):
        cam(nn.Sequential(model, nn.Unflatten(1, (4, 1))), x)
    x[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="image 1 gives NaN"):
        cam(model, x)
