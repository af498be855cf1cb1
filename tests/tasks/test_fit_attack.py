"""The task that fits an attack: from a config to a file that other configs use."""

import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from lit_adv import cli
from lit_adv.attacks import PGD, AdversarialPatch, Center, SubstituteModel, UniversalPerturbation
from lit_adv.attacks.attack import predictions
from lit_adv.attacks.transfer import TinyNetwork
from lit_adv.data import AdversarialDataModule, Digits, load_attack
from lit_adv.models import classifier, save_classifier
from lit_adv.runs import read_checkpoint
from lit_adv.tasks import FitAttack

SETTINGS = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
START = UniversalPerturbation(norm="l2", eps=3.0, passes=2, steps=5, candidates=3, delta=0.1)


def digits(**options):
    return Digits(batch_size=32, image_size=8, train_limit=60, test_limit=40, validation=30, **options)


@pytest.fixture(scope="module")
def victim():
    torch.manual_seed(0)
    return classifier("small_cnn", 10, 8, 1).eval()


def trainer(tmp_path, **options):
    return pl.Trainer(
        **({"max_epochs": 1, "default_root_dir": tmp_path, "enable_checkpointing": False} | SETTINGS | options)
    )


def images_of(data, split):
    data.setup("test" if split == "test" else "fit")
    dataset = getattr(data, f"{split}_dataset")
    return dataset.batch(range(len(dataset)))


def test_fits_on_the_training_images_and_logs_what_it_fools(tmp_path, victim, capsys):
    task, data = FitAttack(START, victim, seed=3), digits()
    run = trainer(tmp_path)
    run.fit(task, datamodule=data)
    assert f"fitted attack: {tmp_path / 'attack.safetensors'}" in capsys.readouterr().out
    attack = load_attack(str(tmp_path / "attack.safetensors"))
    assert attack.fingerprint() == task.attack.fingerprint()
    x, _ = images_of(data, "train")
    clean = predictions(victim, x)
    assert float(attack.run(victim, x, clean).success.double().mean()) == max(attack.rates) > 0
    for split, logged in (("val", run.callback_metrics), ("test", run.test(task, datamodule=data, verbose=False)[0])):
        x, _ = images_of(data, split)
        clean = predictions(victim, x)
        moved = attack(victim, x, clean)
        expected = (predictions(victim, moved) != clean).float().mean()
        assert float(logged[f"{split}/fooling"]) == pytest.approx(float(expected))
    assert torch.equal(torch.cat(run.predict(task, datamodule=data)), moved)


def test_the_fit_is_that_of_the_attack(tmp_path, victim):
    task, data = FitAttack(START, victim, seed=3), digits()
    trainer(tmp_path).fit(task, datamodule=data)
    data.setup("fit")
    expected = START.fit(victim, list(data.train_dataloader()), seed=3)
    assert task.attack.fingerprint() == expected.fingerprint()
    assert START.perturbation is None


def test_target_region_and_a_patch(tmp_path, victim):
    task = FitAttack(AdversarialPatch(size=4, passes=2, learning_rate=0.3), victim, target=7, region=Center(6))
    run, data = trainer(tmp_path), digits()
    run.fit(task, datamodule=data)
    x, _ = images_of(data, "val")
    clean = predictions(victim, x)
    goal = torch.full_like(clean, 7)
    out = task.attack.run(victim, x, clean, targets=goal, region=Center(6), seed=0)
    assert float(run.callback_metrics["val/fooling"]) == pytest.approx(float(out.success.float().mean()))
    assert load_attack(str(tmp_path / "attack.safetensors")).patch.shape == (1, 4, 4)


def test_victim_stays_as_it_is_and_out_of_the_checkpoint(tmp_path, victim):
    before = {key: value.clone() for key, value in victim.state_dict().items()}
    task = FitAttack(START, victim)
    run = trainer(tmp_path)
    run.fit(task, datamodule=digits())
    assert all(torch.equal(value, before[key]) for key, value in victim.state_dict().items())
    run.save_checkpoint(tmp_path / "a.ckpt")
    content = read_checkpoint(tmp_path / "a.ckpt")  # read as data only
    assert list(content["state_dict"]) == ["steps"]
    again = FitAttack(START, victim)
    result = trainer(tmp_path).test(again, datamodule=digits(), ckpt_path=tmp_path / "a.ckpt", verbose=False)[0]
    assert again.attack.fingerprint() == task.attack.fingerprint()
    assert result == run.test(task, datamodule=digits(), verbose=False)[0]


def test_a_trial_run_writes_nothing(tmp_path, victim):
    trainer(tmp_path, fast_dev_run=True).fit(FitAttack(START, victim), datamodule=digits())
    assert not (tmp_path / "attack.safetensors").exists()


def test_what_is_refused(tmp_path, victim):
    for attack in (PGD(), SubstituteModel(attack=PGD(), substitute=TinyNetwork())):
        with pytest.raises(
            ValueError, match=f"FitAttack: attack must be one that is fitted.*got {type(attack).__name__}"
        ):
            FitAttack(attack, victim)
    with pytest.raises(ValueError, match=r"FitAttack: trainer\.max_epochs must be 1, got 2"):
        trainer(tmp_path, max_epochs=2).fit(FitAttack(START, victim), datamodule=digits())
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        trainer(tmp_path).fit(FitAttack(START, "nowhere.ckpt"), datamodule=digits())
    fitted = FitAttack(START, victim)
    with pytest.raises(ValueError, match="the checkpoint holds no attack"):
        fitted.on_load_checkpoint({})
    stored = {}
    FitAttack(AdversarialPatch(), victim).on_save_checkpoint(stored)
    with pytest.raises(ValueError, match="the checkpoint holds AdversarialPatch, got UniversalPerturbation"):
        fitted.on_load_checkpoint(stored)


ADVERSARIAL = f"""
base: {Path(__file__).parents[2] / "configs" / "digits" / "redrl.yaml"}
data:
  init_args:
    source: {{init_args: {{image_size: 8, train_limit: 16, test_limit: 6}}}}
    victims: {{small_cnn: victim.safetensors}}
    attacks: attacks.yaml
trainer: {{max_epochs: 1, callbacks: []}}
model: {{init_args: {{width: 4, blocks: 1}}}}
"""
ATTACKS = """
universal:
  class_path: lit_adv.data.load_attack
  init_args: {path: fitted/attack.safetensors}
transfer:
  class_path: EnsembleTransfer
  init_args:
    attack: {class_path: FGSM, init_args: {eps: 32/255}}
    models:
      - {class_path: lit_adv.models.load_classifier, init_args: {path: victim.safetensors}}
"""


def test_from_config_to_file_to_config(tmp_path, victim, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_classifier(victim, "victim.safetensors")
    (tmp_path / "adversarial.yaml").write_text(ADVERSARIAL)
    (tmp_path / "attacks.yaml").write_text(ATTACKS)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lightning", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    use = ["fit", "--config", "adversarial.yaml", "--run_dir=used", "--trainer.enable_progress_bar=false"]
    code, _, err = run(*use)
    assert code == 2
    assert "load_attack: there is no file 'fitted/attack.safetensors'" in err
    code, out, err = run(
        *("fit", "--config", "configs/digits/universal.yaml", "--run_dir=fitted", "--data.train_limit=40"),
        *("--model.victim=victim.safetensors", "--model.attack.passes=1", "--data.image_size=8"),
        "--trainer.enable_progress_bar=false",
    )
    assert code == 0, err
    assert "fitted attack: fitted/attack.safetensors" in out
    assert "(val/fooling" in out
    attack = load_attack("fitted/attack.safetensors")
    code, out, err = run("test", "--config", "fitted/config.yaml", "--ckpt_path", "best")
    assert code == 0, err
    assert "test/fooling" in out
    seen = {}
    keep = AdversarialDataModule.setup
    monkeypatch.setattr(
        AdversarialDataModule, "setup", lambda data, stage=None: seen.update(data.attacks) or keep(data, stage)
    )
    code, _, err = run(*use)
    assert code == 0, err
    assert seen["universal"].fingerprint() == attack.fingerprint()
    assert len(seen["transfer"].models) == 1
    # the saved config says it again
    code, out, err = run("fit", "--config", "used/config.yaml", "--print_config")
    assert code == 0, err
    assert "class_path: lit_adv.data.load_attack" in out
