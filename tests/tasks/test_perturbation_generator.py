"""The task that trains a network to draw perturbations: its losses, its checkpoint as an attack, what it refuses."""

import pytest
import pytorch_lightning as pl
import torch

from lit_adv.attacks.attack import predictions
from lit_adv.attacks.generated import reranked
from lit_adv.data import Digits, load_attack, save_attack
from lit_adv.models import classifier, fingerprint, save_classifier
from lit_adv.tasks import PerturbationGenerator

SETTINGS = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
SMALL = {"width": 8, "blocks": 1, "eps": 64 / 255, "learning_rate": 3e-3}


def digits():
    return Digits(batch_size=32, image_size=8, train_limit=160, test_limit=40, validation=30)


@pytest.fixture(scope="module")
def victim():
    """Trained for a moment, so that its predictions differ."""
    torch.manual_seed(0)
    model, data = classifier("small_cnn", 10, 8, 1), digits()
    data.setup()
    x, y = data.train_dataset.batch(range(160))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def trainer(tmp_path, **options):
    settings = {"max_epochs": 1, "default_root_dir": tmp_path, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return pl.Trainer(**(settings | SETTINGS | options))


def fitted(tmp_path, victim, epochs=1, **fields):
    torch.manual_seed(0)
    task, run, data = PerturbationGenerator(victim, **(SMALL | fields)), trainer(tmp_path, max_epochs=epochs), digits()
    run.fit(task, datamodule=data)
    return task, run, data


def test_learns_to_fool_and_its_checkpoint_is_an_attack(tmp_path, victim):
    before = fingerprint(victim)
    task, run, data = fitted(tmp_path, victim, epochs=6)
    assert fingerprint(victim) == before
    assert float(run.callback_metrics["val/fooling"]) > 0.5
    run.save_checkpoint(tmp_path / "g.ckpt")
    stored = torch.load(tmp_path / "g.ckpt", weights_only=True)
    assert all(key.startswith("generator.") for key in stored["state_dict"])
    data.setup("test")
    x, _ = data.test_dataset.batch(range(40))
    clean = predictions(victim, x)
    logged = run.test(task, datamodule=data, verbose=False)[0]["test/fooling"]
    for attack in (task.attack, load_attack(str(tmp_path / "g.ckpt"))):
        moved = attack(victim, x, clean)
        assert (moved - x).abs().max() <= SMALL["eps"] + 1e-6
        assert float((predictions(victim, moved) != clean).float().mean()) == pytest.approx(logged)
    assert torch.equal(torch.cat(run.predict(task, datamodule=data)), moved)
    save_attack(task.attack, tmp_path / "g.safetensors")
    assert load_attack(str(tmp_path / "g.safetensors")).fingerprint() == task.attack.fingerprint()
    again = PerturbationGenerator.load_from_checkpoint(tmp_path / "g.ckpt", weights_only=True, victim=victim)
    assert fingerprint(again.generator) == fingerprint(task.generator)


def test_the_papers_loss(tmp_path, victim):
    task, _, _ = fitted(tmp_path, victim, target=3, loss="rerank", alpha=2.0, beta=0.05)
    x = torch.rand(5, 1, 8, 8)
    task.log = lambda *_a, **_k: None
    with torch.no_grad():
        moved = (x + 64 / 255 * task.generator(x)).clamp(0, 1)
        y, y_moved = victim(x).softmax(1), victim(moved).softmax(1)
        wanted = reranked(y, torch.full((5,), 3), 2.0)
        expected = (0.05 * (moved - x).pow(2).sum((1, 2, 3)) + (y_moved - wanted).pow(2).sum(1)).mean()
    torch.testing.assert_close(task.training_step((x, None), 0).detach(), expected)


def test_a_target_is_reached(tmp_path, victim):
    _, run, _ = fitted(tmp_path, victim, epochs=6, target=3)
    assert float(run.callback_metrics["val/fooling"]) > 0.5


def test_what_is_refused(tmp_path, victim):
    for fields, message in (
        ({"loss": "rank"}, "loss must be objective or rerank, got 'rank'"),
        ({"loss": "rerank"}, "target must be given for loss rerank"),
        ({"alpha": 1.0}, "alpha must be above 1, got 1"),
        ({"beta": -1.0}, "beta must be at least 0, got -1"),
        ({"target": -1}, "target must be a class, got -1"),
        ({"eps": 8.0}, r"eps must be in \[0, 1\] for linf, got 8"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"objective": "rank"}, "objective must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            PerturbationGenerator(victim, **fields)
    with pytest.raises(ValueError, match="target must be a class of the victim, 0 to 9, got 10"):
        fitted(tmp_path, victim, target=10)
    save_classifier(victim, tmp_path / "v.safetensors")
    torch.save({"state_dict": {}}, tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match=r"load_attack: '.*none.ckpt' holds no attack"):
        load_attack(str(tmp_path / "none.ckpt"))
    _, run, _ = fitted(tmp_path, str(tmp_path / "v.safetensors"))
    run.save_checkpoint(tmp_path / "g.ckpt")
    with pytest.raises(ValueError, match=r"the checkpoint holds a generator of .*'width': 8"):
        trainer(tmp_path).test(
            PerturbationGenerator(victim, **(SMALL | {"width": 4})),
            datamodule=digits(),
            ckpt_path=tmp_path / "g.ckpt",
            weights_only=True,
        )
