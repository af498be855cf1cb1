"""The matrix of transferability, against numpy and across processes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lit_adv.metrics.transfer_matrix import TransferMatrix, summary

SOURCES, VICTIMS = ("a", "b"), ("a", "b", "tree")


def results(seed, rows=slice(None), count=41):
    """What `transfer` could have given for 41 images; cell (1, 2) has no success and (0, 1) no attempt."""
    draws = np.random.default_rng(seed)
    shape = (2, 3, count)
    attempted = draws.random(shape) < 0.8
    attempted[0, 1] = False
    success = attempted & (draws.random(shape) < 0.5)
    success[1, 2] = False
    # a source is the same in every run
    norms = {name: np.where(success, draws.random(shape) * size, np.nan) for name, size in _SIZES.items()}
    made = {"attempted": attempted, "success": success, "iterations": success * draws.integers(1, 250, shape)}
    made = {name: torch.from_numpy(values[..., rows].copy()) for name, values in made.items()}
    passes = {name: torch.from_numpy(draws.integers(0, 99, count)[rows].copy()) for name in ("forwards", "backwards")}
    return SimpleNamespace(
        **made, **passes, norms={name: torch.from_numpy(values[..., rows].copy()) for name, values in norms.items()}
    )


_SIZES = {"l0": 1.0, "l2": 9.0, "linf": 0.2}


def close(found, expected):
    for row, others in zip(found, expected, strict=True):
        for value, other in zip(row, others, strict=True):
            assert (value is None) == bool(np.isnan(other))
            assert value is None or value == pytest.approx(other, abs=1e-12)


def test_against_numpy():
    regional, whole = results(0), results(1)
    metric = TransferMatrix(SOURCES, VICTIMS)
    for rows in (slice(0, 17), slice(17, 17), slice(17, None)):
        metric.update(results(0, rows), results(1, rows))
    found = metric.compute()
    assert found["images"] == 41
    assert found["forwards"] == pytest.approx(float(regional.forwards.double().mean()))
    assert found["backwards"] == pytest.approx(float(regional.backwards.double().mean()))
    success, attempted = regional.success.numpy(), regional.attempted.numpy()
    both = success & whole.success.numpy()
    with np.errstate(invalid="ignore"):
        close(found["transferability"], success.sum(-1) / attempted.sum(-1))
        close(found["kept"], both.sum(-1) / whole.success.numpy().sum(-1))
        close(found["iterations"], regional.iterations.numpy().sum(-1) / success.sum(-1))
    for name in _SIZES:
        sizes, reference = regional.norms[name].numpy(), whole.norms[name].numpy()
        cells = [[sizes[s, t][success[s, t]] for t in range(3)] for s in range(2)]
        close(found[name], [[cell.mean() if len(cell) else np.nan for cell in row] for row in cells])
        close(found[f"{name}_std"], [[cell.std() if len(cell) else np.nan for cell in row] for row in cells])
        less = [[(sizes < reference)[s, t][both[s, t]] for t in range(3)] for s in range(2)]
        close(found[f"{name}_reduced"], [[cell.mean() if len(cell) else np.nan for cell in row] for row in less])
    assert found["attempted"][0][1] == found["transferred"][1][2] == 0
    assert found["transferability"][0][1] is None
    assert found["transferability"][1][2] == 0
    assert found["l2"][1][2] is None


def test_the_sum_over_all_pairs_leaves_out_the_white_box():
    regional, whole = results(0), results(1)
    metric = TransferMatrix(SOURCES, VICTIMS)
    metric.update(regional, whole)
    found = summary(metric.compute())
    other = torch.ones(2, 3, dtype=torch.bool)
    other[0, 0] = other[1, 1] = False
    success, both = regional.success[other], (regional.success & whole.success)[other]
    assert found["transferability"] == pytest.approx(float(success.sum() / regional.attempted[other].sum()))
    assert found["kept"] == pytest.approx(float(both.sum() / whole.success[other].sum()))
    for name in _SIZES:
        less = (regional.norms[name] < whole.norms[name])[other][both]
        assert found[f"{name}_reduced"] == pytest.approx(float(less.double().mean()))
    alone = TransferMatrix(SOURCES, VICTIMS)
    alone.update(results(0, slice(0)), results(1, slice(0)))
    assert summary(alone.compute()) == dict.fromkeys(
        ("transferability", "kept", "l0_reduced", "l2_reduced", "linf_reduced")
    )


def test_without_a_reference_nothing_is_reduced():
    metric = TransferMatrix(SOURCES, VICTIMS)
    metric.update(results(0))
    found = metric.compute()
    assert found["compared"] == [[0, 0, 0], [0, 0, 0]]
    assert found["linf_reduced"] == found["kept"] == [[None] * 3] * 2


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="TransferMatrix: sources must be one or more different names"):
        TransferMatrix([], VICTIMS)
    with pytest.raises(ValueError, match="TransferMatrix: victims must be one or more different names"):
        TransferMatrix(SOURCES, ["a", "a"])
    with pytest.raises(ValueError, match=r"result must be of 3 sources, 2 victims and 41 images, got \(2, 3, 41\)"):
        TransferMatrix(VICTIMS, SOURCES).update(results(0))
    with pytest.raises(ValueError, match=r"reference must be of 2 sources, 3 victims and 5 images, got \(2, 3, 41\)"):
        TransferMatrix(SOURCES, VICTIMS).update(results(0, slice(0, 5)), results(1))
