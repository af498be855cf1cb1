"""PGAP's tables: what is read off a curve, which budget comes next, and all of it with a tiny network."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from benchmarks.papers import perceptual, perceptual_figures, perceptual_tables, sweeps
from lit_adv.attacks import FGSM
from lit_adv.metrics import ssim

POINT = sweeps.Point(
    key="k",
    set="mnist",
    network="net",
    images=10,
    steps=5,
    stopped=True,
    attack="FGSM",
    budget=0.1,
    quantise="none",
    fooling_rate=0.5,
    ssim=0.9,
    psnr=30.0,
    identical=0,
    precision=math.nan,
    pixels=0.1,
    recall=0.1,
    iou_outside=0.1,
    scored=0,
    looked=0.2,
    forwards=1.0,
)


def line(*triples, **fields):
    """Points of budget, fooling rate and SSIM, the PSNR 100 times that."""
    return [replace(POINT, budget=b, fooling_rate=f, ssim=s, psnr=100 * s, **fields) for b, f, s in triples]


def test_rates_are_interpolated_between_the_neighbouring_budgets():
    points = line((0.1, 0.0, 0.99), (0.2, 0.4, 0.95), (0.4, 0.8, 0.75))
    # a quarter of the way from 0.95 to 0.75
    assert sweeps.rate_at(points, "ssim", 0.9).rate == pytest.approx(0.5)
    assert sweeps.rate_at(points, "psnr", 90.0).rate == pytest.approx(0.5)
    assert sweeps.rate_at(points, "ssim", 0.95).rate == pytest.approx(0.4)


def test_a_level_outside_the_sweep_is_not_read():
    points = line((0.1, 0.0, 0.99), (0.2, 0.4, 0.95))
    assert math.isnan(sweeps.rate_at(points, "ssim", 0.9).rate)
    assert math.isnan(sweeps.rate_at(points, "ssim", 0.995).rate)
    assert math.isnan(sweeps.rate_at([], "ssim", 0.9).rate)


def test_of_several_crossings_the_highest_rate_counts():
    points = line((0.1, 0.1, 0.8), (0.2, 0.3, 1.0), (0.4, 0.7, 0.8))
    assert sweeps.rate_at(points, "ssim", 0.9).rate == pytest.approx(0.5)


def test_a_reading_tells_how_many_images_round_to_the_clean_ones():
    points = [*line((0.1, 0.0, 0.99), identical=9), *line((0.2, 0.4, 0.9))]
    assert sweeps.rate_at(points, "ssim", 0.95).unchanged == 0.9


def test_the_smallest_fooling_budget():
    points = line((0.1, 0.2, 0.99), (0.2, 0.99, 0.95), (0.4, 1.0, 0.75))
    assert sweeps.smallest_fooling(points, 0.99).budget == 0.2
    assert sweeps.smallest_fooling(points[:1], 0.99).budget == 0.1
    # of equal rates the smaller budget
    assert sweeps.smallest_fooling(line((0.1, 0.9, 0.9), (0.2, 0.9, 0.8)), 0.99).budget == 0.1
    assert sweeps.budget_at(points, 0.2) == pytest.approx(0.1)
    assert sweeps.budget_at(points, 0.1) == pytest.approx(0.05)
    assert sweeps.budget_at(points, 0.595) == pytest.approx(0.15)
    assert math.isnan(sweeps.budget_at(points[:1], 0.5))


def swept(rate, similarity, most=12, start=0.1, largest=1.0):
    """A sweep with attacks given as functions of the budget."""
    points = []
    while (
        budget := sweeps.next_budget(points, start, largest, {"ssim": 0.9, "psnr": 80}, rate=0.99, most=most)
    ) is not None:
        assert budget <= largest
        points += line((budget, rate(budget), similarity(budget)))
        assert len(points) <= 2 * most
    return sorted(points, key=lambda p: p.budget)


def test_a_sweep_encloses_both_levels_and_the_fooling_rate():
    points = swept(lambda b: min(1, b / 0.5), lambda b: 1 - b)
    assert points[0].ssim >= 0.9
    assert points[0].fooling_rate <= 0.5
    assert points[-1].psnr < 80
    assert points[-1].fooling_rate >= 0.99
    assert sweeps.rate_at(points, "ssim", 0.9).rate == pytest.approx(0.2)
    # refined where the fooling rate is reached: 0.495
    reached = next(i for i, p in enumerate(points) if p.fooling_rate >= 0.99)
    assert points[reached].budget / points[reached - 1].budget <= 1.3


def test_a_sweep_refines_where_the_rate_jumps_at_a_level():
    coarse = swept(lambda b: float(b > 0.11), lambda b: 1 - b, most=3)
    fine = swept(lambda b: float(b > 0.11), lambda b: 1 - b, most=12)
    # the level is at 0.1, where nothing is fooled yet
    assert abs(sweeps.rate_at(fine, "ssim", 0.9).rate) < abs(sweeps.rate_at(coarse, "ssim", 0.9).rate) + 1e-9
    assert len(fine) > len(coarse)


def test_a_sweep_ends_at_the_largest_budget():
    points = swept(lambda b: 0.3, lambda b: 0.99, largest=0.5)
    assert points[-1].budget == 0.5
    assert len(points) < 12


def test_the_file_of_points(tmp_path):
    path = tmp_path / "points.csv"
    assert sweeps.read(path) == []
    sweeps.write(path, [POINT, replace(POINT, precision=0.25, stopped=False)])
    one, two = sweeps.read(path)
    assert math.isnan(one.precision)
    assert replace(one, precision=0.0) == replace(POINT, precision=0.0)
    assert two == replace(POINT, precision=0.25, stopped=False)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns"):
        sweeps.read(path)


@pytest.fixture
def setting():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 10 * 10, 3)).eval()
        images = (torch.rand(4, 1, 12, 12) * 255).round() / 255
    return perceptual.Setting.of("mnist", "tiny", model.requires_grad_(False), images, steps=3, batch=3)


def test_a_point_agrees_with_the_attack(setting):
    attack = FGSM(eps=0.1)
    plain, rounded = perceptual.measure("FGSM", 0.1, attack, setting)
    images = attack(setting.model, setting.images, setting.labels)
    assert plain.ssim == pytest.approx(float(ssim(setting.images, images).mean()), abs=1e-6)
    changed = setting.model(images).argmax(1) != setting.labels
    assert plain.fooling_rate == pytest.approx(float(changed.float().mean()))
    assert plain.psnr == pytest.approx(
        float((-10 * (images - setting.images).double().square().mean((1, 2, 3)).log10()).mean())
    )
    assert (plain.quantise, rounded.quantise) == ("none", "round")
    assert plain.ssim != rounded.ssim
    assert plain.forwards == 1.0


def test_rounding_leaves_nothing_of_a_third_of_a_grey_level(setting):
    plain, rounded = perceptual.measure("FGSM", 0.3 / 255, FGSM(eps=0.3 / 255), setting)
    assert plain.identical == 0
    assert (rounded.identical, rounded.ssim, rounded.psnr, rounded.fooling_rate) == (4, 1.0, 100.0, 0.0)
    assert math.isnan(rounded.precision)


@pytest.mark.parametrize("attack", perceptual.FAMILIES)
def test_a_sweep_goes_on_from_its_file(attack, setting, tmp_path, monkeypatch):
    path = tmp_path / "points.csv"
    first = list(perceptual.sweep(attack, setting, path, 2, 0.99))
    assert {point.quantise for point in first} == {"none", "round"}
    assert len(sweeps.read(path)) == len(first) == 2 * len({point.budget for point in first})

    def never(*arguments):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(perceptual, "measure", never)
        again = list(perceptual.sweep(attack, setting, path, 2, 0.99))
        assert [(p.budget, p.fooling_rate) for p in again] == [
            (pytest.approx(p.budget), pytest.approx(p.fooling_rate)) for p in first
        ]
        # other images are other settings
        other = replace(setting, images=setting.images.flip(-1))
        with pytest.raises(AssertionError, match="computed again"):
            list(perceptual.sweep(attack, other, path, 2, 0.99))
    text = path.read_text().splitlines()
    path.write_text("\n".join(text[:-1]) + "\n")
    list(perceptual.sweep(attack, setting, path, 2, 0.99))
    assert {p.quantise for p in sweeps.read(path)} == {"none", "round"}


def test_tables_and_figures(setting, tmp_path):
    path = tmp_path / "points.csv"
    points = [
        point for attack in perceptual.FAMILIES for point in perceptual.sweep(attack, setting, path, 2, rate=0.99)
    ]
    text = perceptual_tables.markdown(points, "mnist", 0.99)
    assert text.count("Table ") == 3
    rows = [row for row in text.splitlines() if row.startswith("| *paper*")]
    assert [row.split(" | ")[-1] for row in rows] == ["0.995 |", "0.995 |"]
    widths = {row.count("|") for row in text.splitlines() if row.startswith("|")}
    assert widths == {8, 10}
    subject = perceptual_figures.Subject(
        "mnist", setting.model, setting.images, setting.labels, setting.steps, setting.stop
    )
    units = {name: family.unit for name, family in perceptual.FAMILIES.items()}
    found = dict(perceptual_figures.draw(points, subject, units, ["PGD", "FPGAP"], perceptual.make, shown=2))
    assert list(found) == ["methods", "quality_none", "quality_round", "budgets", "budget_grid", "iterations"]


def test_the_grid_of_budgets_shows_both(monkeypatch):
    # hardly anything is gained by the mean
    weight = torch.randn(64, generator=torch.Generator().manual_seed(1))
    weight += 0.02 - weight.mean()

    class Linear(nn.Module):
        def forward(self, x):
            along = x.flatten(1) @ weight
            return torch.stack([100 + 0 * along, along], 1)

    drawn = []
    monkeypatch.setattr(perceptual_figures, "budget_grid_figure", lambda images, *_: drawn.append(images))
    x = (3 * torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1).clamp(0, 1)
    subject = perceptual_figures.Subject("mnist", Linear(), x, torch.zeros(1, dtype=torch.int64), 5, True)
    perceptual_figures.budget_grid(subject)
    (images,) = drawn
    means = images.mean((2, 3, 4))
    assert images.shape == (4, 4, 1, 8, 8)
    # brighter from row to row, farther from the image from column to column
    assert bool((means.diff(dim=0) > 0.005).all())
    assert bool(((images[0] - x).flatten(1).norm(dim=1).diff() > 0.01).all())


def test_a_level_that_is_not_reached_is_said_so():
    points = [
        *line((0.1, 0.2, 0.99), (0.2, 0.4, 0.95)),
        *line((0.1, 0.2, 0.99), (0.2, 0.4, 0.8), quantise="round", identical=8),
    ]
    text = perceptual_tables.markdown(points, "mnist", 0.99)
    assert "| without rounding | not reached |" in text
    assert "| rounded to 8 bits | 0.347 * |" in text


def test_the_smallest_budget_by_bisection():
    # class 1 as soon as the mean exceeds 0.6
    class Mean(nn.Module):
        def forward(self, x):
            mean = x.mean((1, 2, 3))
            return torch.stack([torch.zeros_like(mean), 20 * (mean - 0.6)], 1)

    image, label = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    points = line((0.01, 0, 1), (0.4, 1, 1))
    found, budget = perceptual_figures.smallest_budget(
        Mean(), image, label, lambda eps: FGSM(eps=eps), points, halvings=12
    )
    assert budget == pytest.approx(0.1, rel=0.01)
    assert budget > 0.1 - 1e-6
    assert float(found.mean()) == pytest.approx(0.5 + budget, rel=1e-5)
    clean, none = perceptual_figures.smallest_budget(Mean(), image, label, lambda eps: FGSM(eps=eps), points[:1])
    assert math.isnan(none)
    assert torch.equal(clean, image)


def test_tensorflows_padding_adds_a_row_behind():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mobilenet_v2(weights=None).eval()
    before = {name: module.padding for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    perceptual.pad_as_tensorflow(model)
    after = {name: module.padding for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert sum(before[name] != after[name] for name in before) == 5
    first = model.features[0][0]
    x = torch.rand(1, 3, 8, 8)
    expected = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (0, 1, 0, 1)), first.weight, stride=2)
    torch.testing.assert_close(first(x), expected)
    assert first(x).shape == (1, 32, 4, 4)


def test_images_of_a_folder_are_spread_over_it(tmp_path):
    from PIL import Image

    for i in range(6):
        Image.new("RGB", (224, 224), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    images = perceptual.load_images("imagenet", tmp_path, 3)
    assert images.shape == (3, 3, 224, 224)
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [0, 80, 160]
    with pytest.raises(ValueError, match="at least 7"):
        perceptual.load_images("imagenet", tmp_path, 7)
