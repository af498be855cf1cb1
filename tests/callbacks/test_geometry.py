"""Callbacks that measure and draw decision boundaries: files, numbers and refusals."""

import csv

import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import BoundaryGeometry, ClassConnectedness, DecisionRegions, DominantLabels
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_adv.attacks import FGSM, DeepFool, UniversalPerturbation
from lit_adv.explain import class_paths


class Task(pl.LightningModule):
    """Affine, and right about the images of `images`."""

    def __init__(self, channels=1):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = nn.Linear(16 * channels, 3)

    def forward(self, x):
        return self.linear(x.flatten(1) - 0.5)

    def test_step(self, batch, batch_idx):
        return None


def images(count=12, channels=1, task=None):
    x = 0.4 + 0.2 * torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return TensorDataset(x, (task or Task(channels))(x).argmax(1))


class Source(pl.LightningDataModule):
    classes = ("cat", "dog", "a very long name of a class")

    def __init__(self, channels=1):
        super().__init__()
        self.channels = channels

    def test_dataloader(self):
        return DataLoader(images(channels=self.channels), batch_size=5)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(folder):
    found = {}
    for row in rows(folder / "metrics.csv"):
        found |= {name: float(value) for name, value in row.items() if value and name.startswith("geometry/")}
    return found


def closed_form(task, x):
    weight, logits = task.linear.weight.detach(), task(x).detach()
    gaps = []
    for row in logits:
        own = int(row.argmax())
        gaps.append([float((row[own] - row[k]) / (weight[own] - weight[k]).norm()) for k in range(3) if k != own])
    return torch.tensor(gaps).amin(1)


def test_all_of_them(tmp_path, trainer):
    callbacks = [
        BoundaryGeometry(images=10, directions=2, iterations=2, batch_size=4),
        DecisionRegions(images=2, cells=11),
        DominantLabels(UniversalPerturbation(eps=0.3, passes=2), images=10, points=50),
        ClassConnectedness(images=12, shown=2, frames=3),
    ]
    task = Task().train()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    trainer(*callbacks, inference_mode=True, logger=logger).test(task, Source(), verbose=False)
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())
    names = {"boundary_geometry", "decision_regions", "dominant_labels", "class_paths"}
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == names
    for path in (tmp_path / "figures").iterdir():
        ink = torch.tensor(list(Image.open(path).convert("L").resize((200, 200)).tobytes())) < 250
        assert ink.float().mean() > 0.03
    x, y = images().tensors
    logged = numbers(tmp_path)

    stored = rows(tmp_path / "boundary_geometry.csv")
    assert [int(row["image"]) for row in stored] == [*range(10)]
    assert [int(row["prediction"]) for row in stored] == y[:10].tolist()
    wanted = closed_form(task, x[:10])
    assert [float(row["distance"]) for row in stored] == pytest.approx(wanted.tolist(), abs=1e-5)
    assert {row["converged"] for row in stored} == {"True"}
    assert all(abs(float(row["curvature_top"])) < 1e-6 for row in stored)
    assert logged["geometry/distance"] == pytest.approx(float(wanted.mean()), abs=1e-5)
    ratios = wanted / x[:10].flatten(1).norm(dim=1)
    assert logged["geometry/rho"] == pytest.approx(float(ratios.mean()), abs=1e-5)
    assert logged["geometry/cosine"] == pytest.approx(1, abs=1e-9)
    assert logged["geometry/converged"] == logged["geometry/found"] == 1
    assert abs(logged["geometry/curvature_top"]) < 1e-6
    assert logged["geometry/bend/adversarial"] < 1

    stored = rows(tmp_path / "dominant_labels.csv")
    assert [int(row["clean"]) for row in stored] == y[:10].bincount(minlength=3).tolist()
    assert sum(int(row["sphere"]) for row in stored) == 50
    fooled = sum(int(row["fooled"]) for row in stored)
    assert logged["geometry/universal_fooling"] == pytest.approx(fooled / 10)
    assert fooled > 0
    assert logged["geometry/dominant_share/sphere"] == max(int(row["sphere"]) for row in stored) / 50

    # regions of an affine classifier are convex
    assert logged["geometry/straight_paths"] == logged["geometry/connected"] == 1
    stored = rows(tmp_path / "class_paths.csv")
    assert len(stored) == int((y.bincount() // 2).sum())
    for row in stored:
        assert y[int(row["first"])] == y[int(row["second"])] == int(row["class"])


def test_what_has_no_boundary_is_empty(tmp_path, trainer):
    task = Task()
    nn.init.zeros_(task.linear.weight)
    callbacks = [BoundaryGeometry(images=3, directions=1, iterations=1)]
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    trainer(*callbacks, logger=logger).test(task, Source(), verbose=False)
    stored = rows(tmp_path / "boundary_geometry.csv")
    assert {(row["distance"], row["cosine"], row["rival"], row["converged"]) for row in stored} == {("", "", "", "")}
    assert numbers(tmp_path) == {"geometry/found": 0}
    assert not (tmp_path / "figures").exists()
    with pytest.raises(ValueError, match="DecisionRegions: attack must find a boundary point of at least one of 3"):
        trainer(DecisionRegions()).test(task, Source(), verbose=False)


def test_paths_that_bend_are_shown_beside_the_straight_ones(tmp_path, trainer, monkeypatch):
    from lit_adv.callbacks import class_connectedness

    class LShaped(Task):
        def forward(self, x):
            f = 5 * (0.3 - x.flatten(1)[:, :2].amin(1))
            return torch.stack([-f, f], 1)

    x = torch.full((4, 1, 4, 4), 0.5)
    x[:, 0, 0, :2] = torch.tensor([[0.1, 0.8], [0.8, 0.1], [0.1, 0.2], [0.1, 0.8]])
    data = DataLoader(TensorDataset(x, torch.ones(4, dtype=torch.int64)), batch_size=3)
    drawn = []
    draw = class_connectedness.panel_grid
    monkeypatch.setattr(class_connectedness, "panel_grid", lambda *args: drawn.append(args) or draw(*args))
    trainer(ClassConnectedness(frames=5)).test(LShaped(), data, verbose=False)
    grid, _, title = drawn[0]
    assert [name for name, _ in grid] == [
        "class 1: 0 to 1\nstraight",
        "class 1: 0 to 1\nbent, 1 corner",
        "class 1: 2 to 3\nstraight",
    ]
    assert title == "Paths inside a class, LShaped: 1 of 2 pairs joined by straight ones, 2 by any"
    assert [panel.caption for panel in grid[0][1]] == ["", "", "seen as class 0", "", ""]
    assert not any(panel.caption for panel in grid[1][1])
    stored = rows(tmp_path / "class_paths.csv")
    assert [row["straight"] for row in stored] == ["False", "True"]
    length = float(class_paths(LShaped(), x[:1], x[1:2], torch.ones(1).long()).lengths)
    assert float(stored[0]["length"]) == pytest.approx(length, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (BoundaryGeometry, {"attack": FGSM(eps=0.1)}, "BoundaryGeometry: attack must look for a small L2 perturbation"),
        (BoundaryGeometry, {"images": 0}, "BoundaryGeometry: images must be at least 1, got 0"),
        (BoundaryGeometry, {"reach": -1}, "BoundaryGeometry: reach must be above 0"),
        (BoundaryGeometry, {"precision": "x"}, "BoundaryGeometry: precision must be one of float64, model"),
        (BoundaryGeometry, {"batch_size": 0}, "BoundaryGeometry: batch_size must be at least 1"),
        (DecisionRegions, {"cells": 10}, "DecisionRegions: cells must be odd"),
        (DecisionRegions, {"zoom": 1}, "DecisionRegions: zoom must be above 1"),
        (DecisionRegions, {"attack": DeepFool(norm="linf")}, "DecisionRegions: attack must look for a small L2"),
        (DominantLabels, {"attack": FGSM(eps=0.1), "points": 0}, "DominantLabels: points must be at least 1, got 0"),
        (DominantLabels, {"attack": None}, "DominantLabels: attack must be one of lit_adv.attacks, got None"),
        (BoundaryGeometry, {"attack": "deepfool"}, "attack must look for a small L2 .* got 'deepfool'"),
        (ClassConnectedness, {"attack": "x"}, "ClassConnectedness: attack must be one of lit_adv.attacks, got 'x'"),
        (ClassConnectedness, {"images": 1}, "ClassConnectedness: images must be at least 2, got 1"),
        (ClassConnectedness, {"depth": -1}, "ClassConnectedness: depth must be at least 0"),
        (ClassConnectedness, {"frames": 1}, "ClassConnectedness: frames must be at least 2"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (
            DominantLabels(UniversalPerturbation(perturbation=torch.zeros(1, 8, 8))),
            r"UniversalPerturbation: perturbation must fit images of shape \(1, 4, 4\)",
        ),
        (ClassConnectedness(images=2), "ClassConnectedness: images must hold two of one class, got 2 of several"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_batch(callback, message, trainer, monkeypatch):
    monkeypatch.setattr(Task, "test_step", lambda *args: pytest.fail("tested"))
    data = DataLoader(TensorDataset(images().tensors[0], torch.arange(12) % 3), batch_size=5)
    with pytest.raises(ValueError, match=message):
        trainer(callback).test(Task(), data, verbose=False)


def test_images_of_any_number_of_channels_can_be_measured_but_not_shown(tmp_path, trainer):
    measured = [BoundaryGeometry(images=2, directions=1, iterations=1), DominantLabels(FGSM(eps=0.3), 3, 10)]
    trainer(*measured).test(Task(5), Source(5), verbose=False)
    assert (tmp_path / "boundary_geometry.csv").exists()
    with pytest.raises(ValueError, match="DecisionRegions: images must have 1 or 3 channels to be shown, got 5"):
        trainer(DecisionRegions()).test(Task(5), Source(5), verbose=False)


def test_no_pair_is_rightly_classified(trainer):
    x, y = images().tensors
    data = DataLoader(TensorDataset(x, (y + 1) % 3), batch_size=5)
    with pytest.raises(ValueError, match="ClassConnectedness: two of the 12 images must be of one class and rightly"):
        trainer(ClassConnectedness()).test(Task(), data, verbose=False)
