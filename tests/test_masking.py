"""Diagnostics of gradient masking: networks whose answers are known, a slow reference, networks that were trained."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from lit_adv import Diagnosis, diagnose
from lit_adv.attacks import APGD, FGSM, PGD, RandFGSM, RandomSearch, Square
from lit_adv.masking import Probes

EPS = 0.15
QUICK = {"restarts": 1, "queries": 60}


def digits(side=8, dtype=torch.float32):
    found = load_digits()
    x = torch.tensor(found.images, dtype=dtype)[:, None] / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], torch.tensor(found.target)[order]
    return F.interpolate(x, side, mode="bilinear") if side != 8 else x, y


def batches(x, y, size=100):
    return list(zip(x.split(size), y.split(size), strict=True))


class Linear(nn.Module):
    """A softmax regression on digits, or of two classes of them; ``scale`` multiplies its logits."""

    def __init__(self, x, y, scale=1.0, dtype=torch.float32):
        super().__init__()
        classes = int(y.max()) + 1
        self.scale = scale
        self.head = nn.Linear(64, classes, dtype=dtype)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.zero_()
        solver = torch.optim.LBFGS(self.parameters(), max_iter=60)

        def loss():
            solver.zero_grad()
            value = F.cross_entropy(self.head(x.flatten(1)), y) + 1e-3 * self.head.weight.square().sum()
            value.backward()
            return value

        solver.step(loss)

    def forward(self, x):
        return self.scale * self.head(x.flatten(1))


class Stairs(nn.Module):
    """f(round(10 x) / 10): the gradient is 0 everywhere."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network((x * 10).round() / 10)


class Spike(nn.Module):
    """f(x + wobble): within .001 of the grid that the images lie on, the loss is flat; elsewhere it is f's."""

    def __init__(self, network, levels=16):
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, x):
        distance = x - (x.detach() * self.levels).round() / self.levels
        return self.network(x - distance.clamp(-0.001, 0.001))


@pytest.fixture(scope="module")
def linear():
    x, y = digits()
    return Linear(x[:800], y[:800]), Linear(x[800:1500], y[800:1500]), x[1500:1620], y[1500:1620]


def test_a_staircase_has_no_gradient_and_is_found_out(linear):
    network, other, x, y = linear
    found = diagnose(Stairs(network), batches(x, y), EPS, other, **QUICK)
    signs = found.diagnostics
    assert signs["D7/entries"].value == signs["D7/images"].value == 1
    assert all(signs[name].beyond for name in ("D3/fgsm", "D3/pgd", "D4", "D6", "D7/entries", "D7/images", "S/pgd"))
    assert found.verdict == "likely"
    assert found.text.startswith("gradient masking likely: Square ")
    points = f"{100 * (found.accuracies['pgd']['accuracy'] - found.accuracies['square']['accuracy']):.1f}"
    assert f"Square {points} points below PGD" in found.text
    # without the other network the rest still tells
    alone = diagnose(Stairs(network), batches(x, y), EPS, **QUICK)
    assert alone.verdict == "likely"
    for name in ("D3/fgsm", "D3/pgd", "D4"):
        assert (alone.diagnostics[name].value, alone.diagnostics[name].flag) == (None, None)
        assert alone.diagnostics[name].note == "no undefended network"
    assert "fgsm_transfer" not in alone.accuracies


def test_large_logits_lose_the_gradient_to_rounding(linear):
    network, other, x, y = linear
    steep = Linear.__new__(Linear)
    nn.Module.__init__(steep)
    steep.head, steep.scale = network.head, 1000.0
    found = diagnose(steep, batches(x, y), EPS, other, **QUICK)
    signs = found.diagnostics
    assert signs["D7/entries"].beyond
    assert signs["D7/images"].beyond
    assert signs["D9"].beyond
    assert found.accuracies["fgsm_margin"]["accuracy"] < found.accuracies["fgsm"]["accuracy"]
    # the margin knows nothing of the scale
    plain = diagnose(network, batches(x, y), EPS, other, **QUICK)
    assert plain.accuracies["fgsm_margin"] == found.accuracies["fgsm_margin"]
    assert plain.verdict == "no sign"


def test_a_linear_network_of_two_classes_is_linear():
    x, y = digits(dtype=torch.float64)
    x, y = x[(y == 3) | (y == 8)], (y[(y == 3) | (y == 8)] == 8).long()
    network, other = Linear(x[:100], y[:100], dtype=torch.float64), Linear(x[100:200], y[100:200], dtype=torch.float64)
    found = diagnose(network, batches(x[200:], y[200:]), EPS, other, **QUICK)
    gap = found.diagnostics["D8"]
    assert abs(gap.value) < 1e-6
    assert max(abs(gap.low), abs(gap.high)) < 1e-6
    for name in ("D1", "D2", "D3/fgsm", "D3/pgd", "D7/entries", "D7/images"):
        assert found.diagnostics[name].flag is False, name
    assert found.verdict == "no sign"


def test_a_spike_at_the_images_is_found_by_a_random_step(linear):
    network, other, x, y = linear
    found = diagnose(Spike(network), batches(x, y), EPS, other, **QUICK)
    assert found.diagnostics["D2"].beyond
    # no step at all: only the random one gets away
    assert found.accuracies["fgsm"] == found.accuracies["clean"]
    assert not found.diagnostics["D1"].flag
    assert "RAND-FGSM" in found.text
    assert not diagnose(network, batches(x, y), EPS, other, **QUICK).diagnostics["D2"].flag


class Small(nn.Module):
    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
        self.norm = nn.BatchNorm2d(1)
        self.double()

    def forward(self, x):
        return self.net(self.norm(x))


def small_case():
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(29, 1, 6, 6, generator=generator, dtype=torch.float64)
    model, other = Small(0), Small(1)
    y = model.eval()(x).argmax(1)
    y[::6] = (y[::6] + 1) % 3
    model.train()
    return model, other, x, y


def by_hand(model, other, x, y, eps):
    """Every count from single images, with autograd alone where no attack is needed."""
    step = 2.5 / 50
    attacks = {
        "fgsm": FGSM(eps=eps),
        "rand_fgsm": RandFGSM(eps=eps),
        "pgd": PGD(eps=eps, step_size=step * eps, steps=50, restarts=2, stop_at_success=True),
        "margin": APGD(eps=eps, steps=50, restarts=2, objective="margin"),
        "square": Square(eps=eps, queries=30),
        "fgsm_margin": FGSM(eps=eps, objective="margin"),
        "pgd@1": PGD(eps=1, step_size=step, steps=50, restarts=2, stop_at_success=True),
    }
    model.eval()
    other.eval()
    rows, gaps, zeros, exchanged, searched = [], [], [], [], []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        row = {"clean": bool(model(image).argmax(1) == label)}
        if not row["clean"]:
            rows.append(row)
            continue
        crafted = {name: attack(model, image, label, seed=5) for name, attack in attacks.items()}
        crafted["fgsm_transfer"] = attacks["fgsm"](other, image, label, seed=5)
        far = PGD(eps=eps, step_size=step * eps, steps=50)
        crafted["pgd_transfer"] = far(other, image, label, seed=5)
        row |= {name: bool(model(each).argmax(1) == label) for name, each in crafted.items()}
        rows.append(row)
        if row["pgd"]:
            result = RandomSearch(eps=eps, draws=1000).run(model, image, label, seed=5)
            searched.append(bool(result.success))
        if other(image).argmax(1) == label:
            exchanged.append([bool(other(crafted[name]).argmax(1) != label) for name in ("fgsm", "fgsm_transfer")])
        leaf = image.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(leaf), label), leaf)
        zeros.append(int((slope == 0).sum()))

        def margin_loss(point, label=label):
            logits = model(point)[0]
            rivals = [logits[k] for k in range(3) if k != int(label)]
            return max(rivals) - logits[int(label)]

        leaf = image.clone().requires_grad_()
        start = margin_loss(leaf)
        (slope,) = torch.autograd.grad(start, leaf)
        with torch.no_grad():
            start, end = margin_loss(image), margin_loss(image + eps * slope.sign())
        length = float(eps * slope.abs().sum())
        gaps.append((float(start) + length - float(end)) / max(length, 1e-12))
    return rows, gaps, zeros, exchanged, searched


def test_numbers_are_those_of_single_images():
    model, other, x, y = small_case()
    eps = 0.08
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = {size: diagnose(model, batches(x, y, size), eps, other, restarts=2, queries=30, seed=5) for size in (29, 4)}
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found[29] == found[4]
    found = found[4]
    rows, gaps, zeros, exchanged, searched = by_hand(model, other, x, y, eps)
    attacked = sum(row["clean"] for row in rows)
    assert 0 < attacked < len(rows)
    assert (found.images, found.attacked, found.classes) == (29, attacked, 3)
    shares = {name: sum(row.get(name, False) for row in rows) / 29 for name in rows[1]}
    assert len(set(shares.values())) > 4
    assert {name: each["accuracy"] for name, each in found.accuracies.items()} == pytest.approx(shares)
    signs = found.diagnostics
    pairs = {
        "D1": ("pgd", "fgsm"),
        "D2": ("fgsm", "rand_fgsm"),
        "D3/fgsm": ("fgsm", "fgsm_transfer"),
        "D3/pgd": ("pgd", "pgd_transfer"),
        "D9": ("fgsm", "fgsm_margin"),
        "S/pgd": ("pgd", "square"),
        "S/margin": ("margin", "square"),
    }
    for name, (one, two) in pairs.items():
        assert signs[name].value == pytest.approx(shares[one] - shares[two]), name
        assert signs[name].counts["both"] == sum(row.get(one, False) and row.get(two, False) for row in rows)
    crossed, own = (sum(column) for column in zip(*exchanged, strict=True))
    assert signs["D4"].images == len(exchanged)
    assert signs["D4"].value == pytest.approx((own / 2 - crossed) / len(exchanged))
    assert signs["D5"].value == pytest.approx(shares["pgd@1"] - 1 / 3)
    assert signs["D6"].images == len(searched) > 0
    assert signs["D6"].value == pytest.approx(sum(searched) / len(searched))
    assert signs["D7/entries"].value == pytest.approx(sum(zeros) / (36 * attacked))
    assert signs["D8"].value == pytest.approx(sorted(gaps)[attacked // 2] if attacked % 2 else
                                              sum(sorted(gaps)[attacked // 2 - 1 : attacked // 2 + 1]) / 2)  # fmt: skip
    # one pass an image for FGSM, and two gradients and a look for D7 and D8
    assert found.passes["fgsm"] == {"images": attacked, "forwards": attacked, "backwards": attacked}
    assert found.passes["gradients"] == {"images": attacked, "forwards": 3 * attacked, "backwards": 2 * attacked}
    assert found.passes["random_search"]["images"] == len(searched)


def test_radii_are_curves():
    model, _, x, y = small_case()
    found = diagnose(model, batches(x, y), 0.1, None, radii=[0.03, 0.3, 0.1], **QUICK)
    curves = found.curves()
    assert [radius for radius, _ in curves["PGD"]] == [0, 0.03, 0.1, 0.3, 1]
    assert [radius for radius, _ in curves["FGSM"]] == [0, 0.03, 0.1, 0.3, 1]
    clean = found.accuracies["clean"]["accuracy"]
    alone = diagnose(model, batches(x, y), 0.3, None, **QUICK)
    assert curves["PGD"][0][1] == clean
    assert curves["FGSM"][3][1] == alone.accuracies["fgsm"]["accuracy"]
    assert alone.curves() == {}


def test_autoattack_runs_where_it_is_wanted():
    model, _, x, y = small_case()
    found = diagnose(model, batches(x[:4], y[:4]), 0.1, autoattack=True, **QUICK)
    assert found.accuracies["autoattack"]["accuracy"] <= found.accuracies["pgd"]["accuracy"]
    assert found.verdict == "cannot tell"


# trained networks: what the diagnostics are for


def convolutional():
    layers = nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(512, 10))


def trained(x, y, epochs, rate, attack=None, temperature=1.0, soft=None, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = convolutional()
        solver = torch.optim.Adam(network.parameters(), lr=rate)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                images = x[rows] if attack is None else attack(network, x[rows], y[rows], seed=None)
                solver.zero_grad()
                loss = F.cross_entropy(network(images) / temperature, y[rows] if soft is None else soft[rows])
                loss.backward()
                solver.step()
    return network.eval()


@pytest.fixture(scope="module")
def trained_on():
    x, y = digits(16)
    return x[:1300], y[:1300], trained(x[:1300], y[:1300], 6, 5e-3), batches(x[1300:1420], y[1300:1420])


def test_the_verdict_fires_on_a_network_trained_with_single_steps(trained_on):
    x, y, undefended, loader = trained_on
    # such training may also end in a network that says the same of all images
    networks = (trained(x, y, 12, 5e-3, FGSM(eps=0.3), seed=seed) for seed in range(5))
    network = next(each for each in networks if (each(x).argmax(1) == y).double().mean() > 0.5)
    found = diagnose(network, loader, 0.3, undefended, **QUICK)
    assert found.verdict == "likely"
    # it has learnt to spoil the one step: FGSM fails, what comes from elsewhere does not
    assert found.diagnostics["D2"].beyond
    assert found.diagnostics["D3/fgsm"].beyond
    assert found.accuracies["fgsm"]["accuracy"] > 0.4
    assert found.accuracies["pgd"]["accuracy"] < 0.05


@pytest.mark.slow
def test_the_verdict_fires_on_a_distilled_network(trained_on):
    x, y, undefended, loader = trained_on
    teacher = trained(x, y, 15, 5e-3, temperature=40.0)
    with torch.no_grad():
        soft = (teacher(x) / 40).softmax(1)
    student = trained(x, y, 15, 5e-3, temperature=40.0, soft=soft, seed=1)
    found = diagnose(student, loader, 0.2, undefended, **QUICK)
    assert found.verdict == "likely"
    assert found.diagnostics["D7/entries"].beyond
    assert found.diagnostics["D3/pgd"].beyond
    # FGSM seems to fail, what follows the margin does not
    assert found.accuracies["fgsm"]["accuracy"] > 0.4
    assert found.accuracies["margin"]["accuracy"] < 0.1
    assert diagnose(student, loader, 0.2, **QUICK).verdict == "likely"


@pytest.mark.slow
def test_the_verdict_is_silent_on_a_network_trained_with_pgd(trained_on):
    x, y, undefended, loader = trained_on
    network = trained(x, y, 6, 2e-3, PGD(eps=0.15, step_size=0.06, steps=5))
    found = diagnose(network, loader, 0.15, undefended, **QUICK)
    assert found.verdict == "no sign"
    assert found.accuracies["pgd"]["accuracy"] > 0.3
    assert diagnose(undefended, loader, 0.15, network, **QUICK).verdict == "no sign"


def test_bad_arguments():
    model, _, x, y = small_case()
    for change, words in (
        ({"eps": 8}, r"diagnose: eps must be in \(0, 1\), got 8 \(8-bit levels are divided by 255"),
        ({"eps": 0}, r"diagnose: eps must be in \(0, 1\), got 0"),
        ({"radii": [0.1, 1.0]}, r"diagnose: radii must be in \(0, 1\), got 1"),
        ({"steps": 20}, "diagnose: steps must be at least 50, got 20"),
        ({"draws": 999}, "diagnose: draws must be at least 1000, got 999"),
        ({"restarts": 0}, "diagnose: restarts must be at least 1, got 0"),
        ({"queries": 0}, "diagnose: queries must be at least 1, got 0"),
        ({"thresholds": {"D10": 1}}, "diagnose: thresholds must be of D1, D2, .*, got one for D10"),
        ({"thresholds": {"D1": -0.1}}, "diagnose: thresholds must be at least 0, got -0.1 for D1"),
        ({"thresholds": {"D1": math.nan}}, "diagnose: thresholds must be at least 0, got nan for D1"),
        ({"confidence": 95}, r"diagnose: confidence must be in \(0, 1\), got 95"),
        ({"min_images": 0}, "diagnose: min_images must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            diagnose(model, batches(x, y), **{"eps": 0.1, **change})
    with pytest.raises(ValueError, match=r"diagnose: batches must be \(images, labels\), got Tensor"):
        diagnose(model, [x], 0.1)
    with pytest.raises(ValueError, match=r"Probes: eps must be in \(0, 1\), got 2"):
        Probes(2)
    assert isinstance(diagnose(model, [], 0.1), Diagnosis)
