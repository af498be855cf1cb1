"""The grid shows the right images in the right places."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lit_adv.callbacks import ReconstructionGrid, reconstruction_grid
from PIL import Image


@pytest.fixture
def drawn(monkeypatch):
    """Arguments of every grid that is drawn, which is drawn all the same."""
    seen = []
    draw = reconstruction_grid.example_grid
    monkeypatch.setattr(reconstruction_grid, "example_grid", lambda *args: seen.append(args) or draw(*args))
    return seen


@pytest.mark.parametrize("inference_mode", [True, False])
def test_first_images_of_each_class(tmp_path: Path, trainer, task, data, drawn, inference_mode) -> None:
    trainer(ReconstructionGrid(images=3), inference_mode=inference_mode).test(task, data)
    ((rows, columns, title),) = drawn
    assert list(rows) == ["clean", "pgd", "deepfool"]
    assert columns == ["clean", "adversarial", "reconstructed", "residual × 8"]
    assert title == "Task: test images"
    assert [example.caption for example in rows["clean"]] == ["clean  →  clean  ✓"] * 3
    assert [example.caption for example in rows["pgd"]] == [
        "pgd/4 on small_cnn  →  pgd  ✓",
        "pgd/4 on small_cnn  →  deepfool  ✗",
        "pgd/4 on small_cnn  →  pgd  ✓",
    ]
    assert rows["deepfool"][0].caption == "deepfool on small_cnn  →  deepfool  ✓"
    assert [example.correct for example in rows["pgd"]] == [True, False, True]

    clean, adversarial, *_ = data.rows[8]  # image 1, pgd/4, first victim
    panels = rows["pgd"][1].panels
    np.testing.assert_array_equal(panels[0], clean)
    np.testing.assert_array_equal(panels[1], adversarial)
    reconstructed = adversarial - 0.9 * (adversarial - clean)
    np.testing.assert_allclose(panels[2], reconstructed, atol=1e-6)
    np.testing.assert_allclose(panels[3], (0.5 + 8 * (adversarial - reconstructed)).clamp(0, 1), atol=1e-5)
    assert (rows["clean"][0].panels[3] == 0.5).all()
    with Image.open(tmp_path / "figures" / "reconstruction.png") as picture:
        assert min(picture.size) > 800


def test_baselines_show_the_perturbation(trainer, task, data, drawn) -> None:
    task.reconstructs = False
    trainer(ReconstructionGrid(images=1, scale=4)).test(task, data)
    ((rows, columns, _),) = drawn
    assert columns == ["clean", "adversarial", "perturbation × 4"]
    clean, adversarial, *_ = data.rows[1]
    expected = (0.5 + 4 * (adversarial - clean)).clamp(0, 1)
    np.testing.assert_allclose(rows["pgd"][0].panels[2], expected, atol=1e-6)


def test_validation_epochs(tmp_path: Path, trainer, task, data, drawn) -> None:
    trainer(ReconstructionGrid(images=1, every_n_epochs=2), max_epochs=5, num_sanity_val_steps=1).fit(task, data)
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["reconstruction_epoch_001.png", "reconstruction_epoch_003.png"]
    assert [len(rows["pgd"]) for rows, *_ in drawn] == [1, 1]


def test_no_validation_figure_unless_asked(tmp_path: Path, trainer, task, data) -> None:
    trainer(ReconstructionGrid()).fit(task, data)
    assert not (tmp_path / "figures").exists()


def test_names_of_the_results_without_a_data_module(trainer, task, data, drawn) -> None:
    trainer(ReconstructionGrid(images=1)).test(task, data.loader())
    ((rows, *_),) = drawn
    assert [rows[name][0].caption for name in rows] == [
        "clean  →  clean  ✓",
        "pgd on small_cnn  →  pgd  ✓",
        "deepfool on small_cnn  →  deepfool  ✓",
    ]


def test_reduced_precision(trainer, task, data, drawn) -> None:
    step = task.evaluation_step
    task.test_step = lambda batch, batch_idx: {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value
        for name, value in step(batch, batch_idx).items()
    }
    trainer(ReconstructionGrid(images=1)).test(task, data)
    assert drawn[0][0]["pgd"][0].panels[2].dtype == np.float32


def test_what_it_cannot_show_is_refused(trainer, task, data) -> None:
    task.test_step = lambda batch, batch_idx: {"prediction": batch.attack}
    with pytest.raises(TypeError, match="the step must return a dict with reconstructed, residual, got dict"):
        trainer(ReconstructionGrid()).test(task, data)
    task.test_step = lambda batch, batch_idx: None
    plain = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(2, 1, 8, 8), torch.zeros(2).long()))
    with pytest.raises(TypeError, match="batch must be an AdversarialBatch, got list"):
        trainer(ReconstructionGrid()).test(task, plain)


@pytest.mark.parametrize("arguments", [{"images": 0}, {"scale": 0.0}, {"every_n_epochs": -1}])
def test_bad_arguments_are_named(arguments) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"ReconstructionGrid: {name} must be >.*got {value}"):
        ReconstructionGrid(**arguments)
