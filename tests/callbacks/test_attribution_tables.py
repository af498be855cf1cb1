"""Family, victim and budget in the results, as rows and on a terminal of 80 columns."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import ConfusionMatrix, ResultsTable
from lit_adv.callbacks.attribution_tables import attribution_rows, attribution_tables
from rich.console import Console

from lit_adv.attacks import PGD, BoundedPatch
from lit_adv.data import AdversarialDataModule, Arrays
from lit_adv.models import Classifier
from lit_adv.tasks import REDRL

FAMILIES = {"clean": "clean", "pgd": "iterative", "bim": "iterative", "deepfool": "minimal_norm"}
RESULTS = {
    "hierarchy": {
        "precision": 0.75,
        "recall": 0.5,
        "f1": 0.6,
        "family": 0.7,
        "family_micro": 0.65,
        "algorithm": 0.9,
        "families": FAMILIES,
        "per_family": {"clean": 1.0, "iterative": 0.5, "minimal_norm": None},
        "per_family_algorithm": {"clean": 1.0, "iterative": 0.9, "minimal_norm": None},
        "counts": {"clean": 4, "iterative": 1200, "minimal_norm": 0},
    },
    "recognition_by_victim": {
        name: {
            "micro": share,
            "macro": share / 2,
            "per_class": {"pgd": share, "bim": None},
            "counts": {"pgd": 8, "bim": 0},
        }
        for name, share in (("seen", 0.8), ("unseen", 0.4))
    },
    "victim": {
        "accuracy": 0.75,
        "macro": 0.5,
        "per_attack": {"pgd": 0.75, "bim": None},
        "counts": {"pgd": 8, "bim": 0},
        "taken_for": {"a": {"a": 3, "b": 1}, "b": {"a": 1, "b": 3}, "c": {"a": 4, "b": 0}, "d": {"a": 0, "b": 0}},
    },
    "budget": {
        "mae": 3.25,
        "within": 0.8,
        "within_all": 0.4,
        "factor": 1.5,
        "per_attack": {"pgd": 3.25},
        "per_attack_within": {"pgd": 0.8},
        "recognised": {"pgd": 5},
        "counts": {"pgd": 10},
    },
}


def shown(results: dict) -> str:
    console = Console(file=io.StringIO(), width=80)
    for table in attribution_tables(results):
        console.print(table)
    return console.file.getvalue()


def test_every_number_is_a_row() -> None:
    rows = {row[:5]: row[5:] for row in attribution_rows(RESULTS)}
    assert rows["hierarchy", "iterative", "", "", "family"] == (0.5, 1200)
    assert rows["hierarchy", "minimal_norm", "", "", "algorithm_in_family"] == (None, 0)
    assert rows["hierarchy", "", "", "", "f1"] == (0.6, 1204)
    assert rows["recognition_by_victim", "pgd", "", "unseen", "accuracy"] == (0.4, 8)
    assert rows["recognition_by_victim", "", "", "seen", "macro"] == (0.4, 8)
    assert rows["victim", "", "", "", "accuracy"] == (0.75, 8)
    assert rows["victim", "", "", "c", "taken_for_a"] == (1.0, 4)
    assert rows["victim", "", "", "d", "taken_for_b"] == (None, 0)
    assert rows["budget", "pgd", "", "", "mae_grey_levels"] == (3.25, 5)
    assert rows["budget", "", "", "", "within_all"] == (0.4, 10)
    assert len(rows) == len(attribution_rows(RESULTS)) == (3 * 2 + 6) + 2 * 4 + (2 + 2 + 8) + (2 + 3)


def test_tables_fit_80_columns_and_say_what_was_held_out() -> None:
    out = shown(RESULTS)
    assert all(len(line) <= 80 for line in out.splitlines())
    cells = [line.split() for line in out.splitlines()]
    assert ["│", "iterative", "│", "2", "│", "1,200", "│", "50.0", "%", "│", "90.0", "%", "│"] in cells
    assert ["│", "clean", "│", "1", "│", "4", "│", "100.0", "%", "│", "–", "│"] in cells  # nothing to tell apart in it
    assert ["│", "pgd", "│", "80.0", "%", "│", "40.0", "%", "│"] in cells
    assert ["│", "c", "(held", "out)", "│", "4", "│", "100.0", "%", "│", "0.0", "%", "│"] in cells
    assert ["│", "pgd", "│", "10", "│", "5", "│", "3.2", "│", "80.0", "%", "│"] in cells
    assert "hierarchical precision 75.0 %, recall 50.0 %, f1 60.0 %" in out


def test_families_of_one_attack_each_are_not_shown() -> None:
    each = {name: name for name in ("clean", "pgd")}
    hierarchy = {**RESULTS["hierarchy"], "families": each, "per_family": {"clean": 1.0, "pgd": 0.5}}
    assert shown({"hierarchy": hierarchy}) == ""
    assert shown({}) == ""
    assert attribution_rows({}) == []


def test_an_attack_more_is_a_class_everywhere(tmp_path: Path) -> None:
    """From one more entry in the attacks: network, checkpoint, file, table and figure know it."""
    draws = np.random.default_rng(0)
    arrays = {f"x_{split}": draws.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez(tmp_path / "images.npz", **arrays, y_train=np.arange(6) % 3, y_test=np.arange(6) % 3)
    attacks = {f"pgd_{eps}": PGD(eps=eps / 255, steps=1) for eps in range(1, 13)}
    for more in ({}, {"mine": BoundedPatch(size=3, steps=1)}):
        attacks |= more
        victim = Classifier("small_cnn", 3, 8)
        source = Arrays(path=tmp_path / "images.npz", validation=3)
        module = REDRL(width=4, blocks=1, recognizer="small", weight_features=0)
        folder = tmp_path / str(len(attacks))
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = pl.Trainer(default_root_dir=folder, callbacks=[ResultsTable(), ConfusionMatrix()], **quiet)
        trainer.test(module, AdversarialDataModule(source, {"v": victim}, attacks), verbose=False)
        trainer.save_checkpoint(folder / "a.ckpt")
        classes = ["clean", *attacks]
        assert module.psi.head[-1].out_features == len(classes)
        assert torch.load(folder / "a.ckpt", weights_only=True)["attack_classes"] == classes
        results = json.loads((folder / "results.json").read_text())
        assert results["classes"] == list(results["hierarchy"]["families"]) == classes
        assert np.array(results["recognition"]["confusion"]).shape == (len(classes), len(classes))
        with (folder / "results.csv").open(newline="") as file:
            named = {row["attack"] for row in csv.DictReader(file) if row["section"] == "recognition"}
        assert named == {*classes, ""}
        assert (folder / "figures" / "confusion.png").stat().st_size > 10_000
    assert results["hierarchy"]["families"]["mine"] == "patch"
