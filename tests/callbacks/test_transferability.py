"""Transferability: files and matrices of a test run, techniques on subsets, one process and two."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import Transferability
from lit_adv.callbacks.transfer_tables import by_technique, transfer_rows, transfer_tables
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier
from torch.utils.data import DataLoader, TensorDataset

from lit_adv.attacks import FGSM, PGD, Center, Frame, RandomPixels, Square, random_targets, transfer
from lit_adv.data import AdversarialDataModule, Digits
from lit_adv.files import safe_names
from lit_adv.metrics import TransferMatrix
from lit_adv.models import Classifier
from lit_adv.tasks import EstimatorTechnique, NetworkTechnique
from lit_adv.tasks.techniques import disjoint_subsets

CARD = PGD(eps=1.0, step_size=0.0039, steps=12, random_start=False)
REGIONS = {"frame": Frame(4), "random": RandomPixels(0.3)}


def network(seed):
    """Networks that are alike, so that images transfer now and then."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Classifier("small_cnn", 3, 16).double().eval().requires_grad_(False)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter += 0.2 * parameter.std() * torch.randn_like(parameter)
        return model


def images(count=11):
    x = torch.rand(400, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        answers = torch.stack([network(seed)(x).softmax(1) for seed in (0, 1)])
    # images that both give one class, but only just, so that something happens in few steps, and two of another opinion
    labels = answers[0].argmax(1)
    agreed = answers[1].argmax(1) == labels
    sure = answers.amax(2).amax(0)
    near = torch.cat([sure.masked_fill(~agreed, 9).argsort()[: count - 2], (~agreed).nonzero()[:2, 0]])
    return TensorDataset(x[near], labels[near])


class Task(pl.LightningModule):
    """A classifier that is tested without a number of its own."""

    def __init__(self):
        super().__init__()
        self.net = network(0)

    def forward(self, x):
        return self.net(x)

    def test_step(self, batch, batch_idx):
        return None


def callback(**changes):
    given = {"regions": REGIONS, "classifiers": {"other": network(1)}, "goal": "random", "seed": 3}
    return Transferability(**{"attack": CARD, **given, **changes})


def expected(region=None, procedure="until_fooled"):
    task, (x, y) = Task().eval(), images().tensors
    models = {"tested": task, "other": network(1)}
    targets = random_targets(x, y, 3, seed=3)
    return transfer(CARD, models, models, x, y, targets=targets, region=region, seed=3, procedure=procedure)


def alike(found, other):
    assert found.keys() == other.keys()
    for name, value in found.items():
        if isinstance(value, dict):
            alike(value, other[name])
        else:
            assert _flat(value) == pytest.approx(_flat(other[name]), abs=1e-9), name


def _flat(value):
    if isinstance(value, list):
        return [each for row in value for each in _flat(row)]
    return [value] if value is not None else [-1]


@pytest.mark.parametrize("procedure", ["until_fooled", "attack_then_test"])
def test_the_numbers_are_those_of_the_function_and_the_metric(tmp_path: Path, trainer, procedure) -> None:
    run = callback(procedure=procedure)
    trainer(run).test(Task(), DataLoader(images(), batch_size=4))
    whole = expected(None, procedure)
    found = json.loads((tmp_path / "transferability.json").read_text())
    assert list(found["regions"]) == ["none", *REGIONS]
    for name, region in {"none": None, **REGIONS}.items():
        metric = TransferMatrix(["tested", "other"], ["tested", "other"])
        # the attack without a region is not compared with itself
        metric.update(expected(region, procedure), whole if region else None)
        numbers = metric.compute()
        stored = found["regions"][name]
        stored.pop("summary")
        assert {key: stored.pop(key) for key in ("sources", "victims")} == {
            key: numbers.pop(key) for key in ("sources", "victims")
        }
        alike(stored, numbers)
    assert sum(map(sum, found["regions"]["none"]["transferred"])) > 0
    assert found["settings"]["procedure"] == procedure
    assert "RandomPixels" in found["settings"]["regions"]["random"]
    rows = list(csv.DictReader((tmp_path / "transferability.csv").read_text().splitlines()))
    assert len(rows) == 3 * 2 * 2
    first = next(row for row in rows if (row["region"], row["source"], row["victim"]) == ("frame", "other", "tested"))
    assert float(first["transferability"]) == found["regions"]["frame"]["transferability"][1][0]
    assert float(first["attempted"]) == found["regions"]["frame"]["attempted"][1][0]
    pictures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert pictures == {"transferability.png", *(f"transferability_{name}.png" for name in REGIONS)}


def test_regions_of_any_name_have_figures_of_safe_names(tmp_path: Path, trainer) -> None:
    names = ["centre, 120 of 224", "a/b", "a b"]
    run = callback(regions=dict.fromkeys(names, Center(4)), attack=FGSM(eps=0.1))
    trainer(run).test(Task(), DataLoader(images(4), batch_size=4))
    found = {path.name for path in (tmp_path / "figures").iterdir()}
    assert found == {
        "transferability.png",
        *(f"transferability_{name}.png" for name in safe_names(["none", *names])[1:]),
    }
    assert len(found) == 4
    assert list(run.results) == ["none", *names]


def test_tables_fit_a_terminal(trainer) -> None:
    run = callback()
    trainer(run).test(Task(), DataLoader(images(), batch_size=4))
    console = Console(width=80, record=True, file=io.StringIO())
    for table in transfer_tables(run.results):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("region frame", "tested > other", "still", "What transfers to another model: mean (std)"):
        assert words in text
    assert text.count("…") == 0
    (whole,) = [line.split() for line in text.splitlines() if line.split()[1:2] == ["none"] and "%" in line]
    assert whole.count("–") == 4
    (frame,) = [line.split() for line in text.splitlines() if line.split()[1:2] == ["frame"] and "%" in line]
    assert "–" not in frame
    assert text.count("of the images that both classify rightly") == 3


def test_limits_sources_and_victims(tmp_path: Path, trainer) -> None:
    run = callback(
        regions=None, sources=["other"], victims=["tested"], limit_batches=1, attacks={"other": FGSM(eps=0.9)}
    )
    trainer(run).test(Task(), DataLoader(images(), batch_size=4))
    (found,) = run.results.values()
    assert (found["sources"], found["victims"], found["images"]) == (["other"], ["tested"], 4)
    task, (x, y) = Task().eval(), images().tensors
    direct = transfer(
        FGSM(eps=0.9),
        {"other": network(1)},
        {"tested": task},
        x[:4],
        y[:4],
        targets=random_targets(x[:4], y[:4], 3, seed=3),
        seed=3,
    )
    assert found["transferred"] == direct.success.sum(-1).tolist()
    assert found["attempted"] == direct.attempted.sum(-1).tolist()


def test_techniques_learn_disjoint_subsets(tmp_path: Path, trainer) -> None:
    data = Digits(image_size=8, batch_size=60, test_limit=60, train_limit=600, augment=True)
    run = Transferability(
        PGD(eps=0.2, step_size=0.04, steps=5, random_start=False),
        attacks={"tree": Square(eps=0.2, queries=20)},
        techniques={
            "logistic": EstimatorTechnique(estimator=LogisticRegression(max_iter=200)),
            "tree": EstimatorTechnique(estimator=DecisionTreeClassifier()),
            "network": NetworkTechnique(epochs=4, learning_rate=5e-3),
        },
        subsets=2,
        tested=None,
        procedure="attack_then_test",
    )
    seen = []
    fit = EstimatorTechnique.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            EstimatorTechnique, "fit", lambda self, x, y, k, seed: seen.append((x, y)) or fit(self, x, y, k, seed)
        )
        trainer(run).test(Task(), data)
    # the clean training images, without augmentation and validation
    plain = Digits(image_size=8, train_limit=600)
    plain.setup("fit")
    x, y = plain.train_dataset.batch(range(600))
    first, second = disjoint_subsets(y, 2, 0)
    for rows, (given, labels) in zip((first, second), seen[:2], strict=True):
        assert torch.equal(given, x[rows])
        assert torch.equal(labels, y[rows])
    assert not set(first.tolist()) & set(second.tolist())
    found = run.results["none"]
    names = [f"{name}/{part}" for name in ("logistic", "tree", "network") for part in (1, 2)]
    assert found["sources"] == found["victims"] == names
    assert found["transferability"][0][0] > 0.5
    grouped = by_technique(found)
    assert grouped["sources"] == ["logistic", "tree", "network"]
    # within a technique the model itself is left out
    assert grouped["transferred"][0][0] == found["transferred"][0][1] + found["transferred"][1][0]
    assert grouped["attempted"][0][1] == sum(found["attempted"][row][column] for row in (0, 1) for column in (2, 3))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "transferability.png",
        "transferability_techniques.png",
    }
    stored = json.loads((tmp_path / "transferability.json").read_text())["regions"]["none"]
    assert stored["techniques"] == grouped
    assert len(transfer_rows(run.results)) == 36


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subsets": 0}, "Transferability: subsets must be at least 1, got 0"),
        ({"limit_batches": 0}, "limit_batches must be at least 1"),
        ({"procedure": "never"}, "procedure must be one of until_fooled, attack_then_test, got 'never'"),
        ({"goal": "left"}, "goal must be one of untargeted, random, got 'left'"),
        ({"regions": {"none": Center(2)}}, "regions must not be called 'none'"),
        ({"tested": "other"}, "must give one or more different names, got .'other', 'other'."),
        ({"tested": None, "classifiers": {}}, "must give one or more different names"),
        ({"sources": ["tree"]}, "sources must be of tested, other, got 'tree'"),
        ({"victims": []}, "victims must be at least one classifier, got none"),
        ({"attacks": {"tree": FGSM()}}, r"attacks must be for sources \(tested, other\), got one for 'tree'"),
        ({"classifiers": {"x": "gone.ckpt"}}, r"there is no checkpoint 'gone.ckpt' for x \(train it"),
    ],
)
def test_bad_arguments_are_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        callback(**change)


def test_techniques_need_training_images(trainer) -> None:
    run = callback(techniques={"tree": EstimatorTechnique(estimator=DecisionTreeClassifier())})
    with pytest.raises(ValueError, match="Transferability: the data must be a data module with training images"):
        trainer(run).test(Task(), DataLoader(images(), batch_size=4))
    data = AdversarialDataModule(Digits(test_limit=9), {"v": Classifier("small_cnn", 10, 16, 1)}, {"fgsm": FGSM()})
    with pytest.raises(ValueError, match=r"got an AdversarialDataModule \(give its source"):
        trainer(run).test(Task(), data)


def test_techniques_learn_the_images_of_any_data_module(trainer) -> None:
    class Plain(pl.LightningDataModule):
        num_classes = 3

        def train_dataloader(self):
            return DataLoader(images(), batch_size=4)

        def test_dataloader(self):
            return DataLoader(images(), batch_size=4)

    run = callback(
        techniques={"nearest": EstimatorTechnique(estimator=KNeighborsClassifier(1))}, classifiers={}, regions={}
    )
    trainer(run).test(Task(), Plain())
    # its training images are those of the test: it is right about all of them, as are the labels of the task's nine
    assert run.results["none"]["attempted"] == [[11, 11], [11, 11]]


class Never(NetworkTechnique):
    """Training that would take long."""

    def fit(self, images, labels, num_classes, seed=0):
        raise AssertionError("trained")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": {"centre": Center(30)}}, "Center: size must be at most the image's 8 pixels, got 30"),
        ({"subsets": 31}, "Transferability: subsets must be at most 30, the number of training images, got 31"),
        ({"attacks": {}}, "attacks must give tree an attack that it can take: .* DecisionTreeClassifier gives no grad"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(trainer, change, message) -> None:
    tree = EstimatorTechnique(estimator=DecisionTreeClassifier())
    given = {"techniques": {"network": Never(), "tree": tree}, "attacks": {"tree": Square(eps=0.2, queries=5)}}
    run = Transferability(**{"attack": PGD(eps=0.1, steps=2), **given, "tested": None, **change})
    with pytest.raises(ValueError, match=message):
        trainer(run).test(Task(), Digits(image_size=8, test_limit=20, train_limit=30))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, trainer) -> None:
    # 11 images on 2 processes: Lightning's sampler gives one of them twice
    trainer(callback()).test(Task(), DataLoader(images(), batch_size=4))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    for variable in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED"):
        environment.pop(variable, None)
    command = [sys.executable, __file__, str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        json.loads((folder / "transferability.json").read_text())["regions"] for folder in (tmp_path, tmp_path / "two")
    )
    assert two["none"]["images"] == 11
    for region, found in one.items():
        for side in ("sources", "victims"):
            assert found.pop(side) == two[region].pop(side)
        alike(two[region], found)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {path.name for path in (tmp_path / "two" / "figures").iterdir()} == names


def main(folder):
    """A test run on two processes, called by the test above."""
    torch.set_num_threads(1)
    pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        callbacks=[callback()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    ).test(Task(), DataLoader(images(), batch_size=3), verbose=False)


if __name__ == "__main__":
    main(sys.argv[1])
