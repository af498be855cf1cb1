"""Regions: the invariants of the method, each against counting by hand."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lit_adv.attacks import BIM, FGSM
from lit_adv.explain import (
    attack_only_counts,
    blob_of_masks,
    blob_of_representatives,
    four_regions,
    grad_cam,
    grad_cam_plus_plus,
    gradient_map,
    importance_map,
    mask_counts,
    perturbation_map,
    region_of_attack,
    region_of_importance,
    representative,
)
from lit_adv.models import classifier

DELTAS = [0.1, 0.3, 0.5, 0.7, 0.9]


def network(seed=0, channels=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return classifier("small_cnn", 3, 16, channels).eval()


def images(count=5, channels=3, seed=1):
    return torch.rand(count, channels, 16, 16, generator=torch.Generator().manual_seed(seed))


def masks(seed=0, count=10):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, count, 6, 7, generator=generator) > 0.5


@given(st.integers(0, 2**31))
def test_the_four_regions_part_the_image(seed) -> None:
    importance, attack = masks(seed)
    regions = four_regions(importance, attack)
    assert torch.equal(torch.stack(regions).sum(0), torch.ones(10, 6, 7, dtype=torch.long))
    assert (regions.both.sum() + regions.importance_only.sum()) == importance.sum()
    assert (regions.both.sum() + regions.attack_only.sum()) == attack.sum()
    for i, y, x in itertools.product(range(2), range(6), range(7)):
        name = {(1, 1): "both", (1, 0): "importance_only", (0, 1): "attack_only", (0, 0): "neither"}[
            int(importance[i, y, x]), int(attack[i, y, x])
        ]
        assert getattr(regions, name)[i, y, x]


@pytest.mark.parametrize(("cam", "function"), [("grad_cam", grad_cam), ("grad_cam_plus_plus", grad_cam_plus_plus)])
def test_roi_is_the_thresholded_activation_of_the_source_class(cam, function) -> None:
    model, x = network(2), images()
    classes = torch.full((5,), 1)
    assert (model(x).argmax(1) != classes).any()  # the source class, not the prediction
    expected = function(model, x, classes)
    assert torch.equal(importance_map(model, x, classes, cam=cam), expected)
    found = [region_of_importance(model, x, classes, delta, cam=cam) for delta in DELTAS]
    assert 0 < found[2].sum() < found[2].numel()
    for delta, mask in zip(DELTAS, found, strict=True):
        assert torch.equal(mask, expected >= delta)
    for larger, smaller in itertools.pairwise(found):
        assert not (smaller & ~larger).any()
    assert region_of_importance(model, x, classes, 0.0, cam=cam).all()
    assert not region_of_importance(model, x, classes, 1.0001, cam=cam).any()


def test_a_constant_activation_looks_at_nothing() -> None:
    model = network()
    nn.init.zeros_(model.network.linear.weight)
    assert not region_of_importance(model, images(), torch.zeros(5, dtype=torch.long), 0.01).any()


def test_perturbation_is_a_norm_over_channels() -> None:
    x = images()
    y = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    absolute, relative = perturbation_map(x, y, relative=False), perturbation_map(x, y)
    for i, r, c in ((0, 0, 0), (2, 7, 3), (4, 15, 15)):
        by_hand = sum((float(y[i, k, r, c]) - float(x[i, k, r, c])) ** 2 for k in range(3)) ** 0.5
        assert float(absolute[i, r, c]) == pytest.approx(by_hand, abs=1e-6)
        assert float(relative[i, r, c]) == pytest.approx(by_hand / float(absolute[i].max()), abs=1e-6)
    assert torch.equal(relative.flatten(1).amax(1), torch.ones(5))
    found = [region_of_attack(x, y, delta) for delta in DELTAS]
    for larger, smaller in itertools.pairwise(found):
        assert not (smaller & ~larger).any()
        assert smaller.sum() < larger.sum()
    assert torch.equal(region_of_attack(x, y, 0.05, relative=False), absolute >= 0.05)
    assert region_of_attack(x, y, 0.0).all()


@pytest.mark.parametrize("relative", [True, False])
def test_no_budget_leaves_the_region_of_attack_empty(relative) -> None:
    model, x = network(), images()
    same = FGSM(eps=0)(model, x, torch.zeros(5, dtype=torch.long))
    assert not region_of_attack(x, same, 0.01, relative=relative).any()


def test_a_sign_step_has_no_grades_and_its_gradient_has() -> None:
    model, x = network(), images() * 0.5 + 0.25  # far from the ends of the box
    labels = torch.tensor([0, 1, 2, 0, 1])
    step = perturbation_map(x, FGSM(eps=0.1)(model, x, labels))
    assert (step > 0.999).float().mean() > 0.95
    graded = gradient_map(model, x, labels)
    assert (graded > 0.999).float().mean() < 0.05
    assert 0.02 < (graded >= 0.5).float().mean() < 0.7
    several = perturbation_map(x, BIM(eps=0.1, step_size=0.02, steps=10)(model, x, labels))
    assert (several > 0.999).float().mean() < (step > 0.999).float().mean()


@pytest.mark.parametrize("targeted", [False, True])
def test_gradient_map_is_autograds(targeted) -> None:
    model, x, labels, targets = network(), images(), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1, 2, 0, 2, 0])
    leaf = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(leaf), targets if targeted else labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    expected = gradient.square().sum(1).sqrt()
    with torch.inference_mode():
        found = gradient_map(model, x, labels, targets=targets if targeted else None, relative=False)
    torch.testing.assert_close(found, expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_representatives() -> None:
    importance, _ = masks()
    found = representative(importance)
    assert found.min() >= 0
    assert found.max() <= 1
    assert float(found[2, 3]) == sum(bool(mask[2, 3]) for mask in importance) / 10
    assert torch.equal(found > 0, importance.any(0))
    same = importance[:1].expand(7, -1, -1)
    assert torch.equal(representative(same), importance[0].double())


def test_blobs() -> None:
    importance, attack = masks()
    lonely = ~importance & attack
    counted = torch.tensor([[sum(bool(m[y, x]) for m in lonely) for x in range(7)] for y in range(6)])
    sizes = []
    for tenths in range(12):
        # a share of exactly theta is in: 3 of 10 images at theta 0.3
        found = blob_of_masks(importance, attack, tenths / 10)
        assert torch.equal(found, counted >= tenths)
        sizes.append(int(found.sum()))
    assert sizes[0] == 42
    assert sizes[11] == 0
    assert sizes == sorted(sizes, reverse=True)
    assert torch.equal(blob_of_masks(torch.zeros_like(attack), attack, 0.5), representative(attack) >= 0.5)
    assert not blob_of_masks(torch.ones_like(attack), attack, 0.1).any()
    means = representative(importance), representative(attack)
    found = blob_of_representatives(*means, 0.5)
    assert torch.equal(found, (means[1] >= 0.5) & ~(means[0] >= 0.5))
    assert 0 < found.sum() < 42


def test_counts_of_all_thresholds_add_up_over_batches(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(3)
    # exactly at a threshold, in float32, too
    importance, attack = (torch.randint(0, 11, (2, 9, 6, 7), generator=generator).float() / 10).unbind()
    first, second = [0.0, 0.3, 0.7, 1.0], [0.2, 0.7, 1.1]
    found = attack_only_counts(importance, attack, first, second)
    for (i, one), (j, two) in itertools.product(enumerate(first), enumerate(second)):
        assert torch.equal(found[i, j], (~(importance >= one) & (attack >= two)).sum(0))
    parts = [attack_only_counts(importance[a:b], attack[a:b], first, second) for a, b in ((0, 4), (4, 4), (4, 9))]
    assert torch.equal(sum(parts), found)
    assert torch.equal(mask_counts(importance, first)[2], (importance >= 0.7).sum(0))


def test_bad_input_is_named() -> None:
    x, zeros = images(), torch.zeros(5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"importance_map: cam must be one of grad_cam, grad_cam_plus_plus, got 'cam'"):
        importance_map(network(), x, zeros, cam="cam")
    with pytest.raises(ValueError, match=r"perturbation_map: adversarial must be of the shape \(5, 3, 16, 16\)"):
        region_of_attack(x, x[:2])
    with pytest.raises(ValueError, match=r"gradient_map: labels must be in \[0, 3\), got"):
        gradient_map(network(), x, zeros + 3)
    with pytest.raises(ValueError, match=r"gradient_map: labels must be an int64 tensor of shape \(5,\)"):
        gradient_map(network(), x, zeros.int())
    with pytest.raises(ValueError, match=r"four_regions: attack must be a bool tensor, got torch.float32"):
        four_regions(masks()[0], masks()[1].float())
    with pytest.raises(ValueError, match=r"blob_of_masks: attack must have the shape of importance"):
        blob_of_masks(masks()[0], masks()[1][:3])
    with pytest.raises(ValueError, match=r"representative: masks must be bool of shape \(N, H, W\) with N at least 1"):
        representative(masks()[0][:0])
    with pytest.raises(ValueError, match=r"blob_of_representatives: attack must have the shape of importance"):
        blob_of_representatives(torch.rand(3, 3), torch.rand(3, 4))
    with pytest.raises(ValueError, match=r"blob_of_representatives: importance must be shares \(H, W\), .* torch.bool"):
        blob_of_representatives(masks()[0][0], masks()[1][0])


def test_a_threshold_that_is_no_number_is_refused() -> None:
    x, nan = images(), float("nan")
    roi, roa = masks()
    for name, call in {
        "region_of_importance: delta": lambda: region_of_importance(network(), x, torch.zeros(5).long(), nan),
        "region_of_attack: delta": lambda: region_of_attack(x, x, nan),
        "blob_of_masks: theta": lambda: blob_of_masks(roi, roa, nan),
        "blob_of_representatives: theta": lambda: blob_of_representatives(torch.rand(3, 3), torch.rand(3, 3), nan),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be a finite number, got nan"):
            call()


def test_a_model_that_does_not_look_has_no_gradient() -> None:
    class Blind(nn.Module):
        def forward(self, x):
            return x.new_zeros(len(x), 3)

    assert not gradient_map(Blind(), images(), torch.zeros(5).long()).any()
