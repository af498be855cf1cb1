"""Training on the adversarial images of several sources: which one, and that they stay as they are."""

from collections import Counter

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from lit_adv.attacks import FGSM
from lit_adv.data.digits import Digits
from lit_adv.models import classifier, fingerprint, save_classifier
from lit_adv.tasks import EnsembleAdversarialTraining

SHAPE = {"num_classes": 10, "image_size": 8, "in_channels": 1}


def networks():
    torch.manual_seed(7)
    return {name: classifier(kind, 10, 8, 1) for name, kind in (("a", "small_cnn"), ("b", "resnet20"))}


def made(sources, **settings):
    task = EnsembleAdversarialTraining("small_cnn", sources=sources, **SHAPE, **settings)
    task.configure_model()
    task.setup("fit")
    return task


def trainer(tmp_path, **options):
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "default_root_dir": tmp_path}
    return pl.Trainer(**(settings | options))


def digits():
    return Digits(image_size=8, batch_size=16, train_limit=64, test_limit=20, validation=20)


def test_sources_are_not_touched_trained_or_saved(tmp_path):
    """One is a module, the other a file."""
    given = networks()
    save_classifier(given["b"], tmp_path / "b.safetensors")
    before = fingerprint(given["a"])
    task = EnsembleAdversarialTraining("small_cnn", sources={"a": given["a"], "b": str(tmp_path / "b.safetensors")})
    run = trainer(tmp_path, max_epochs=2)
    run.fit(task, datamodule=digits())
    assert fingerprint(given["a"]) == before
    assert fingerprint(task.sources["b"]) == fingerprint(given["b"])
    for source in task.sources.values():
        assert not any(module.training for module in source.modules())
        assert not any(weight.requires_grad or weight.grad is not None for weight in source.parameters())
    theirs = {id(weight) for source in task.sources.values() for weight in source.parameters()}
    trained = {id(weight) for group in run.optimizers[0].param_groups for weight in group["params"]}
    assert not theirs & trained
    run.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert set(content["state_dict"]) == {f"model.{key}" for key in task.model.state_dict()}
    assert "sources" not in content["hyper_parameters"]
    again = EnsembleAdversarialTraining.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert fingerprint(again.model) == fingerprint(task.model)


@pytest.mark.parametrize("statics_only", [False, True])
def test_sources_are_drawn_uniformly(statics_only):
    task = made(networks(), statics_only=statics_only)
    names = ["a", "b"] if statics_only else ["", "a", "b"]
    own = {"": task.model, **task.sources}
    counts, draws = Counter(), 6000
    for number in range(draws):
        task._batch = number
        assert task.source() is own[task.drawn]
        counts[task.drawn] += 1
    assert set(counts) == set(names)
    p = 1 / len(names)
    for name in names:
        assert abs(counts[name] - draws * p) < 5 * (draws * p * (1 - p)) ** 0.5
    # the same in any process, and not the order of the batches alone
    task._batch = 17
    first = [task.source(), task.source()]
    assert first[0] is first[1]


def test_the_loss_is_half_clean_half_adversarial():
    given = networks()
    task = made({"b": given["b"]}, statics_only=True, attack=FGSM(eps=0.1))
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(given["b"](leaf), y, reduction="sum"), leaf)
    moved = (x + 0.1 * gradient.sign()).clamp(0, 1)
    expected = 0.5 * F.cross_entropy(task.model(x), y) + 0.5 * F.cross_entropy(task.model(moved), y)
    torch.testing.assert_close(task.training_loss(x, y), expected)


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="EnsembleAdversarialTraining: sources must name at least one trained network"):
        made({})
    with pytest.raises(ValueError, match="replays 2 does not go together with an ensemble"):
        EnsembleAdversarialTraining("small_cnn", sources=networks(), replays=2)
    with pytest.raises(ValueError, match="source 'a' must have num_classes 10, got 5"):
        made({"a": classifier("small_cnn", 5, 8, 1)})
    with pytest.raises(ValueError, match="source 'a' must have in_channels 1, got 3"):
        made({"a": classifier("small_cnn", 10, 8, 3)})
    with pytest.raises(FileNotFoundError, match=r"sources: there is no checkpoint '.*nowhere.ckpt' for a \(train"):
        made({"a": str(tmp_path / "nowhere.ckpt")})


def test_the_validation_attack_is_on_the_network_itself(tmp_path):
    task = EnsembleAdversarialTraining("small_cnn", sources=networks(), statics_only=True, attack=FGSM(eps=0.1))
    run, data = trainer(tmp_path, max_epochs=1), digits()
    run.fit(task, datamodule=data)
    found = run.test(task, datamodule=data, verbose=False)[0]["test/robust_acc"]
    x, y = data.test_dataset.batch(range(20))
    task.eval()
    with torch.no_grad():
        right = task.model(x).argmax(1) == y
    stays = right & ~task.val_attack.run(task.model, x, y, seed=0).success
    assert found == pytest.approx(stays.float().mean().item())


def test_a_loss_with_a_clean_part_of_its_own_needs_no_clean_weight():
    assert EnsembleAdversarialTraining("small_cnn").hparams["clean_weight"] == 0.5
    assert EnsembleAdversarialTraining("small_cnn", loss="trades").hparams["clean_weight"] == 0
    assert EnsembleAdversarialTraining("small_cnn", clean_weight=0.3).hparams["clean_weight"] == 0.3
