"""Techniques: what scikit-learn predicts, with gradients where there are any."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from lit_adv.attacks import PGD, Square
from lit_adv.tasks.techniques import EstimatorTechnique, NetworkTechnique, disjoint_subsets

ESTIMATORS = {
    "logistic": LogisticRegression(max_iter=200),
    "svm": LinearSVC(),
    "kernel": SVC(),
    "linear kernel": SVC(kernel="linear"),
    "platt": SVC(probability=True),
    "tree": DecisionTreeClassifier(),
    "knn": KNeighborsClassifier(3),
}


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    return x[:700], torch.from_numpy(labels[:700])


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.filterwarnings("ignore:The `probability` parameter:FutureWarning")
@pytest.mark.parametrize("classes", [10, 3, 2])
def test_the_largest_score_is_the_estimators_prediction(digits, name, classes):
    x, y = digits
    rows = y < classes
    x, y = x[rows], y[rows]
    technique = EstimatorTechnique(estimator=ESTIMATORS[name])
    # one class more than there are labels
    model = technique.fit(x[:100], y[:100], classes + 1, seed=0)
    noisy = (x[100:] + 0.3 * torch.randn(x[100:].shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    with torch.no_grad():
        scores = model(noisy)
    assert scores.shape == (len(noisy), classes + 1)
    assert scores.dtype == torch.float32
    expected = model.estimator.predict(noisy.flatten(1).double().numpy())
    assert scores.argmax(1).tolist() == expected.tolist()
    assert len(set(expected.tolist())) > 1
    # the given estimator is not fitted itself
    assert not hasattr(technique.estimator, "classes_")
    again = technique.fit(x[:100], y[:100], classes + 1, seed=0)
    with torch.no_grad():
        assert torch.equal(again(noisy), scores)


def test_the_prediction_stays_on_top_where_scores_are_large():
    # distances of 1e5, of which float32 knows no thousandth
    x = torch.rand(30, 1, 1, 64, generator=torch.Generator().manual_seed(0)) * 100
    y = torch.arange(30) % 3
    model = EstimatorTechnique(estimator=KNeighborsClassifier(9)).fit(x, y, 3)
    others = torch.rand(200, 1, 1, 64, generator=torch.Generator().manual_seed(1)) * 100
    expected = model.estimator.predict(others.flatten(1).double().numpy())
    assert model(others).argmax(1).tolist() == expected.tolist()


def test_scores_of_linear_classifiers(digits):
    x, y = digits
    flat = x[200:].flatten(1).double().numpy()
    logistic = EstimatorTechnique(estimator=LogisticRegression(max_iter=200)).fit(x[:200], y[:200], 10)
    svm = EstimatorTechnique(estimator=LinearSVC()).fit(x[:200], y[:200], 10)
    np.testing.assert_allclose(
        logistic(x[200:].double()).softmax(1), logistic.estimator.predict_proba(flat), rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(svm(x[200:].double()), svm.estimator.decision_function(flat), rtol=0, atol=1e-9)
    two = y < 2
    binary = EstimatorTechnique(estimator=LogisticRegression()).fit(x[two], y[two], 2)
    np.testing.assert_allclose(
        binary(x[two].double()).softmax(1), binary.estimator.predict_proba(x[two].flatten(1)), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", ["logistic", "svm", "knn"])
def test_gradients_fool_them(digits, name):
    x, y = digits
    model = EstimatorTechnique(estimator=ESTIMATORS[name]).fit(x[:400], y[:400], 10)
    images, labels = x[400:460], y[400:460]
    right = model(images).argmax(1) == labels
    attack = PGD(eps=0.3, step_size=0.05, steps=10, random_start=False)
    noise = attack.eps * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).sign()
    crafted = attack(model, images, labels)
    fooled = (model(crafted).argmax(1) != labels)[right].float().mean()
    by_chance = (model((images + noise).clamp(0, 1)).argmax(1) != labels)[right].float().mean()
    assert fooled > 0.9
    assert fooled > by_chance + 0.2


def test_a_tree_has_no_gradient_and_says_so(digits):
    x, y = digits
    model = EstimatorTechnique(estimator=DecisionTreeClassifier()).fit(x[:300], y[:300], 10)
    with pytest.raises(ValueError, match=r"DecisionTreeClassifier gives no gradient .* such as Square"):
        PGD(eps=0.1, steps=1)(model, x[:4], y[:4])
    result = Square(eps=0.3, queries=60).run(model, x[:40], y[:40], seed=0)
    assert result.success.float().mean() > 0.5


def test_a_network_learns_and_leaves_the_generator_alone(digits):
    x, y = digits
    state = torch.random.get_rng_state()
    technique = NetworkTechnique(epochs=12, batch_size=32, learning_rate=3e-3)
    model = technique.fit(x[:300], y[:300], 10, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    assert (model(x[500:]).argmax(1) == y[500:]).float().mean() > 0.8


def test_subsets_are_disjoint_and_alike(digits):
    _, y = digits
    subsets = disjoint_subsets(y, 5, seed=3)
    assert sorted(torch.cat(subsets).tolist()) == list(range(700))
    assert [len(rows) for rows in subsets] == [140] * 5
    for rows in subsets:
        counts = y[rows].bincount(minlength=10) - y.bincount(minlength=10) / 5
        assert float(counts.abs().max()) < 2
    assert not torch.equal(disjoint_subsets(y, 5, seed=4)[0], subsets[0])


def test_bad_arguments_are_named(digits):
    with pytest.raises(ValueError, match="estimator must be a scikit-learn classifier, got int"):
        EstimatorTechnique(estimator=3)
    for other in (LinearRegression(), KMeans()):
        with pytest.raises(ValueError, match=f"must be a scikit-learn classifier, got {type(other).__name__}"):
            EstimatorTechnique(estimator=other)
    for count in (0, 4):
        with pytest.raises(ValueError, match=rf"count must be in \[1, 3\], the number of images, got {count}"):
            disjoint_subsets(torch.arange(3), count)
    for change, message in (
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"name": "resnet19"}, "NetworkTechnique"),
    ):
        with pytest.raises(ValueError, match=message):
            NetworkTechnique(**change)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        EstimatorTechnique(estimator=DecisionTreeClassifier()).fit(*digits, 3)
