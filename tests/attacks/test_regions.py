"""Regions: areas of the papers' masks, symmetry, exact counts, draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from lit_adv.attacks import Center, Frame, Mask, RandomPatch, RandomPixels
from lit_adv.attacks.regions import Region

quick = settings(max_examples=40)
sides = st.integers(1, 40)


def grey(height, width, count=1, channels=3):
    return torch.full((count, channels, height, width), 0.5)


@pytest.mark.parametrize(
    ("region", "pixels"),
    [
        (Center(90), 8100),
        (Center(120), 14400),
        (Center(150), 22500),
        (Center(90 / 224), 8100),
        (Center(120 / 224), 14400),
        (Center(150 / 224), 22500),
        (Frame(20), 8560),
        (Frame(34), 14076),
        (Frame(58), 22620),
        (Frame(20 / 224), 8560),
        (Frame(34 / 224), 14076),
        (Frame(58 / 224), 22620),
        (RandomPixels(0.17), round(0.17 * 50176)),
        (RandomPixels(0.28), round(0.28 * 50176)),
        (RandomPixels(0.45), round(0.45 * 50176)),
    ],
    ids=repr,
)
def test_areas_of_the_papers_masks(region, pixels):
    mask = region(grey(224, 224), seed=1)
    assert mask.shape == (1, 1, 224, 224)
    assert mask.sum() == pixels
    assert mask.unique().tolist() == [0, 1]
    if not isinstance(region, RandomPixels):
        for other in (mask.flip(2), mask.flip(3), mask.transpose(2, 3)):
            assert torch.equal(mask, other)


@quick
@given(height=sides, width=sides, size=st.integers(0, 40))
def test_centre_and_frame_of_the_rest_are_everything(height, width, size):
    if size > min(height, width):
        with pytest.raises(ValueError, match="Center: size must be at most the image's"):
            Center(size)(grey(height, width))
        return
    x = grey(height, width)
    centre = Center(size)(x)
    assert centre.sum() == size * size
    rows = centre[0, 0].any(1).nonzero().flatten().tolist()
    if rows:
        margins = rows[0], height - 1 - rows[-1]
        assert 0 <= margins[1] - margins[0] <= 1
    if height == width:
        assert torch.equal(centre + Frame(height - size)(x), torch.ones_like(centre))


@quick
@given(height=sides, width=sides, share=st.floats(0, 1))
def test_shares_leave_equal_margins(height, width, share):
    x = grey(height, width)
    for mask in (Center(share)(x), Frame(share)(x)):
        assert torch.equal(mask, mask.flip(2))
        assert torch.equal(mask, mask.flip(3))
    # the nearest length of the side's parity
    square = Center(share)(grey(height, height))
    assert abs(float(square.sum()) ** 0.5 - share * height) <= 1 + 1e-9
    assert torch.equal(square, square.transpose(2, 3))
    assert float(Center(1.0)(x).min()) == 1
    assert float(Frame(0.0)(x).max()) == 0


@quick
@given(height=sides, width=sides, fraction=st.floats(0, 1), seed=st.integers(0, 2**63))
def test_exact_random_pixels(height, width, fraction, seed):
    x = torch.rand(3, 1, height, width, generator=torch.Generator().manual_seed(0))
    mask = RandomPixels(fraction)(x, seed)
    assert mask.shape == (3, 1, height, width)
    assert mask.flatten(1).sum(1).tolist() == [round(fraction * height * width)] * 3
    assert torch.equal(mask, RandomPixels(fraction)(x, seed))
    assert float(RandomPixels(1.0)(x, seed).min()) == 1
    assert float(RandomPixels(0.0)(x, seed).max()) == 0
    assert torch.equal(mask[1:2], RandomPixels(fraction)(x[1:2], seed))


def test_random_pixels_are_uniform():
    x = grey(6, 5, count=3000)
    seeds = torch.arange(3000)
    for exact in (True, False):
        mask = RandomPixels(0.3, exact=exact)(x, seeds)
        hits = mask.sum(0).flatten()
        assert chisquare(hits.numpy()).pvalue > 0.01
        area = mask.flatten(1).sum(1)
        assert abs(float(area.mean()) - 9) < 4 * (30 * 0.21 / 3000) ** 0.5
        assert (area.unique().numel() == 1) == exact
    assert not torch.equal(RandomPixels(0.3)(x, seeds), RandomPixels(0.3)(x, seeds + 1))


@quick
@given(height=st.integers(4, 20), width=st.integers(4, 20), seed=st.integers(0, 1000))
def test_random_patch_is_a_rectangle(height, width, seed):
    mask = RandomPatch((2, 4))(grey(height, width, count=4), torch.arange(4) + seed)
    assert mask.flatten(1).sum(1).tolist() == [8] * 4
    assert mask.any(3).sum(2).flatten().tolist() == [2] * 4
    assert mask.any(2).sum(2).flatten().tolist() == [4] * 4


@pytest.mark.parametrize("exact", [True, False])
def test_one_set_of_pixels_for_all_images(exact):
    x = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    shared = RandomPixels(0.28, exact=exact, shared=3)
    mask = shared(x, seed=0)
    assert mask.shape == (1, 1, 12, 12)
    # neither the images nor the call's seed matter
    assert torch.equal(mask, shared(x[2:3] / 2, seed=torch.tensor([9])))
    assert torch.equal(mask, shared(x))
    assert not torch.equal(mask, RandomPixels(0.28, exact=exact, shared=4)(x))
    if exact:
        assert mask.sum() == round(0.28 * 144)
    areas = torch.stack([RandomPixels(0.28, exact=exact, shared=n)(x).mean() for n in range(200)])
    assert abs(float(areas.mean()) - 0.28) < 0.01
    assert shared.fingerprint() != RandomPixels(0.28, exact=exact).fingerprint()


@pytest.mark.parametrize(
    ("share", "side", "pixels"), [(20, 32, 32**2 - 30**2), (34, 32, 32**2 - 28**2), (58, 32, 32**2 - 24**2)]
)
def test_the_papers_frames_on_smaller_images(share, side, pixels):
    # 2.86, 4.86 and 8.29 pixels of both sides together, at the parity of the side
    assert Frame(share / 224)(grey(side, side)).sum() == pixels
    assert Center((224 - share) / 224)(grey(side, side)).sum() == side**2 - pixels


def test_random_patch_is_everywhere_equally_likely():
    mask = RandomPatch(3)(grey(5, 6, count=3000), torch.arange(3000))
    corner = mask.flatten(1).argmax(1)
    place, count = corner.unique(return_counts=True)
    assert place.tolist() == [6 * row + column for row in range(3) for column in range(4)]
    assert chisquare(count.numpy()).pvalue > 0.01


def test_seeds_of_regions():
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for region in (RandomPixels(0.5), RandomPatch(3)):
        assert torch.equal(region(x, 5), region(x, 5))
        assert torch.equal(region(x, 5).flip(0), region(x.flip(0), 5))
        assert not torch.equal(region(x, 5), region(x, 6))
        assert not torch.equal(region(x), region(x))
        assert region(x.double(), 5).dtype == torch.float64


def test_masks():
    plain = torch.eye(5)
    x = grey(5, 5, count=2)
    for given_mask in (plain, plain[None], plain[None, None], plain.bool(), plain.t(), plain.long()):
        assert torch.equal(Mask(given_mask)(x), plain[None, None])
    two = torch.stack([plain, 1 - plain])[:, None]
    assert torch.equal(Mask(two)(x), two)
    assert torch.equal(Mask(two.expand(2, 1, 5, 5).flip(0))(x), two.flip(0))
    for bad in (plain * 0.5, plain * 2, plain.log(), plain * float("nan")):
        with pytest.raises(ValueError, match="Mask: mask must hold zeros and ones only"):
            Mask(bad)
    for bad in (plain[0], plain.expand(3, 5, 5), plain.expand(2, 3, 5, 5)):
        with pytest.raises(ValueError, match="Mask: mask must be"):
            Mask(bad)
    for wrong in (grey(5, 4, count=2), grey(5, 5, count=3)):
        with pytest.raises(ValueError, match="Mask: mask must fit images of shape"):
            Mask(two)(wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Center(-1), "Center: size must be"),
        (lambda: Center(1.5), "Center: size must be"),
        (lambda: Center(float("nan")), "Center: size must be"),
        (lambda: Frame(-0.1), "Frame: thickness must be"),
        (lambda: Frame(9)(grey(8, 8)), "Frame: thickness must be at most the image's 8 pixels, got 9"),
        (lambda: RandomPixels(1.1), "RandomPixels: fraction must be"),
        (lambda: RandomPixels(float("nan")), "RandomPixels: fraction must be"),
        (lambda: RandomPatch((3, -1)), "RandomPatch: size must be"),
        (lambda: RandomPatch(9)(grey(8, 8)), "RandomPatch: size must be at most the image's 8 pixels, got 9"),
        (lambda: Center(1)(torch.zeros(3, 8, 8)), r"Center: images must be \(B, C, H, W\)"),
    ],
)
def test_bad_fields_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fingerprints_of_regions():
    regions: list[Region] = [
        Center(1),
        Center(1.0),
        Center(0.5),
        Frame(1),
        RandomPatch(1),
        RandomPatch((1, 2)),
        RandomPatch((2, 1)),
        RandomPixels(0.5),
        RandomPixels(0.5, exact=False),
        Mask(torch.zeros(4, 4)),
        Mask(torch.eye(4)),
        Mask(torch.zeros(4, 5)),
    ]
    assert len({region.fingerprint() for region in regions}) == len(regions)
    assert Center(3).fingerprint() == Center(3).fingerprint()
    assert Mask(torch.eye(4)).fingerprint() == Mask(torch.eye(4).t()).fingerprint()


@pytest.mark.parametrize("side", range(1, 12))
def test_shares_of_nothing_and_of_everything(side):
    images = torch.zeros(1, 3, side, side)
    assert Center(0.0)(images).sum() == Frame(0.0)(images).sum() == 0
    assert Center(1.0)(images).sum() == Frame(1.0)(images).sum() == side**2
    for percent in range(101):
        both = Center(percent / 100)(images) + Frame(1 - percent / 100)(images)
        assert torch.equal(both, torch.ones_like(both))
