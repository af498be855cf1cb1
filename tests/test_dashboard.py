"""Groups of dashboards: every figure, table and number that the callbacks make has its place."""

import re
from pathlib import Path

import pytest

from lit_adv.dashboard import GROUPS, ORDER, group_of_file, group_of_number

ROOT = Path(__file__).parent.parent
SOURCES = "\n".join(file.read_text() for file in ROOT.glob("callbacks/*.py"))
FIGURES = re.findall(r'log_figure\(\s*\w+,\s*f?"(\w+)', SOURCES)
# of results.csv
SECTIONS = re.findall(r'append\(\("(\w+)"', SOURCES)
FILES = [name for name in re.findall(r'"(\w+)\.csv"', SOURCES) if name not in ("metrics", "results")]


@pytest.mark.parametrize("name", sorted({*FIGURES, *FILES, *SECTIONS}))
def test_what_a_callback_writes_has_a_group(name):
    assert group_of_file(name) != "Other"


def test_there_was_something_to_look_for():
    assert {"confusion", "saliency_profile", "ssim_maps"} <= set(FIGURES)
    assert {"robustness", "neutralization"} <= set(FILES)
    assert {"hierarchy", "reconstruction", "crafting", "victim", "budget"} <= set(SECTIONS)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("train/loss", "Training"),
        ("val/acc", "Training"),
        ("val/recognition/pgd", "Recognition"),
        ("test/budget_mae", "Recognition"),
        ("test/accuracy_answered", "Recognition"),
        ("test/accuracy_after/resnet20/pgd", "Reconstruction"),
        ("saliency/pgd/last_third", "Saliency"),
        ("neutralization/9_to_4/pair/clean", "Regions"),
        ("transfer/Center", "Regions"),
        ("features/pgd/neighbors_of_true_class", "Features"),
        ("geometry/rho", "Geometry"),
        ("geometry/bend/random", "Geometry"),
        ("geometry/dominant_share/sphere", "Geometry"),
        ("geometry/connected", "Geometry"),
        ("robust/worst_case", "Robustness"),
        ("test/robust_acc", "Robustness"),
        ("mean_norm", "Other"),
    ],
)
def test_a_number_is_where_one_looks_for_it(name, group):
    assert group_of_number(name) == group


def test_every_group_is_shown():
    assert sorted(ORDER) == sorted([*(group.name for group in GROUPS), "Other"])
