"""The network that draws perturbations: its range, its independence of the batch, its sizes."""

import pytest
import torch

from lit_adv.models import PerturbationNetwork


def test_draws_within_the_range_for_any_size():
    torch.manual_seed(0)
    network = PerturbationNetwork(3, 4, 1)
    for height, width in ((2, 2), (7, 9), (16, 16)):
        images = torch.rand(3, 3, height, width)
        direction = network(images)
        assert direction.shape == images.shape
        assert direction.abs().max() < 1
        # what the tanh gets has a root mean square of 2
        torch.testing.assert_close(direction.atanh().square().mean((1, 2, 3)), torch.full((3,), 4.0), rtol=1e-3, atol=0)


def test_an_image_does_not_depend_on_its_batch_or_on_the_mode():
    torch.manual_seed(0)
    network, images = PerturbationNetwork(1, 4, 2).double(), torch.rand(5, 1, 8, 8).double()
    together = network.train()(images)
    apart = torch.cat([network.eval()(image[None]) for image in images])
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)


def test_every_weight_is_learnt():
    torch.manual_seed(0)
    network = PerturbationNetwork(2, 4, 2)
    network(torch.rand(2, 2, 8, 8))[:, :, ::3].sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"blocks": -1}, "blocks must be at least 0, got -1"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=f"PerturbationNetwork: {message}"):
        PerturbationNetwork(**fields)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(2, 1, 4, 4\)"):
        PerturbationNetwork(3)(torch.rand(2, 1, 4, 4))
