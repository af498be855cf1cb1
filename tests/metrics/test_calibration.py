"""Temperature scaling against scipy, the threshold against counting, the error against torchmetrics.

That two processes equal one is in test_checks.py.
"""

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_calibration_error

from lit_adv.metrics import AnsweredAccuracy, LogitCalibration, calibrated, fit_temperature
from lit_adv.metrics.calibration import threshold_for


def sample(count=400, classes=5, scale=3.0, seed=0):
    """Logits of a classifier that is right about as often as it says at the temperature `scale`."""
    draws = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(count, classes, generator=draws, dtype=torch.float64)
    labels = torch.multinomial(z.softmax(1), 1, generator=draws)[:, 0]
    return (scale * z).float(), labels


def nll(logits, labels, temperature):
    return cross_entropy(logits.double() / temperature, labels).item()


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_temperature_is_scipy_s(scale, seed):
    logits, labels = sample(scale=scale, seed=seed)
    found = fit_temperature(logits, labels)
    wanted = minimize_scalar(
        lambda log: nll(logits, labels, float(torch.tensor(log, dtype=torch.float64).exp())),
        bounds=(-7, 7),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert found == pytest.approx(float(torch.tensor(wanted.x).exp()), rel=1e-5)
    assert nll(logits, labels, found) <= wanted.fun + 1e-14
    assert found == pytest.approx(scale, rel=0.2)


def test_a_shift_of_a_row_changes_nothing():
    logits, labels = sample()
    shifted = logits.double() + torch.arange(400)[:, None]
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-12)


def test_without_a_mistake_the_labels_are_smoothed_by_one_image():
    logits, _ = sample()
    labels = logits.argmax(1)
    found = fit_temperature(logits, labels)
    smoothing = 1 / 401

    def smoothed(temperature):
        return cross_entropy(logits.double() / temperature, labels, label_smoothing=smoothing).item()

    wanted = minimize_scalar(smoothed, bounds=(1e-3, 50), method="bounded", options={"xatol": 1e-10})
    assert found == pytest.approx(wanted.x, rel=1e-5)


def test_labels_below_chance_get_the_highest_temperature():
    logits, _ = sample()
    assert fit_temperature(logits, logits.argmin(1)) == 100


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="fit_temperature: logits must be finite"):
        fit_temperature(torch.tensor([[0.0, bad]]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("coverage", "answered"), [(1.0, 100), (0.95, 95), (0.9, 90), (0.33, 33), (0.955, 96), (0.001, 1)]
)
def test_the_threshold_leaves_the_share_asked_for(coverage, answered):
    confidence = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert int((confidence >= threshold_for(confidence, coverage)).sum()) == answered


def test_ties_are_answered_rather_than_not():
    confidence = torch.tensor([0.5] * 10 + [0.9] * 10, dtype=torch.float64)
    assert threshold_for(confidence, 0.75) == 0.5
    assert threshold_for(confidence, 0.5) == 0.9


def test_the_metric_fits_what_all_batches_hold():
    logits, labels = sample()
    metric = LogitCalibration(0.9)
    for start in range(0, 400, 150):
        metric.update(logits[start : start + 150], labels[start : start + 150])
    found = metric.compute()
    assert found.temperature == pytest.approx(fit_temperature(logits, labels), rel=1e-12)
    confidence = calibrated(logits, found.temperature).amax(1)
    assert (confidence >= found.threshold).sum() == 360
    assert (found.achieved, found.coverage, found.images) == (0.9, 0.9, 400)
    metric.reset()
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(ValueError, match="needs logits to fit to, got none"),
    ):
        metric.compute()


@pytest.mark.parametrize("coverage", [0, -0.1, 1.1, float("nan")])
def test_a_coverage_that_is_no_share_is_refused(coverage):
    with pytest.raises(ValueError, match=r"LogitCalibration: coverage must be in \(0, 1\]"):
        LogitCalibration(coverage)


def test_scores_by_hand_and_by_torchmetrics():
    logits, labels = sample(scale=1.5)
    probabilities = calibrated(logits, 1.0)
    confidence, prediction = probabilities.max(1)
    metric = AnsweredAccuracy(threshold=0.8)
    for part in torch.arange(400).split(123):
        metric.update(probabilities[part], labels[part])
    found = metric.compute()
    answered = confidence >= 0.8
    assert found["images"] == 400
    assert found["coverage"] == pytest.approx(answered.double().mean().item())
    assert found["accuracy"] == pytest.approx((prediction == labels).double().mean().item())
    assert found["accuracy_answered"] == pytest.approx((prediction == labels)[answered].double().mean().item())
    wanted = multiclass_calibration_error(probabilities, labels, 5, n_bins=15)
    assert found["calibration_error"] == pytest.approx(wanted.item(), abs=1e-6)
    assert found["calibration_error"] > 0.02


def test_scaling_lowers_the_calibration_error():
    fitted, (logits, labels) = sample(2000, scale=4.0), sample(2000, scale=4.0, seed=1)
    errors = []
    for temperature in (1.0, fit_temperature(*fitted)):
        metric = AnsweredAccuracy()
        metric.update(calibrated(logits, temperature), labels)
        errors.append(metric.compute()["calibration_error"].item())
    assert errors[1] < 0.04 < 0.15 < errors[0]


def test_nothing_seen_is_nan_and_bad_rows_are_named():
    metric = AnsweredAccuracy()
    metric.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    found = metric.compute()
    assert found["images"] == 0
    assert found["coverage"].isnan()
    assert found["calibration_error"].isnan()
    with pytest.raises(ValueError, match="AnsweredAccuracy: probabilities must be floating-point"):
        AnsweredAccuracy().update(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"LogitCalibration: labels must be in \[0, 2\), got 2"):
        LogitCalibration().update(torch.zeros(1, 2), torch.tensor([2]))
