"""Patches that excite a channel most, against a slow search over all images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_adv.explain import Patches, activations, receptive_field, top_patches
from lit_adv.explain.top_patches import _crops


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1))


def images(count=11, height=14, width=18):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def union_share(a, b):
    height = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = [(each[2] - each[0]) * (each[3] - each[1]) for each in (a, b)]
    return height * width / (sum(area) - height * width)


def slow(x, channel, k, per_image, max_overlap):
    model = network()
    maps, field = activations(model, x, "3")[:, channel], receptive_field(model, "3", x.shape[1:])
    found = []
    for number, each in enumerate(maps):
        places = sorted(((-float(value), *place) for place, value in zip_places(each)))
        kept = []
        for value, row, column in places:
            box = field.boxes(torch.tensor([[row, column]]))[0].tolist()
            cut = [min(max(edge, 0), side) for edge, side in zip(box, (*x.shape[2:], *x.shape[2:]), strict=True)]
            if len(kept) < per_image and all(union_share(cut, other) <= max_overlap for *_, other in kept):
                kept.append((value, number, row, column, cut))
        found += kept
    return sorted(found)[:k]


def zip_places(values):
    return [((i, j), values[i, j]) for i in range(values.shape[0]) for j in range(values.shape[1])]


@pytest.mark.parametrize(("k", "per_image", "max_overlap"), [(5, 1, 0.5), (9, 3, 0.5), (40, 4, 0.1), (6, 2, 0.0)])
def test_equals_a_slow_search(k, per_image, max_overlap):
    x = images()
    found = top_patches(
        network(), x.split(4), "3", [3, 1], k=k, per_image=per_image, max_overlap=max_overlap, fill=0.25
    )
    field = receptive_field(network(), "3", x.shape[1:])
    for place, channel in enumerate((3, 1)):
        expected = slow(x, channel, k, per_image, max_overlap)
        there = found.values[place] > -torch.inf
        assert int(there.sum()) == len(expected)
        for n, (value, number, row, column, _) in enumerate(expected):
            assert float(found.values[place, n]) == pytest.approx(-value, abs=1e-6)
            assert (int(found.images[place, n]), found.units[place, n].tolist()) == (number, [row, column])
            top, left, bottom, right = field.boxes(torch.tensor([[row, column]]))[0].tolist()
            assert found.boxes[place, n].tolist() == [top, left, bottom, right]
            padded = nn.functional.pad(x[number], (9, 9, 9, 9), value=0.25)
            assert torch.equal(found.patches[place, n], padded[:, top + 9 : bottom + 9, left + 9 : right + 9])


def test_values_fall_and_no_two_of_an_image_overlap_too_much():
    x = images(4)
    found = top_patches(network(), [(x, torch.zeros(4))], "3", k=40, per_image=8, max_overlap=0.2)
    assert found.patches.shape[3:] == (8, 8) == receptive_field(network(), "3", (3, 14, 18)).size
    for channel in range(5):
        values, rows = found.values[channel], found.images[channel]
        assert (values[:-1] >= values[1:]).all()
        for number in range(4):
            mine = (rows == number).nonzero()[:, 0].tolist()
            boxes = [found.boxes[channel, n].clamp(min=0).tolist() for n in mine]
            cut = [[box[0], box[1], min(box[2], 14), min(box[3], 18)] for box in boxes]
            assert all(union_share(a, b) <= 0.2 for i, a in enumerate(cut) for b in cut[:i])
    # fewer patches than places
    assert set(found.images[found.values == -torch.inf].tolist()) <= {-1}


def test_parts_that_are_put_together_are_the_whole():
    x = images()
    whole = top_patches(network(), [x], "3", k=6, per_image=2)
    for size in (1, 5):
        parts = top_patches(network(), x.split(size), "3", k=6, per_image=2)
        for field in ("values", "images", "units", "boxes", "patches"):
            torch.testing.assert_close(getattr(parts, field), getattr(whole, field))
    halves = [top_patches(network(), [x[a:b]], "3", k=6, per_image=2) for a, b in ((0, 6), (6, 11))]
    moved = Patches(*(halves[1].images + 6 if name == "images" else value for name, value in vars(halves[1]).items()))
    joined = Patches.merged([moved, halves[0]], 6)
    assert torch.equal(joined.images, whole.images)


def test_equal_values_come_in_the_order_of_the_images():
    x = images(1).repeat(6, 1, 1, 1)
    for batches in (x.split(2), [x]):
        assert top_patches(network(), batches, "3", [0], k=4).images.tolist() == [[0, 1, 2, 3]]


def test_a_field_larger_than_the_image_shows_the_whole_of_it():
    model = nn.Sequential(nn.Conv2d(3, 2, 21, padding=10))
    x = images(3)
    found = top_patches(model, [x], "0", k=3)
    assert torch.equal(found.patches[0], x[found.images[0]])


def test_bad_input_is_named():
    model, x = network(), images(2)
    for arguments, message in (
        ({"k": 0}, "top_patches: k must be at least 1, got 0"),
        ({"per_image": 0}, "per_image must be at least 1"),
        ({"max_overlap": 2}, r"max_overlap must be in \[0, 1\], got 2"),
        ({"fill": -1}, r"fill must be in \[0, 1\], got -1"),
        ({"channels": [5]}, r"channels must be in \[0, 5\) in 3, got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            top_patches(model, [x], "3", **arguments)
    with pytest.raises(ValueError, match="batches must hold at least one image"):
        top_patches(model, [], "3")


def test_crops_are_cut_out_of_a_padded_image():
    x = images(2, 5, 7)
    boxes = torch.tensor([[-2, 3], [3, 5], [1, 1], [9, -8]])
    boxes = torch.cat([boxes, boxes + torch.tensor([4, 6])], 1)
    rows = torch.tensor([0, 1, 1, 0])
    padded = F.pad(x, (20, 20, 20, 20), value=0.25)
    found = _crops(x, rows, boxes, 0.25)
    for row, (top, left, bottom, right), crop in zip(rows, boxes + 20, found, strict=True):
        assert torch.equal(crop, padded[row, :, top:bottom, left:right])
