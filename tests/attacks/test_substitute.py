"""The substitute attack: what it asks, what it trains on, and that it fools what it never saw the inside of."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from torch.nn.functional import one_hot

from lit_adv.attacks import FGSM, PGD, BoundedPatch, Frame, Oracle, SubstituteModel, substitute
from lit_adv.attacks.substitute import jacobian_augmentation


class Linear(nn.Module):
    """A substitute for 8 x 8 grey images, with everything that training mode changes."""

    def __init__(self, classes=3, channels=1):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Flatten(), nn.BatchNorm1d(64 * channels), nn.Dropout(0.1), nn.Linear(64 * channels, classes)
            )

    def forward(self, x):
        return self.layers(x)


class Bars:
    """Which of three bars of an image is the brightest; counts and keeps what it is asked."""

    def __init__(self, logits=False):
        self.logits, self.asked = logits, []

    def __call__(self, x):
        self.asked.append(x)
        sums = torch.stack([x[..., i : i + 2].sum((1, 2, 3)) for i in (0, 3, 6)], 1)
        return sums if self.logits else sums.argmax(1)


def pictures_of(count, seed):
    generator = torch.Generator().manual_seed(seed)
    brightness = 0.3 * torch.rand(count, 1, 1, 3, generator=generator).repeat_interleave(3, 3)[..., :8]
    return 0.2 + brightness + 0.25 * torch.rand(count, 1, 8, 8, generator=generator)


START = SubstituteModel(attack=FGSM(eps=0.2))


@pytest.fixture(scope="module")
def fitted():
    oracle = Bars()
    return oracle, START.fit(oracle, pictures_of(40, 0), Linear(), rounds=4, epochs=15)


def test_data_double_each_round_and_each_image_is_asked_once(fitted):
    oracle, attack = fitted
    assert [len(x) for x in oracle.asked] == [40, 40, 80, 160, 320]
    assert attack.queries == 40 * 2**4 == sum(len(x) for x in oracle.asked)
    for new, old in ((oracle.asked[1], oracle.asked[0]), (oracle.asked[2], torch.cat(oracle.asked[:2]))):
        steps = new - old
        inside = (new > 0) & (new < 1)
        torch.testing.assert_close(steps[inside].abs(), torch.full_like(steps[inside], 0.1))


@pytest.mark.parametrize(("rounds", "reservoir", "expected"), [(0, None, [20]), (4, 30, [20, 20, 30, 30, 30])])
def test_rounds_and_reservoir(rounds, reservoir, expected):
    oracle = Bars()
    attack = START.fit(oracle, pictures_of(20, 0), Linear(), rounds=rounds, reservoir=reservoir, epochs=1)
    assert [len(x) for x in oracle.asked] == expected
    assert attack.queries == sum(expected)
    if reservoir:  # what is drawn is augmented, and each at most once
        earlier = torch.cat(oracle.asked[:2]).flatten(1)
        apart = (oracle.asked[2].flatten(1)[:, None] - earlier).abs()
        made_of = ((apart - 0.1).abs() < 1e-6).all(2)
        assert made_of.sum(1).tolist() == [1] * 30
        assert int(made_of.sum(0).max()) == 1


def test_augmentation_is_the_papers(net, pictures):
    model, x = net().double(), pictures(5, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 2, 0])
    model.train()
    found = jacobian_augmentation(model, x, labels, -0.07)
    assert model.training
    model.eval()
    for i in range(5):
        leaf = x[i : i + 1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf)[0, labels[i]], leaf)
        torch.testing.assert_close(found[i : i + 1], (x[i : i + 1] - 0.07 * gradient.sign()).clamp(0, 1))
    assert all(p.grad is None for p in model.parameters())


def test_the_sign_alternates(monkeypatch):
    steps = []
    made = jacobian_augmentation
    monkeypatch.setattr(substitute, "jacobian_augmentation", lambda *args: steps.append(args[3]) or made(*args))
    START.fit(Bars(), pictures_of(4, 0), Linear(), rounds=5, alternate=2, step_size=0.05, epochs=1)
    assert steps == [0.05, 0.05, -0.05, -0.05, 0.05]


def test_what_is_augmented_has_the_oracles_labels(monkeypatch):
    made = []
    real = jacobian_augmentation

    def keep(network, x, labels, step_size):
        assert all(module.training for module in network.modules())  # it was trained with batch statistics
        made.append((x, labels))
        return real(network, x, labels, step_size)

    monkeypatch.setattr(substitute, "jacobian_augmentation", keep)
    START.fit(Bars(), pictures_of(20, 0), Linear(), rounds=4, reservoir=30, epochs=1)
    assert [len(x) for x, _ in made] == [20, 30, 30, 30]
    for x, labels in made:
        assert torch.equal(labels, Bars()(x))


def test_learns_the_oracle_and_fools_it(fitted):
    _, attack = fitted
    held_out = pictures_of(200, 9)
    bars = Bars(logits=True)
    labels = bars(held_out).argmax(1)
    with torch.no_grad():
        agree = (attack.substitute(held_out).argmax(1) == labels).float().mean()
    assert agree > 0.8
    # the model of the call is a plain function
    result = attack.run(bars, held_out, labels, seed=1)
    assert torch.equal(result.success, bars(result.images).argmax(1) != labels)
    assert float(result.success.float().mean()) > 0.8
    assert float(result.norms["linf"].max()) <= 0.2 + 1e-6
    assert int(result.forwards.sum()) == 0
    noise = (held_out + 0.2 * (pictures_of(200, 5) - 0.5).sign()).clamp(0, 1)
    assert float((bars(noise).argmax(1) != labels).float().mean()) < 0.5
    # and is what the inner attack finds on the substitute
    assert torch.equal(result.images, FGSM(eps=0.2)(attack.substitute, held_out, labels))


@pytest.mark.parametrize(
    "estimator",
    [DecisionTreeClassifier(random_state=0), KNeighborsClassifier(3), SVC()],
    ids=lambda e: type(e).__name__,
)
def test_scikit_learn_oracles(estimator):
    x = pictures_of(300, 1)
    labels = Bars()(x)
    estimator.fit(x.flatten(1).numpy(), labels.numpy())
    start = SubstituteModel(attack=PGD(eps=0.3, step_size=0.1, steps=5))
    attack = start.fit(estimator, x[:60], Linear(), rounds=3, epochs=10)
    model = Oracle(estimator)
    predicted = model(x[60:]).argmax(1)
    assert torch.equal(predicted, torch.from_numpy(estimator.predict(x[60:].flatten(1).numpy())))
    result = attack.run(model, x[60:], predicted, seed=0)
    found = torch.from_numpy(estimator.predict(result.images.flatten(1).numpy()))
    assert torch.equal(result.success, found != predicted)
    assert float(result.success.float().mean()) > 0.5


def test_fit_leaves_everything_as_it_was(fitted):
    _, attack = fitted
    network = Linear().eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    images = pictures_of(40, 0)
    copy = images.clone()
    with torch.no_grad():
        again = START.fit(Bars(), images, network, rounds=4, epochs=15)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, copy)
    assert not network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert START.substitute is None
    assert not again.substitute.training
    assert again.fingerprint() == attack.fingerprint()
    assert START.fit(Bars(), images, network, rounds=1, seed=1).fingerprint() != attack.fingerprint()


def test_oracle_network_answers_in_eval_mode(net, pictures):
    model, x = net(), pictures(6)
    expected = model(x).argmax(1)
    model.train()
    assert torch.equal(Oracle(model).labels(x), expected)
    assert model.training


def test_region_and_patches():
    labels = torch.tensor([0, 1, 2, 0])
    x = pictures_of(4, 0)
    attack = SubstituteModel(attack=BoundedPatch(size=3, eps=0.4, step_size=0.2, steps=2), substitute=Linear().eval())
    out = attack(Bars(logits=True), x, labels, seed=torch.arange(4))
    assert torch.equal(out, attack.attack(attack.substitute, x, labels, seed=torch.arange(4)))
    assert int((out != x).sum((1, 2, 3)).max()) == 9
    out = SubstituteModel(attack=PGD(), substitute=Linear())(Bars(logits=True), x, labels, region=Frame(2))
    assert bool((out != x).any())
    assert not bool(((out != x) & (Frame(2)(x) == 0)).any())


def test_oracles_of_every_kind(pictures):
    x = pictures(5, channels=1)
    bars, logits = Bars(), Bars(logits=True)
    labels = bars(x)
    assert torch.equal(Oracle(bars, 3)(x), one_hot(labels, 3).float())
    assert torch.equal(Oracle(logits)(x), logits(x))
    assert torch.equal(Oracle(logits).labels(x), labels)
    assert torch.equal(Oracle(lambda images: bars(images).numpy().astype("int32"), 3)(x).argmax(1), labels)
    leaf = x.clone().requires_grad_()
    assert not Oracle(lambda images: logits(torch.from_numpy(images.numpy())))(leaf).requires_grad
    with pytest.raises(ValueError, match="Oracle: num_classes must be given"):
        Oracle(bars)(x)
    with pytest.raises(ValueError, match=r"Oracle: answer must be logits \(5, K\) or labels \(5,\), got shape \(3,\)"):
        Oracle(lambda images: labels[:3])(x)


def test_what_is_refused():
    x = pictures_of(4, 0)
    with pytest.raises(ValueError, match="SubstituteModel: substitute must be trained first, got None"):
        START(Bars(logits=True), x, torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ValueError, match=r"substitute must have a class .* got 2 classes and the answer 2"):
        START.fit(Bars(), pictures_of(30, 0), Linear(classes=2), rounds=0)
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\)"):
        START.fit(Bars(), x[:0], Linear())
    for field in ("step_size", "alternate", "reservoir", "epochs", "batch_size", "learning_rate"):
        with pytest.raises(ValueError, match=f"SubstituteModel: {field} must be greater than 0, got 0"):
            START.fit(Bars(), x, Linear(), **{field: 0})
    with pytest.raises(ValueError, match="SubstituteModel: rounds must be at least 0, got -1"):
        START.fit(Bars(), x, Linear(), rounds=-1)
    with pytest.raises(ValueError, match="SubstituteModel: queries must be at least 0"):
        SubstituteModel(attack=FGSM(), queries=-1)
