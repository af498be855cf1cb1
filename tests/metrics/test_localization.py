"""LocalizationScores against counting at each threshold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.metrics import LocalizationScores, localization_scores, ssim_map

SCORES = LocalizationScores.SCORES


def maps(count, channels, height, width, seed, levels=None):
    """SSIM and CAM; with few levels many values sit exactly on a threshold."""
    generator = torch.Generator().manual_seed(seed)
    ssim = 1 - torch.rand(count, channels, height, width, generator=generator, dtype=torch.float64) * 0.6
    cam = torch.rand(count, height, width, generator=generator, dtype=torch.float64)
    if levels:
        ssim, cam = 1 - (levels * (1 - ssim)).round() / levels, (4 * cam).round() / 4
    return ssim, cam


def counted(noise, looked, threshold):
    """The method's table for one image, with nan where a score is undefined."""
    marked = noise > threshold
    tp, fp = (marked & looked).sum(), (marked & ~looked).sum()
    fn, tn = (~marked & looked).sum(), (~marked & ~looked).sum()
    assert tp + fp + fn + tn == noise.size
    return {
        "precision": tp / (tp + fp) if tp + fp else np.nan,
        "recall": tp / (tp + fn) if tp + fn else np.nan,
        "iou": tp / (tp + fp + fn) if tp + fp + fn else np.nan,
        "iou_outside": fp / (fp + tp + tn) if tp + fp or tn + fp else 0.0,
        "pixels": (tp + fp) / noise.size,
    }


def direct(ssim, cam, thresholds, channel, cam_threshold=0.75):
    noise = {
        "mean": (1 - ssim).mean(1),
        "any": (1 - ssim).amax(1),
        "each": (1 - ssim).flatten(0, 1),
    }[channel].numpy()
    cam = cam.numpy() > cam_threshold
    if channel == "each":
        cam = cam.repeat(ssim.shape[1], 0)
    table = [[counted(n, g, t) for t in thresholds] for n, g in zip(noise, cam, strict=True)]
    return {name: np.array([[cell[name] for cell in row] for row in table]) for name in SCORES}


@given(
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.sampled_from([1, 3]),
    st.sampled_from([(1, 1), (1, 5), (6, 4)]),
    st.lists(st.integers(0, 70), min_size=1, max_size=40, unique=True),
    st.sampled_from(["mean", "any", "each"]),
    st.sampled_from(["skip", "zero"]),
    st.sampled_from([None, 4, 100]),
)
@settings(max_examples=120)
def test_one_pass_equals_each_threshold(seed, count, channels, size, steps, channel, undefined, levels):
    ssim, cam = maps(count, channels, *size, seed, levels)
    thresholds = sorted(step / 100 for step in steps)
    expected = direct(ssim, cam, thresholds, channel)
    found = localization_scores(ssim, cam, thresholds, channel=channel)
    metric = LocalizationScores(thresholds, channel=channel, undefined=undefined)
    for part in range(count):
        metric.update(ssim[part : part + 1], cam[part : part + 1])
    means = metric.compute()
    assert means["images"] == count * (channels if channel == "each" else 1)
    for name in SCORES:
        np.testing.assert_array_equal(found[name], expected[name])
        defined = ~np.isnan(expected[name])
        np.testing.assert_array_equal(means["counts"][name], defined.sum(0))
        sums = np.where(defined, expected[name], 0).sum(0)
        among = defined.sum(0) if undefined == "skip" else np.full(len(thresholds), len(defined))
        wanted = np.divide(sums, among, out=np.full(len(thresholds), np.nan), where=among > 0)
        np.testing.assert_allclose(means[name], wanted, rtol=1e-13)


@given(st.integers(0, 10_000), st.sampled_from([None, 4]))
@settings(max_examples=30)
def test_bounds_and_order(seed, levels):
    ssim, cam = maps(5, 3, 6, 7, seed, levels)
    found = localization_scores(ssim, cam)
    for values in found.values():
        known = values[~values.isnan()]
        assert ((known >= 0) & (known <= 1)).all()
    both = ~found["precision"].isnan() & ~found["recall"].isnan()
    assert (found["iou"] <= torch.minimum(found["precision"], found["recall"]))[both].all()
    for name in ("pixels", "recall"):
        assert (found[name].diff(dim=1).nan_to_num() <= 0).all()


def test_where_the_noise_is_what_is_looked_at_everything_or_elsewhere():
    looked = torch.zeros(1, 4, 5, dtype=torch.bool)
    looked[0, 1:3, :2] = True
    share = 4 / 20
    cam = looked.double()

    def at(noise):
        found = localization_scores((1 - noise.double())[:, None], cam, [0.5])
        return {name: values.item() for name, values in found.items()}

    assert at(looked) == {"precision": 1, "recall": 1, "iou": 1, "iou_outside": 0, "pixels": share}
    everything = {"precision": share, "recall": 1, "iou": share, "iou_outside": 1 - share, "pixels": 1}
    assert at(torch.ones_like(looked)) == everything
    elsewhere = at(~looked)
    assert elsewhere == {"precision": 0, "recall": 0, "iou": 0, "iou_outside": 1, "pixels": 1 - share}


def test_what_is_undefined_is_left_out_or_zero():
    """Images: no noise; nothing looked at; neither; noise and all looked at; no noise and all looked at."""
    noise = torch.tensor([0.0, 1, 0, 1, 0])[:, None, None, None].expand(5, 1, 2, 2)
    cam = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]).view(5, 2, 2)
    skip, zero = LocalizationScores([0.5]), LocalizationScores([0.5], undefined="zero")
    for metric in (skip, zero):
        metric.update(1 - noise, cam)
    skip, zero = skip.compute(), zero.compute()
    assert {name: count.item() for name, count in skip["counts"].items()} == {
        "precision": 2,
        "recall": 3,
        "iou": 4,
        "iou_outside": 5,
        "pixels": 5,
    }
    assert skip["counts"]["recall"] == zero["counts"]["recall"]
    means = {name: (skip[name].item(), zero[name].item()) for name in SCORES}
    assert means == {
        "precision": (1 / 2, 1 / 5),
        "recall": (1 / 3, 1 / 5),
        "iou": (1 / 4, 1 / 5),
        "iou_outside": (1 / 5, 1 / 5),
        "pixels": (2 / 5, 2 / 5),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_unchanged_image_has_no_noise_at_any_threshold(dtype):
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[1] = 0.6
    cam = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = localization_scores(ssim_map(x, x), cam, [1e-6, 0.01])
    assert not found["pixels"].any()
    assert found["precision"].isnan().all()


def test_defaults_are_the_papers():
    metric = LocalizationScores()
    assert 0.11 in metric.thresholds
    assert (metric.thresholds[0], metric.thresholds[-1], len(metric.thresholds)) == (0.01, 0.5, 50)
    ssim, cam = maps(2, 3, 4, 4, 0)
    metric.update(ssim, cam)
    np.testing.assert_array_equal(metric.compute()["thresholds"], np.arange(1, 51) / 100)


def test_nothing_seen_merging_and_reset():
    first, second, whole = (LocalizationScores([0.1, 0.3]) for _ in range(3))
    first.update(*maps(0, 3, 4, 4, 0))
    assert first.compute()["precision"].isnan().all()
    assert first.compute()["images"] == 0
    ssim, cam = maps(5, 3, 4, 4, 1)
    first.update(ssim[:2], cam[:2])
    second.update(ssim[2:], cam[2:])
    whole.update(ssim, cam)
    first.merge_state(second)
    for name in SCORES:
        torch.testing.assert_close(first.compute()[name], whole.compute()[name], rtol=0, atol=1e-14)
    first.reset()
    first.update(ssim[:1], cam[:1])
    assert first.compute()["images"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": []}, "thresholds must be one or more ascending numbers"),
        ({"thresholds": 0.11}, r"thresholds must be a sequence of numbers, got 0.11 \(put it into a list\)"),
        ({"thresholds": [0.2, 0.1]}, "thresholds must be one or more ascending numbers"),
        ({"thresholds": [0.1, 0.1]}, "thresholds must be one or more ascending numbers"),
        ({"thresholds": [-0.1]}, r"thresholds must be one or more ascending numbers in \[0, 2\)"),
        ({"cam_threshold": 1.0}, r"cam_threshold must be in \[0, 1\), got 1.0"),
        ({"channel": "all"}, "channel must be one of mean, any, each, got 'all'"),
        ({"undefined": "nan"}, "undefined must be one of skip, zero, got 'nan'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"LocalizationScores: {message}"):
        LocalizationScores(**arguments)


def test_bad_maps_are_named():
    metric, (ssim, cam) = LocalizationScores(), maps(2, 3, 4, 4, 0)
    with pytest.raises(ValueError, match=r"cam must be a floating-point map \(2, 4, 4\), got torch.float64 of"):
        metric.update(ssim, cam[:1])
    with pytest.raises(ValueError, match=r"ssim must be a floating-point map \(B, C, H, W\), got torch.float64 of"):
        metric.update(cam, cam)
    assert metric.total == 0
