"""Trainers that a task cannot work with are refused before anything is read; what is supported runs."""

import json

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy

from lit_adv.attacks import FGSM, PGD, GeneratedPerturbation, UniversalPerturbation
from lit_adv.data import AdversarialDataModule, Digits
from lit_adv.models import Classifier, PerturbationNetwork
from lit_adv.tasks import (
    REDRL,
    AdversarialTraining,
    Crafting,
    EnsembleAdversarialTraining,
    FitAttack,
    ParsevalTraining,
    PerturbationGenerator,
    VictimClassifier,
)

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "inference_mode": False,
    "max_epochs": 1,
}
SMALL = {"name": "small_cnn", "learning_rate": 0.02}


class Untouched(Digits):
    """Images that nobody is to ask for."""

    def prepare_data(self):
        pytest.fail("the data were prepared")

    setup = prepare_data


def refused(task, data=None, stage="fit", **settings):
    run = pl.Trainer(**{**QUIET, **settings})
    with pytest.raises(ValueError, match=f"{type(task).__name__}: ") as caught:
        getattr(run, stage)(task, datamodule=Untouched() if data is None else data)
    return str(caught.value)


def victim():
    return Classifier("small_cnn", 10, 8, 1)


@pytest.mark.parametrize(
    ("make", "stage"),
    [
        (lambda: VictimClassifier(**SMALL), "fit"),
        (lambda: VictimClassifier(**SMALL), "test"),
        (lambda: AdversarialTraining(**SMALL), "fit"),
        (lambda: ParsevalTraining("parseval_wrn10_1"), "fit"),
        (lambda: REDRL(), "fit"),
        (lambda: PerturbationGenerator(victim()), "fit"),
        (lambda: FitAttack(UniversalPerturbation.example(), victim()), "fit"),
        (lambda: Crafting(), "predict"),
    ],
)
def test_strategies_that_take_weights_apart(make, stage):
    said = refused(make(), stage=stage, strategy=ModelParallelStrategy())
    assert "trainer.strategy must keep the weights whole in every process, got ModelParallelStrategy" in said
    assert "--trainer.strategy=ddp" in said


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"awp": 0.01}, "awp 0.01"),
        ({"attack": FGSM(eps=0.1), "replays": 2}, "replays 2"),
        (
            {"update_attack": True, "attack": GeneratedPerturbation(generator=PerturbationNetwork(1, 4, 1), eps=0.1)},
            "update_attack True",
        ),
    ],
)
def test_accumulation_with_what_acts_once_a_batch(settings, field):
    said = refused(AdversarialTraining(**SMALL, **settings), accumulate_grad_batches=2)
    assert f"trainer.accumulate_grad_batches must be 1 with {field}, which acts once a batch, got 2" in said


def test_batches_that_make_one_step_have_one_source():
    class Noted(EnsembleAdversarialTraining):
        def source(self):
            found = super().source()
            drawn.append(self.drawn)
            return found

    drawn = []
    task = Noted(**SMALL, attack=FGSM(eps=0.1), sources={name: victim() for name in "abc"}, seed=1)
    run = pl.Trainer(**QUIET, accumulate_grad_batches=2, limit_val_batches=0)
    run.fit(task, datamodule=Digits(image_size=8, batch_size=4, train_limit=64, validation=5))
    assert len(drawn) == 16
    assert drawn[::2] == drawn[1::2]
    assert len(set(drawn)) > 2


def test_settings_that_do_not_go_with_replays(monkeypatch):
    free = {**SMALL, "attack": FGSM(eps=0.1), "replays": 3}
    said = refused(AdversarialTraining(**free), gradient_clip_val=0.5)
    assert "trainer.gradient_clip_val must be null with replays 3" in said
    monkeypatch.setattr(pl.Trainer, "precision", "16-mixed")  # for which Lightning takes another on CPUs
    assert "must not be 16-mixed with replays 3" in refused(AdversarialTraining(**free))


def test_frames_of_sixteen_bits():
    said = refused(ParsevalTraining("parseval_wrn10_1"), precision="bf16-true")
    assert said.endswith("(--trainer.precision=bf16-mixed)")
    assert "bf16-true" in said


def test_synchronised_batchnorm_on_cpus(monkeypatch):
    """Refused where there is BatchNorm; of REDRL before its data craft. One process needs no other."""
    two = {"strategy": "ddp", "sync_batchnorm": True}
    assert "trainer.sync_batchnorm must be false on CPUs" in refused(REDRL(), **two)
    data = Digits(image_size=8, batch_size=4, train_limit=8, validation=4)
    try:
        assert "sync_batchnorm must be false" in refused(VictimClassifier("resnet20"), data, **two)
        pl.Trainer(**QUIET, **two).fit(VictimClassifier(**SMALL), datamodule=data)  # it has none
        keep = AdversarialTraining(**SMALL, crafting_mode="keep")
        run = pl.Trainer(**QUIET, **two)
        monkeypatch.setattr(pl.Trainer, "world_size", 2)
        keep._trainer = run
        with pytest.raises(ValueError, match=r"crafting_mode must be eval with trainer\.sync_batchnorm, got keep"):
            keep.configure_callbacks()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16-mixed", "gradient_clip_val": 0.1},
        {"precision": "bf16-true", "accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_low_precision(tmp_path, settings):
    """All train; the crafted images are those of 32 bits, also where they are not rounded to 8."""
    attacks = {"pgd/8": PGD(eps=0.2, steps=2), "fgsm": FGSM(eps=0.1)}
    torch.manual_seed(0)
    victims = {"a": victim()}

    def data(cache):
        clean = Digits(image_size=8, train_limit=12, validation=5, test_limit=5)
        crafted = {"cache_dir": str(cache), "quantise": "none", "batch_size": 6, "eval_batch_size": 5}
        return AdversarialDataModule(clean, victims, attacks, **crafted)

    tasks = [
        (REDRL(width=4, blocks=1, recognizer="small", weight_features=0.0), data(tmp_path)),
        (AdversarialTraining(**SMALL, attack=attacks["pgd/8"], ema_decay=0.5), data(tmp_path).source),
    ]
    for task, module in tasks:
        run = pl.Trainer(**QUIET, **settings)
        run.fit(task, datamodule=module)
        assert run.global_step
        run.test(task, datamodule=module, verbose=False)
    seen = []

    class Seen(Crafting):
        def predict_step(self, batch, batch_idx):
            seen.append(batch)
            return batch.index

    pl.Trainer(**QUIET, **settings).predict(Seen(), datamodule=data(tmp_path / "anew"))
    wanted = list(data(tmp_path / "more").batches("test"))
    assert len(seen) == len(wanted)
    for one, other in zip(seen, wanted, strict=True):
        assert one.clean.dtype == torch.float32
        assert torch.equal(one.clean, other.clean)
        assert torch.equal(one.adversarial, other.adversarial)
    assert json.dumps(run.logged_metrics, default=float)
