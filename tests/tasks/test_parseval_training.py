"""Parseval training: weights stay on their constraints, after steps and only after steps; resuming; ranks."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lit_adv.data import Arrays
from lit_adv.models import Classifier, ConvexSum, ParsevalLinear, fingerprint, load_classifier
from lit_adv.models.parseval_retraction import parseval_retraction_
from lit_adv.tasks import ParsevalRetraction, ParsevalTraining, VictimClassifier

NAME = "parseval_wrn10_1"


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    import numpy as np

    path, draws = tmp_path_factory.mktemp("arrays") / "images.npz", np.random.default_rng(0)
    images = {"x_train": draws.integers(0, 256, (36, 8, 8, 1)), "x_test": draws.integers(0, 256, (8, 8, 8, 1))}
    labels = {"y_train": np.arange(36) % 3, "y_test": np.arange(8) % 3}
    np.savez(path, **{k: v.astype(np.uint8) for k, v in images.items()}, **labels)
    return path


def fitted(folder, arrays, epochs=2, task=None, ckpt=None, callbacks=(), batch_size=8, **arguments):
    pl.seed_everything(0, verbose=False)
    trained_with = {key: arguments.pop(key) for key in ("accumulate_grad_batches",) if key in arguments}
    task = task or ParsevalTraining(
        **{"name": NAME, "learning_rate": 0.05, "beta": 0.1, "milestones": (3,), **arguments}
    )
    run = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **trained_with,
    )
    data = Arrays(path=arrays, validation=4, batch_size=batch_size)
    run.fit(task, datamodule=data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return task, run


def frames(task):
    return [m.weight for m in task.modules() if isinstance(m, nn.Conv2d | ParsevalLinear)]


def deviation(task):
    return max(float((torch.linalg.svdvals(w.detach().flatten(1)) - 1).abs().max()) for w in frames(task))


def test_weights_stay_near_tight_frames_and_sums_convex(tmp_path, arrays):
    task, _ = fitted(tmp_path, arrays, name="parseval_wrn10_1_bn", beta=0.3, epochs=3)
    assert deviation(task) < 0.05
    plain, _ = fitted(tmp_path, arrays, name="parseval_wrn10_1_bn", beta=1e-6, epochs=3)
    # the training itself takes them away
    assert deviation(plain) > 2 * deviation(task)
    sums = [m.coefficients.detach() for m in task.modules() if isinstance(m, ConvexSum)]
    assert all((s >= 0).all() and s.sum().item() == pytest.approx(1, abs=1e-6) for s in sums)
    assert any(s[0] != 0.5 for s in sums)


def test_rows_stay_in_the_l1_ball(tmp_path, arrays):
    task, _ = fitted(tmp_path, arrays, name="parseval_inf_wrn10_1_bn")
    sums = torch.cat([w.detach().flatten(1).abs().sum(1) for w in frames(task)])
    assert sums.max() <= 1 + 1e-5
    assert sums.min() < 1 - 1e-4


def test_one_step_by_hand(tmp_path, arrays):
    """SGD on the loss, then the retraction of what it made; no decay where there is a constraint."""
    settings = {"batch_size": 32, "epochs": 1, "momentum": 0.0, "weight_decay": 0.1}
    task, _ = fitted(tmp_path, arrays, **settings)
    pl.seed_everything(0, verbose=False)
    other = ParsevalTraining(NAME, 3, 8, 1)
    data = Arrays(path=arrays, validation=4, batch_size=32)
    data.setup("fit")
    other.configure_model()
    images, labels = next(iter(data.train_dataloader()))
    assert len(images) == 32
    loss = nn.functional.cross_entropy(other.model(images), labels)
    names = dict(other.model.named_parameters())
    gradients = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
    trained = dict(task.model.named_parameters())
    for key, weight in names.items():
        free = key.endswith(("scale", "bias"))
        expected = (weight - 0.05 * (gradients[key] + (0.1 * weight if free else 0))).detach()
        if key.endswith("coefficients"):
            # two on the line: the projection is the same as moving both by the mean excess
            expected = expected - (expected.sum() - 1) / 2
        elif not free:
            parseval_retraction_([expected], 0.1)
        assert torch.allclose(trained[key], expected, atol=1e-5), key


def test_constrained_weights_may_have_a_decay():
    task = ParsevalTraining(NAME, 3, 8, 1, weight_decay=0.1, constrained_weight_decay=0.01)
    task.configure_model()
    groups = task.configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.01, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(task.model.parameters()))
    assert len(groups[1]["params"]) == len(frames(task))


class Count(pl.Callback):
    """How often the callback has retracted after each batch, and whether a weight moved."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, *args):
        (retraction,) = [each for each in trainer.callbacks if isinstance(each, ParsevalRetraction)]
        self.steps.append(retraction.steps)


def test_only_steps_of_the_optimiser_count(tmp_path, arrays):
    count = Count()
    fitted(tmp_path, arrays, epochs=1, callbacks=[count], accumulate_grad_batches=2)
    assert count.steps == [0, 1, 1, 2]


def test_a_step_that_mixed_precision_skips_changes_nothing():
    """A scaler either does not call the optimiser, or calls a fused one and tells it what it has found."""
    torch.manual_seed(0)
    layer = ParsevalLinear(6, 4)
    with torch.no_grad():
        layer.weight *= 0.8
    module = pl.LightningModule()
    module.layer = layer
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    trainer = type("Trainer", (), {"optimizers": [optimizer]})()
    callback = ParsevalRetraction(beta=0.2)
    callback.on_train_start(trainer, module)
    before = layer.weight.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.ones(4, 6), torch.zeros(4)
    optimizer.grad_scale, optimizer.found_inf = torch.ones(1), torch.ones(1)
    optimizer.step()
    assert torch.equal(layer.weight, before)
    layer.weight.grad.zero_()
    optimizer.found_inf = torch.zeros(1)
    optimizer.step()
    expected = before.clone()
    parseval_retraction_([expected], 0.2)
    assert torch.allclose(layer.weight, expected)
    callback.on_train_end(trainer, module)
    moved = layer.weight.detach().clone()
    optimizer.step()
    assert torch.equal(layer.weight, moved)


def test_another_task_takes_the_callback(tmp_path, arrays):
    """A plain task with the callback, without decay, is Parseval training; a frozen network beside it is left alone."""
    settings = {"learning_rate": 0.05, "milestones": (3,), "weight_decay": 0.0}
    task = VictimClassifier(NAME, **settings)
    beside = Classifier(NAME, 3, 8, 1).requires_grad_(False)
    with torch.no_grad():
        for weight in frames(beside):
            weight *= 1.1
    task.beside, before = beside, fingerprint(beside)
    # made here, so that the same random numbers make the network
    fitted(tmp_path, arrays, task=task, callbacks=[ParsevalRetraction(beta=0.1)])
    expected, _ = fitted(tmp_path, arrays, **settings)
    assert fingerprint(task.model) == fingerprint(expected.model)
    assert fingerprint(beside) == before


def test_a_network_without_constraints_is_refused(tmp_path, arrays):
    with pytest.raises(ValueError, match=r"the model of VictimClassifier must have Parseval layers .* got none"):
        fitted(tmp_path, arrays, task=VictimClassifier("small_cnn"), callbacks=[ParsevalRetraction()])
    with pytest.raises(ValueError, match=r"name must be a Parseval network \(.*got 'wrn10_1' \(VictimClassifier"):
        ParsevalTraining("wrn10_1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.7}, "beta must be above 0 and at most 0.5, got 0.7"),
        ({"rows": 0.0}, r"rows must be a share in \(0, 1\]"),
        ({"constrained_weight_decay": -1.0}, "ParsevalTraining: constrained_weight_decay must be at least 0, got -1.0"),
        ({"learning_rate": 0.0}, "ParsevalTraining: learning_rate must be above 0"),
    ],
)
def test_bad_fields(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParsevalTraining(**{"name": NAME, **arguments})


def test_resuming_continues_exactly_with_sampled_rows(tmp_path, arrays):
    whole, _ = fitted(tmp_path, arrays, epochs=4, rows=0.3)
    _, first = fitted(tmp_path, arrays, epochs=2, rows=0.3)
    first.save_checkpoint(tmp_path / "half.ckpt")
    assert fingerprint(load_classifier(tmp_path / "half.ckpt")) == fingerprint(first.lightning_module.model)
    again, run = fitted(tmp_path, arrays, epochs=4, rows=0.3, ckpt=tmp_path / "half.ckpt")
    assert fingerprint(again.model) == fingerprint(whole.model)
    assert next(each for each in run.callbacks if isinstance(each, ParsevalRetraction)).steps == 16
