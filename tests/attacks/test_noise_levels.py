"""Noise at a signal-to-noise ratio: the ratio is met, the direction is FGSM's, PGD stays in the ball."""

import pytest
import torch

from lit_adv.attacks import FGSM, noise_at_snr
from lit_adv.models import Classifier

DECIBELS = [50.0, 33.0, 20.0, 10.0]


def network():
    torch.manual_seed(0)
    return Classifier("small_cnn", 4, 8, 1).double()


def images():
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    # black and white pixels, which noise on one side does not reach
    return x.sub(0.3).mul(2).clamp(0, 1), torch.arange(6) % 4


@pytest.mark.parametrize("steps", [1, 7])
def test_the_ratio_is_met_after_clipping(steps):
    model, (x, y) = network(), images()
    noisy = noise_at_snr(model, x, y, DECIBELS, steps)
    assert noisy.shape == (4, *x.shape)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    size = (noisy - x).flatten(2).norm(dim=2)
    ratios = 20 * torch.log10(x.flatten(1).norm(dim=1) / size)
    if steps == 1:
        assert torch.allclose(ratios, torch.tensor(DECIBELS).double()[:, None].expand_as(ratios), atol=1e-6)
    else:
        single = noise_at_snr(model, x, y, DECIBELS)
        radius = (single - x).flatten(2).abs().amax(2)
        assert ((noisy - x).flatten(2).abs().amax(2) <= radius + 1e-12).all()


def test_the_direction_is_that_of_fgsm():
    model, (x, y) = network(), images()
    for row, noisy in enumerate(noise_at_snr(model, x, y, [30.0])[0]):
        radius = float((noisy - x[row]).abs().max())
        expected = FGSM(eps=radius)(model, x[row : row + 1], y[row : row + 1])[0]
        assert torch.allclose(noisy, expected, atol=1e-12)


def test_more_steps_find_a_higher_loss():
    model, (x, y) = network(), images()
    losses = [
        torch.nn.functional.cross_entropy(model(noise_at_snr(model, x, y, [15.0], steps)[0]), y).item()
        for steps in (1, 20)
    ]
    assert losses[1] > losses[0]


def test_no_trace_and_no_gradient():
    """Modes and gradients are as before; a model whose gradient is zero, and an empty batch, leave the images alone."""
    model, (x, y) = network(), images()
    model.train()
    with torch.inference_mode():
        # made in there as well, as a trainer's batches are
        noise_at_snr(model, x.clone(), y.clone(), [30.0], 2)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        model.network.linear.weight.zero_()
    assert torch.equal(noise_at_snr(model, x, y, [30.0])[0], x)
    assert noise_at_snr(model, x[:0], y[:0], [30.0]).shape == (1, 0, 1, 8, 8)
    # all that can be done, where more is asked for
    assert torch.isin(noise_at_snr(network(), x, y, [-60.0]), torch.tensor([0.0, 1.0]).double()).all()


def test_what_is_refused():
    model, (x, y) = network(), images()
    for arguments in (([], 1), ([30.0], 0)):
        with pytest.raises(ValueError, match="decibels and steps must be at least one"):
            noise_at_snr(model, x, y, *arguments)
