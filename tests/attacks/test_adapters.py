"""Other libraries' attacks: the network they are shown, what is kept from them, and the libraries themselves."""

import random
import sys
import types
from typing import ClassVar

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type
from torch import nn

from lit_adv.attacks import PGD, ARTAttack, Attack, Center, FoolboxAttack, Mask, Radius, TorchattacksAttack
from lit_adv.attacks.attack import mix_seeds
from lit_adv.attacks.randomness import row_seeds

LIBRARIES = {FoolboxAttack: "foolbox", TorchattacksAttack: "torchattacks", ARTAttack: "art"}
EXTRAS = {FoolboxAttack: "foolbox", TorchattacksAttack: "torchattacks", ARTAttack: "art"}


class Fake:
    """What a class of the library looks like; subclasses say what they do in ``work``."""

    supported_mode: ClassVar = ["default", "targeted"]
    made: ClassVar[list] = []

    def __init__(self, model, eps=0.1, times=1, seed=0, n_classes=10):
        self.model, self.eps, self.times, self.seed, self.n_classes = model, eps, times, seed, n_classes
        self.targeted = False
        Fake.made.append(self)

    def set_mode_targeted_by_label(self, quiet):
        assert quiet
        self.targeted = True

    def __call__(self, x, labels):
        self.images, self.labels = x, labels
        return self.work(x, labels)

    def gradient(self, x, labels):
        x = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(self.model(x), labels, reduction="sum")
        loss.backward()  # as many do: into whatever takes part
        return x.grad


class Ascent(Fake):
    def work(self, x, labels):
        for _ in range(self.times):
            gradient = self.gradient(x, labels)
            x = x + (-1 if self.targeted else 1) * self.eps * gradient.sign()
        with torch.no_grad():
            self.model(x)
        self.last = gradient
        return x


class Drift(Ascent):
    def work(self, x, labels):
        return super().work((x + 0.05).clamp(max=1), labels)


class OneByOne(Ascent):
    def work(self, x, labels):
        return torch.cat([super(OneByOne, self).work(x[i : i + 1], labels[i : i + 1]) for i in range(len(x))])


class Backwards(Ascent):
    def work(self, x, labels):
        return super().work(x.flip(0), labels.flip(0)).flip(0)


class Population(Fake):
    """As many candidates of each image as there are images, one image after the other."""

    def work(self, x, labels):
        with torch.no_grad():
            for i in range(len(x)):
                self.model(x[i] + 0.01 * torch.randn(4, *x.shape[1:]))
        return x


class Noise(Fake):
    def work(self, x, labels):
        shared = random.random() + np.random.rand()  # noqa: NPY002
        return (x + 0.1 * shared * (torch.rand_like(x) - 0.5)).clamp(0, 1)


class Black(Fake):
    def work(self, x, labels):
        return torch.zeros_like(x)


class Broken(Fake):
    def work(self, x, labels):
        return torch.full_like(x, float("nan"))


class Wide(Fake):
    def work(self, x, labels):
        return x[:, :, :1]


class Raising(Fake):
    def work(self, x, labels):
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
        raise KeyboardInterrupt


class Writing(Fake):
    """Some mask the logits where they stand."""

    def work(self, x, labels):
        for leaf in (x, x.clone().requires_grad_()):
            self.model(leaf).detach().fill_(torch.nan)
        return x


class Untargeted(Ascent):
    supported_mode: ClassVar = ["default"]


@pytest.fixture
def fake(monkeypatch):
    """fake("Ascent", ...): the adapter to a library of that name that this test makes."""
    module = types.ModuleType("torchattacks")
    for kind in (
        Ascent,
        Drift,
        OneByOne,
        Backwards,
        Population,
        Noise,
        Black,
        Broken,
        Wide,
        Raising,
        Writing,
        Untargeted,
    ):
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "torchattacks", module)
    Fake.made.clear()
    return lambda name, **fields: TorchattacksAttack(name=name, **fields)


@pytest.fixture
def case(net, pictures):
    model, x = net().double(), pictures(4, dtype=torch.float64)
    return model, x, predict(model, x)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


# the network that a library is shown


def test_passes_are_counted_and_parameters_shielded(fake, case):
    model, x, y = case
    seen = {"forward": 0, "backward": 0}
    model.conv.register_forward_hook(lambda *args: seen.update(forward=seen["forward"] + len(args[2])))
    model.head.weight.grad = kept = torch.ones_like(model.head.weight)
    result = fake("Ascent", options={"times": 3}, norm="linf", eps=0.1).run(model, x, y, seed=1)
    # the prediction on the clean images, three gradients, and the look that the library takes at its result
    assert result.forwards.tolist() == [5] * 4
    assert result.backwards.tolist() == [3] * 4
    assert seen["forward"] == 4 * (5 + 1)
    assert model.head.weight.grad is kept
    assert bool((kept == 1).all())
    assert model.conv.weight.grad is None
    assert all(p.requires_grad for p in model.parameters())
    (shown,) = [attack.model for attack in Fake.made]
    assert [p.requires_grad for p in shown.parameters()] == [False]
    assert list(shown.children()) == []


def test_the_gradient_is_the_models(fake, case):
    model, x, y = case
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(model(leaf), y, reduction="sum").backward()
    model.zero_grad()
    fake("Ascent", norm="linf", eps=0.1)(model, x, y)
    torch.testing.assert_close(Fake.made[0].last, leaf.grad, atol=1e-14, rtol=0)


def test_several_gradients_of_one_pass(fake, case, monkeypatch):
    model, x, y = case

    def work(self, x, labels):
        x = x.clone().requires_grad_()
        logits = self.model(x)
        self.rows = [torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0] for k in range(4)]
        return x

    monkeypatch.setattr(Ascent, "work", work)
    result = fake("Ascent", norm="linf", eps=0.1).run(model, x, y)
    assert result.forwards.tolist() == [2] * 4
    assert result.backwards.tolist() == [4] * 4
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    for k, found in enumerate(Fake.made[0].rows):
        (expected,) = torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)
        torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)


def test_a_mask_holds_for_what_goes_in_and_comes_back(fake, case):
    inner, x, y = case
    inputs = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            inputs.append(x.detach().clone())
            return self.inner(x)

    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:6, 2:6] = False
    # a library that moves every pixel, whatever the gradient is
    out = fake("Drift", options={"times": 2}, norm="linf", eps=0.2)(Watched(), x, y, region=Center(4))
    assert bool((Fake.made[0].last[:, :, outside] == 0).all())
    assert bool((Fake.made[0].last[:, :, ~outside] != 0).any())
    assert len(inputs) == 4
    for each in inputs:
        assert torch.equal(each[:, :, outside], x[:, :, outside])
    assert torch.equal(out[:, :, outside], x[:, :, outside])
    assert not torch.equal(inputs[-1], inputs[0])


@pytest.mark.parametrize("name", ["OneByOne", "Backwards"])
def test_parts_of_a_batch_are_counted_where_they_belong(name, fake, case):
    model, x, y = case
    result = fake(name, options={"times": 2}, norm="linf", eps=0.01).run(model, x, y)
    assert result.forwards.tolist() == [4] * 4
    assert result.backwards.tolist() == [2] * 4
    expected = fake("Ascent", options={"times": 2}, norm="linf", eps=0.01)(model, x, y)
    torch.testing.assert_close(result.images, expected, atol=1e-12, rtol=0)


def test_a_population_as_large_as_the_batch_is_not_taken_for_it(fake, case):
    model, x, y = case
    result = fake("Population", norm="linf", eps=0.01).run(model, x, y, seed=1)
    assert result.forwards.tolist() == [5] * 4
    with pytest.raises(ValueError, match=r"torchattacks's Population\): region must be None.*per_image=True"):
        fake("Population", norm="linf", eps=0.01)(model, x, y, region=Center(4), seed=1)


def test_a_region_where_the_batch_is_split_is_refused_or_taken_image_by_image(fake, case):
    model, x, y = case
    fields = {"options": {"times": 2}, "norm": "linf", "eps": 0.1}
    with pytest.raises(ValueError, match=r"region must be None.*parts \(1 here\), or set per_image=True"):
        fake("OneByOne", **fields)(model, x, y, region=Center(4))
    expected = fake("Ascent", **fields)(model, x, y, region=Center(4))
    out = fake("OneByOne", **fields, per_image=True)(model, x, y, region=Center(4))
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


def test_an_image_that_is_there_twice(fake, case):
    model, x, y = case
    x, y = x[[0, 0, 1, 0]], y[[0, 0, 1, 0]]
    masks = torch.zeros(4, 1, 8, 8)
    masks[1] = 1
    out = fake("Ascent", norm="linf", eps=0.1)(model, x, y, region=Mask(masks))
    assert (out != x).flatten(1).any(1).tolist() == [False, True, False, False]


def test_limits_and_the_best_of_what_was_seen(fake, case):
    model, x, y = case
    attack = fake("OneByOne", options={"times": 9}, norm="linf", eps=0.1)
    result = attack.run(model, x, y, max_queries=4)
    assert int(result.forwards.max()) <= 4
    # the first image used its queries up; it alone was moved, and by its own steps
    assert (result.images != x).flatten(1).any(1).tolist() == [True, False, False, False]


# what the base promises


def test_budget_and_box_hold_whatever_comes_back(fake, case):
    model, x, y = case
    out = fake("Black", norm="linf", eps=0.1)(model, x, y)
    torch.testing.assert_close(out, (x - 0.1).clamp(min=0))
    assert torch.equal(fake("Broken", norm="linf", eps=0.1)(model, x, y), x)
    with pytest.raises(ValueError, match=r"Wide must return images of shape \(4, 3, 8, 8\), got \(4, 3, 1, 8\)"):
        fake("Wide", norm="linf", eps=0.1)(model, x, y)


def test_without_a_budget_failures_give_the_clean_image(fake, case):
    model, x, y = case
    black = int(predict(model, torch.zeros_like(x[:1])))
    labels = torch.where(torch.tensor([True, False, True, True]), y, (y + 1) % 4)
    result = fake("Black").run(model, x, labels)
    assert torch.equal(Fake.made[0].labels, labels[[0, 2, 3]])  # the others are not asked of it
    assert torch.equal(Fake.made[0].images, x[[0, 2, 3]])
    assert fake("Black").minimal_norm
    assert not fake("Black", norm="l2", eps=1.0).minimal_norm
    for i in range(4):
        moved = labels[i] == y[i] and black != int(labels[i])
        assert torch.equal(result.images[i], torch.zeros_like(x[i]) if moved else x[i])
        assert bool(result.success[i]) == (bool(moved) or labels[i] != y[i])
    assert result.success.any()
    assert not result.success.all() or black not in labels.tolist()
    constant = (y + 0).fill_(black)
    failed = fake("Black").run(model, x, labels, targets=(constant + 1) % 4)
    assert torch.equal(failed.images, x)
    # two looks: at the clean image and at the result
    assert set(failed.forwards.tolist()) <= {1, 2}


def test_targets(fake, case):
    model, x, y = case
    targets = (y + 1) % 4
    fake("Ascent", norm="linf", eps=0.1)(model, x, y, targets=targets)
    assert Fake.made[0].targeted
    assert torch.equal(Fake.made[0].labels, targets)
    fake("Ascent", norm="linf", eps=0.1)(model, x, y)
    assert not Fake.made[1].targeted
    assert torch.equal(Fake.made[1].labels, y)
    with pytest.raises(ValueError, match="targets must be None, torchattacks's Untargeted takes none"):
        fake("Untargeted", norm="linf", eps=0.1)(model, x, y, targets=targets)


def test_options_and_what_is_filled_in(fake, case):
    model, x, y = case
    fake("Ascent", options={"times": 2}, norm="linf", eps=0.1)(model, x, y, seed=3)
    assert (Fake.made[0].times, Fake.made[0].eps, Fake.made[0].n_classes) == (2, 0.1, 4)
    assert Fake.made[0].seed > 0
    fake("Ascent", options={"eps": "2/255", "seed": 7, "n_classes": 5}, norm="linf", eps=0.1)(model, x, y)
    assert (Fake.made[1].eps, Fake.made[1].seed, Fake.made[1].n_classes) == (2 / 255, 7, 5)


def test_random_numbers(fake, case):
    model, x, y = case
    attack = fake("Noise", norm="linf", eps=0.1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = attack(model, x, y, seed=1)
    assert torch.equal(first, attack(model, x, y, seed=1))
    assert not torch.equal(first, attack(model, x, y, seed=2))
    assert not torch.equal(attack(model, x, y), attack(model, x, y))
    with pytest.raises(KeyboardInterrupt):
        fake("Raising", norm="linf", eps=0.1)(model, x, y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_one_call_an_image_does_not_know_the_batch(fake, case):
    model, x, y = case
    attack = fake("Noise", norm="linf", eps=0.1, per_image=True)
    together = attack(model, x, y, seed=1)
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1], seed=1) for i in range(4)])
    assert torch.equal(together, alone)
    assert torch.equal(attack(model, x.flip(0), y.flip(0), seed=1).flip(0), together)
    assert not torch.equal(fake("Noise", norm="linf", eps=0.1)(model, x, y, seed=1), together)


def test_a_library_that_writes_into_the_logits(fake):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0, 1.0]))

        def forward(self, x):
            return self.logits.expand(len(x), -1)

    model = Shared()
    fake("Writing", norm="linf", eps=0.1)(model, torch.rand(2, 1, 4, 4), torch.tensor([1, 1]))
    assert model.logits.tolist() == [0, 1]


def test_nothing_is_asked_where_nothing_is_left(fake, case):
    model, x, y = case
    result = fake("Black").run(model, x, (y + 1) % 4)
    assert torch.equal(result.images, x)
    assert not Fake.made


# what is refused


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_library_that_is_not_installed(kind, monkeypatch, case):
    model, x, y = case
    monkeypatch.setitem(sys.modules, LIBRARIES[kind], None)
    for name in [name for name in sys.modules if name.startswith(LIBRARIES[kind] + ".")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{kind.__name__} needs .*pip install 'lit_adv\[{EXTRAS[kind]}\]'"):
        kind.example()(model, x, y)
    # but it can be described, and an empty batch needs nobody
    assert kind.example().fingerprint() == kind.example().fingerprint()
    assert len(kind.example()(model, x[:0], y[:0])) == 0


@pytest.mark.parametrize("kind", LIBRARIES)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eps": 0.1}, "eps and norm must be given together, got eps=0.1, norm=None"),
        ({"norm": "l2"}, "eps and norm must be given together"),
        ({"norm": "linf", "eps": 8}, r"eps must be in \[0, 1\] for linf"),
        ({"norm": "l3", "eps": 1}, "norm must be one of"),
        ({"options": {"steps": [1]}}, r"options must hold numbers and text, got \[1\] for steps"),
        ({"name": "no name"}, "name must be a class of"),
    ],
)
def test_bad_fields(kind, fields, message):
    with pytest.raises(ValueError, match=f"{kind.__name__}: {message}"):
        kind(**{"name": "PGD"} | fields)


def test_bad_names_and_options(fake, case):
    model, x, y = case
    with pytest.raises(ValueError, match=r"name must be an attack of torchattacks \(near: Ascent\), got 'Ascend'"):
        fake("Ascend")(model, x, (y + 1) % 4, targets=y * 0)
    with pytest.raises(ValueError, match=r"options must be those of torchattacks's Ascent \(eps, times,.*got steps"):
        fake("Ascent", options={"steps": 3}, norm="linf", eps=0.1)(model, x, y)


# as values


def test_options_are_values():
    one = FoolboxAttack(name="LinfPGD", options={"steps": 3, "abs_stepsize": "4/255"}, norm="linf", eps=0.1)
    two = FoolboxAttack(name="LinfPGD", options={"abs_stepsize": 4 / 255, "steps": 3}, norm="linf", eps=0.1)
    assert one == two
    assert hash(one) == hash(two)
    assert one.fingerprint() == two.fingerprint()
    others = [
        FoolboxAttack(name="LinfPGD", options={"steps": 4, "abs_stepsize": "4/255"}, norm="linf", eps=0.1),
        FoolboxAttack(name="LinfPGD", options={"steps": 3, "rel_stepsize": "4/255"}, norm="linf", eps=0.1),
        FoolboxAttack(name="LinfPGD", options={"steps": 3}, norm="linf", eps=0.1),
        FoolboxAttack(name="L2PGD", options={"steps": 3, "abs_stepsize": "4/255"}, norm="linf", eps=0.1),
        FoolboxAttack(name="LinfPGD", options={"steps": 3, "abs_stepsize": "4/255"}, norm="l2", eps=0.1),
        FoolboxAttack(name="LinfPGD", options={"steps": 3, "abs_stepsize": "4/255"}, norm="linf", eps=0.2),
        FoolboxAttack(name="LinfPGD", options={"steps": 3, "abs_stepsize": "4/255"}),
        FoolboxAttack(name="LinfPGD", options=one.options, norm="linf", eps=0.1, per_image=True),
        TorchattacksAttack(name="LinfPGD", options=one.options, norm="linf", eps=0.1),
    ]
    assert len({other.fingerprint() for other in others} | {one.fingerprint()}) == 10
    given = {"steps": 3}
    attack = FoolboxAttack(name="LinfPGD", options=given, norm="linf", eps=0.1)
    given["steps"] = 4
    assert attack.options == {"steps": 3}


def test_from_yaml():
    # as the command line does
    register_type(Radius, serializer=float, deserializer=Radius)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attack", type=Attack)
    text = (
        "{class_path: lit_adv.attacks.FoolboxAttack, init_args: "
        "{name: LinfPGD, norm: linf, eps: 8/255, options: {steps: 3, abs_stepsize: 2/255, random_start: false}}}"
    )
    attack = parser.instantiate(parser.parse_args([f"--attack={text}"])).attack
    expected = FoolboxAttack(
        name="LinfPGD",
        norm="linf",
        eps=8 / 255,
        options={"steps": 3, "abs_stepsize": 2 / 255, "random_start": False},
    )
    assert attack == expected
    assert attack.options["random_start"] is False
    assert attack.fingerprint() == expected.fingerprint()


# the libraries themselves

SAME = {
    "foolbox": FoolboxAttack(
        name="LinfPGD",
        norm="linf",
        eps=0.05,
        options={"steps": 4, "abs_stepsize": 0.02, "random_start": False},
    ),
    "torchattacks": TorchattacksAttack(
        name="PGD", norm="linf", eps=0.05, options={"steps": 4, "alpha": 0.02, "random_start": False}
    ),
    "art": ARTAttack(
        name="ProjectedGradientDescentPyTorch", norm="linf", eps=0.05, options={"max_iter": 4, "eps_step": 0.02}
    ),
}


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("library", SAME)
def test_their_pgd_is_ours(library, targeted, case):
    pytest.importorskip(library, reason=f"{library} is not installed")
    model, x, y = case
    targets = (y + 1) % 4 if targeted else None
    ours = PGD(eps=0.05, step_size=0.02, steps=4, random_start=False).run(
        model, x, y, targets=targets, region=Center(6)
    )
    theirs = SAME[library].run(model, x, y, targets=targets, region=Center(6))
    torch.testing.assert_close(theirs.images, ours.images, atol=1e-6, rtol=0)
    assert torch.equal(theirs.success, ours.success)
    assert theirs.backwards.tolist() == [4] * 4


REAL = {
    "foolbox-deepfool": FoolboxAttack(name="L2DeepFoolAttack", options={"steps": 20, "candidates": 4}),
    "foolbox-ddn": FoolboxAttack(name="DDNAttack", options={"steps": 10}),
    "foolbox-fmn-l1": FoolboxAttack(name="L1FMNAttack", options={"steps": 10}),
    "foolbox-ead": FoolboxAttack(name="EADAttack", options={"steps": 10, "binary_search_steps": 2}),
    "foolbox-cw-within": FoolboxAttack(
        name="L2CarliniWagnerAttack", options={"steps": 10, "binary_search_steps": 2}, norm="l2", eps=1.0
    ),
    "torchattacks-deepfool": TorchattacksAttack(name="DeepFool", options={"steps": 10}, per_image=True),
    "torchattacks-cw": TorchattacksAttack(name="CW", options={"steps": 10, "lr": 0.1}),
    "torchattacks-jsma": TorchattacksAttack(name="JSMA", per_image=True),
    "torchattacks-apgd": TorchattacksAttack(name="APGD", options={"steps": 5}, norm="linf", eps=0.05, per_image=True),
    "torchattacks-square": TorchattacksAttack(
        name="Square", options={"n_queries": 20}, norm="linf", eps=0.05, per_image=True
    ),
    "torchattacks-fab": TorchattacksAttack(name="FAB", options={"steps": 5}, norm="linf", eps=0.05, per_image=True),
    "torchattacks-onepixel": TorchattacksAttack(
        name="OnePixel", options={"steps": 2, "popsize": 8}, norm="l0", eps=1, per_image=True
    ),
    "art-deepfool": ARTAttack(name="DeepFool", options={"max_iter": 5, "nb_grads": 4}),
    "art-cw": ARTAttack(name="CarliniL2Method", options={"max_iter": 4, "binary_search_steps": 2}, per_image=True),
    "art-fgm": ARTAttack(name="FastGradientMethod", norm="l2", eps=0.5),
    "art-square": ARTAttack(name="SquareAttack", options={"max_iter": 10}, norm="linf", eps=0.05, per_image=True),
}


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("attack", REAL.values(), ids=REAL.keys())
def test_of_a_library(attack, net, pictures):
    pytest.importorskip(LIBRARIES[type(attack)], reason=f"{LIBRARIES[type(attack)]} is not installed")
    model, x = net(), pictures(3)
    y = predict(model, x)
    before = [p.clone() for p in model.parameters()], torch.get_rng_state()
    region = Center(4)
    for keywords in ({}, {"region": region}):
        result = attack.run(model, x, y, seed=1, **keywords)
        assert torch.equal(result.success, predict(model, result.images) != y)
        assert float(result.images.min()) >= 0
        assert float(result.images.max()) <= 1
        assert bool((result.forwards > 1).all())
        if attack.eps is not None:
            assert float(result.norms[attack.norm].max()) <= attack.eps + 1e-6
        else:
            assert torch.equal(result.images[~result.success], x[~result.success])
        if keywords:
            mask = region(x, mix_seeds(row_seeds(x, 1)))
            assert bool(((result.images == x) | (mask > 0)).all())
        else:
            assert bool((result.images != x).any())
        assert torch.equal(attack(model, x, y, seed=1, **keywords), result.images)
    assert all(torch.equal(a, b) for a, b in zip(before[0], model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before[1])


def test_foolbox_norms_and_budgets_must_fit(case):
    pytest.importorskip("foolbox", reason="foolbox is not installed")
    model, x, y = case
    with pytest.raises(ValueError, match="norm must be l2 for L2PGD, got 'linf'"):
        FoolboxAttack(name="L2PGD", norm="linf", eps=0.1)(model, x, y)
    with pytest.raises(ValueError, match="eps must be given for LinfPGD"):
        FoolboxAttack(name="LinfPGD")(model, x, y)


def test_art_attacks_that_only_know_targets(case):
    pytest.importorskip("art", reason="art is not installed")
    model, x, y = case
    attack = ARTAttack(name="SaliencyMapMethod", options={"theta": 0.5})
    with pytest.raises(ValueError, match="targets must be given for SaliencyMapMethod"):
        attack(model, x, y)
    result = attack.run(model, x, y, targets=(y + 1) % 4)
    assert bool(result.success.any())
    with pytest.raises(ValueError, match=r"targets must be None, .*DeepFool takes none"):
        ARTAttack(name="DeepFool")(model, x, y, targets=(y + 1) % 4)
