"""The robustness table: the same numbers as image by image, from Python and from a test."""

import csv
import json

import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import RobustnessTable
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_adv import Evaluation, evaluate
from lit_adv.attacks import FGSM, PGD, Center, DeepFool
from lit_adv.metrics import RobustAccuracy

ATTACKS = {
    "fgsm": FGSM(eps=0.02),
    "pgd": PGD(eps=0.03, step_size=0.01, steps=5),
    "deepfool": DeepFool(steps=2),
    "centre": PGD(eps=0.2, step_size=0.1, steps=3),
}
REGIONS = {"centre": Center(4)}


class Task(pl.LightningModule):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 100, 4))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.net(self.norm(x))

    def test_step(self, batch, batch_idx):
        self.log("loss", self(batch[0]).sum())


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(1)
    model = Task().eval()
    x = torch.rand(23, 3, 12, 12, generator=generator)
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    return model, x, y


def batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def by_filters(a, b):
    """SSIM after Wang et al. 2004, equation 13, averaged over the windows inside the image, if there are any."""

    def mean(x):
        return gaussian_filter(x, (0, 1.5, 1.5), truncate=3.5, mode="mirror")

    both, covariance = mean(a) * mean(b), mean(a * b) - mean(a) * mean(b)
    squares, variances = mean(a) ** 2 + mean(b) ** 2, mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2
    values = (2 * both + 1e-4) * (2 * covariance + 9e-4) / ((squares + 1e-4) * (variances + 9e-4))
    return float((values[:, 5:-5, 5:-5] if min(values.shape[1:]) > 10 else values).mean())


def by_hand(model, x, y):
    """Every number from single images, in a plain loop."""
    rows = {name: [] for name in ATTACKS}
    right = []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        right.append(bool(model(image).argmax(1) == label))
        for name, attack in ATTACKS.items():
            if right[-1]:
                result = attack.run(model, image, label, region=REGIONS.get(name), seed=7)
                ssim = by_filters(image[0].double().numpy(), result.images[0].double().numpy())
                rows[name].append((bool(result.success), float(result.norms["l2"]), int(result.queries), ssim))
    return right, rows


def test_numbers_are_those_of_single_images(case):
    model, x, y = case
    right, rows = by_hand(model, x, y)
    assert 0 < sum(right) < len(right)
    for size in (23, 4):
        found = evaluate(model, batches(x, y, size), ATTACKS, regions=REGIONS, seed=7)
        assert found.images == 23
        assert found.clean_accuracy == pytest.approx(sum(right) / 23)
        survivors = sum(not any(each) for each in zip(*([hit for hit, *_ in rows[name]] for name in rows), strict=True))
        assert found.worst_case_accuracy == pytest.approx(survivors / 23)
        for name, each in rows.items():
            fooled = [row for row in each if row[0]]
            assert fooled, name
            row = found.attacks[name]
            assert row["robust_accuracy"] == pytest.approx((sum(right) - len(fooled)) / 23)
            assert row["fooling_rate"] == pytest.approx(len(fooled) / sum(right))
            assert row["l2"] == pytest.approx(sum(l2 for _, l2, *_ in fooled) / len(fooled), rel=1e-4)
            assert row["queries"] == pytest.approx(sum(queries for *_, queries, _ in each) / len(each))
            assert row["ssim"] == pytest.approx(sum(ssim for *_, ssim in fooled) / len(fooled), rel=1e-4)
            assert row["seconds"] > 0
    accuracies = [row["robust_accuracy"] for row in found.attacks.values()]
    assert found.worst_case_accuracy <= min(accuracies) <= max(accuracies) <= found.clean_accuracy


def test_means_of_nothing_are_none(case):
    model, x, _ = case
    found = evaluate(model, [(x[:2], (model(x[:2]).argmax(1) + 1) % 4)], {"pgd": ATTACKS["pgd"]})
    assert found.clean_accuracy == found.attacks["pgd"]["robust_accuracy"] == 0
    assert found.attacks["pgd"]["fooling_rate"] is found.attacks["pgd"]["l2"] is found.attacks["pgd"]["seconds"] is None
    empty = evaluate(model, [], {"pgd": ATTACKS["pgd"]})
    assert (empty.images, empty.clean_accuracy, empty.worst_case_accuracy) == (0, None, None)
    images = torch.rand(9, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    images[0, 0, 0, 0] = 1  # one that is right, at least
    small = evaluate(nn.Flatten(), [(images, torch.zeros(9).long())], {"fgsm": FGSM(eps=0.5)})
    assert -1 <= small.attacks["fgsm"]["ssim"] < 1


def test_files_and_table(case, tmp_path):
    model, x, y = case
    found = evaluate(model, batches(x, y, 8), ATTACKS)
    with found.save(tmp_path).open(newline="") as file:
        rows = {row["attack"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["clean", *ATTACKS, "worst case"]
    assert float(rows["pgd"]["l2"]) == found.attacks["pgd"]["l2"]
    assert Evaluation(**json.loads((tmp_path / "robustness.json").read_text())) == found
    assert found.table().row_count == len(rows)


def test_the_callback_finds_the_same(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    model, x, y = case
    callback = RobustnessTable(ATTACKS, REGIONS, seed=7)
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[callback], default_root_dir=tmp_path,
                         enable_progress_bar=False, inference_mode=True)  # fmt: skip
    trainer.test(model, DataLoader(TensorDataset(x, y), batch_size=8), verbose=False)
    expected = evaluate(model, batches(x, y, 8), ATTACKS, regions=REGIONS, seed=7)
    for name, row in expected.attacks.items():
        found = callback.evaluation.attacks[name]
        assert {k: v for k, v in found.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in row.items() if k != "seconds"}, rel=1e-6)  # fmt: skip
    assert callback.evaluation.worst_case_accuracy == expected.worst_case_accuracy
    out = capsys.readouterr().out
    assert "Robustness, 23 images" in out
    assert out.strip().endswith(str(tmp_path / "robustness.csv"))
    assert all(len(line) <= 80 for line in out.splitlines() if "robustness:" not in line)
    assert (tmp_path / "robustness.json").exists()


def test_the_callback_stops_at_its_limit(case, tmp_path):
    model, x, y = case
    callback = RobustnessTable({"fgsm": ATTACKS["fgsm"]}, limit_batches=2)
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[callback], default_root_dir=tmp_path,
                         enable_progress_bar=False)  # fmt: skip
    trainer.test(model, DataLoader(TensorDataset(x, y), batch_size=5), verbose=False)
    assert callback.evaluation.images == 10


def test_sums_of_two_processes_are_those_of_one(case):
    from lit_adv.evaluation import attack_batch

    model, x, y = case
    parts = [RobustAccuracy(list(ATTACKS)) for _ in range(2)]
    for number, (images, labels) in enumerate(batches(x, y, 5)):
        parts[number % 2].update(*attack_batch(model, images, labels, ATTACKS, REGIONS, seed=7))
    whole = RobustAccuracy(list(ATTACKS))
    for name in whole._reductions:  # what torchmetrics does over ranks
        setattr(whole, name, torch.stack([getattr(part, name) for part in parts]).sum(0))
    whole._update_count = 1
    merged = whole.compute()
    alone = evaluate(model, batches(x, y, 23), ATTACKS, regions=REGIONS, seed=7)
    assert merged["worst_case_accuracy"] == alone.worst_case_accuracy
    for name, row in merged["attacks"].items():
        assert row["robust_accuracy"] == alone.attacks[name]["robust_accuracy"]
        assert row["l2"] == pytest.approx(alone.attacks[name]["l2"], rel=1e-5)


def evaluate_nothing(attacks, regions):
    return evaluate(nn.Flatten(), [], attacks, regions=regions)


@pytest.mark.parametrize("make", [RobustnessTable, evaluate_nothing])
def test_bad_fields(make):
    with pytest.raises(ValueError, match="attacks must be at least one attack by name, got none"):
        make({}, None)
    with pytest.raises(ValueError, match="attacks must be at least one attack by name, got pgd: str"):
        make({"pgd": "PGD"}, None)
    with pytest.raises(ValueError, match=r"regions must be for attacks \(fgsm\), got one for pgd"):
        make({"fgsm": FGSM()}, {"pgd": Center(2)})


def test_other_bad_input(case):
    model, x, _ = case
    with pytest.raises(ValueError, match="limit_batches must be at least 1 or null, got 0"):
        RobustnessTable({"fgsm": FGSM()}, limit_batches=0)
    with pytest.raises(ValueError, match=r"evaluate: batches must be \(images, labels\), got Tensor"):
        evaluate(model, [x], {"fgsm": FGSM()})
    with pytest.raises(ValueError, match="FGSM: images must be in"):
        evaluate(model, [(x * 255, model(x * 255).argmax(1))], {"fgsm": FGSM()})
    metric = RobustAccuracy(["fgsm"])
    with pytest.raises(ValueError, match="fooled must be of the attacks fgsm, got pgd"):
        metric.update(torch.ones(2).bool(), {"pgd": torch.ones(2).bool()}, {})
    with pytest.raises(ValueError, match=r"fooled\['fgsm'\] must be bool of shape \(2,\)"):
        metric.update(torch.ones(2).bool(), {"fgsm": torch.ones(3).bool()}, {})
