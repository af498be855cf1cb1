"""Statistics and profiles of saliency: against NumPy, over parts and processes, and their files."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.metrics import SaliencyProfileMean, SaliencyStatistics

LAYERS = {"a": 2, "b": 3, "c": 1}


def rows(count=7, seed=0, scale=1.0):
    return scale * torch.rand(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fed(metric, *parts):
    for part in parts:
        metric.update(part)
    return metric


def together(metrics):
    """Another metric in the state that synchronised processes are in."""
    merged = type(metrics[0])(metrics[0].layers)
    for name, reduce in merged._reductions.items():
        merged._update_count = 1
        setattr(merged, name, reduce(torch.stack([getattr(each, name) for each in metrics])))
    return merged


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, 7), max_size=3), offset=st.sampled_from([0.0, 1e6]))
def test_statistics_are_those_of_numpy_however_the_images_are_dealt(cuts, offset):
    values = rows() + offset
    bounds = [0, *sorted(cuts), 7]
    parts = [values[a:b] for a, b in itertools.pairwise(bounds)]
    whole = fed(SaliencyStatistics(LAYERS), *parts).compute()
    ranks = together([fed(SaliencyStatistics(LAYERS), part) for part in [values[:0], *parts]]).compute()
    for found in (whole, ranks):
        assert int(found["images"]) == 7
        np.testing.assert_allclose(found["mean"], values.numpy().mean(0), rtol=1e-14)
        np.testing.assert_allclose(found["std"], values.numpy().std(0, ddof=1), rtol=1e-9 if offset else 1e-13)


def test_profiles_of_the_set_itself_have_mean_0_and_deviation_1():
    values = rows().float()
    values[:, 2] = 0.25  # a filter that never differs
    metric = fed(SaliencyStatistics(LAYERS), values)
    profile = metric.standardise(values)
    assert profile.dtype == torch.float32
    assert profile.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(profile.std(0), torch.tensor([1.0, 1, 0, 1, 1, 1]), rtol=0, atol=1e-5)
    assert float(metric.compute()["std"][2]) == 1
    assert torch.equal(metric.standardise(values, absolute=True), profile.abs())
    # what was kept is not edited
    assert float(metric.moments[2, 2]) < 1e-20
    scaled = fed(SaliencyStatistics(LAYERS), 1000 * values.double())
    wanted = fed(SaliencyStatistics(LAYERS), values.double()).standardise(values.double())
    columns = [0, 1, 3, 4, 5]
    torch.testing.assert_close(scaled.standardise(1000 * values.double())[:, columns], wanted[:, columns])


@given(floor=st.just(0.0) | st.floats(1e-6, 1), quiet=st.sampled_from([0.0, 1e-13, 1e-3]))
def test_a_floor_lifts_what_hardly_differs_in_its_layer(floor, quiet):
    values = rows()
    values[:, 2] = 0.25 + quiet * values[:, 2]  # the first filter of layer b
    values[:, 5] = 1.0  # a layer without a deviation
    metric = fed(SaliencyStatistics(LAYERS), values)
    own = values.numpy().std(0, ddof=1)
    wanted = np.where(own > 1e-14, own, 1.0)
    if floor:
        for layer in (slice(0, 2), slice(2, 5)):
            wanted[layer] = np.maximum(own[layer], floor * np.sqrt(np.mean(own[layer] ** 2)))
    np.testing.assert_allclose(metric.deviations(floor), wanted, rtol=1e-6)
    profile = metric.standardise(values, floor=floor)
    np.testing.assert_allclose(profile, (values - values.mean(0)) / torch.as_tensor(wanted), rtol=1e-6, atol=1e-9)
    assert metric.rare().tolist() == [False, False, True, False, False, False]
    with pytest.raises(ValueError, match=r"SaliencyStatistics: floor must be in \[0, 1\], got 2"):
        metric.deviations(2)


def test_saved_and_loaded(tmp_path):
    metric = fed(SaliencyStatistics(LAYERS, "a" * 64), rows())
    metric.save(tmp_path / "file.safetensors")
    loaded = SaliencyStatistics.load(tmp_path / "file.safetensors", "a" * 64)
    assert (loaded.layers, loaded.network) == (LAYERS, "a" * 64)
    for name, value in metric.compute().items():
        assert torch.equal(loaded.compute()[name], value)
    with pytest.raises(ValueError, match="belongs to a network of other weights, aaaaaaaaaaaa… and not bbbbbbbbbbbb…"):
        SaliencyStatistics.load(tmp_path / "file.safetensors", "b" * 64)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        SaliencyStatistics.load(tmp_path / "none", "")
    (tmp_path / "broken").write_bytes((tmp_path / "file.safetensors").read_bytes()[:40])
    with pytest.raises(ValueError, match="is damaged or no file of statistics"):
        SaliencyStatistics.load(tmp_path / "broken", "a" * 64)


def test_two_images_at_least():
    with pytest.raises(ValueError, match="a standard deviation needs two images, got 1"):
        fed(SaliencyStatistics(LAYERS), rows(1)).compute()


def test_both_orders_of_sorting_and_averaging():
    profiles = rows(5, seed=3) - 0.4
    metric = fed(SaliencyProfileMean(LAYERS), profiles[:2], profiles[:0], profiles[2:])
    ranks = together([fed(SaliencyProfileMean(LAYERS), part) for part in (profiles[:4], profiles[4:])])
    values = profiles.numpy()
    bounds = [(0, 2), (2, 5), (5, 6)]
    for found in (metric.compute(), ranks.compute()):
        assert int(found["images"]) == 5
        for kind, kept in (("signed", values), ("absolute", np.abs(values))):
            first = np.concatenate([np.sort(kept[:, a:b], 1)[:, ::-1].mean(0) for a, b in bounds])
            second = np.concatenate([np.sort(kept.mean(0)[a:b])[::-1] for a, b in bounds])
            np.testing.assert_allclose(found[kind]["sort_then_mean"], first, atol=1e-14)
            np.testing.assert_allclose(found[kind]["mean_then_sort"], second, atol=1e-14)
            for a, b in bounds:
                assert (np.diff(first[a:b]) <= 0).all()
                # the same sum, and larger partial sums: it majorises
                assert (np.cumsum(first[a:b]) >= np.cumsum(second[a:b]) - 1e-14).all()
                assert first[a:b].sum() == pytest.approx(second[a:b].sum())
        positive = np.clip(values, 0, None)
        assert float(found["mean"]) == pytest.approx(values.mean())
        assert float(found["first_third"]) == pytest.approx(positive[:, :2].sum() / positive.sum())
        assert float(found["last_third"]) == pytest.approx(positive[:, 5:].sum() / positive.sum())
        np.testing.assert_allclose(found["layers"], [values[:, a:b].mean() for a, b in bounds])


def test_nothing_seen_is_nan():
    found = fed(SaliencyProfileMean(LAYERS), rows(0)).compute()
    assert int(found["images"]) == 0
    assert all(bool(found[name].isnan().all()) for name in ("mean", "first_third", "last_third", "layers"))


@pytest.mark.parametrize("kind", [SaliencyStatistics, SaliencyProfileMean])
def test_bad_arguments_are_named(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__}: layers must be one or more names"):
        kind({})
    with pytest.raises(ValueError, match=rf"{kind.__name__}: saliency must be a floating-point tensor \(B, 6\), got"):
        kind(LAYERS).update(torch.zeros(2, 5))
