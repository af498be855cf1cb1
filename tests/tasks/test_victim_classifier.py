"""Training of a victim, what it logs and saves, and what it refuses."""

import pytest
import pytorch_lightning as pl
import torch

from lit_adv.data.datasets import TensorImages
from lit_adv.data.digits import Digits
from lit_adv.data.image_datamodule import ImageDataModule
from lit_adv.models import classifier, fingerprint, load_classifier
from lit_adv.tasks.victim_classifier import VictimClassifier


class Bars(ImageDataModule):
    """Four classes of 8x8 images: a bright bar in one of four places, with noise."""

    native_size = 8
    in_channels = 1
    spoilt = float("nan")
    spoilt_split = ""

    @property
    def classes(self):
        return ["a", "b", "c", "d"]

    def prepare_data(self):
        """Nothing to do."""

    def _source(self, split):
        if split == "val":
            return None
        count = 60 if split == "train" else 23
        generator = torch.Generator().manual_seed(count)
        labels = torch.arange(count) % 4
        images = torch.rand(count, 1, 8, 8, generator=generator) * 0.4
        for i, label in enumerate(labels.tolist()):
            images[i, :, 2 * label : 2 * label + 2] += 0.5
        if split == self.spoilt_split:
            images[:, :, 0, 0] = self.spoilt
        return TensorImages(images, labels)


def trainer(tmp_path, epochs=1, **options):
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "default_root_dir": tmp_path}
    return pl.Trainer(max_epochs=epochs, **(settings | options))


def trained(tmp_path, epochs=1, **arguments):
    pl.seed_everything(0, verbose=False)
    task = VictimClassifier("small_cnn", **arguments)
    run = trainer(tmp_path, epochs)
    run.fit(task, datamodule=Bars(batch_size=16, validation=0.2))
    return task, run


def test_learns_and_logs(tmp_path):
    task, run = trained(tmp_path, epochs=8)
    assert {"train/loss", "val/loss", "val/acc"} <= run.callback_metrics.keys()
    assert run.callback_metrics["val/acc"] > 0.9
    data = Bars(eval_batch_size=10)
    result = run.test(task, datamodule=data, verbose=False)[0]
    images, labels = data.test_dataset.batch(range(23))
    task.model.eval()
    exact = (task(images).argmax(1) == labels).float().mean()
    assert result == {"test/acc": pytest.approx(exact.item())}
    predicted = torch.cat(run.predict(task, datamodule=data))
    assert torch.equal(predicted, task(images).argmax(1))


def test_validation_loss_is_the_mean_over_images(tmp_path):
    """Batches of 16, 16 and 3: the mean of the batches' means would be another number."""
    pl.seed_everything(0, verbose=False)
    task = VictimClassifier("small_cnn", label_smoothing=0.3)
    data = Bars(batch_size=16, validation=35)
    result = trainer(tmp_path).validate(task, datamodule=data, verbose=False)[0]
    images, labels = data.val_dataset.batch(range(35))
    expected = torch.nn.functional.cross_entropy(task(images), labels)
    assert result["val/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_network_comes_from_the_data(tmp_path):
    task, _ = trained(tmp_path)
    assert task.model.spec == classifier("small_cnn", 4, 8, 1).spec


def test_digits_are_learnt_quickly(tmp_path):
    pl.seed_everything(0, verbose=False)
    task = VictimClassifier("small_cnn", milestones=(2,))
    run = trainer(tmp_path, epochs=3)
    run.fit(task, datamodule=Digits(batch_size=64))
    assert run.test(task, datamodule=Digits(), verbose=False)[0]["test/acc"] > 0.9


def test_optimizer_is_the_papers():
    task = VictimClassifier("small_cnn", 4, 8, 1)
    task.configure_model()
    settings = task.configure_optimizers()
    group = settings["optimizer"].param_groups[0]
    assert {k: group[k] for k in ("lr", "momentum", "nesterov", "weight_decay")} == {
        "lr": 0.01,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
    }
    rates = []
    for _ in range(50):
        rates.append(group["lr"])
        settings["optimizer"].step()
        settings["lr_scheduler"].step()
    assert rates == pytest.approx([0.01] * 25 + [0.001] * 15 + [0.0001] * 10)
    plain = VictimClassifier("small_cnn", 4, 8, 1, momentum=0.0)
    plain.configure_model()
    assert plain.configure_optimizers()["optimizer"].param_groups[0]["nesterov"] is False


def test_training_loss_is_smoothed(tmp_path):
    torch.manual_seed(0)
    task = VictimClassifier("small_cnn", 4, 8, 1, label_smoothing=0.2)
    task.configure_model()
    task.log = lambda *_args, **_kwargs: None
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 4
    log_p = task(images).log_softmax(1)
    targets = torch.full((6, 4), 0.05).scatter(1, labels[:, None], 0.85)
    assert torch.allclose(task.training_step((images, labels), 0), -(targets * log_p).sum(1).mean())


def test_checkpoint_is_a_victim(tmp_path):
    task, run = trained(tmp_path, learning_rate=0.02)
    path = tmp_path / "victim.ckpt"
    run.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert content["classifier"] == task.model.spec
    victim = load_classifier(path)
    assert fingerprint(victim) == fingerprint(task.model)
    again = VictimClassifier.load_from_checkpoint(path, weights_only=True)
    assert fingerprint(again.model) == fingerprint(task.model)
    assert again.hparams["learning_rate"] == 0.02


def test_checkpoint_does_not_need_the_weights_it_started_from(tmp_path):
    start = tmp_path / "start.pth"
    torch.manual_seed(3)
    torch.save(classifier("small_cnn", 4, 8, 1).network.state_dict(), start)
    _, run = trained(tmp_path, num_classes=4, image_size=8, in_channels=1, weights=str(start))
    run.save_checkpoint(tmp_path / "victim.ckpt")
    start.unlink()
    again = VictimClassifier.load_from_checkpoint(tmp_path / "victim.ckpt", weights_only=True)
    assert again.hparams["weights"] is None


def test_starts_from_weights(tmp_path):
    start = tmp_path / "start.pth"
    torch.manual_seed(3)
    model = classifier("small_cnn", 4, 8, 1)
    torch.save(model.network.state_dict(), start)
    task = VictimClassifier("small_cnn", weights=str(start))
    trainer(tmp_path).validate(task, datamodule=Bars(), verbose=False)
    assert fingerprint(task.model) == fingerprint(model)


def test_a_mean_that_came_with_weights_is_the_one_given(tmp_path):
    start, path = tmp_path / "start.ckpt", tmp_path / "victim.ckpt"
    trained(tmp_path, mean=[0.3])[1].save_checkpoint(start)
    task, run = trained(tmp_path, weights=str(start))
    run.save_checkpoint(path)
    assert task.model.spec["mean"] != [0.3]  # 0.3 in float32
    again = VictimClassifier("small_cnn", mean=[0.3])
    trainer(tmp_path).test(again, datamodule=Bars(), ckpt_path=path, weights_only=True, verbose=False)
    assert fingerprint(again.model) == fingerprint(task.model)
    other = VictimClassifier("small_cnn", mean=[0.301])
    with pytest.raises(ValueError, match=r"got small_cnn with mean \[0.301\]"):
        trainer(tmp_path).test(other, datamodule=Bars(), ckpt_path=path, weights_only=True, verbose=False)


def test_resuming_continues_exactly(tmp_path):
    whole, _ = trained(tmp_path, epochs=4, milestones=(3,))
    _, first = trained(tmp_path, epochs=2, milestones=(3,))
    first.save_checkpoint(tmp_path / "half.ckpt")
    pl.seed_everything(7, verbose=False)
    task = VictimClassifier("small_cnn", milestones=(3,))
    data = Bars(batch_size=16, validation=0.2)
    trainer(tmp_path, 4).fit(task, datamodule=data, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert fingerprint(task.model) == fingerprint(whole.model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet20"}, "checkpoint holds small_cnn with name small_cnn, got resnet20 with name resnet20"),
        ({"name": "small_cnn", "std": [0.25]}, r"small_cnn with std \[0.5\], got small_cnn with std \[0.25\]"),
    ],
)
def test_checkpoint_of_another_network(tmp_path, arguments, message):
    _, run = trained(tmp_path)
    run.save_checkpoint(tmp_path / "victim.ckpt")
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, 2).fit(
            VictimClassifier(**arguments), datamodule=Bars(), ckpt_path=tmp_path / "victim.ckpt", weights_only=True
        )
    with pytest.raises(ValueError, match=message):
        VictimClassifier.load_from_checkpoint(tmp_path / "victim.ckpt", weights_only=True, **arguments)


def test_checkpoint_without_classifier():
    with pytest.raises(ValueError, match="the checkpoint holds no classifier"):
        VictimClassifier("small_cnn", 4, 8, 1).on_load_checkpoint({"state_dict": {}})


@pytest.mark.parametrize(
    ("field", "given", "found"), [("num_classes", 100, 4), ("image_size", 32, 8), ("in_channels", 3, 1)]
)
def test_contradicting_the_data(tmp_path, field, given, found):
    task = VictimClassifier("small_cnn", **{field: given})
    with pytest.raises(ValueError, match=f"{field} must be the data's, got {given}, but Bars has {found}"):
        trainer(tmp_path).fit(task, datamodule=Bars())


def test_nothing_says_how_many_classes(tmp_path):
    loader = torch.utils.data.DataLoader([(torch.rand(1, 8, 8), 0)] * 4, batch_size=2)
    with pytest.raises(ValueError, match="num_classes must be given, since there is no data module"):
        trainer(tmp_path).fit(VictimClassifier("small_cnn"), loader, loader)


def test_nan_in_the_data_names_the_batch(tmp_path):
    data = Bars(batch_size=16)
    data.spoilt_split = "test"
    with pytest.raises(ValueError, match="images must be finite, got NaN or infinity in batch 0 of test epoch 0"):
        trainer(tmp_path).test(VictimClassifier("small_cnn"), datamodule=data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "VictimClassifier: name must be one of"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"gamma": 0.0}, "gamma must be above 0"),
    ],
)
def test_bad_fields(arguments, message):
    with pytest.raises(ValueError, match=message):
        VictimClassifier(**{"name": "small_cnn", **arguments})
