"""The confusion matrix after a test."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
from lit_adv.callbacks import ConfusionMatrix, confusion_matrix


def test_draws_the_results_of_the_task(tmp_path: Path, trainer, task, data, monkeypatch) -> None:
    seen = []
    draw = confusion_matrix.confusion_figure
    monkeypatch.setattr(confusion_matrix, "confusion_figure", lambda *args: seen.append(args) or draw(*args))
    trainer(ConfusionMatrix()).test(task, data)
    assert (tmp_path / "figures" / "confusion.png").stat().st_size > 10_000
    ((confusion, classes, title),) = seen
    assert confusion == task.results["recognition"]["confusion"]
    assert classes == ["clean", "pgd", "deepfool", "patch"]
    assert title == "Attack recognition: macro 83.3 %, micro 71.4 %"


def test_a_task_without_results_is_told_of(tmp_path: Path, trainer, task, data) -> None:
    class Other(type(task)):
        on_test_epoch_end = pl.LightningModule.on_test_epoch_end

    with pytest.warns(UserWarning, match=r"ConfusionMatrix: no figure, since Other has no results\['recognition'\]"):
        trainer(ConfusionMatrix()).test(Other(), data)
    assert not (tmp_path / "figures").exists()
