"""Transferability: the method's procedure against a slow loop, its invariants, and how many passes it takes."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from lit_adv.attacks import (
    BIM,
    FGSM,
    ILLC,
    MIFGSM,
    PGD,
    CarliniWagnerL2,
    Center,
    DeepFool,
    Frame,
    Mask,
    RandomPixels,
    Square,
    random_targets,
    transfer,
)
from lit_adv.models import Classifier

# the method's: steps of 1/255 rounded, no ball
CARD = PGD(eps=1.0, step_size=0.0039, steps=40, random_start=False, fold=False)
CLASSES = 3


class Counting(nn.Module):
    """A network that counts the images that go through it and the gradients that come back."""

    def __init__(self, network):
        super().__init__()
        self.network, self.forwards, self.backwards = network, 0, 0

    def forward(self, x):
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(lambda gradient: setattr(self, "backwards", self.backwards + len(gradient)))
        return self.network(x)


def network(seed):
    """Networks that are alike, so that images transfer now and then."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.Tanh(), nn.Linear(12, CLASSES))
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data = 2 * (parameter + 0.03 * torch.randn_like(parameter)).detach()
    return model.double().eval()


@pytest.fixture(scope="module")
def models():
    return {name: network(seed) for seed, name in enumerate("abc")}


@pytest.fixture(scope="module")
def drawn(models):
    """Seven images that all three networks give one class, and three that they do not agree about."""
    x = torch.rand(300, 3, 8, 8, generator=torch.Generator().manual_seed(5)).double()
    answers = torch.stack([model(x).argmax(1) for model in models.values()])
    agreed = (answers == answers[0]).all(0)
    chosen = torch.cat([agreed.nonzero()[:7, 0], (~agreed).nonzero()[:3, 0]])
    assert len(chosen) == 10
    return x[chosen], answers[:, chosen].mode(0).values


@pytest.fixture(scope="module")
def images(drawn):
    return drawn[0]


@pytest.fixture(scope="module")
def labels(drawn):
    return drawn[1]


def slow(source, victim, image, label, target, mask, steps, step_size):
    """The method's pseudo-code for one image; None where source or victim is wrong about it."""
    if int(source(image[None]).argmax()) != label or int(victim(image[None]).argmax()) != label:
        return None
    x = image.clone()
    for n in range(1, steps + 1):
        leaf = x.clone().requires_grad_()
        logits = source(leaf[None])
        goal = torch.tensor([label if target is None else target])
        loss = nn.functional.cross_entropy(logits, goal)
        (gradient,) = torch.autograd.grad(loss, leaf)
        move = gradient.sign() if target is None else -gradient.sign()
        x = (x + step_size * move * mask).clamp(0, 1)
        if int(victim(x[None]).argmax()) != label:
            delta = x - image
            l0 = float((delta.abs().amax(0) > 0).double().mean())
            return n, l0, float(delta.square().sum().sqrt()), float(delta.abs().max()), x
    return False


@pytest.mark.parametrize("region", [None, Center(4), Frame(3), RandomPixels(0.28)], ids=repr)
@pytest.mark.parametrize("targeted", [False, True])
def test_the_cards_procedure_image_by_image(models, images, labels, region, targeted):
    targets = random_targets(images, labels, CLASSES, seed=1) if targeted else None
    masks = torch.ones(12, 1, 8, 8) if region is None else RandomPixels(1.0)(images)
    if region is not None:
        # as drawn for a call with this seed
        masks = (
            transfer(FGSM(eps=0.5), models, models, images, labels, region=region, seed=0, keep_images=True)
        ).images
        masks = region(images, _seeds(images)).expand(10, -1, -1, -1)
    found = transfer(CARD, models, models, images, labels, targets=targets, region=region, seed=0, keep_images=True)
    states = set()
    for s, source in enumerate(models.values()):
        for t, victim in enumerate(models.values()):
            for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                target = None if targets is None else int(targets[i])
                expected = slow(source, victim, image, label, target, masks[i], CARD.steps, CARD.step_size)
                states.add(expected if expected in (None, False) else True)
                assert bool(found.attempted[s, t, i]) == (expected is not None)
                assert bool(found.success[s, t, i]) == bool(expected)
                if not expected:
                    assert torch.equal(found.images[s, t, i], image)
                    assert all(bool(norm[s, t, i].isnan()) for norm in found.norms.values())
                    assert found.iterations[s, t, i] == 0
                    continue
                n, l0, l2, linf, x = expected
                assert found.iterations[s, t, i] == n
                torch.testing.assert_close(found.images[s, t, i], x, rtol=0, atol=1e-12)
                norms = [float(found.norms[name][s, t, i]) for name in ("l0", "l2", "linf")]
                assert norms == pytest.approx([l0, l2, linf], abs=1e-12)
    # nothing is compared where nothing happens
    assert states >= {None, True}


def _seeds(images, seed=0):
    from lit_adv.attacks.attack import mix_seeds
    from lit_adv.attacks.randomness import row_seeds

    return mix_seeds(row_seeds(images, seed))


def test_invariants_of_the_card(models, images, labels):
    region = RandomPixels(0.17)
    mask = region(images, _seeds(images)) > 0
    before = None
    for steps in (1, 2, 5, 40):
        attack = PGD(eps=1.0, step_size=0.0039, steps=steps, random_start=False)
        found = transfer(attack, models, models, images, labels, region=region, seed=0, keep_images=True)
        changed = (found.images != images).any(3, keepdim=True)
        assert not bool((changed & ~mask).any())  # 1: bitwise outside
        l0, l2, linf = (found.norms[name][found.success] for name in ("l0", "l2", "linf"))
        assert bool((linf <= steps * 0.0039 + 1e-12).all())  # 3
        assert bool((linf <= found.iterations[found.success].double() * 0.0039 + 1e-12).all())
        assert bool((l0 <= mask.double().flatten(1).mean(1).max() + 1e-12).all())
        assert bool(((l0 <= 1) & (linf <= 1)).all())  # 6
        assert bool((l2 <= (3 * 64 * l0).sqrt() * linf + 1e-12).all())
        assert bool((l2 >= linf - 1e-12).all())
        assert not bool((found.success & ~found.attempted).any())  # 7
        if before is not None:
            # a longer run finds what a shorter one has found, at the same iteration
            assert bool((found.success | ~before.success).all())
            assert torch.equal(found.iterations[before.success], before.iterations[before.success])
        before = found
    enough = PGD(eps=1.0, step_size=0.0039, steps=250, random_start=False)
    found = transfer(enough, models, models, images, labels)
    for own in range(3):
        assert torch.equal(found.success[own, own], found.attempted[own, own])  # 7: the white box
        assert bool(found.attempted[own, own].any())


def test_a_mask_of_ones_is_the_global_attack_and_one_of_zeros_fails(models, images, labels):
    whole = transfer(CARD, models, models, images, labels, keep_images=True)
    ones = transfer(CARD, models, models, images, labels, region=Mask(torch.ones(8, 8)), keep_images=True)
    assert torch.equal(whole.images, ones.images)
    assert torch.equal(whole.iterations, ones.iterations)
    assert bool(whole.success.any())
    none = transfer(CARD, models, models, images, labels, region=Mask(torch.zeros(8, 8)), keep_images=True)
    assert torch.equal(none.attempted, whole.attempted)
    assert not bool(none.success.any())
    assert torch.equal(none.images, images.expand_as(none.images))


def test_a_target_class_is_never_the_label():
    x = torch.rand(3000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3000) % 4
    targets = random_targets(x, labels, 4, seed=0)
    assert not bool((targets == labels).any())
    for label in range(4):
        counts = targets[labels == label].bincount(minlength=4)
        assert counts[label] == 0
        assert all(200 < int(count) < 300 for i, count in enumerate(counts) if i != label)
    assert torch.equal(targets, random_targets(x, labels, 4, seed=0))
    assert torch.equal(targets.flip(0), random_targets(x.flip(0), labels.flip(0), 4, seed=0))
    assert not torch.equal(targets, random_targets(x, labels, 4, seed=1))
    assert random_targets(x, labels % 2, 2).tolist() == (1 - labels % 2).tolist()
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        random_targets(x, labels, 1)


def counted(models, *names):
    return {name: Counting(copy.deepcopy(models[name])) for name in names}


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_passes_where_nothing_is_ever_fooled(models, images, labels, steps):
    # steps of no length: every image stays to the end, the most there can be
    right = torch.stack([model(images).argmax(1) == labels for model in models.values()]).all(0)
    x, y = images[right], labels[right]
    count = len(x)
    assert count >= 4
    attack = PGD(eps=1.0, step_size=0.0, steps=steps, random_start=False)
    sources = counted(models, "a", "b")
    victims = {**sources, **counted(models, "c")}
    found = transfer(attack, sources, victims, x, y)
    assert bool(found.attempted.all())
    assert not bool(found.success.any())
    backwards = sum(source.backwards for source in sources.values())
    forwards = sum(victim.forwards for victim in victims.values())
    assert backwards == 2 * steps * count
    # S x T an iteration, and T for the clean image
    assert forwards == (2 * 3 * steps + 3) * count
    assert int(found.forwards.sum()) == forwards
    assert int(found.backwards.sum()) == backwards
    assert found.forwards.tolist() == [6 * steps + 3] * count
    # a source that is no victim has a forward pass for its gradient alone, the first of which is the clean image's
    source, others = counted(models, "a"), counted(models, "b", "c")
    apart = transfer(attack, source, others, x, y)
    assert source["a"].forwards == steps * count
    assert [victim.forwards for victim in others.values()] == [(steps + 1) * count] * 2
    assert apart.forwards.tolist() == [(1 + 2) * steps + 2] * count
    assert apart.backwards.tolist() == [steps] * count


def test_finished_images_leave(models, images, labels):
    sources = counted(models, "a", "b")
    victims = {**sources, **counted(models, "c")}
    attack = PGD(eps=1.0, step_size=0.0039, steps=250, random_start=False)
    found = transfer(attack, sources, victims, images, labels)
    # the last iteration that an image was needed for, on each source
    last = torch.where(found.attempted & ~found.success, 250, found.iterations).amax(1)
    backwards = sum(source.backwards for source in sources.values())
    assert int(found.backwards.sum()) == backwards
    # for the clean image and every iterate but the last, which the source itself may be asked about
    assert backwards <= int((last + 1).sum())
    assert backwards < 250 * 2 * len(images) / 5
    forwards = sum(victim.forwards for victim in victims.values())
    assert int(found.forwards.sum()) == forwards
    assert forwards <= 3 * int((last + 1).sum()) + 3 * len(images)
    for i in range(len(images)):
        assert int(found.backwards[i]) <= int((last[:, i] + 1).sum())


def test_a_copy_of_the_source_is_asked_by_itself_and_says_the_same(models, images, labels):
    victims = {"same": models["a"], "copy": copy.deepcopy(models["a"])}
    found = transfer(CARD, {"a": models["a"]}, victims, images, labels, keep_images=True)
    assert torch.equal(found.iterations[0, 0], found.iterations[0, 1])
    assert torch.equal(found.images[0, 0], found.images[0, 1])
    assert bool(found.success.any())
    named_twice = transfer(CARD, {"a": models["a"]}, {"x": models["a"], "y": models["a"]}, images, labels)
    assert torch.equal(named_twice.success[0, 0], named_twice.success[0, 1])


@pytest.mark.parametrize(
    "attack",
    [FGSM(eps=0.1), MIFGSM(eps=0.2, steps=5), CarliniWagnerL2(steps=20, search_steps=1), Square(eps=0.2, queries=30)],
    ids=lambda attack: type(attack).__name__,
)
@pytest.mark.parametrize("region", [None, Center(6)])
def test_attack_then_test_is_the_attack_and_then_the_test(models, images, labels, attack, region):
    found = transfer(
        attack, models, models, images, labels, region=region, seed=3, procedure="attack_then_test", keep_images=True
    )
    answers = {name: model(images).argmax(1) == labels for name, model in models.items()}
    for s, (name, source) in enumerate(models.items()):
        run = attack.run(source, images, labels, region=region, seed=3)
        for t, (other, victim) in enumerate(models.items()):
            attempted = answers[name] & answers[other]
            success = attempted & (victim(run.images).argmax(1) != labels)
            assert torch.equal(found.attempted[s, t], attempted)
            assert torch.equal(found.success[s, t], success)
            torch.testing.assert_close(found.images[s, t][success], run.images[success], rtol=0, atol=1e-9)
            for norm in ("l2", "linf"):
                torch.testing.assert_close(found.norms[norm][s, t][success], run.norms[norm][success])
            torch.testing.assert_close(found.norms["l0"][s, t][success], run.norms["l0"][success] / 64)
    assert bool(found.success.any())


def test_passes_of_attack_then_test(models, images, labels):
    sources = counted(models, "a", "b")
    victims = {**sources, **counted(models, "c")}
    attack = PGD(eps=0.1, step_size=0.02, steps=4, random_start=False, fold=False)
    found = transfer(attack, sources, victims, images, labels, procedure="attack_then_test")
    assert int(found.forwards.sum()) == sum(victim.forwards for victim in victims.values())
    assert int(found.backwards.sum()) == sum(source.backwards for source in sources.values())
    assert int(found.backwards.max()) == 8
    assert int(found.forwards.max()) == 3 + 2 * (4 + 1 + 2)


@pytest.mark.parametrize(
    "attack",
    [
        DeepFool(steps=10),
        CarliniWagnerL2(steps=20, search_steps=1, c=5, learning_rate=0.02),
        Square(eps=0.3, queries=40),
        Square(eps=0.3, queries=400, max_queries=40),
        PGD(eps=0.1, step_size=0.01, steps=5, restarts=2),
        ILLC(eps=0.2, step_size=0.02, steps=10),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_other_attacks_have_all_they_look_at_tested(models, images, labels, attack):
    region = Center(6)
    mask = region(images) > 0
    found = transfer(attack, models, models, images, labels, region=region, seed=0, keep_images=True)
    assert torch.equal(found.success, found.success & found.attempted)
    assert bool(found.success.any())
    assert not bool(((found.images != images).any(3, keepdim=True) & ~mask).any())
    for s, source in enumerate(models.values()):
        run = attack.run(source, images, labels, region=region, seed=0)
        # all that succeeds at the end, and more on the way
        caught = (run.success & found.attempted[s, s]) <= found.success[s, s]
        assert bool(caught.all())
        for t, victim in enumerate(models.values()):
            hit = found.success[s, t]
            assert bool((victim(found.images[s, t])[hit].argmax(1) != labels[hit]).all())
            assert bool((found.iterations[s, t][hit] >= 1).all())
            at_the_end = found.attempted[s, t] & (victim(run.images).argmax(1) != labels)
            assert bool((at_the_end <= hit).all())


def test_what_steps_by_itself_is_watched_to_the_same_end(models, images, labels, monkeypatch):
    from lit_adv.attacks import transferability

    attack = PGD(eps=0.3, step_size=0.01, steps=25, random_start=True)
    alone = transfer(attack, models, models, images, labels, seed=4, keep_images=True)
    monkeypatch.setattr(transferability, "_steps_alone", lambda attack, targeted: False)
    watched = transfer(attack, models, models, images, labels, seed=4, keep_images=True)
    assert torch.equal(alone.success, watched.success)
    # the start of a random start is an image it looks at, but no step
    later = alone.success & (watched.iterations > 1)
    torch.testing.assert_close(alone.images[later], watched.images[later], rtol=0, atol=1e-12)
    assert torch.equal(alone.iterations[later], watched.iterations[later] - 1)
    assert bool(later.any())


def test_an_attack_for_each_source(models, images, labels):
    sources = {name: models[name] for name in "ab"}
    attacks = {"a": FGSM(eps=0.3), "b": BIM(eps=0.1)}
    for procedure in ("until_fooled", "attack_then_test"):
        both = transfer(attacks, sources, models, images, labels, procedure=procedure)
        for row, name in enumerate("ab"):
            one = transfer(attacks[name], {name: models[name]}, models, images, labels, procedure=procedure)
            assert torch.equal(both.success[row], one.success[0])
    with pytest.raises(ValueError, match="attack must be an attack, or one for each source, got none for 'b'"):
        transfer({"a": FGSM()}, sources, models, images, labels)
    with pytest.raises(ValueError, match=r"attack must be for sources \(a, b\), got one for 'z'"):
        transfer({**attacks, "z": FGSM()}, sources, models, images, labels)


@pytest.mark.parametrize("procedure", ["until_fooled", "attack_then_test"])
def test_victims_may_be_anything_that_answers(models, images, labels, procedure):
    flat = np.concatenate([images.flatten(1).numpy()] * 2)
    estimators = {
        "logistic regression": LogisticRegression(C=100),
        "svm": SVC(),
        "tree": DecisionTreeClassifier(random_state=0),
        "knn": KNeighborsClassifier(1),
    }
    for estimator in estimators.values():
        estimator.fit(flat, np.concatenate([labels.numpy()] * 2))
    functions = {
        "logits": lambda x: models["b"](x).detach().numpy(),
        "classes": lambda x: models["b"](x).argmax(1),
        "nan": lambda x: models["b"](x) * torch.nan,
    }
    victims = {**estimators, **functions, "b": models["b"]}
    found = transfer(
        PGD(eps=1.0, step_size=0.02, steps=30, random_start=False),
        {"a": models["a"]},
        victims,
        images,
        labels,
        procedure=procedure,
        keep_images=True,
    )
    place = {name: number for number, name in enumerate(victims)}
    for name, estimator in estimators.items():
        row = place[name]
        right = estimator.predict(images.flatten(1).numpy()) == labels.numpy()
        assert found.attempted[0, row].tolist() == (right & (models["a"](images).argmax(1) == labels).numpy()).tolist()
        answers = torch.from_numpy(estimator.predict(found.images[0, row].flatten(1).numpy()))
        # what did not succeed is the clean image here
        assert torch.equal(found.success[0, row], found.attempted[0, row] & (answers != labels))
    assert int(found.success[0, : len(estimators)].any(1).sum()) >= 2
    for name in ("logits", "classes"):
        assert torch.equal(found.success[0, place[name]], found.success[0, place["b"]])
    # an answer that is not a number is neither right nor fooled
    assert not bool(found.attempted[0, place["nan"]].any())


def test_models_are_left_as_they_were_and_inference_mode_is_fine(images, labels):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = Classifier("resnet20", 3, 8), Classifier("small_cnn", 3, 8)
    first.train()
    before = {name: value.clone() for name, value in first.state_dict().items()}
    state = torch.random.get_rng_state()
    x = images.float()
    y = first.eval()(x).argmax(1)
    first.train()
    with torch.inference_mode():
        found = transfer(CARD, {"first": first}, {"first": first, "second": second}, x, y, seed=0)
    assert first.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    assert all(parameter.grad is None for parameter in [*first.parameters(), *second.parameters()])
    assert bool(found.attempted[0, 0].all())
    assert bool(found.success[0, 0].any())


def test_an_images_result_does_not_depend_on_its_batch(models, images, labels):
    attack = PGD(eps=0.2, step_size=0.01, steps=20)
    whole = transfer(attack, models, models, images, labels, region=RandomPixels(0.45), seed=2)
    for start in (0, 5):
        rows = slice(start, start + 5)
        part = transfer(attack, models, models, images[rows], labels[rows], region=RandomPixels(0.45), seed=2)
        assert torch.equal(part.iterations, whole.iterations[..., rows])
        assert torch.equal(part.attempted, whole.attempted[..., rows])
    nothing = transfer(attack, models, models, images[:0], labels[:0])
    assert nothing.success.shape == (3, 3, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {}}, "transfer: sources must be at least one network"),
        ({"victims": {}}, "transfer: victims must be at least one model"),
        ({"procedure": "both"}, "procedure must be one of until_fooled, attack_then_test, got 'both'"),
        ({"labels": torch.zeros(3).long()}, r"transfer: labels must be an int64 tensor of shape \(10,\)"),
        ({"images": torch.zeros(10, 8, 8)}, "transfer: images must be a floating-point tensor"),
        ({"images": torch.full((10, 3, 8, 8), 2.0).double()}, r"transfer: images must be in \[0, 1\]"),
        ({"labels": torch.full((10,), 3)}, "PGD: labels and targets must be classes 0 to 2 of the model"),
    ],
)
def test_bad_arguments_are_named(models, images, labels, change, message):
    given = {"sources": models, "victims": models, "images": images, "labels": labels, **change}
    with pytest.raises(ValueError, match=message):
        transfer(CARD, given.pop("sources"), given.pop("victims"), given.pop("images"), given.pop("labels"), **given)


def test_a_target_that_is_the_label_is_refused(models, images, labels):
    targets = random_targets(images, labels, CLASSES)
    targets[4] = labels[4]
    with pytest.raises(ValueError, match=rf"targets must differ from labels, got {int(labels[4])} for image 4 in both"):
        transfer(CARD, models, models, images, labels, targets=targets)


@pytest.mark.parametrize("procedure", ["until_fooled", "attack_then_test"])
@pytest.mark.parametrize("attack", [PGD(eps=0.1, steps=2), Square(eps=0.1, queries=4)])
def test_bad_images_and_labels_are_refused_where_no_attack_would_see_them(models, images, labels, procedure, attack):
    def run(x, y):
        some = {"a": models["a"]}
        return transfer(attack, some, some, x, y, seed=0, procedure=procedure)

    # none of these is an image that the model is right about
    dark, unknown = images.clone(), images.clone()
    wrong = (models["a"](images).argmax(1) + 1) % 3
    dark[2] = -0.5
    unknown[1] = torch.nan
    for x, y, message in (
        (dark, wrong, r"images must be in \[0, 1\], got values from -0.5 .*"),
        (unknown, wrong, "images must be finite, image 1 of the batch"),
        (images, wrong + 3, "classes 0 to 2 of the model, got [34] to 5"),
        (images, wrong - 7, "must be classes .* of the model, got -"),
    ):
        with pytest.raises(ValueError, match=message):
            run(x, y)
