"""PSNR against scikit-image and closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio

from lit_adv.metrics import MeanPSNR, psnr


@given(st.integers(0, 1000), st.floats(1e-6, 1), st.sampled_from([1, 3]))
@settings(max_examples=30)
def test_equals_scikit_image(seed, size, channels):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, 3, channels, 5, 7, generator=generator)
    y = x + size * (y - x)
    found = psnr(x, y)
    for row in range(3):
        expected = peak_signal_noise_ratio(x[row].double().numpy(), y[row].double().numpy(), data_range=1)
        assert found[row].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [1.0, 0.25, 2.0**-10])
def test_a_constant_difference(size):
    x = torch.zeros(1, 3, 4, 4)
    assert psnr(x, x + size).item() == pytest.approx(-20 * math.log10(size), abs=1e-12)


def test_identical_images_are_capped_and_counted():
    x = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = x.clone()
    y[0] = x[0] + 0.1 * (x[0] - 0.5)
    y[1, 0, 0, 0] += 1e-6  # above the cap, but not identical
    metric = MeanPSNR()
    for part in (slice(0, 1), slice(1, 1), slice(1, 4)):
        metric.update(x[part], y[part])
    found = metric.compute()
    assert psnr(x, y)[1] > 100
    assert found["psnr"].item() == pytest.approx((psnr(x, y)[0].item() + 300) / 4, abs=1e-12)
    assert (found["identical"], found["images"]) == (2, 4)
    capped = MeanPSNR(cap=20)
    capped.update(x, y)
    assert capped.compute()["psnr"] == 20


def test_nothing_seen_is_nan_and_bad_input_is_named():
    metric = MeanPSNR()
    metric.update(torch.zeros(0, 1, 2, 2), torch.zeros(0, 1, 2, 2))
    assert metric.compute()["psnr"].isnan()
    with pytest.raises(ValueError, match="MeanPSNR: cap must be finite and above 0 dB, got 0"):
        MeanPSNR(cap=0)
    with pytest.raises(ValueError, match=r"psnr: y must have the shape of x"):
        psnr(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 3))
    with pytest.raises(ValueError, match=r"psnr: x must be floating-point images"):
        psnr(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
