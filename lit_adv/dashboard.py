"""What belongs together in a run's report and in a Weights & Biases workspace."""

from __future__ import annotations

import re
from typing import NamedTuple


class Group(NamedTuple):
    """One part of a dashboard.

    Attributes:
        name: The heading.
        plots: By title, the regular expression that logged numbers of one plot match from their beginning.
        figures: Names of figures, or their beginnings.
        tables: Names of tables, or their beginnings; sections of ``results.csv`` among them.
    """

    name: str
    plots: dict[str, str]
    figures: tuple[str, ...]
    tables: tuple[str, ...] = ()


# in the order in which they are shown
GROUPS = (
    Group(
        "Training",
        {"training": "train/", "validation": r"val/(acc$|loss|robust|fooling)", "learning rate": "lr"},
        ("learning_curves", "singular_values"),
        ("learning_curves", "singular_values"),
    ),
    Group(
        "Recognition",
        {
            "attacks recognised": "(val|test)/recognition",
            "families": "(val|test)/(family|hierarchical|algorithm)",
            "victims": "(val|test)/victim",
            "budgets": "(val|test)/budget",
            "answers": "(val|test)/(coverage|accuracy_answered|calibration)",
        },
        ("confusion",),
        ("recognition", "family", "hierarchy", "victim", "budget", "calibration", "answers", "crafting", "identified"),
    ),
    Group(
        "Reconstruction",
        {"accuracy on the image": "(val|test)/accuracy_before", "after reconstruction": "(val|test)/accuracy_after"},
        ("reconstruction",),
        ("reconstruction",),
    ),
    Group(
        "Saliency",
        {"saliency profiles": "saliency", "SSIM precision": "ssim"},
        ("saliency_profile", "input_saliency", "ssim_precision", "ssim_maps"),
        ("saliency_profile", "ssim_precision"),
    ),
    Group(
        "Regions",
        {"neutralisation": "neutralization/", "transferability": "transfer/"},
        (
            "neutralization_examples",
            "neutralization_representatives",
            "neutralization_accuracy",
            "transferability",
            "transferability_techniques",
        ),
        ("neutralization", "transferability"),
    ),
    Group(
        "Features",
        {"nearest neighbours": "features/"},
        (
            "filters",
            "activations_",
            "top_patches",
            "occlusion",
            "gradient_maps",
            "activation_maximization",
            "feature_space",
            "feature_neighbors",
        ),
        ("top_patches", "feature_space"),
    ),
    Group(
        "Geometry",
        {
            "distance": "geometry/(attack_distance|distance|rho)",
            "angle": "geometry/(cosine|converged|found)",
            "curvature": "geometry/(curvature|bend)",
            "dominant labels": "geometry/(dominant|universal)",
            "connected classes": "geometry/(straight|connected)",
        },
        ("boundary_geometry", "decision_regions", "dominant_labels", "class_paths"),
        ("boundary_geometry", "dominant_labels", "class_paths"),
    ),
    Group(
        "Robustness",
        {
            "accuracy under attack": "robust/|test/(acc$|robust|fooling)",
            "gradient masking": "masking/",
            "accuracy under noise": "noise/",
        },
        ("robustness_report", "accuracy_under_noise"),
        ("robustness", "robustness_report", "accuracy_under_noise"),
    ),
)
OTHER = "Other"
ORDER = (*(group.name for group in GROUPS), OTHER)
# one of these, where a run has it, says at a glance how it went
HEADLINES = (
    "test/recognition",
    "test/family",
    "test/accuracy_answered",
    "test/acc",
    "test/robust_acc",
    "robust/worst_case",
    "val/recognition",
    "val/acc",
    "val/robust_acc",
)


def group_of_number(name: str) -> str:
    """The group of a logged number, ``Other`` where none fits."""
    return next((group.name for group in GROUPS if any(re.match(rule, name) for rule in group.plots.values())), OTHER)


def group_of_file(name: str) -> str:
    """The group of a figure or table by its name without ending, ``Other`` where none fits."""
    return next((group.name for group in GROUPS if name.startswith((*group.figures, *group.tables))), OTHER)
