"""Two and three processes give the numbers and files of one: every task, metric and callback, with uneven batches.

What is run is in `distributed_cases.py`, in one launch of all worlds; 11 and 13 images are divisible neither by the
processes nor by the batches.
"""

import csv
import inspect
import json
import math

import lit_adv.callbacks
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from safetensors.torch import load_file

import lit_adv.metrics
import lit_adv.tasks
from tests import distributed_cases as cases
from tests.ranks import launch

WORLDS = (1, 2, 3)
# of the main process's own clock, place or share of the images
INCIDENTAL = ("seconds", "folder", "train/loss")
# which are shown to be the same elsewhere
ELSEWHERE = {
    "Crafting": "trains nothing; it hands on what callbacks_on_redrl writes",
    "FitAttack": "fits in one process and says so; what it fits is evaluated as PerturbationGenerator's is",
    "ParsevalRetraction": "part of ParsevalTraining, whose weights are compared",
    **dict.fromkeys(
        ("TopPatches", "OcclusionMap", "FeatureSpace", "BoundaryGeometry", "DecisionRegions", "DominantLabels"),
        "two processes draw what one draws in callbacks/test_visualization.py",
    ),
    "ClassConnectedness": "as those",
    **dict.fromkeys(
        ("FilterGrid", "ActivationGrid", "GradientMaps", "ActivationMaximization"),
        "the main process draws it, of images that are collected as TopPatches' are, or of none",
    ),
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """The folders of one, two and three processes, in which all cases have been run."""
    return launch(cases.__file__, "everything", tmp_path_factory.mktemp("worlds"), WORLDS, timeout=240)


def public(package, base):
    names = (name for name in package.__all__ if inspect.isclass(getattr(package, name)))
    return {name for name in names if issubclass(getattr(package, name), base)}


def test_nothing_is_left_out():
    """Whoever adds a metric, callback or task adds it to `distributed_cases.py`, or says in ELSEWHERE why not."""
    made = [*cases.classifier_callbacks(), *cases.redrl_callbacks(), *cases.other_callbacks()]
    shown = {type(each).__name__ for each in made}
    unseen = public(lit_adv.callbacks, pl.Callback) - shown
    assert shown <= public(lit_adv.callbacks, pl.Callback)
    assert public(lit_adv.metrics, torchmetrics.Metric) == set(cases.metric_cases())
    trained = {base.__name__ for kind in cases.TRAINED for base in kind.__mro__}
    left_out = public(lit_adv.tasks, pl.LightningModule) - trained
    assert left_out == {"Crafting", "FitAttack"}
    assert set(ELSEWHERE) == left_out | unseen


@pytest.mark.slow
def test_metrics(worlds):
    one = json.loads((worlds[0] / "metrics0.json").read_text())
    for world, folder in zip(WORLDS[1:], worlds[1:], strict=True):
        for rank in range(world):
            same(one, json.loads((folder / f"metrics{rank}.json").read_text()), f"{world} processes, rank {rank}")


@pytest.mark.slow
def test_callbacks(worlds):
    """Every number in every file, and which files there are."""
    found = [written(folder) for folder in worlds]
    assert len(found[0]) > 100
    watched = {file.relative_to(worlds[0]) for file in (worlds[0] / "parseval-1").glob("*.csv")}
    assert len(watched) == 3
    found[1] |= {name for name in watched if (worlds[1] / name).is_file()}
    for folder, files in zip(worlds[1:], found[1:], strict=True):
        assert files == (found[0] | watched if folder.name == "2" else found[0])
        for name in files:
            one, other = worlds[0] / name, folder / name
            if name.suffix in (".csv", ".json"):
                same(content(one), content(other), name)
            elif name.suffix == ".safetensors":
                first, second = load_file(one), load_file(other)
                assert first.keys() == second.keys()
                for key, value in first.items():
                    torch.testing.assert_close(second[key], value, rtol=1e-9, atol=1e-12)
            elif "written" in name.parts or "identified" in name.parts:
                assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.slow
def test_crafting(worlds):
    """Draws equal bit for bit, images bit for bit in float64, successes in float32."""
    one = torch.load(worlds[0] / "crafted0.pt", weights_only=True)
    for world, folder in zip(WORLDS[1:], worlds[1:], strict=True):
        parts = [torch.load(folder / f"crafted{rank}.pt", weights_only=True) for rank in range(world)]
        for name, whole in one.items():
            for kind, value in whole.items():
                dealt = torch.empty_like(value)
                for rank, part in enumerate(parts):
                    dealt[rank::world] = part[name][kind]
                where = f"{name}: {kind} on {world} processes"
                # what a sign or a draw decides is equal bit for bit; a direction has the batch's own last bit
                continuous = value.is_floating_point() and ("DeepFool" in name or "l2" in name)
                torch.testing.assert_close(dealt, value, rtol=0, atol=1e-12 if continuous else 0, msg=where)


@pytest.mark.slow
def test_tasks(worlds):
    """Numbers before training, and weights and numbers after three steps of the same twelve images."""
    one = json.loads((worlds[0] / "tasks-1.json").read_text())
    assert set(one) > set(cases.ONE_BATCH_A_STEP)
    others = [(folder, 1) for folder in worlds[1:]] + [(worlds[0], 2)]
    for folder, share in others:
        found = json.loads((folder / f"tasks-{share}.json").read_text())
        assert found.keys() == one.keys() - set(cases.ONE_BATCH_A_STEP if share > 1 else ())
        for name, numbers in found.items():
            where = f"{name} in {folder.name}, {share} batches a step"
            same(one[name]["before"], numbers["before"], where)
            if folder.name == "3":
                continue
            same(one[name], numbers, where)
            if folder.name == "2":
                other = torch.load(folder / f"{name}-1" / "weights1.pt", weights_only=True)
                assert torch.equal(torch.load(folder / f"{name}-1" / "weights0.pt", weights_only=True), other), name
                # one bucket a step: crafting reduces nothing
                assert int((folder / f"{name}-1" / "reductions").read_text()) == numbers["steps"], name
            first = torch.load(worlds[0] / f"{name}-1" / "weights0.pt", weights_only=True)
            second = torch.load(folder / f"{name}-{share}" / "weights0.pt", weights_only=True)
            # REDRL's batches are float32, whose rounding Adam makes a part of a step of
            torch.testing.assert_close(second, first, rtol=0, atol=1e-6 if name == "redrl" else 1e-12, msg=name)


def written(folder):
    """What the callbacks wrote, by their place in the world's folder."""
    places = ("classifier", "paper", "redrl", "written", "identified")
    files = {file.relative_to(folder) for place in places for file in (folder / place).rglob("*") if file.is_file()}
    return {file for file in files if file.suffix != ".pt"}


def content(file):
    if file.suffix == ".json":
        return json.loads(file.read_text())
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def same(one, other, where):
    """Whether two trees of numbers are equal, but for the order in which sums of real numbers were rounded."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if not (isinstance(key, str) and key.endswith(INCIDENTAL)):
                same(one[key], other[key], f"{where}: {key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            same(mine, theirs, f"{where}: {number}")
    elif one != other:
        first, second = as_number(one), as_number(other)
        assert None not in (first, second), f"{where}: {one!r} and {other!r}"
        if not (math.isnan(first) and math.isnan(second)):
            assert math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9), f"{where}: {one!r} and {other!r}"


def as_number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def test_a_difference_is_found():
    """`same` finds a difference."""
    same({"a": [1, "0.25"], "seconds": 3}, {"a": [1, "0.2500000001"], "seconds": 4}, "")
    for other in ({"a": [1, "0.26"]}, {"a": [1]}, {"a": [2, "0.25"]}, {"a": [1, "x"]}):
        with pytest.raises(AssertionError):
            same({"a": [1, "0.25"]}, other, "")
