"""`lightning estimate` and `lightning verify`, and the one command that writes a set."""

import sys

import pytest
import yaml
from safetensors.torch import save_file

from lit_adv import cli
from lit_adv.compose import compose
from lit_adv.models import Classifier

CONFIG = """
model: {class_path: Crafting}
data:
  class_path: AdversarialDataModule
  init_args:
    source: {class_path: Digits, init_args: {image_size: 8, train_limit: 60, test_limit: 40}}
    victims:
      a:
        class_path: lit_adv.models.Classifier
        init_args: {name: small_cnn, num_classes: 10, image_size: 8, in_channels: 1, weights: a.safetensors}
    attacks: {fgsm: {class_path: FGSM, init_args: {eps: 0.2}}, pgd: {class_path: PGD, init_args: {eps: 0.1, steps: 3}}}
    eval_batch_size: 16
    craft_batch_size: auto
trainer:
  accelerator: cpu
  devices: 1
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{class_path: AdversarialWriter, init_args: {max_images_per_shard: 50}}]
run_dir: run
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(CONFIG)
    network = Classifier("small_cnn", 10, 8, in_channels=1)
    save_file(network.state_dict(), tmp_path / "a.safetensors")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lightning", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, "".join(capsys.readouterr())

    return run


def test_one_command_writes_and_another_verifies(run, tmp_path):
    code, said = run("predict", "--config", "toy.yaml")
    assert code == 0, said
    assert "the predictions were not kept" not in said
    assert run("verify", "run/adversarial")[1].endswith("whole: 120 images, 120 read; 0 missing, 0 damaged, 0 extra\n")
    again = ("--recraft", "9", "--config", "run/config.yaml")
    code, said = run("verify", "run/adversarial", "--sample", "5", *again)
    assert code == 0, said
    assert "whole: 120 images, 5 read" in said
    assert "crafted again: 9 images; 9 equal, 0 up to rounding, 0 otherwise" in said
    # a picture that was there, under a hash that fits, is still not what the attack makes
    code, said = run("verify", "run/adversarial", *again, "--data.seed=5")
    assert code == 2
    assert "was written with other seed than this config has" in said
    victim = next((tmp_path / "run/adversarial/images/test").rglob("*pgd--a.png"))
    victim.unlink()
    code, said = run("verify", "run/adversarial")
    assert code == 1
    assert f"missing: {victim.relative_to(tmp_path / 'run/adversarial')}" in said
    assert "NOT whole: 120 images, 119 read; 1 missing, 0 damaged, 0 extra" in said


def test_recraft_notices_pictures_that_the_attack_does_not_make(run, tmp_path, monkeypatch):
    from lit_adv.attacks import PGD

    attack = PGD._attack
    monkeypatch.setattr(PGD, "_attack", lambda *given: _other(attack, *given))
    assert run("predict", "--config", "toy.yaml")[0] == 0
    monkeypatch.setattr(PGD, "_attack", attack)
    assert run("verify", "run/adversarial")[0] == 0
    code, said = run("verify", "run/adversarial", "--recraft", "80", "--config", "run/config.yaml")
    assert code == 1
    assert "crafted again: 80 images; 40 equal, 0 up to rounding, 40 otherwise" in said
    assert "crafted otherwise: images/test/" in said


def _other(attack, self, model, images, *rest):
    """What a faulty device might make."""
    crafted, *more = attack(self, model, images, *rest)
    return ((crafted + 0.1 * (images < 0.5)).clamp(0, 1), *more)


def test_the_estimate_is_told_before_anything_is_crafted(run, tmp_path):
    code, said = run("estimate", "predict", "--config", "toy.yaml")
    assert code == 0, said
    assert "crafting: 80 of 80 images, about " in said
    assert "files: 120 pictures of about " in said
    assert not (tmp_path / "run").exists()
    told = float(said.partition("pictures of about ")[2].partition(" ")[0]) * 1000
    assert run("predict", "--config", "toy.yaml")[0] == 0
    taken = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.png"))
    assert told == pytest.approx(taken, rel=0.1)


def test_the_cache_takes_what_the_estimate_says(run, tmp_path):
    job = ("--config", "toy.yaml", "--data.cache_dir=cache", "--data.prefill=true", "--trainer.callbacks=null")
    code, said = run("estimate", "predict", *job)
    assert code == 0, said
    assert "cache: 24.6 kB in cache once all are there (no limit; " in said
    assert not (tmp_path / "cache").exists()
    assert run("predict", *job)[0] == 0
    blocks = sum(-(-path.stat().st_size // 4096) * 4096 for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert blocks == 24_576
    assert "crafting: 0 of 80 images, about 0 s" in run("estimate", "predict", *job)[1]
    code, said = run("predict", *job, "--data.cache_limit=20 kB", "--data.seed=1")
    assert code == 2
    assert (
        "prefill needs 24.6 kB in cache_dir cache, where other jobs keep or plan 24.6 kB, and cache_limit is 20 kB"
        in said
    )


def test_what_cannot_be_done_is_said(run):
    for arguments, message in (
        (("estimate",), "a subcommand comes first"),
        (("estimate", "predict", "--config", "toy.yaml", "--data=Digits"), "data must be an AdversarialDataModule"),
        (("verify", "nowhere"), "nowhere holds no adversarial set"),
        (("verify", "nowhere", "--recraft", "3"), "--recraft needs the config"),
        (("verify", "nowhere", "--sample", "0"), "--sample must be at least 1, got 0"),
        (("verify", "nowhere", "--config", "toy.yaml"), "unrecognized arguments"),
        (("fit", "--config", "toy.yaml", "--trainer.max_epochs=1"), "Crafting: there is nothing to fit"),
        (("test", "--config", "toy.yaml"), "Crafting: there is nothing to test"),
    ):
        code, said = run(*arguments)
        assert code == 2, (arguments, said)
        assert message in said, (arguments, said)


@pytest.mark.parametrize("name", ["digits", "cifar10", "imagenet"])
def test_the_configs_write_the_sets_of_redrl(name):
    job, redrl = compose(f"configs/{name}/write_adversarial.yaml"), compose(f"configs/{name}/redrl.yaml")
    assert job["data"]["init_args"]["attacks"] == redrl["data"]["init_args"]["attacks"]
    assert job["data"]["init_args"]["victims"] == redrl["data"]["init_args"]["victims"]
    assert job["model"] == {"class_path": "Crafting"}
    assert "AdversarialWriter" in yaml.safe_dump(job["trainer"]["callbacks"])
