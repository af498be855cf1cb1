"""Saliency-guided regions: exactly so many pixels, and those that matter."""

import pytest
import torch
from torch import nn

from lit_adv.attacks import PGD
from lit_adv.explain import grad_cam, grad_cam_plus_plus, saliency_mask
from lit_adv.models import Classifier


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier("small_cnn", 3, 16).eval()


@pytest.fixture
def images():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("fraction", [0.0, 0.17, 0.28, 0.45, 1.0])
@pytest.mark.parametrize("method", ["grad_cam", "grad_cam_plus_plus", "gradient"])
def test_exactly_so_many_pixels_of_each_image(model, images, method, fraction):
    region = saliency_mask(model, images, LABELS, fraction, method=method)
    mask = region(images)
    assert mask.shape == (4, 1, 16, 16)
    assert mask.flatten(1).sum(1).tolist() == [round(fraction * 256)] * 4
    # an image's mask does not depend on its batch
    alone = saliency_mask(model, images[2:3], LABELS[2:3], fraction, method=method)
    assert torch.equal(alone(images[2:3]), mask[2:3])


@pytest.mark.parametrize(("method", "cam"), [("grad_cam", grad_cam), ("grad_cam_plus_plus", grad_cam_plus_plus)])
def test_the_pixels_are_those_of_the_activation_map(model, images, method, cam):
    layer = "network.features.7"
    maps = cam(model, images, LABELS, layer=layer)
    chosen = saliency_mask(model, images, LABELS, 0.2, method=method, layer=layer)(images)[:, 0] > 0
    for each, kept in zip(maps, chosen, strict=True):
        assert each[kept].min() >= each[~kept].max()
    least = saliency_mask(model, images, LABELS, 0.2, method=method, layer=layer, least=True)(images)[:, 0] > 0
    for each, kept in zip(maps, least, strict=True):
        assert each[kept].max() <= each[~kept].min()


def test_the_gradients_mask_is_that_of_a_network_known_by_heart():
    # only two pixels matter, one of them in the second channel alone
    network = nn.Sequential(nn.Flatten(), nn.Linear(2 * 9, 2, bias=False)).double()
    network[1].weight.data.zero_()
    network[1].weight.data[0, 4] = 1.0
    network[1].weight.data[1, 9 + 2] = -3.0
    x = torch.full((1, 2, 3, 3), 0.5).double()
    labels = torch.tensor([1])
    for fraction, pixels in ((1 / 9, [2]), (2 / 9, [2, 4])):
        mask = saliency_mask(network, x, labels, fraction, method="gradient")(x)
        assert mask.flatten().nonzero().flatten().tolist() == pixels
    # what is equally salient: the first ones
    assert saliency_mask(network, x, labels, 3 / 9, method="gradient")(x).flatten().nonzero().flatten().tolist() == [
        0,
        2,
        4,
    ]


def test_an_attack_stays_in_the_mask_and_the_model_is_left_alone(model, images):
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        region = saliency_mask(model, images, LABELS, 0.25, method="gradient")
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    crafted = PGD(eps=0.1, step_size=0.05, steps=3)(model, images, LABELS, region=region, seed=0)
    changed = (crafted != images).any(1, keepdim=True)
    assert bool(changed.flatten(1).any(1).all())
    assert not bool((changed & (region(images) == 0)).any())


def test_no_images(model, images):
    for method in ("grad_cam", "gradient"):
        assert saliency_mask(model, images[:0], LABELS[:0], 0.5, method=method).mask.shape == (0, 1, 16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fraction": 1.2}, r"saliency_mask: fraction must be in \[0, 1\], got 1.2"),
        ({"fraction": float("nan")}, "fraction must be"),
        ({"method": "lime"}, "method must be one of grad_cam, grad_cam_plus_plus, gradient, got 'lime'"),
        ({"method": "gradient", "layer": "x"}, "layer must be None for method 'gradient'"),
        ({"method": "gradient", "labels": LABELS + 2}, r"labels must be in \[0, 3\), got 2 to 4"),
        ({"labels": LABELS.float()}, "classes must be an int64 tensor"),
        ({"layer": "conv9"}, "layer must name a layer of the model"),
    ],
)
def test_bad_arguments_are_named(model, images, change, message):
    with pytest.raises(ValueError, match=message):
        saliency_mask(model, images, **{"labels": LABELS, "fraction": 0.5, **change})
