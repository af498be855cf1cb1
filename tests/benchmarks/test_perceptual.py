"""The perceptual benchmark's figures, on vectors and images too small to say anything of speed."""

import csv

import pytest
import torch

from benchmarks import perceptual


def test_figures_against_cvxpy():
    pytest.importorskip("cvxpy")
    figures = list(perceptual.against_cvxpy(size=48, vectors=4, solved=2, rounds=1))
    assert len(figures) == 24
    assert all(figure.value >= 0 for figure in figures)
    differences = [figure for figure in figures if "difference" in figure.name]
    assert len(differences) == 4
    assert all(figure.kept and figure.value <= 1e-5 for figure in differences)


def test_cost_of_a_step_and_the_table(tmp_path, capsys):
    figures = list(perceptual.step_cost(images=1, steps=1, rounds=1, device=torch.device("cpu")))
    assert [figure.unit for figure in figures] == ["ms", "%", "%", "%"]
    assert figures[1].kept == (figures[1].value <= 5)
    perceptual.show(figures)
    assert "ResNet-18" in capsys.readouterr().out
    perceptual.write(figures, tmp_path / "perceptual_speed.csv")
    with (tmp_path / "perceptual_speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["figure"] for row in rows] == [figure.name for figure in figures]
    assert rows[0]["kept"] == ""


def test_forty_thresholds_beside_one() -> None:
    figures = list(perceptual.sweep_cost(images=2, rounds=1, device=torch.device("cpu")))
    assert [figure.wanted for figure in figures] == ["", "", "at most 2"] * 2
    for one, forty, ratio in (figures[:3], figures[3:]):
        assert ratio.value == forty.value / one.value
