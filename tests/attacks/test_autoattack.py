"""AutoAttack: its robust set is the intersection of its parts', for any number of classes and any shape."""

import copy

import pytest
import torch

from lit_adv.attacks import APGD, FAB, AutoAttack, Center, Square
from lit_adv.attacks.attack import Attack
from lit_adv.attacks.folding import folded

EPS = {"linf": 0.02, "l2": 0.15, "l1": 0.6}
every_norm = pytest.mark.parametrize("name", EPS)
every_version = pytest.mark.parametrize("version", ["standard", "plus", "rand"])


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def small(name, version="standard", **fields):
    return AutoAttack(norm=name, version=version, **({"eps": EPS[name], "steps": 5, "queries": 15} | fields))


@pytest.fixture
def watched(monkeypatch):
    """What each part has been given and what it has made of it."""
    seen = []
    solve = Attack._solve

    def watching(self, problem):
        crafted = solve(self, problem)
        if not isinstance(self, AutoAttack):
            seen.append((self, problem.x, crafted, problem.draws))
        return crafted

    monkeypatch.setattr(Attack, "_solve", watching)
    return seen


@every_version
@every_norm
def test_robust_set_is_the_intersection_of_the_parts(name, version, watched, net, pictures):
    model, x = net(), pictures(16)
    y = predict(model, x)
    y[0] = (y[0] + 1) % 4
    result = small(name, version, eot_iter=2, fold=False).run(model, x, y, seed=1)
    assert 0 < int(result.success.sum()) < 16
    assert [part for part, *_ in watched] == list(small(name, version, eot_iter=2).parts[: len(watched)])
    assert len(watched) == {"standard": 4, "plus": 6, "rand": 2}[version]
    left, made = torch.arange(1, 16), {0: x[:1]}
    for _, given, crafted, _ in watched:
        # each part gets what is left, all of it
        assert torch.equal(given, x[left])
        fooled = predict(model, crafted) != y[left]
        made |= {int(i): image[None] for i, image in zip(left[fooled], crafted[fooled], strict=True)}
        left = left[~fooled]
    assert sorted(made) == result.success.nonzero()[:, 0].tolist()
    for i, image in made.items():
        torch.testing.assert_close(result.images[i : i + 1], image, atol=1e-6, rtol=0)
    streams = [draws.draw for *_, draws in watched]
    assert len({draw >> 32 for draw in streams}) == len(watched)


def test_the_model_itself_says_what_is_robust_not_its_snapshot(watched, net, pictures, monkeypatch):
    model, x = net(), pictures(16)
    y = predict(model, x)

    def shifted(network, image):
        snapshot, agree, classes = folded(network, image)
        snapshot.head = copy.deepcopy(snapshot.head)
        snapshot.head.bias.data -= (
            5 * torch.nn.functional.one_hot(y[:1], classes)[0]
        )  # it takes no image for this class
        return snapshot, agree, classes

    monkeypatch.setattr("lit_adv.attacks.attack.folded", shifted)
    y[:] = y[0]
    x = x[predict(model, x) == y]
    assert len(x) > 2
    result = small("linf", fold=True).run(model, x, y[: len(x)], seed=1)
    assert len(watched) == 4
    left = torch.arange(len(x))
    for _, given, crafted, _ in watched:
        assert torch.equal(given, x[left])
        left = left[predict(model, crafted) == y[left]]
    assert 0 < len(left) == int((~result.success).sum())


@every_norm
def test_parts(name):
    eps = EPS[name]
    first, targeted, boundaries, square = AutoAttack(norm=name, eps=eps).parts
    sparse = name == "l1"
    common = {"norm": name, "eps": eps, "steps": 100}
    assert first == APGD(**common, restarts=5 if sparse else 1, wide_start=sparse)
    assert targeted == APGD(**common, objective="dlr", target_classes=5 if sparse else 9, wide_start=sparse)
    assert boundaries == FAB(**common, target_classes=9, stop_at_success=True)
    assert square == Square(norm=name, eps=eps, queries=5000)
    kinds = [type(part).__name__ for part in AutoAttack(norm=name, eps=eps, version="plus").parts]
    assert kinds == ["APGD", "APGD", "FAB", "Square", "APGD", "FAB"]
    assert [part.eot_iter for part in AutoAttack(norm=name, eps=eps, version="rand").parts] == [20, 20]


@every_norm
def test_no_weaker_than_any_part_and_monotone(name, net, pictures):
    model, x = net(), pictures(16)
    y = predict(model, x)
    found = []
    for factor in (0.5, 2):
        attack = small(name, eps=factor * EPS[name])
        result = attack.run(model, x, y, seed=1)
        found.append(int(result.success.sum()))
        for part in attack.parts:
            assert int(part.run(model, x, y, seed=1).success.sum()) <= found[-1]
        assert float(result.norms[name].max()) <= factor * EPS[name] * (1 + 1e-5)
    assert found == sorted(found)
    assert found[0] < found[-1]
    plus = small(name, "plus", eps=2 * EPS[name]).run(model, x, y, seed=1)
    assert int(plus.success.sum()) >= found[1]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 4])
@every_version
def test_few_classes_and_images_that_are_not_square(version, classes, targeted, net, pictures):
    model, x = net(1, classes), pictures(10, 1, 7, 12)
    y = predict(model, x)
    targets = (y + 1) % classes if targeted else None
    attack = small("linf", version, eps=0.04, eot_iter=2)
    result = attack.run(model, x, y, targets=targets, seed=1)
    assert bool(result.success.any())
    prediction = predict(model, result.images)
    assert torch.equal(result.success, prediction == targets if targeted else prediction != y)
    forwards, backwards = attack._passes(classes)
    assert int(result.forwards.max()) <= forwards
    assert int(result.backwards.max()) <= backwards
    inside = attack.run(model, x, y, targets=targets, region=Center(4), seed=1)
    assert int(inside.success.sum()) <= int(result.success.sum())


def test_misclassified_images_come_back_clean_and_the_others_nearer(net, pictures):
    model, x = net(), pictures(16)
    y = predict(model, x)
    y[:4] = (y[:4] + 1) % 4
    result = small("linf").run(model, x, y, seed=1)
    assert torch.equal(result.images[:4], x[:4])
    assert result.forwards[:4].tolist() == [1] * 4
    assert not bool(result.backwards[:4].any())
    failed = ~result.success
    assert bool(failed.any())
    with torch.no_grad():
        before, after = (
            logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)
            for logits in (model(x), result.logits)
        )
    assert bool((after < before)[failed].all())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eps": 8}, r"AutoAttack: eps must be in \[0, 1\] for linf, got 8"),
        ({"norm": "l0"}, "AutoAttack: norm must be one of linf, l2, l1, got 'l0'"),
        ({"version": "custom"}, "AutoAttack: version must be standard, plus or rand, got 'custom'"),
        ({"steps": 0}, "AutoAttack: steps must be at least 1, got 0"),
        ({"queries": 0}, "AutoAttack: queries must be at least 1, got 0"),
        ({"eot_iter": 0}, "AutoAttack: eot_iter must be at least 1, got 0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AutoAttack(**fields)
