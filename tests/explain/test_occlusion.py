"""Occlusion against a slow loop, captum and linear models."""

import pytest
import torch
from torch import nn

from lit_adv.explain import occlusion_map, spread_occlusion


def images(count=3, height=9, width=11):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, height, width, generator=generator, dtype=torch.float64)


def network(height=9, width=11):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(4 * height * width, 5)
    ).double()


@pytest.mark.parametrize(("size", "stride", "chunk"), [(3, 2, 7), (4, 3, 1), (9, 1, 100), (1, 4, 64)])
@pytest.mark.parametrize("fill", [0.25, "mean"])
@pytest.mark.parametrize("score", ["probability", "logit"])
def test_equals_a_loop(size, stride, chunk, fill, score):
    model, x, labels = network(), images(), torch.tensor([4, 0, 2])
    found = occlusion_map(model, x, labels, size=size, stride=stride, fill=fill, score=score, chunk_size=chunk)
    model.eval()

    def of(image, label):
        logits = model(image[None])[0]
        return float((logits.softmax(0) if score == "probability" else logits)[label].detach())

    assert found.shape == (3, (9 - size) // stride + 1, (11 - size) // stride + 1)
    for row, image in enumerate(x):
        for i in range(found.shape[1]):
            for j in range(found.shape[2]):
                covered = image.clone()
                top, left = i * stride, j * stride
                value = image.mean((1, 2))[:, None, None] if fill == "mean" else fill
                covered[:, top : top + size, left : left + size] = value
                drop = of(image, labels[row]) - of(covered, labels[row])
                assert float(found[row, i, j]) == pytest.approx(drop, abs=1e-12)


def test_captum_agrees_where_its_windows_are_ours():
    attr = pytest.importorskip("captum.attr")
    model, x, labels = network(8, 12).eval(), images(2, 8, 12), torch.tensor([1, 3])
    for size, stride in ((4, 4), (4, 2)):
        # whole squares, so that captum adds none at the edge
        found = occlusion_map(model, x, labels, size=size, stride=stride, fill=0.5, score="logit")
        expected = attr.Occlusion(model).attribute(
            x, (3, size, size), (3, stride, stride), baselines=0.5, target=labels
        )
        # captum counts in float32
        torch.testing.assert_close(spread_occlusion(found, size, stride, (8, 12)).float(), expected[:, 0].detach())


def test_a_linear_score_loses_what_the_square_holds():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 11, 5)).double()
    x, labels = images(), torch.tensor([0, 1, 2])
    found = occlusion_map(model, x, labels, size=3, stride=2, fill=0.5, score="logit")
    shares = model[1].weight.detach()[labels].view_as(x) * (x - 0.5)
    expected = nn.functional.avg_pool2d(shares.sum(1, keepdim=True), 3, 2)[:, 0] * 9
    torch.testing.assert_close(found, expected)
    one = occlusion_map(model, x[:, :, :, :9].repeat(1, 1, 1, 2)[..., :11], labels, size=9, fill=0.5, score="logit")
    assert one.shape == (3, 1, 3)


def test_nothing_is_lost_where_nothing_is_told_or_changed():
    class Constant(nn.Module):
        def forward(self, x):
            return x.new_tensor([1.0, 2.0]).expand(len(x), 2)

    assert not occlusion_map(Constant(), images(), size=2).any()
    plain = torch.full((2, 3, 9, 11), 0.3, dtype=torch.float64)
    assert not occlusion_map(network(), plain, size=4, fill=0.3).any()


def test_pixels_under_no_square_have_no_value():
    spread = spread_occlusion(torch.ones(1, 2, 2), 2, 3, (6, 6))
    assert spread[0, :2, :2].eq(1).all()
    assert spread[0, 2].isnan().all()
    assert spread[0, 5].isnan().all()
    assert spread.shape == (1, 6, 6)


def test_the_model_and_the_images_are_left_as_they_were():
    model, x = network().train(), images()
    before = x.clone()
    with torch.inference_mode():
        inside = occlusion_map(model, x, size=3, stride=3)
    assert torch.equal(inside, occlusion_map(model, x, size=3, stride=3))
    assert torch.equal(x, before)
    assert all(module.training for module in model.modules())
    # the class predicted is the one explained
    labels = model.eval()(x).argmax(1)
    assert torch.equal(inside, occlusion_map(model, x, labels, size=3, stride=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "occlusion_map: size must be at least 1, got 0"),
        ({"size": 10}, "size must be at most the images' smaller side 9, got 10"),
        ({"size": 2, "stride": 0}, "stride must be at least 1, got 0"),
        ({"size": 2, "fill": 2}, r"fill must be in \[0, 1\] or mean, got 2"),
        ({"size": 2, "fill": "blur"}, "fill must be in"),
        ({"size": 2, "score": "loss"}, "score must be one of probability, logit, got 'loss'"),
        ({"size": 2, "chunk_size": 0}, "chunk_size must be at least 1"),
        ({"size": 2, "classes": torch.tensor([0, 1, 5])}, r"classes must be in \[0, 5\)"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        occlusion_map(network(), images(), **arguments)
