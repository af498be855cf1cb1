"""SSIMPrecision: the numbers of the metrics image by image, from both kinds of data, on one process and on two."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import SSIMPrecision, ssim_precision
from torch.utils.data import DataLoader, TensorDataset

from lit_adv.attacks import FGSM, PGD
from lit_adv.data import AdversarialDataModule
from lit_adv.explain import grad_cam, grad_cam_plus_plus
from lit_adv.metrics import localization_scores, psnr, ssim, ssim_map
from lit_adv.models import Classifier

# without random numbers, which depend on the seeds that the data module mixes
ATTACKS = {
    "pgd/4": PGD(eps=0.02, step_size=0.01, steps=2, random_start=False),
    "pgd/8": PGD(norm="l2", eps=4, step_size=2, steps=2, random_start=False),
    "fgsm": FGSM(eps=0.2),
}


def network(seed, channels=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier("small_cnn", 3, 16, channels).eval()


def images(count=7, channels=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, channels, 16, 16, generator=generator)
    return TensorDataset((x * 255).round() / 255, torch.arange(count) % 3)


class Source(pl.LightningDataModule):
    """Random images in three classes."""

    num_classes, image_size, in_channels = 3, 16, 3

    def test_dataloader(self):
        return DataLoader(images(), batch_size=4)


class Task(pl.LightningModule):
    """A classifier that is tested without a number of its own."""

    def __init__(self, channels=3):
        super().__init__()
        self.net = network(0, channels)

    def forward(self, x):
        return self.net(x)

    def test_step(self, batch, batch_idx):
        return None


def adversarial(**settings):
    victims = {"first": network(0), "second": network(1)}
    return AdversarialDataModule(Source(), victims, ATTACKS, eval_batch_size=5, **settings)


def expected(model, attack, window="gaussian", channel="mean", cam=grad_cam_plus_plus):
    """The row of one attack, put together image by image."""
    x = images().tensors[0]
    scores, values, fooled = [], [], 0
    for image in x.split(1):
        before = model(image).argmax(1)
        crafted = attack(model, image, before, seed=0)
        fooled += int(model(crafted).argmax(1) != before)
        found = localization_scores(ssim_map(image, crafted, window), cam(model, image, before), [0.11], 0.75, channel)
        scores.append({name: numbers.squeeze(1).double() for name, numbers in found.items()})
        values.append((float(ssim(image, crafted, window)), min(float(psnr(image, crafted)), 100.0)))
    row = {name: float(torch.cat([each[name] for each in scores]).nanmean()) for name in scores[0]}
    row |= {"ssim": sum(a for a, _ in values) / len(x), "psnr": sum(b for _, b in values) / len(x)}
    return {**row, "fooling_rate": fooled / len(x), "images": len(x)}


def read(folder):
    with (folder / "ssim_precision.csv").open() as file:
        return {(row["attack"], row["victim"]): row for row in csv.DictReader(file)}


def close(row, wanted):
    for name, value in wanted.items():
        if value != value:
            assert row[name] == ""
        else:
            assert float(row[name]) == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("inference_mode", [True, False])
def test_every_attack_of_the_data_module_on_every_victim(tmp_path: Path, trainer, capsys, inference_mode) -> None:
    logged = {}

    class Log(pl.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.update(metrics)

    callback = SSIMPrecision()
    task = Task()
    run = trainer(callback, logger=Log(tmp_path), inference_mode=inference_mode)
    # rounding to 8 bits would enlarge what a batch changes in the last bit
    run.test(task, adversarial(quantise="none"))
    rows = read(tmp_path)
    assert list(rows) == [(key, victim) for victim in ("first", "second") for key in ATTACKS]
    for (key, victim), row in rows.items():
        model = network(0 if victim == "first" else 1)
        assert int(row["images"]) == 7
        close(row, expected(model, ATTACKS[key]))
        assert logged[f"ssim_precision/{victim}/{key}/psnr"] == pytest.approx(float(row["psnr"]))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}_{victim}.png" for name in ("ssim_precision", "ssim_maps") for victim in ("first", "second")
    }
    content = json.loads((tmp_path / "ssim_precision.json").read_text())
    assert (content["threshold"], content["window"], len(content["thresholds"])) == (0.11, "gaussian", 50)
    first = content["attacks"][0]
    assert first["curves"]["pixels"][10] == pytest.approx(float(rows["pgd/4", "first"]["pixels"]))
    assert first["counts"]["pixels"] == [7] * 50
    out = capsys.readouterr().out
    assert "SSIM precision at noise > 0.11, activation > 0.75" in out
    assert max(map(len, out.split("SSIM precision at")[1].split("SSIM precision:")[0].splitlines())) <= 80
    assert all(parameter.grad is None for parameter in task.parameters())


def test_named_attacks_on_pairs_of_images_and_labels(tmp_path: Path, trainer) -> None:
    options = {"window": "block8", "channel": "each", "cam": "grad_cam"}
    trainer(SSIMPrecision(ATTACKS, **options)).test(Task(), DataLoader(images(), batch_size=3))
    rows = read(tmp_path)
    assert list(rows) == [(key, "") for key in ATTACKS]
    for (key, _), row in rows.items():
        close(row, expected(network(0), ATTACKS[key], "block8", "each", grad_cam))
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["ssim_maps.png", "ssim_precision.png"]


def test_the_figure_shows_the_image_asked_for(trainer, monkeypatch) -> None:
    seen = []
    draw = ssim_precision.localization_figure
    monkeypatch.setattr(ssim_precision, "localization_figure", lambda *args: seen.append(args) or draw(*args))
    trainer(SSIMPrecision(example=5)).test(Task(), adversarial(quantise="none"))
    model, image = network(1), images().tensors[0][5:6]
    (_, _), (rows, title) = seen
    assert title == "SSIM and class activation: second, image 5"
    assert list(rows) == list(ATTACKS)
    before = model(image).argmax(1)
    crafted = ATTACKS["fgsm"](model, image, before)
    shown = rows["fgsm"]
    torch.testing.assert_close(shown.adversarial, crafted[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(shown.ssim, ssim_map(image, crafted)[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(shown.cam, grad_cam_plus_plus(model, image)[0], rtol=0, atol=1e-4)
    assert shown.caption == f"class {int(before)} → {int(model(crafted).argmax(1))}"


def test_one_channel_and_a_named_layer(tmp_path: Path, trainer) -> None:
    data = DataLoader(images(3, 1), batch_size=3)
    trainer(SSIMPrecision({"fgsm": FGSM(eps=0.1)}, layer="net.network.features.7", example=9)).test(Task(1), data)
    assert (tmp_path / "figures" / "ssim_precision.png").is_file()
    assert not (tmp_path / "figures" / "ssim_maps.png").exists()  # there is no image 9 in the first batch
    with pytest.raises(ValueError, match=r"grad_cam_plus_plus: layer must name a layer of the model, got 'conv9'"):
        trainer(SSIMPrecision({"fgsm": FGSM(eps=0.1)}, layer="conv9")).test(Task(1), data)


def test_a_single_threshold(tmp_path: Path, trainer) -> None:
    data = DataLoader(images(3), batch_size=3)
    callback = SSIMPrecision({"fgsm": FGSM(eps=0.1)}, threshold=0.02, thresholds=[0.02])
    trainer(callback).test(Task(), data)
    (row,) = callback.results
    assert [len(curve) for curve in row["curves"].values()] == [1] * 5
    assert row["counts"]["pixels"] == [3]
    assert float(read(tmp_path)["fgsm", ""]["pixels"]) == row["curves"]["pixels"][0] > 0
    assert (tmp_path / "figures" / "ssim_precision.png").is_file()


def test_a_missing_layer_is_named_before_any_attack(trainer) -> None:
    class Never(FGSM):
        def __call__(self, *args, **kwargs):
            raise AssertionError("attacked")

    data = DataLoader(images(3), batch_size=3)
    with pytest.raises(
        ValueError, match=r"layer must name a layer of the model, got 'conv9' \(its convolutions are net"
    ):
        trainer(SSIMPrecision({"fgsm": Never()}, layer="conv9")).test(Task(), data)


def test_attacks_come_from_one_place(trainer) -> None:
    with pytest.raises(ValueError, match=r"attacks must come either .* got both"):
        trainer(SSIMPrecision(ATTACKS)).test(Task(), adversarial())
    with pytest.raises(ValueError, match=r"attacks must come either .* got neither"):
        trainer(SSIMPrecision()).test(Task(), DataLoader(images(), batch_size=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attacks": {}}, "SSIMPrecision: attacks must be at least one attack by name"),
        ({"threshold": 0.115}, "SSIMPrecision: threshold must be one of thresholds, got 0.115"),
        ({"cam": "score_cam"}, "SSIMPrecision: cam must be one of grad_cam_plus_plus, grad_cam, got 'score_cam'"),
        ({"example": -1}, "SSIMPrecision: example must be >= 0, got -1"),
        ({"window": "square"}, "window must be one of"),
        ({"channel": "all"}, "channel must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        SSIMPrecision(**arguments)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, trainer) -> None:
    trainer(SSIMPrecision()).test(Task(), adversarial())
    pairs = trainer(SSIMPrecision(ATTACKS), default_root_dir=tmp_path / "pairs")
    pairs.test(Task(), DataLoader(images(), batch_size=3))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    for variable in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED"):
        environment.pop(variable, None)
    command = [sys.executable, __file__, str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = []
    for name, count in (("", 6), ("pairs", 3)):
        one, two = (
            json.loads((folder / name / "ssim_precision.json").read_text())["attacks"]
            for folder in (tmp_path, tmp_path / "two")
        )
        assert [row["images"] for row in two] == [7] * count
        rows += zip(one, two, strict=True)
    for first, second in rows:
        curves, counts = first.pop("curves"), first.pop("counts")
        assert second.pop("counts") == counts
        for name, values in second.pop("curves").items():
            assert values == pytest.approx(curves[name], abs=1e-6), name
        assert second == pytest.approx(first, abs=1e-6)
    # whichever process had the image
    assert sorted(path.name for path in (tmp_path / "two" / "figures").iterdir()) == sorted(
        path.name for path in (tmp_path / "figures").iterdir()
    )


def main(folder):
    """A test run on two processes, called by the test above."""
    torch.set_num_threads(1)
    for name, callback, data in (
        ("", SSIMPrecision(), adversarial()),
        # 7 images on 2 processes: Lightning's sampler gives one of them twice
        ("pairs", SSIMPrecision(ATTACKS), DataLoader(images(), batch_size=2)),
    ):
        pl.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            logger=False,
            callbacks=[callback],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=f"{folder}/{name}",
        ).test(Task(), data, verbose=False)


if __name__ == "__main__":
    main(sys.argv[1])
