"""`REDRL.identify`: sizes, verdicts, what a checkpoint carries, and that calibration follows the weights."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lit_adv.attacks import FGSM, PGD
from lit_adv.data import AdversarialDataModule, Arrays
from lit_adv.metrics import AnsweredAccuracy, Calibration, LogitCalibration
from lit_adv.models import Classifier
from lit_adv.tasks import REDRL, identification
from lit_adv.tasks.identification import identify

CLASSES = ["clean", "pgd", "fgsm"]


def task(seed=0, calibration=None, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        arguments = {"width": 6, "blocks": 2, "recognizer": "small", "num_attacks": 3, "in_channels": 3}
        made = REDRL(**{**arguments, "weight_features": 0.0, **changes})
        made.configure_model()
        for module in made.modules():  # as training leaves them: not 0 and 1
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    made.attack_classes = CLASSES
    made.calibrator.calibration = calibration
    return made.train()


def images(count=5, height=8, width=8, channels=3, seed=0):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


CALIBRATION = Calibration(2.0, 0.4, 0.9, 0.91, 100)


def test_what_it_says_is_what_the_networks_compute():
    made, x = task(calibration=CALIBRATION), images()
    found = made.identify(x)
    assert all(module.training for module in made.psi.modules())  # as it was
    recovery = made.eval()(x)
    probabilities = (recovery.logits / 2.0).softmax(1)
    torch.testing.assert_close(found.probabilities, probabilities, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.reconstructed, recovery.reconstructed.clamp(0, 1))
    torch.testing.assert_close(found.residual, x - found.reconstructed)
    torch.testing.assert_close(found.residual_energy, (found.residual**2).mean((1, 2, 3)))
    assert found.most_likely == tuple(CLASSES[index] for index in probabilities.argmax(1))
    assert found.classes == tuple(CLASSES)
    assert not found.probabilities.requires_grad


def test_below_the_threshold_it_is_unknown():
    x = images(40) * torch.linspace(0, 1, 40)[:, None, None, None]
    confidences = task(calibration=CALIBRATION).identify(x).probabilities.amax(1).tolist()
    threshold = sum(sorted(confidences)[19:21]) / 2
    found = task(calibration=CALIBRATION._replace(threshold=threshold)).identify(x)
    wanted = ["unknown" if c < threshold else name for c, name in zip(confidences, found.most_likely, strict=True)]
    assert list(found.verdicts) == wanted
    assert found.verdicts.count("unknown") == 20
    assert "unknown: " in repr(found)


def test_without_a_calibration_it_says_so_and_calls_nothing_unknown():
    made, x = task(), images()
    with pytest.warns(UserWarning, match="this checkpoint is not calibrated: probabilities are those of temperature 1"):
        found = made.identify(x)
    assert found.calibration is None
    assert found.verdicts == found.most_likely
    assert "not calibrated" in repr(found)
    torch.testing.assert_close(found.probabilities, made.eval()(x).logits.softmax(1))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (1, 1), (7, 30), (33, 16), (224, 160)])
@pytest.mark.parametrize("recognizer", ["small", "resnet18"])
def test_any_size_goes_through_as_it_is(height, width, recognizer):
    made = task(calibration=CALIBRATION, recognizer=recognizer)
    found = made.identify(images(2, height, width))
    assert found.reconstructed.shape == found.residual.shape == (2, 3, height, width)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(2))


def test_a_batch_may_be_large(monkeypatch):
    made, x = task(calibration=CALIBRATION), images(7)
    whole = made.identify(x)
    seen = []
    monkeypatch.setattr(identification, "_PIXELS", 3 * 64)
    made.psi.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    parts = made.identify(x)
    assert seen == [3, 3, 1]
    torch.testing.assert_close(parts.probabilities, whole.probabilities)
    torch.testing.assert_close(parts.reconstructed, whole.reconstructed)


def test_tiles_make_the_whole_image(monkeypatch):
    made, x = task(calibration=CALIBRATION), images(2, 150, 100)
    whole = made.identify(x)
    monkeypatch.setattr(identification, "_PIXELS", 64 * 64)
    monkeypatch.setattr(identification, "_edges", lambda n: [(a, min(a + 32, n)) for a in range(0, n, 32)])
    seen = []
    made.reconstructor.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[-2:])))
    tiled = made.identify(x)
    assert max(max(shape) for shape in seen) <= 32 + 2 * 6  # memory is that of a tile
    torch.testing.assert_close(tiled.reconstructed, whole.reconstructed, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tiled.residual_energy, whole.residual_energy, rtol=1e-5, atol=1e-8)
    # Psi sees the borders of tiles as it sees those of an image
    torch.testing.assert_close(tiled.probabilities, whole.probabilities, rtol=0, atol=0.05)
    pooled = sum(
        made.eval().psi.trunk(torch.cat([part.residual, part.image], 1)) * part.share for part in parts(whole, x)
    )
    wanted = (made.psi.head(pooled) / 2).softmax(1)
    torch.testing.assert_close(tiled.probabilities, wanted.detach(), rtol=1e-4, atol=1e-6)


def parts(found, x):
    for top in range(0, 150, 32):
        for left in range(0, 100, 32):
            place = (..., slice(top, top + 32), slice(left, left + 32))
            image = x[place]
            share = image.shape[-1] * image.shape[-2] / 15000
            yield SimpleNamespace(image=image, residual=found.residual[place], share=share)


def with_heads(**changes):
    made = task(calibration=CALIBRATION, heads=("victim", "budget"), num_victims=2, **changes)
    made.trained_victims = ["one", "other"]
    made.attribution.bounded[:] = torch.tensor([False, True, False])
    with torch.no_grad():  # so that no class wins throughout
        made.psi.head[-1].bias -= made.eval()(images(40)).logits.mean(0)
    return made


@pytest.mark.parametrize("inputs", ["residual", "image"])
def test_heads_name_victim_and_budget(inputs):
    made, x = with_heads(inputs=inputs), images(40)
    found = made.identify(x)
    assert set(found.most_likely) >= {"clean", "pgd"}
    said = made.eval()(x).attribution
    torch.testing.assert_close(found.victim_probabilities, said.victim.softmax(1).detach())
    torch.testing.assert_close(found.budgets, 2 ** said.budget.detach() / 255, equal_nan=True)
    assert found.victims == ("one", "other")
    for name, attacked, row, budget in zip(
        found.most_likely, found.attacked, found.victim_probabilities, found.budgets, strict=True
    ):
        assert attacked == (None if name == "clean" else found.victims[int(row.argmax())])
        assert bool(budget.isnan()) == (name != "pgd")
    number = found.most_likely.index("pgd")
    assert f" on {found.attacked[number]}, {255 * found.budgets[number]:.1f}/255" in repr(found)
    assert made.identify(images(0)).attacked == ()


def test_heads_see_the_mean_over_tiles(monkeypatch):
    made, x = with_heads(), images(2, 150, 100)
    whole = made.identify(x)
    monkeypatch.setattr(identification, "_PIXELS", 64 * 64)
    monkeypatch.setattr(identification, "_edges", lambda n: [(a, min(a + 32, n)) for a in range(0, n, 32)])
    tiled = made.identify(x)
    pooled = sum(
        made.eval().psi.trunk(torch.cat([part.residual, part.image], 1)) * part.share for part in parts(whole, x)
    )
    said = made.attribution(pooled, made.psi.head(pooled).argmax(1))
    torch.testing.assert_close(tiled.victim_probabilities, said.victim.softmax(1).detach(), rtol=1e-4, atol=1e-6)
    wanted = 2 ** said.budget.detach() / 255
    torch.testing.assert_close(tiled.budgets, wanted, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_without_heads_nothing_is_said_of_them():
    found = task(calibration=CALIBRATION).identify(images())
    assert found.victims is found.victim_probabilities is found.attacked is found.budgets is None


def test_no_size_of_image_is_compiled():
    """G of a checkpoint that was trained with `compile` would otherwise be compiled for picture after picture."""
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    made = task(calibration=CALIBRATION)
    made.reconstructor.compile(backend=backend)
    plain = task(calibration=CALIBRATION)
    for size in (8, 12, 9):
        found, wanted = (each.identify(images(2, size, size)) for each in (made, plain))
        torch.testing.assert_close(found.reconstructed, wanted.reconstructed)
    assert not compiled
    made(images())
    assert compiled


@pytest.mark.parametrize("length", [1, 511, 512, 513, 1025, 4096, 5000])
def test_tiles_cover_a_side_once(length):
    edges = list(identification._edges(length))
    assert [start for start, _ in edges] == [0, *(stop for _, stop in edges[:-1])]
    assert edges[-1][1] == length
    assert all(start % 32 == 0 and stop - start <= 512 for start, stop in edges)


def test_an_image_alone_is_enough_for_the_baseline():
    found = task(calibration=CALIBRATION, inputs="image").identify(images())
    assert found.reconstructed is None
    assert found.residual is None
    assert found.residual_energy is None
    assert len(found.verdicts) == 5


def test_the_true_perturbation_cannot_be_had():
    with pytest.raises(ValueError, match='inputs="delta" cannot identify an image'):
        task(inputs="delta").identify(images())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (images()[0], r"floating-point tensor \(B, C, H, W\)"),
        ((255 * images()).byte(), r"got torch.uint8 .* \(divide 8-bit levels by 255"),
        (255 * images(), r"must be in \[0, 1\]"),
        (images() * float("nan"), r"outside or NaN"),
        (images(channels=1), r"must have 3 channel\(s\)"),
        (images(height=0), "must have pixels"),
        ([images()], "got list"),
    ],
)
def test_images_of_another_kind_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        task().identify(bad)


def test_an_empty_batch_is_no_mistake():
    found = task(calibration=CALIBRATION).identify(images(0))
    assert found.verdicts == ()
    assert found.probabilities.shape == (0, 3)
    assert found.residual_energy.shape == (0,)


def test_an_untrained_network_is_refused():
    made = task()
    made.attack_classes = None
    with pytest.raises(ValueError, match="needs a trained network"):
        made.identify(images())


# what a run leaves


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    draws = np.random.default_rng(0)
    sets = {
        f"x_{name}": draws.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8) for name, n in (("train", 40), ("test", 9))
    }
    np.savez(path, **sets, y_train=np.arange(40) % 3, y_test=np.arange(9) % 3)
    return path


def data(arrays):
    torch.manual_seed(1)
    return AdversarialDataModule(
        Arrays(path=arrays, validation=12),
        {"a": Classifier("small_cnn", 3, 8)},
        {"pgd": PGD(eps=64 / 255, steps=2), "fgsm": FGSM(eps=0.1)},
        batch_size=8,
        eval_batch_size=10,
    )


def trainer(folder, **changes):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 2, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=folder, **{**quiet, **changes})


def network(**changes):
    torch.manual_seed(2)
    arguments = {"width": 4, "blocks": 1, "recognizer": "small", "learning_rate": 2e-3, "schedule": "onecycle"}
    return REDRL(**{**arguments, "weight_features": 0.0, "coverage": 0.8, **changes})


@pytest.fixture(scope="module")
def trained(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    module, run = network(), trainer(folder)
    run.fit(module, datamodule=data(arrays))
    run.save_checkpoint(folder / "a.ckpt")
    return module, folder / "a.ckpt"


def evaluated(module, source, split):
    """Logits and classes of a split, one by one."""
    module.eval()
    shown = list(source.batches(split))
    with torch.no_grad():
        logits = torch.cat([module(batch.adversarial).logits for batch in shown])
    return logits, torch.cat([batch.attack for batch in shown])


def test_a_checkpoint_alone_identifies_as_the_run_would(trained, arrays):
    module, path = trained
    stored = torch.load(path, weights_only=True)
    fit = LogitCalibration(0.8)
    fit.update(*evaluated(module, data(arrays), "val"))
    expected = fit.compute()
    assert expected.images == 36
    assert expected.achieved == pytest.approx(29 / 36)
    assert stored["calibration"] == pytest.approx(expected._asdict(), rel=1e-6)
    again = REDRL.load_from_checkpoint(path)
    found = again.identify(images())
    assert found.classes == tuple(CLASSES)
    assert found.calibration == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(found.probabilities, identify(module, images()).probabilities)


def test_frozen_networks_are_not_asked_for(trained, arrays, tmp_path):
    """A checkpoint that was trained with L_F is used where VGG's weights are not."""
    _, path = trained
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] |= {"weight_features": 0.1, "feature_weights": str(tmp_path / "none.pth")}
    torch.save(content, tmp_path / "b.ckpt")
    assert REDRL.load_from_checkpoint(tmp_path / "b.ckpt").identify(images()).calibration is not None


def test_the_test_set_scores_the_calibration(trained, arrays, tmp_path):
    module, path = trained
    source = data(arrays)
    logged = trainer(tmp_path).test(module, datamodule=source, ckpt_path=path, verbose=False)[0]
    found = module.results["calibration"]
    calibration = module.calibration
    assert [found[name] for name in Calibration._fields] == list(calibration)
    logits, labels = evaluated(module, source, "test")
    score = AnsweredAccuracy(calibration.threshold)
    score.update((logits.double() / calibration.temperature).softmax(1), labels)
    expected = {name: value.item() for name, value in score.compute().items()}
    assert found["test"] == pytest.approx(expected, nan_ok=True)
    assert logged["test/coverage"] == pytest.approx(expected["coverage"])
    assert logged["test/calibration_error"] == pytest.approx(expected["calibration_error"])


def test_a_training_step_ends_a_calibration(arrays, tmp_path):
    module, run = network(), trainer(tmp_path, check_val_every_n_epoch=2, max_epochs=3)
    run.fit(module, datamodule=data(arrays))  # validated after the second of three epochs
    assert module.calibration is None
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["calibration"] is None
    with pytest.warns(UserWarning, match="not calibrated"):
        REDRL.load_from_checkpoint(tmp_path / "a.ckpt").identify(images())


def test_validation_calibrates_an_older_checkpoint(trained, arrays, tmp_path, capsys):
    _, path = trained
    content = torch.load(path, weights_only=True)
    wanted = content.pop("calibration")
    old = tmp_path / "old.ckpt"
    torch.save(content, old)
    before = old.read_bytes()
    trainer(tmp_path).validate(network(), datamodule=data(arrays), ckpt_path=old, verbose=False)
    assert old.read_bytes() == before
    made = tmp_path / "old-calibrated.ckpt"
    assert f"calibrated for coverage 0.8: {made}" in capsys.readouterr().out
    stored = torch.load(made, weights_only=True)
    assert stored["calibration"] == pytest.approx(wanted, rel=1e-5)
    assert all(torch.equal(stored["state_dict"][key], value) for key, value in content["state_dict"].items())
    assert REDRL.load_from_checkpoint(made).identify(images()).calibration is not None
    # what is calibrated for this coverage already is left alone; another coverage writes the same name
    trainer(tmp_path).validate(network(), datamodule=data(arrays), ckpt_path=made, verbose=False)
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["old-calibrated.ckpt", "old.ckpt"]
    trainer(tmp_path).validate(network(coverage=0.5), datamodule=data(arrays), ckpt_path=made, verbose=False)
    assert torch.load(made, weights_only=True)["calibration"]["coverage"] == 0.5
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["old-calibrated.ckpt", "old.ckpt"]


def test_another_coverage_without_a_validation_is_refused_aloud(trained):
    with pytest.warns(UserWarning, match="coverage 0.5 has no effect: the checkpoint is calibrated for 0.8"):
        assert REDRL.load_from_checkpoint(trained[1], coverage=0.5).calibration.coverage == 0.8


@pytest.mark.parametrize("coverage", [0, 1.5, math.nan])
def test_a_coverage_that_is_no_share_is_refused(coverage):
    with pytest.raises(ValueError, match=r"REDRL: coverage must be in \(0, 1\]"):
        REDRL(coverage=coverage)


def test_logits_that_are_not_finite_leave_no_calibration():
    calibrator = identification.Calibrator(0.9)
    calibrator.begin("val", torch.device("cpu"))
    calibrator.update("val", torch.full((3, 2), math.nan), torch.zeros(3, dtype=torch.int64))
    with pytest.warns(UserWarning, match="not calibrated: fit_temperature: logits must be finite"):
        assert calibrator.report("val") == dict.fromkeys(Calibration._fields)
    assert calibrator.state() is None
