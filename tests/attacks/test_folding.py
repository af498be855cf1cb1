"""The folded snapshot gives the model's answers, and is not made where it could be noticed."""

import copy
import dataclasses
import warnings

import pytest
import torch
from torch import nn

from lit_adv.attacks import DDN, FAB, FMN, PGD, CarliniWagnerL2, CarliniWagnerLinf, DeepFool
from lit_adv.attacks.attack import Problem
from lit_adv.attacks.folding import folded

NEAR = [
    DeepFool(),
    FMN(norm="l1", steps=30),
    FMN(norm="l2", steps=30),
    FAB(steps=15),
    DDN(steps=30),
    CarliniWagnerL2(c=1.0, steps=60, search_steps=3, learning_rate=0.005),
    CarliniWagnerLinf(eps=0.3, steps=40),
]


class Residual(nn.Module):
    """Convolutions with and without batch norm, a shared activation, a branch and a check of the input."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.relu = nn.ReLU()
        self.head = nn.Linear(8, 4)
        for norm in (self.stem_norm, self.block[1]):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.2, 2)
            norm.weight.data.uniform_(0.5, 2)
            norm.bias.data.uniform_(-1, 1)
        self.head.weight.data.mul_(30)
        with torch.no_grad():  # every class gets predicted
            self.head.bias.sub_(Residual.forward(self.eval(), torch.rand(64, 3, 8, 8)).mean(0))

    def forward(self, x):
        if x.ndim != 4:
            raise ValueError("images must have four dimensions")
        x = self.relu(self.stem_norm(self.stem(x)))
        return self.head((x + self.block(x)).mean((2, 3)))


class Twice(nn.Module):
    """A convolution whose output is used beside its batch norm, and one that is applied twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.again, self.again_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        for norm in (self.norm, self.again_norm):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.2, 2)

    def forward(self, x):
        hidden = self.conv(x)
        hidden = hidden + self.norm(hidden)
        return self.again_norm(self.again(self.again(hidden))).mean((2, 3))


class Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Rounded(Residual):
    def forward(self, x):
        return super().forward(Rounding.apply(x))


class Noisy(Residual):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn(1))


class Counting(Residual):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Recording(Residual):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self._note(x)
        return super().forward(x)

    def _note(self, x):
        self.seen.append(len(x))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def snapshot_of(model, x):
    found = folded(model, x[:1])
    return None if found is None or not bool(found[1]) else found[0]


@pytest.mark.parametrize("kind", [Residual, Rounded])
def test_answers_and_gradients_are_the_model_s(kind, pictures):
    model, x = kind().eval(), pictures(5)
    snapshot = snapshot_of(model, x)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in snapshot.modules()) == 0
    leaf, leaf_too = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = snapshot(leaf), model(leaf_too)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    (a,), (b,) = (torch.autograd.grad(out.square().sum(), into) for out, into in ((ours, leaf), (theirs, leaf_too)))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_model_keeps_everything_it_had(pictures):
    model, x = Residual().eval(), pictures(3)
    before = {name: (value, value.clone(), value.stride()) for name, value in model.state_dict(keep_vars=True).items()}
    modules, hooks = list(model.modules()), [len(module._forward_hooks) for module in model.modules()]
    assert snapshot_of(model, x) is not None
    assert list(model.modules()) == modules
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
        assert value.stride() == before[name][2]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_other_uses_of_a_convolution_are_seen(pictures):
    model, x = Twice().eval(), pictures(3)
    found = folded(model, x[:1])
    assert not bool(found[1])  # the first is folded, which its other use shows
    assert torch.equal(PGD(steps=6, fold=None)(model, x, torch.zeros(3).long(), seed=0),
                       PGD(steps=6, fold=False)(model, x, torch.zeros(3).long(), seed=0))  # fmt: skip


def test_random_numbers_are_drawn_anew_by_the_snapshot(pictures):
    model, x = Noisy().eval(), pictures(1)
    state = torch.get_rng_state()
    snapshot = snapshot_of(model, x)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(snapshot(x), snapshot(x))


@pytest.mark.parametrize("kind", [Counting, Recording])
def test_no_snapshot_of_a_model_that_keeps_a_record(kind, pictures):
    x = pictures(40)
    assert folded(kind().eval(), x[:1]) is None
    model = kind().eval()
    PGD(steps=5)(model, x, torch.zeros(40).long(), seed=0)
    assert (model.calls if kind is Counting else len(model.seen)) == 5


@pytest.mark.parametrize("change", ["hook", "compiled", "forward", "scripted"])
def test_no_snapshot_where_it_could_be_noticed(change, pictures):
    model, x = Residual().eval(), pictures(2)
    if change == "hook":
        model.block[0].register_forward_hook(lambda *_: None)
    elif change == "forward":
        model.forward = lambda x: x.mean((2, 3))
    model = {"compiled": torch.compile, "scripted": _scripted}.get(change, lambda m: m)(model)
    assert folded(model, x[:1]) is None
    with pytest.raises(ValueError, match="PGD: fold must be False or None for this model"):
        PGD(fold=True)(model, x, torch.tensor([0, 1]))


def _scripted(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("attack", [PGD(steps=8), PGD(norm="l2", eps=0.5, step_size=0.1, steps=8), DeepFool(steps=10),
                                    CarliniWagnerL2(c=1.0, steps=30, search_steps=2, learning_rate=0.05)])  # fmt: skip
def test_attacks_find_the_same_with_and_without(attack, pictures):
    model, x = Residual().eval(), pictures(40)
    with torch.no_grad():
        y = model(x).argmax(1)
    plain, fold = (dataclasses.replace(attack, fold=chosen).run(model, x, y, seed=3) for chosen in (False, True))
    assert float(plain.success.float().mean()) > 0.5
    assert (plain.success == fold.success).float().mean() >= 0.95
    both = plain.success & fold.success
    torch.testing.assert_close(plain.norms["l2"][both].mean(), fold.norms["l2"][both].mean(), rtol=0.02, atol=0)


@pytest.mark.parametrize("attack", NEAR, ids=lambda attack: type(attack).__name__)
def test_what_fools_the_snapshot_alone_is_attacked_anew(attack, pictures, monkeypatch):
    """Minimal perturbations end within rounding of the boundary, which here lies elsewhere for the snapshot."""
    torch.manual_seed(0)
    model, x = Residual().eval(), pictures(12)
    with torch.no_grad():
        y = model(x).argmax(1)
    plain = dataclasses.replace(attack, fold=False).run(model, x, y, seed=1)

    def shifted(network, image):
        snapshot, agree, classes = folded(network, image)
        snapshot.head = copy.deepcopy(snapshot.head)
        snapshot.head.bias.data -= 0.1 * torch.nn.functional.one_hot(y[:1], classes)[0]  # its boundary is nearer
        return snapshot, agree, classes

    monkeypatch.setattr("lit_adv.attacks.attack.folded", shifted)
    taken, anew = [], Problem.anew
    monkeypatch.setattr(Problem, "anew", lambda self, rows: taken.append(rows) or anew(self, rows))
    result = dataclasses.replace(attack, fold=True).run(model, x, y, seed=1)
    assert torch.equal(result.success, plain.success)
    assert bool(result.success.any())
    (again,) = taken
    # anew is from the start, with the model itself and the same random numbers
    torch.testing.assert_close(result.images[again], plain.images[again], rtol=0, atol=1e-3)


def test_it_is_left_to_itself_only_where_it_repays(pictures, monkeypatch):
    asked = []
    monkeypatch.setattr("lit_adv.attacks.attack.folded", lambda *_: asked.append(True))
    model, x, y = Residual().eval(), pictures(40), torch.zeros(40).long()
    PGD(steps=3)(model, x, y)
    PGD(steps=40)(model, x[:2], y[:2])
    PGD(steps=40, fold=False)(model, x, y)
    PGD(steps=40)(model.double(), x.double(), y)
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        DeepFool(steps=40)(model, x, y)
    assert not asked
    PGD(steps=40)(model, x, y)
    assert asked == [True]


def test_under_autocast_the_snapshot_is_compared_in_full_precision(pictures):
    model, x, y = Residual().eval(), pictures(40), torch.zeros(40).long()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, made = (PGD(steps=8, fold=fold)(model, x, y, seed=0) for fold in (False, True))
        assert torch.equal(PGD(steps=8)(model, x, y, seed=0), made)
    # rounding to 8 bits turns some signs
    assert (plain - made).abs().mean() < 1 / 255
    assert not torch.equal(plain, made)


def test_a_unit_that_rounds_to_the_other_side_of_0_is_no_other_answer():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)]
    model, image = nn.Sequential(*layers).eval(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        made = model[0](image)
    turned = 0
    for row in range(14):
        model[1].running_mean[0] = made[0, 0, row, 3]  # one of 1568 inputs of the ReLU is 0 but for rounding
        snapshot, agrees, _ = folded(model, image)
        assert bool(agrees)
        found = [torch.autograd.functional.jacobian(each, image) for each in (model, snapshot)]
        turned += bool((found[0] - found[1]).abs().max() > 1e-3 * found[0].abs().max())
    assert turned


def test_a_changed_weight_is_never_stale(pictures):
    model, x, y = Residual().eval(), pictures(40), torch.zeros(40).long()
    attack = PGD(steps=8, fold=True)
    before = attack(model, x, y, seed=0)
    model.stem.weight.data.neg_()
    after = attack(model, x, y, seed=0)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, PGD(steps=8, fold=False)(model, x, y, seed=0), rtol=0, atol=8.1 / 255)
    model.stem.weight.data.neg_()
    assert torch.equal(attack(model, x, y, seed=0), before)
