"""A figure reaches the run folder and every logger that takes images."""

import json
from pathlib import Path

import pytest
from lit_adv.callbacks import ConfusionMatrix, ReconstructionGrid, ResultsTable, log_figure
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def _figure() -> Figure:
    figure = Figure(figsize=(2, 1), dpi=50, facecolor="red")
    figure.add_subplot().set_axis_off()
    return figure


def test_png_in_the_run_folder(tmp_path: Path, trainer) -> None:
    path = log_figure(trainer(logger=CSVLogger(tmp_path)), "name", _figure())
    assert path == tmp_path / "figures" / "name.png"
    with Image.open(path) as picture:
        assert picture.size == (100, 50)
        assert picture.convert("RGB").getpixel((1, 1)) == (255, 0, 0)
    assert list(path.parent.iterdir()) == [path]


def test_tensorboard_gets_the_figures_of_a_test(tmp_path: Path, trainer, task, data) -> None:
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    trainer(ReconstructionGrid(), ConfusionMatrix(), logger=[logger, CSVLogger(tmp_path)]).test(task, data)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["figures/confusion", "figures/reconstruction"]


def test_wandb_offline_gets_figures_and_tables(tmp_path: Path, trainer, task, data, monkeypatch) -> None:
    for name, value in {"WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path), "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name))
    wandb = pytest.importorskip("wandb")
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    try:
        trainer(ReconstructionGrid(), ConfusionMatrix(), ResultsTable(), logger=logger).test(task, data)
        folder = Path(logger.experiment.dir)
        summary = dict(logger.experiment.summary)
    finally:
        wandb.finish()
    pictures = sorted(path.name.rsplit("_", 2)[0] for path in (folder / "media/images/figures").glob("*.png"))
    assert pictures == ["confusion", "reconstruction"]
    tables = {path.name.rsplit("_", 2)[0]: path for path in (folder / "media/table/results").glob("*.json")}
    assert sorted(tables) == ["crafting", "recognition", "reconstruction"]
    assert ["pgd", "", "", "accuracy", 0.5, 16] in json.loads(tables["recognition"].read_text())["data"]
    assert summary["trainer/global_step"] == 0
