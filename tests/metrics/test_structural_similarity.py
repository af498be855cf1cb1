"""SSIM against scikit-image, a loop and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from lit_adv.metrics import MeanSSIM, ssim, ssim_map

C1, C2 = 0.01**2, 0.03**2
BOTH = pytest.mark.parametrize("window", ["gaussian", "block8"])


def images(count, channels, height, width, seed=0, dtype=torch.float64):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(st.integers(11, 24), st.integers(11, 24), st.sampled_from([1, 3]), st.floats(0, 0.5), st.sampled_from([32, 64]))
@settings(max_examples=30)
def test_equals_scikit_image_in_the_interior(height, width, channels, size, bits):
    x = images(2, channels, height, width, seed=height, dtype=torch.float32 if bits == 32 else torch.float64)
    y = (x + size * (images(2, channels, height, width, seed=1).to(x) - 0.5)).clamp(0, 1)
    maps, means = ssim_map(x, y), ssim(x, y)
    assert maps.dtype == x.dtype
    for row in range(2):
        planes = (image[row].double().permute(1, 2, 0).numpy() for image in (x, y))
        mean, full = structural_similarity(
            *planes,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=2,
            full=True,
        )
        inside = full[5:-5, 5:-5].transpose(2, 0, 1)
        np.testing.assert_allclose(maps[row, :, 5:-5, 5:-5], inside, atol=1e-12 if bits == 64 else 1e-7)
        assert means[row].item() == pytest.approx(mean, abs=1e-12)


@BOTH
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 9), (8, 8), (13, 20)])
def test_equals_a_loop_with_the_image_mirrored_at_the_border(window, size):
    x, y = images(1, 2, *size, seed=2), images(1, 2, *size, seed=3)
    if window == "gaussian":
        taps, before = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2)), 5
        taps = taps / taps.sum()
    else:
        taps, before = np.full(8, 1 / 8), 3
    # a side of one pixel has no mirror image: it is repeated
    modes = ["reflect" if side > 1 else "edge" for side in size]
    padded = []
    for image in (x, y):
        planes = image[0].numpy()
        for axis, mode in zip((1, 2), modes, strict=True):
            amounts = [(0, 0)] * 3
            amounts[axis] = (before, len(taps) - 1 - before)
            planes = np.pad(planes, amounts, mode=mode)
        padded.append(planes)
    expected = np.empty((2, *size))
    weights = np.outer(taps, taps)
    for channel, row, column in np.ndindex(expected.shape):
        a, b = (p[channel, row : row + len(taps), column : column + len(taps)] for p in padded)
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
        top = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
        expected[channel, row, column] = top / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))
    np.testing.assert_allclose(ssim_map(x, y, window)[0], expected, atol=1e-11)
    margin = len(taps) - 1 - before
    valid = expected if min(size) < len(taps) else expected[:, before : size[0] - margin, before : size[1] - margin]
    assert ssim(x, y, window)[0].item() == pytest.approx(valid.mean(), abs=1e-11)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_is_exactly_like_itself(window, dtype):
    x = images(4, 3, 20, 15, dtype=dtype)
    x[1] = 0.7  # flat, where rounding is all the variance there is
    x[2, :, :10] = 1.0
    assert torch.equal(ssim_map(x, x, window), torch.ones_like(x))
    assert torch.equal(ssim(x, x, window), torch.ones(4, dtype=torch.float64))


@BOTH
def test_symmetric_and_at_most_1(window):
    x, y = images(3, 3, 16, 16, 4), images(3, 3, 16, 16, 5)
    assert torch.equal(ssim_map(x, y, window), ssim_map(y, x, window))
    nearly = (x + 1e-9 * y).clamp(max=1)
    for other in (y, 1 - x, nearly):
        found = ssim_map(x, other, window)
        assert found.max() <= 1
        assert found.min() >= -1


@BOTH
def test_constant_images(window):
    a, b = 0.2, 0.9
    x, y = (torch.full((1, 1, 14, 14), value, dtype=torch.float64) for value in (a, b))
    expected = torch.full_like(x, (2 * a * b + C1) / (a**2 + b**2 + C1))
    torch.testing.assert_close(ssim_map(x, y, window), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.3, 1.5])
def test_a_window_as_large_as_the_image(factor):
    x = 0.5 + 0.1 * images(1, 1, 8, 8)
    mean, variance = x.mean(), x.var(correction=0)
    y = mean + factor * (x - mean)
    expected = (2 * factor * variance + C2) / ((1 + factor**2) * variance + C2)
    # the one pixel whose 8 x 8 window is the image; the mean over the valid area is that pixel as well
    torch.testing.assert_close(ssim_map(x, y, "block8")[0, 0, 3, 3], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ssim(x, y, "block8")[0], expected, rtol=0, atol=1e-12)


def test_mean_over_a_data_set():
    x, y = images(7, 3, 16, 16, 6), images(7, 3, 16, 16, 7)
    metric = MeanSSIM()
    metric.update(x[:0], y[:0])
    assert metric.compute().isnan()
    for rows in (slice(0, 2), slice(2, 7)):
        metric.update(x[rows], y[rows])
    torch.testing.assert_close(metric.compute(), ssim(x, y).mean(), rtol=0, atol=1e-14)
    assert MeanSSIM("block8").window == "block8"


def test_half_precision_is_computed_in_full():
    x, y = images(1, 3, 16, 16, 6, torch.bfloat16), images(1, 3, 16, 16, 7, torch.bfloat16)
    found = ssim_map(x, y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), ssim_map(x.double(), y.double()), rtol=0, atol=1e-7)


def test_bad_input_is_named():
    x = images(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"ssim_map: y must have the shape of x, got \(1, 3, 16, 16\) and \(2, 3,"):
        ssim_map(x, x[:1])
    with pytest.raises(ValueError, match=r"ssim: x must be floating-point images .* got torch.uint8"):
        ssim((x * 255).to(torch.uint8), x)
    with pytest.raises(ValueError, match="ssim_map: window must be one of gaussian, block8, got 'square'"):
        ssim_map(x, x, "square")
    with pytest.raises(ValueError, match="MeanSSIM: window must be one of"):
        MeanSSIM("square")
