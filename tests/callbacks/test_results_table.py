"""The results table says what the task found, on paper and on the terminal."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import ResultsTable
from lit_adv.callbacks.results_table import setting_name


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("inference_mode", [True, False])
def test_files_hold_every_number_in_full(tmp_path: Path, trainer, task, data, inference_mode) -> None:
    trainer(ResultsTable(), inference_mode=inference_mode).test(task, data)
    rows = {
        tuple(row[key] for key in ("section", "attack", "setting", "victim", "metric")): row for row in _rows(tmp_path)
    }

    def cell(*key: str) -> tuple[str, str]:
        return rows[key]["value"], rows[key]["count"]

    assert cell("recognition", "pgd", "", "", "accuracy") == ("0.5", "16")
    assert cell("recognition", "patch", "", "", "accuracy") == ("", "0")
    assert cell("recognition", "", "", "", "micro") == (repr(20 / 28), "28")
    assert cell("recognition", "", "", "", "macro") == (repr(5 / 6), "28")
    assert cell("recognition", "", "", "", "weighted") == ("0.6", "28")
    assert cell("reconstruction", "pgd", "", "resnet18", "accuracy_before") == ("0.125", "8")
    assert cell("reconstruction", "pgd", "", "resnet18", "accuracy_after") == (repr(2 / 3), "8")
    assert cell("crafting", "pgd", "4", "small_cnn", "success_before") == ("1.0", "4")
    assert cell("crafting", "pgd", "4", "small_cnn", "success_after") == ("0.75", "4")
    assert cell("crafting", "deepfool", "deepfool", "small_cnn", "unchanged") == ("0.5", "4")
    assert len(rows) == 4 + 3 + 2 * 3 * 2 + 6 * 3

    saved = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert saved["recognition"]["per_class"] == {"clean": 1.0, "pgd": 0.5, "deepfool": 1.0, "patch": None}
    assert saved["recognition"]["confusion"] == task.results["recognition"]["confusion"]
    assert saved["crafting"] == task.results["crafting"]


def test_terminal_of_80_columns(tmp_path: Path, trainer, task, data, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    trainer(ResultsTable()).test(task, data)
    out = capsys.readouterr().out
    table, end = out[out.index("Attack recognition") :], out.index("figures:") if "figures:" in out else None
    assert end is None  # nothing drew a figure
    lines = table.splitlines()
    assert all(len(line) <= 80 for line in lines if "results:" not in line)
    assert any(line.split() == ["│", "pgd", "│", "16", "│", "50.0", "%", "│"] for line in lines)
    assert any(line.split()[-3:] == ["83.3", "%", "│"] and "macro" in line for line in lines)
    assert any("12.5 →  66.7" in line and line.split()[1] == "pgd" for line in lines)
    assert any(
        line.split() == ["│", "pgd/4", "│", "8", "│", "100.0", "%", "│", "75.0", "%", "│", "0.0", "%", "│"]
        for line in lines
    )
    assert any(line.split()[:4] == ["│", "patch", "│", "–"] for line in lines)
    # last, after Lightning's own table, and in one piece
    assert out.index("Test metric") < out.index("Attack recognition")
    assert lines[-1] == f"results: {tmp_path / 'results.csv'}"


def test_answers_and_what_they_are_worth(tmp_path, trainer, task, data, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    fitted = {"temperature": 0.5726, "threshold": 0.961, "coverage": 0.95, "achieved": 0.951, "images": 864}
    scores = {"images": 28, "coverage": 0.75, "accuracy_answered": 0.875, "accuracy": 0.5, "calibration_error": 0.0625}
    _end_with(task, {"calibration": {**fitted, "test": scores}})
    trainer(ResultsTable()).test(task, data)
    found = {(row["section"], row["metric"]): (row["value"], row["count"]) for row in _rows(tmp_path)}
    assert found["calibration", "temperature"] == ("0.5726", "864")
    assert found["answers", "accuracy_answered"] == ("0.875", "28")
    assert len(found) == 8
    out = capsys.readouterr().out
    lines = out[out.index("Answers, where") :].splitlines()
    assert all(len(line) <= 80 for line in lines if "results:" not in line)
    assert any(
        line.split() == ["│", "answered,", "not", "unknown", "│", "95.1", "%", "│", "75.0", "%", "│"] for line in lines
    )
    assert any(line.split() == ["│", "right", "where", "answered", "│", "│", "87.5", "%", "│"] for line in lines)
    assert "asked 95.0 %; threshold 96.1 %, temperature 0.573" in out

    _end_with(task, {"calibration": {**dict.fromkeys(fitted), "test": scores}})
    trainer(ResultsTable()).test(task, data)
    assert "not calibrated: temperature 1, all is answered" in capsys.readouterr().out


def test_many_victims_are_split_over_tables(trainer, task, data, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    cell = {"before": 0.5, "after": 0.25, "images": 4}
    victims = [f"victim_{i}" for i in range(7)]
    _end_with(task, {"reconstruction": {victim: {"clean": cell, "carlini_wagner_linf": cell} for victim in victims}})
    trainer(ResultsTable()).test(task, data)
    out = capsys.readouterr().out
    assert out.count("Classifier accuracy") == 3
    assert all(victim in out for victim in victims)
    assert out.count("50.0 →  25.0") == 14
    assert all(len(line) <= 80 for line in out[out.index("Classifier accuracy") :].splitlines()[:-1])


def test_empty_sections_are_left_out(tmp_path: Path, trainer, task, data, capsys) -> None:
    _end_with(task, {"recognition": {}, "reconstruction": {}, "crafting": [], "stage": "test"})
    trainer(ResultsTable()).test(task, data)
    assert _rows(tmp_path) == []
    assert json.loads((tmp_path / "results.json").read_text())["stage"] == "test"
    assert "Classifier accuracy" not in capsys.readouterr().out


def test_tensors_and_no_weights(tmp_path: Path, trainer, task, data, capsys) -> None:
    recognition = {
        "micro": torch.tensor(0.25, dtype=torch.float64),
        "macro": torch.tensor(float("nan")),
        "weighted": None,
        "per_class": {"clean": torch.tensor(0.25)},
        "counts": {"clean": torch.tensor(4)},
        "confusion": torch.tensor([[4]]),
    }
    _end_with(task, {"recognition": recognition})
    trainer(ResultsTable()).test(task, data)
    assert json.loads((tmp_path / "results.json").read_text())["recognition"]["micro"] == 0.25
    out = capsys.readouterr().out
    assert "weighted" not in out
    assert "25.0 %" in out


def test_an_attack_without_images(tmp_path: Path, trainer, task, data, capsys) -> None:
    row = {"attack": "pgd", "setting": "pgd", "victim": "v", "images": 0}
    row |= dict.fromkeys(("success_before", "success_after", "unchanged"), 0)
    _end_with(task, {"crafting": [row]})
    trainer(ResultsTable()).test(task, data)
    assert [row["value"] for row in _rows(tmp_path)] == ["", "", ""]
    assert "│ pgd" in capsys.readouterr().out


def test_a_task_without_results_is_told_of(tmp_path: Path, trainer, task, data) -> None:
    _end_with(task, {})
    with pytest.warns(UserWarning, match="ResultsTable: no table, since Task has no results"):
        trainer(ResultsTable()).test(task, data)
    assert not (tmp_path / "results.csv").exists()


def test_fit_prints_nothing(trainer, task, data, capsys) -> None:
    trainer(ResultsTable()).fit(task, data)
    assert "recognition" not in capsys.readouterr().out


def test_setting_names() -> None:
    assert [setting_name("pgd", setting) for setting in ("", "pgd", "8", "pgd/8")] == ["pgd", "pgd", "pgd/8", "pgd/8"]


def _end_with(task: pl.LightningModule, results: dict[str, Any]) -> None:
    task.on_test_epoch_end = lambda: setattr(task, "results", results)
