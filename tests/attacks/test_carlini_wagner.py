"""Carlini and Wagner's attacks against closed forms on linear models and torch.optim.Adam on single images."""

import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lit_adv.attacks import CarliniWagnerL0, CarliniWagnerL2, CarliniWagnerLinf, Mask

# an example takes a second, too long to look for a smaller one
few = settings(max_examples=3, phases=[Phase.generate])
seeds = st.integers(0, 10**6)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def margins(model, x, classes, targeted=False):
    """By how many logits the goal is reached."""
    with torch.no_grad():
        logits = model(x)
    own = logits.gather(1, classes[:, None])[:, 0]
    other = logits.scatter(1, classes[:, None], -math.inf).amax(1)
    return own - other if targeted else other - own


def distance(model, x, order):
    """To the boundary of two classes, in the norm whose dual is ``order``."""
    w = model.weight[1] - model.weight[0]
    f = x.flatten(1) @ w + model.bias[1] - model.bias[0]
    return (f.abs() / torch.linalg.vector_norm(w, ord=order)).detach()


@few
@given(seed=seeds, box=st.sampled_from(["clip", "tanh"]), objective=st.sampled_from(["f6", "f7", "f3"]))
def test_l2_finds_the_nearest_image_and_nothing_nearer(linear, seed, box, objective):
    # clip goes on from any c; tanh has to begin where its gradient is not lost
    model, x, y = linear(seed, margin=0.6)
    known = distance(model, x, 2)
    rate = 0.003 if box == "clip" else 0.01
    attack = CarliniWagnerL2(learning_rate=rate, steps=200, box=box, objective=objective, abort_early=False, c=0.01)
    result = attack.run(model, x, y)
    assert bool(result.success.all())
    assert bool((result.norms["l2"] >= known - 1e-12).all())
    assert bool((result.norms["l2"] <= 1.02 * known + 1e-3).all()), (result.norms["l2"] / known).tolist()


@few
@given(seed=seeds)
def test_carlini_linf_comes_near_the_nearest_image(linear, seed):
    model, x, y = linear(seed, height=6, width=6, margin=1.5)
    known = distance(model, x, 1)
    result = CarliniWagnerLinf(eps=1.0, variant="carlini", c=20, learning_rate=0.003, steps=60).run(model, x, y)
    assert bool(result.success.all())
    assert bool((result.norms["linf"] >= known - 1e-12).all())
    # below 1/256 it stops looking
    assert bool((result.norms["linf"] <= (1.12 * known).clamp(min=0.005)).all()), (result.norms["linf"], known)


def test_carlini_linf_doubles_c_until_the_threshold_is_kept(linear):
    """A first success by far too large a perturbation must not end the search."""
    model, x, y = linear(4, height=6, width=6, margin=1.5)
    fields = {"eps": 1.0, "variant": "carlini", "learning_rate": 0.02, "steps": 20}
    little, much = (CarliniWagnerLinf(**fields, c=c).run(model, x, y).norms["linf"] for c in (1e-5, 20))
    assert bool((much < 0.95 * little).all())


def test_carlini_linf_below_its_last_threshold(linear):
    """An eps under 1/256 still gets every c."""
    model, x, y = linear(3, count=1)
    eps = 1 / 300
    w = model.weight[1] - model.weight[0]
    f = x.flatten(1) @ w + model.bias[1] - model.bias[0]
    with torch.no_grad():
        model.bias[1] += 0.5 * eps * w.abs().sum() - f[0]
    y = predict(model, x)
    attack = CarliniWagnerLinf(eps=eps, variant="carlini", c=20, learning_rate=1e-7, steps=1)
    assert attack.run(model, x, y).iterations.tolist() == [21]  # 1e-5, 2e-5, ... 10.5
    result = CarliniWagnerLinf(eps=eps, variant="carlini", c=20, learning_rate=1e-4, steps=60).run(model, x, y)
    assert result.success.tolist() == [True]
    assert 0.5 * eps - 1e-12 <= float(result.norms["linf"]) <= eps + 1e-12


def slow(model, image, label, *, c, learning_rate, steps, loss, box="clip", eps=None, target=None):
    """One image and torch.optim.Adam: the nearest success (None without one) and the last iterate."""
    image = image[None]
    w = torch.atanh((2 * image - 1) * 0.999999) if box == "tanh" else image.clone()
    w.requires_grad_()
    adam = torch.optim.Adam([w], lr=learning_rate)
    best, nearest = None, math.inf
    for step in range(steps + 1):
        x = 0.5 * (torch.tanh(w) + 1) if box == "tanh" else w
        if step == 0:
            x = x + (image - x).detach()  # the search starts at the image, not at its rounded change of variable
        logits = model(x)[0]
        hit = logits.argmax() != label if target is None else logits.argmax() == target
        size = (x - image).detach().norm().item()
        if hit and size < nearest:
            best, nearest = x.detach()[0].clone(), size
        if step == steps:
            return best, x.detach()[0]
        adam.zero_grad()
        ((x - image).square().sum() + c * loss(logits, label, target)).backward()
        adam.step()
        if box == "clip":
            with torch.no_grad():
                if eps is not None:
                    w.clamp_(image - eps, image + eps)
                w.clamp_(0, 1)
    raise AssertionError


def f6(logits, label, target):
    if target is None:
        other = torch.cat([logits[:label], logits[label + 1 :]]).max()
        return (logits[label] - other).clamp(min=0)
    return (torch.cat([logits[:target], logits[target + 1 :]]).max() - logits[target]).clamp(min=0)


def f7(logits, label, target):
    wanted = torch.cat([logits[:label], logits[label + 1 :]]).max() if target is None else logits[target]
    rival = logits[label] if target is None else torch.cat([logits[:target], logits[target + 1 :]]).max()
    return torch.log1p(torch.exp(rival - wanted)) - math.log(2)


@pytest.mark.parametrize("box", ["clip", "tanh"])
@pytest.mark.parametrize(("name", "loss"), [("f6", f6), ("f7", f7)])
@pytest.mark.parametrize("targeted", [False, True])
def test_l2_with_fixed_c_agrees_with_torch_adam(box, name, loss, targeted, smooth, pictures):
    x = pictures(4, 1, 6, 6, dtype=torch.float64, seed=2)
    x[0, 0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    y = predict(smooth, x)
    targets = (y + 1) % 4 if targeted else None
    fields = {"c": 2.0, "learning_rate": 0.05 if box == "clip" else 0.1, "steps": 30}
    attack = CarliniWagnerL2(**fields, box=box, objective=name, search_steps=0, abort_early=False)
    result = attack.run(smooth, x, y, targets=targets)
    for i in range(4):
        target = int(targets[i]) if targeted else None
        best, _ = slow(smooth, x[i], int(y[i]), **fields, loss=loss, box=box, target=target)
        torch.testing.assert_close(result.images[i], x[i] if best is None else best, rtol=0, atol=1e-6)
    assert int(result.success.sum()) >= 2


@pytest.mark.parametrize("eps", [0.03, 0.3])
def test_bounded_linf_agrees_with_torch_adam(eps, smooth, pictures):
    x = pictures(4, 1, 6, 6, dtype=torch.float64, seed=2)
    y = predict(smooth, x)
    fields = {"c": 5.0, "learning_rate": 0.02, "steps": 25}
    result = CarliniWagnerLinf(eps=eps, **fields).run(smooth, x, y)
    for i in range(4):
        best, last = slow(smooth, x[i], int(y[i]), **fields, loss=f6, eps=eps)
        torch.testing.assert_close(result.images[i], last if best is None else best, rtol=0, atol=1e-6)
        assert bool(result.success[i]) == (best is not None)
    assert bool(result.success.all()) == (eps > 0.1)
    assert result.backwards.tolist() == result.iterations.tolist() == [25] * 4
    assert result.forwards.tolist() == [26] * 4


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kind", ["l2", "linf", "carlini"])
def test_confidence_is_a_margin_in_logits(targeted, kind, linear):
    model, x, y = linear(4, classes=4, count=6)
    targets = (y + 1) % 4 if targeted else None
    goal = targets if targeted else y
    sizes = []
    for confidence in (0.0, 2.0):
        attack = {
            "l2": CarliniWagnerL2(c=1.0, learning_rate=0.02, steps=60, search_steps=4, confidence=confidence),
            "linf": CarliniWagnerLinf(eps=0.4, steps=80, learning_rate=0.02, confidence=confidence),
            "carlini": CarliniWagnerLinf(
                eps=0.4, steps=30, c=1e-2, learning_rate=0.02, confidence=confidence, variant="carlini"
            ),
        }[kind]
        result = attack.run(model, x, y, targets=targets)
        assert bool(result.success.all())
        reached = margins(model, result.images, goal, targeted)
        assert bool((reached >= confidence).all())
        sizes.append(result.norms["l2" if kind == "l2" else "linf"])
    # a success in the looser sense is not a success: what comes back is larger, or for a failure clean
    assert bool((sizes[1] > sizes[0]).all())


def test_box_of_black_and_white_pixels(smooth):
    x = (torch.arange(4 * 36).view(4, 1, 6, 6) * 7 % 11 > 4).double()
    y = predict(smooth, x)
    fields = {"c": 10.0, "learning_rate": 0.01, "steps": 100, "search_steps": 0}
    clip = CarliniWagnerL2(**fields).run(smooth, x, y)
    tanh = CarliniWagnerL2(**fields, box="tanh").run(smooth, x, y)
    moved = (clip.images - x).abs() > 1 / 512
    assert bool(clip.success.all())
    assert bool(moved.flatten(1).any(1).all())
    assert not bool(tanh.success.any())
    assert not bool(((tanh.images - x).abs() > 1e-5).any())


@pytest.mark.parametrize("box", ["clip", "tanh"])
def test_every_image_has_its_own_constant(box, smooth, pictures):
    x = pictures(5, 1, 6, 6, dtype=torch.float64, seed=5)
    y = predict(smooth, x)
    y[2] = (y[2] + 1) % 4
    attack = CarliniWagnerL2(c=1e-2, learning_rate=0.02, steps=200, search_steps=3, box=box)
    together = attack.run(smooth, x, y)
    for i in range(5):
        alone = attack.run(smooth, x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(alone.images, together.images[i : i + 1], rtol=0, atol=1e-12)
        assert int(alone.forwards) == int(together.forwards[i])
        assert int(alone.iterations) == int(together.iterations[i])
    assert len(set(together.iterations.tolist())) > 1


def test_search_of_c(linear):
    """One constant is too small, a much larger one wasteful: the search beats both."""
    model, x, y = linear(8, margin=0.6)
    fields = {"learning_rate": 0.01, "steps": 60, "abort_early": False}
    small = CarliniWagnerL2(**fields, c=1e-4, search_steps=0).run(model, x, y)
    large = CarliniWagnerL2(**fields, c=100.0, search_steps=0, objective="f7").run(model, x, y)
    searched = CarliniWagnerL2(**fields, c=1e-4, search_steps=9, objective="f7").run(model, x, y)
    assert not bool(small.success.any())
    assert torch.equal(small.images, x)
    assert bool(large.success.all())
    assert bool(searched.success.all())
    assert bool((searched.norms["l2"] <= large.norms["l2"] + 1e-12).all())
    assert searched.forwards.tolist() == [9 * 61] * 4
    assert searched.backwards.tolist() == [9 * 60] * 4
    assert large.forwards.tolist() == [61] * 4


def test_aborting_early_saves_passes_and_little_else(linear):
    model, x, y = linear(8, margin=0.6)
    fields = {"learning_rate": 0.01, "steps": 200, "search_steps": 5, "c": 0.1}
    whole = CarliniWagnerL2(**fields, abort_early=False).run(model, x, y)
    early = CarliniWagnerL2(**fields, abort_early=True).run(model, x, y)
    assert bool((early.backwards < whole.backwards).all())
    assert bool((early.success == whole.success).all())
    torch.testing.assert_close(early.norms["l2"], whole.norms["l2"], rtol=0.05, atol=0)


def test_few_steps_are_not_aborted_by_noise(linear):
    """Few steps overshoot and swing back; looked at a tenth of them at a time, that would end them."""
    model, x, y = linear(8, margin=0.6)
    fields = {"learning_rate": 0.03, "steps": 99, "search_steps": 0, "c": 1.0}
    result = CarliniWagnerL2(**fields).run(model, x, y)
    assert result.backwards.tolist() == [99] * 4  # less than a hundred: one look, with nothing to compare it to
    assert torch.equal(result.images, CarliniWagnerL2(**fields, abort_early=False)(model, x, y))


@few
@given(seed=seeds)
def test_l2_comes_near_the_nearest_of_three_boundaries(linear, seed):
    model, x, y = linear(seed, classes=3, margin=0.6)
    with torch.no_grad():
        logits = model(x)
        slopes = (model.weight[None] - model.weight[y][:, None]).norm(dim=2)
        known = ((logits.gather(1, y[:, None]) - logits) / slopes).scatter(1, y[:, None], math.inf).amin(1)
    result = CarliniWagnerL2(learning_rate=0.003, steps=200, c=0.01).run(model, x, y)
    assert bool(result.success.all())
    assert bool((result.norms["l2"] >= known - 1e-12).all())
    assert bool((result.norms["l2"] <= 1.02 * known + 1e-3).all()), (result.norms["l2"] / known).tolist()


def fewest(model, x, y):
    """How many pixels have to change at least: those whose best value gains most, one after the other."""
    with torch.no_grad():
        w = (model.weight[1] - model.weight[0]) * torch.where(y == 0, 1.0, -1.0)[:, None]
        gains = torch.maximum(w * (1 - x.flatten(1)), -w * x.flatten(1)).view(len(x), x.shape[1], -1).sum(1)
        need = -margins(model, x, y)
    return (gains.sort(1, descending=True).values.cumsum(1) < need[:, None]).sum(1) + 1


@few
@given(seed=seeds, share=st.sampled_from([0.0, 0.2, 0.5]))
def test_l0_finds_the_fewest_pixels(linear, seed, share):
    model, x, y = linear(seed, channels=2, height=6, width=5, margin=10)
    known = fewest(model, x, y)
    result = CarliniWagnerL0(share=share, learning_rate=0.05, steps=50).run(model, x, y)
    assert torch.equal(result.success, known <= 30)  # of 30 pixels
    assert bool((result.norms["l0"] >= known)[result.success].all())
    assert bool((result.norms["l0"] <= known + 1).all()), (result.norms["l0"], known)


def test_l0_gives_up_half_as_many_where_a_round_fails(linear):
    model, x, y = linear(0, channels=2, height=6, width=5, margin=10)
    known = fewest(model, x, y)
    assert int(known.min()) > 4  # so that nine of ten are too many sooner or later
    result = CarliniWagnerL0(share=0.9, learning_rate=0.05, steps=50).run(model, x, y)
    assert bool((result.norms["l0"] >= known).all())
    assert bool((result.norms["l0"] <= known + 1).all()), (result.norms["l0"], known)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", ["f6", "f2", "f7"])
def test_l0_of_every_kind_and_its_passes(name, targeted, smooth, pictures):
    x = pictures(4, 1, 6, 6, dtype=torch.float64, seed=2)
    x[0, 0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    y = predict(smooth, x)
    targets = (y + 1) % 4 if targeted else None
    attack = CarliniWagnerL0(learning_rate=0.05, steps=30, objective=name)
    result = attack.run(smooth, x, y, targets=targets)
    assert int(result.success.sum()) >= (2 if name == "f2" else 3)  # f2 is flat where the softmax is
    assert torch.equal(result.forwards, result.backwards)
    assert torch.equal(result.forwards, result.iterations)
    assert int(result.forwards.max()) <= attack.cost(smooth, x).forwards
    assert float(result.norms["l0"].max()) < 18  # of 36


def test_l0_has_rounds_of_its_own_and_a_margin(smooth, pictures):
    x = pictures(5, 1, 6, 6, dtype=torch.float64, seed=5)
    y = predict(smooth, x)
    y[2] = (y[2] + 1) % 4
    attack = CarliniWagnerL0(learning_rate=0.05, steps=20)
    together = attack.run(smooth, x, y)
    for i in range(5):
        alone = attack.run(smooth, x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(alone.images, together.images[i : i + 1], rtol=0, atol=1e-10)
        assert int(alone.forwards) == int(together.forwards[i])
    assert int(together.forwards[2]) == 1
    assert len(set(together.iterations.tolist())) > 1
    sure = CarliniWagnerL0(learning_rate=0.05, steps=20, confidence=1.0).run(smooth, x, y)
    rest = torch.tensor([0, 1, 3, 4])
    assert bool(sure.success[rest].all())
    assert bool((margins(smooth, sure.images, y)[rest] >= 1).all())
    assert float(sure.norms["l0"][rest].mean()) > float(together.norms["l0"][rest].mean())
    # one by one is no worse, and takes more passes
    single = CarliniWagnerL0(learning_rate=0.05, steps=20, share=0.0).run(smooth, x, y)
    assert float(single.forwards.double().mean()) > float(together.forwards.double().mean())
    assert bool((single.norms["l0"] <= together.norms["l0"] + 1).all())


def test_l0_stays_inside_a_region_and_fails_clean(smooth, pictures):
    x = pictures(4, 1, 6, 6, dtype=torch.float64)
    y = predict(smooth, x)
    corner = torch.zeros(6, 6)
    corner[0, 0] = 1
    failed = CarliniWagnerL0(steps=3).run(smooth, x, y, region=Mask(corner))
    assert not bool(failed.success.any())
    assert torch.equal(failed.images, x)
    assert failed.forwards.tolist() == [4] * 4
    half = (torch.arange(36).view(6, 6) % 2).double()
    inside = CarliniWagnerL0(learning_rate=0.05, steps=40).run(smooth, x, y, region=Mask(half))
    assert bool(inside.success.any())
    assert not bool(((inside.images != x)[:, 0] & (half == 0)).any())


def test_what_comes_back_from_failures(smooth, pictures):
    x = pictures(4, 1, 6, 6, dtype=torch.float64)
    y = predict(smooth, x)
    mask = torch.zeros(6, 6)
    mask[0, 0] = 1
    l2 = CarliniWagnerL2(steps=5, search_steps=2).run(smooth, x, y, region=Mask(mask))
    assert not bool(l2.success.any())
    assert torch.equal(l2.images, x)
    carlini = CarliniWagnerLinf(eps=0.001, variant="carlini", c=1e-4, steps=3).run(smooth, x, y)
    assert not bool(carlini.success.any())
    assert torch.equal(carlini.images, x)
    bounded = CarliniWagnerLinf(eps=0.001, steps=3).run(smooth, x, y)
    assert not bool(bounded.success.any())
    assert bool((bounded.norms["linf"] > 0).all())
    assert float(bounded.norms["linf"].max()) <= 0.001 + 1e-12
    # the last iterate is nearer to the goal than the image was
    assert bool((margins(smooth, bounded.images, y) > margins(smooth, x, y)).all())


@pytest.mark.parametrize("name", ["f1", "f2", "f3", "f4", "f5", "f6", "f7"])
@pytest.mark.parametrize("targeted", [False, True])
def test_every_objective_reaches_the_goal(name, targeted, linear):
    model, x, y = linear(2, classes=3, count=5)
    targets = (y + 1) % 3 if targeted else None
    attack = CarliniWagnerL2(c=5.0, learning_rate=0.03, steps=80, search_steps=0, objective=name)
    assert bool(attack.run(model, x, y, targets=targets).success.all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CarliniWagnerL2(c=0), "CarliniWagnerL2: c must be greater than 0"),
        (lambda: CarliniWagnerL2(learning_rate=-1), "CarliniWagnerL2: learning_rate must be"),
        (lambda: CarliniWagnerL2(steps=0), "CarliniWagnerL2: steps must be"),
        (lambda: CarliniWagnerL2(search_steps=-1), "CarliniWagnerL2: search_steps must be"),
        (lambda: CarliniWagnerL2(box="none"), "CarliniWagnerL2: box must be clip or tanh"),
        (lambda: CarliniWagnerL2(objective="ce"), "CarliniWagnerL2: objective must be one of f1 to f7"),
        (lambda: CarliniWagnerL2(confidence=-1), "CarliniWagnerL2: confidence must be"),
        (lambda: CarliniWagnerL2(confidence=1, objective="f7"), "CarliniWagnerL2: confidence must be"),
        (lambda: CarliniWagnerL2(confidence=math.nan), "CarliniWagnerL2: confidence must be"),
        (lambda: CarliniWagnerLinf(eps=8), "CarliniWagnerLinf: eps must be"),
        (lambda: CarliniWagnerLinf(c=math.inf), "CarliniWagnerLinf: c must be"),
        (lambda: CarliniWagnerLinf(variant="souri"), "CarliniWagnerLinf: variant must be bounded or carlini"),
        (lambda: CarliniWagnerLinf(steps=0), "CarliniWagnerLinf: steps must be"),
        (lambda: CarliniWagnerL0(share=1), "CarliniWagnerL0: share must be at least 0 and less than 1"),
        (lambda: CarliniWagnerL0(share=-0.1), "CarliniWagnerL0: share must be"),
        (lambda: CarliniWagnerL0(c=0), "CarliniWagnerL0: c must be"),
    ],
)
def test_bad_fields_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
