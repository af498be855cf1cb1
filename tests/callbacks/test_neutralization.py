"""Neutralization: every number put together image by image, both protocols, on one process and on two."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import Neutralization
from lit_adv.callbacks.blob_search import Choice
from lit_adv.callbacks.clean_batches import TrainingBatches
from lit_adv.callbacks.neutralization import _graded, _strong
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_adv.attacks import BIM, FGSM, PGD, RandFGSM
from lit_adv.data import AdversarialDataModule, Digits
from lit_adv.explain import blob_of_masks, grad_cam, representative
from lit_adv.metrics import ssim, wilson_interval
from lit_adv.models import Classifier, NeutralizationDefense, load_classifier, neutralize

EPS = 0.15
ATTACK = FGSM(eps=EPS)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Classifier("small_cnn", 3, 16, 1).eval()
    # random weights prefer one class: without that preference all are found
    with torch.no_grad():
        model.network.linear.bias -= model(images(24, 0).tensors[0].float()).mean(0)
    return model


def images(count, seed):
    """Noise with a dark bar, whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 16, 16, generator=generator, dtype=torch.float64)
    labels = torch.arange(count) % 3
    for number in range(3):
        x[labels == number, :, 5 * number : 5 * number + 5] *= 0.2
    return TensorDataset((x * 255).round() / 255, labels)


class Source(pl.LightningDataModule):
    """Training images of its own, in float64, where no batch changes the last bit that a sign reads."""

    def train_dataloader(self):
        return DataLoader(images(31, 1), batch_size=4)

    def test_dataloader(self):
        return DataLoader(images(23, 2), batch_size=4)


class Task(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = network().double()

    def forward(self, x):
        return self.model(x)

    def test_step(self, batch, batch_idx):
        return None


def expected(source, target, point, protocol="split", value=0.0):
    """The numbers of one row, with one call for each image."""
    model = network().double()
    two = nn.Sequential(model, Two(source, target))
    label = torch.zeros(1, dtype=torch.long)

    def of_class(number, dataset):
        return [image[None] for image, own in zip(*dataset.tensors, strict=True) if own == number]

    def regions(image):
        cam = grad_cam(model, image, torch.tensor([source]))[0]
        moved = (BIM(eps=EPS, step_size=EPS / 10, steps=10)(two, image, label) - image).abs()[0, 0]
        return cam >= point[0], moved / moved.max() >= point[1]

    test = of_class(source, images(23, 2))
    train = test if protocol == "paper" else of_class(source, images(31, 1))
    masks = [torch.stack(each) for each in zip(*map(regions, train), strict=True)]
    blob = blob_of_masks(*masks, point[2])
    defence = nn.Sequential(Blocked(blob, value), two)
    strong = PGD(eps=EPS, step_size=EPS / 8, steps=20, stop_at_success=True)
    seen = {name: [] for name in Neutralization.SCORES}
    for image in test:
        modified = neutralize(image, blob, value)
        attacked = ATTACK(two, image, label, seed=0)
        both = ATTACK(two, modified, label, seed=0)
        for name, model_, made in (
            ("clean", two, image),
            ("adversarial", two, attacked),
            ("modified", two, modified),
            ("modified_adversarial", two, both),
            ("reneutralised", defence, both),
            ("unaware", defence, attacked),
            ("strong", two, strong(two, image, label, seed=0)),
            ("adaptive", defence, strong(defence, image, label, seed=0)),
        ):
            seen[name].append(int(model_(made).argmax(1)) == 0)
    for image in of_class(target, images(23, 2)):
        seen["target_clean"].append(int(two(image).argmax(1)) == 1)
        seen["target_modified"].append(int(defence(image).argmax(1)) == 1)
    test_masks = [torch.stack(each) for each in zip(*map(regions, test), strict=True)]
    samples = ssim(*(each[:, None].float() for each in test_masks)).mean()
    graded = ssim(*(representative(each)[None, None] for each in test_masks))
    return {name: sum(hits) / len(hits) for name, hits in seen.items()}, blob, float(samples), float(graded)


class Two(nn.Module):
    def __init__(self, *classes):
        super().__init__()
        self.classes = list(classes)

    def forward(self, logits):
        return logits[:, self.classes]


class Blocked(nn.Module):
    def __init__(self, blob, value):
        super().__init__()
        self.blob, self.value = blob, value

    def forward(self, x):
        return x * ~self.blob + self.blob * self.value


def read(folder):
    with (folder / "neutralization.csv").open() as file:
        return {(row["source"], row["target"], row["chosen"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize(("protocol", "value", "inference_mode"), [("split", 1.0, True), ("paper", 0.0, False)])
def test_every_number_image_by_image(tmp_path: Path, trainer, capsys, protocol, value, inference_mode) -> None:
    logged = {}

    class Log(pl.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.update(metrics)

    point = (0.4, 0.6, 0.3)
    callback = Neutralization(ATTACK, [(0, 1), (2, 0)], *point, value=value, protocol=protocol)
    run = trainer(callback, logger=Log(tmp_path), inference_mode=inference_mode)
    task = Task()
    run.test(task, Source())
    rows = read(tmp_path)
    assert list(rows) == [("0", "1", "given"), ("2", "0", "given")]
    areas, seen = [], set()
    for (source, target, _), row in rows.items():
        scores, blob, samples, graded = expected(int(source), int(target), point, protocol, value)
        assert {name: float(row[name]) for name in scores} == pytest.approx(scores, abs=1e-12)
        assert torch.equal(callback.choices[int(source), int(target)]["given"].blob, blob)
        assert float(row["area"]) == pytest.approx(float(blob.double().mean()))
        assert float(row["ssim_samples"]) == pytest.approx(samples, abs=1e-6)
        assert float(row["ssim_representatives"]) == pytest.approx(graded, abs=1e-6)
        count = sum(label == int(source) for label in images(23, 2).tensors[1].tolist())
        low, high = wilson_interval(torch.tensor(round(scores["modified"] * count)), torch.tensor(count))
        assert (float(row["modified_low"]), float(row["modified_high"])) == (float(low), float(high))
        assert int(row["images"]) == count
        name = f"neutralization/{source}_to_{target}/given/adaptive"
        assert logged[name] == pytest.approx(scores["adaptive"])
        areas.append(float(row["area"]))
        seen |= set(scores.values())
        defence = load_classifier(tmp_path / "neutralization" / f"{source}_to_{target}_given.safetensors")
        assert isinstance(defence, NeutralizationDefense)
        assert torch.equal(defence.blob, blob)
        assert float(defence.value) == value
    assert 0.05 < max(areas) < 0.95
    assert len(seen) > 3  # not all of them 0 or 1
    content = json.loads((tmp_path / "neutralization.json").read_text())
    assert (content["protocol"], content["rows"][0]["scores"]["clean"]["images"]) == (protocol, 8)
    figures = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert figures == {f"neutralization_{name}" for name in ("accuracy", "examples", "representatives")}
    out = capsys.readouterr().out
    assert f"Neutralisation ({protocol} protocol" in out
    assert max(map(len, out.split("Neutralisation (")[1].split("neutralization:")[0].splitlines())) <= 80
    assert all(parameter.grad is None for parameter in task.parameters())


def test_a_full_region_of_importance_changes_nothing(tmp_path: Path, trainer) -> None:
    trainer(Neutralization(ATTACK, [(0, 1)], delta1=0.0)).test(Task(), Source())
    (row,) = read(tmp_path).values()
    assert float(row["area"]) == 0
    for one, other in (("clean", "modified"), ("adversarial", "modified_adversarial"), ("strong", "adaptive")):
        assert row[one] == row[other]
    assert row["target_clean"] == row["target_modified"]


def test_an_attack_without_a_budget_changes_nothing(tmp_path: Path, trainer) -> None:
    trainer(Neutralization(FGSM(eps=0.0), [(0, 1)], relative=False)).test(Task(), Source())
    (row,) = read(tmp_path).values()
    assert float(row["area"]) == 0
    assert row["clean"] == row["adversarial"] == row["adaptive"]


def test_the_search_sees_the_training_images_alone(tmp_path: Path, trainer, monkeypatch) -> None:
    monkeypatch.setattr(Neutralization, "_draw", lambda self, trainer: None)  # 18 panels take their time

    class Other(Source):
        def test_dataloader(self):
            return DataLoader(TensorDataset(1 - images(23, 2).tensors[0], images(23, 2).tensors[1]), batch_size=4)

    found = []
    for data in (Source(), Other()):
        callback = Neutralization(
            ATTACK, search=True, grid=[0.3, 0.7], max_drop=0.2, adaptive_attack=ATTACK, examples=0
        )
        trainer(callback).test(Task(), data)
        assert len(callback.choices) == 6  # all ordered pairs of the three classes
        found.append(callback.choices)
    for pair, choices in found[0].items():
        assert list(choices) == ["given", "pair", "all"]
        for chosen, choice in choices.items():
            assert torch.equal(choice.blob, found[1][pair][chosen].blob)
    assert len({choices["all"].point for choices in found[0].values()}) == 1
    assert any(choices["pair"].blob.any() for choices in found[0].values())
    rows = read(tmp_path)
    assert len(rows) == 18
    for (source, target, chosen), row in rows.items():
        point = found[1][int(source), int(target)][chosen].point
        assert row["delta1"] == ("" if point is None else str(point.delta1))


def test_training_images_are_not_augmented(trainer) -> None:
    data = Digits(train_limit=40, validation=10, augment=True, eval_batch_size=16)
    run = trainer()
    run.datamodule = data
    found = torch.cat([part for part, _ in TrainingBatches("Test", run, "")])
    plain = Digits(train_limit=40, validation=10)
    plain.setup("fit")
    assert torch.equal(found, plain.train_dataset.batch(range(40))[0])
    assert not torch.equal(found, data.train_dataset.batch(range(40), epoch=0)[0])


def test_a_module_is_set_up_once_and_its_only_batch_shared(trainer, monkeypatch) -> None:
    """One that splits anew at each setup, as many do, must give the same images in every pass over them."""

    class Splitting(Source):
        setups = 0

        def setup(self, stage):
            self.setups += stage == "fit"

        def train_dataloader(self):
            return DataLoader(images(7, self.setups), batch_size=5)

    data, run = Splitting(), trainer()
    run.datamodule = data
    whole = TrainingBatches("Test", run, "")
    assert torch.equal(whole.whole()[0], images(7, 1).tensors[0])
    seen = []
    for rank in range(3):
        monkeypatch.setattr("lit_adv.callbacks.clean_batches.rank_and_world", lambda rank=rank: (rank, 3))
        batches = list(whole)
        assert [len(part) for part, _ in batches] == [[2, 1], [2, 0], [1, 1]][rank]
        seen.append(torch.cat([part for part, _ in batches]))
    assert data.setups == 1
    expected = images(7, 1).tensors[0]
    for rank, part in enumerate(seen):
        assert torch.equal(part, expected[rank::3])


def test_the_paper_s_regions_are_of_the_images_tested(tmp_path: Path, trainer) -> None:
    class Short(Source):
        def test_dataloader(self):
            return DataLoader(torch.utils.data.Subset(images(23, 2), range(12)), batch_size=4)

    blobs = []
    for data, limit in ((Source(), 3), (Short(), None), (Source(), None)):
        callback = Neutralization(ATTACK, [(0, 1)], protocol="paper", examples=0, adaptive_attack=ATTACK)
        trainer(callback, limit_test_batches=limit).test(Task(), data)
        blobs.append(callback.choices[0, 1]["given"].blob)
    assert torch.equal(blobs[0], blobs[1])
    assert not torch.equal(blobs[0], blobs[2])


@pytest.mark.parametrize("attack", [FGSM(eps=0.2), RandFGSM(eps=0.2, alpha=0.1)])
def test_a_sign_step_is_graded_by_ten(attack) -> None:
    assert _graded(attack) == BIM(eps=0.2, step_size=0.02, steps=10)
    assert _graded(PGD(eps=0.2)) == PGD(eps=0.2)


@pytest.mark.parametrize("attack", [FGSM(eps=0.15), PGD(norm="l2", eps=1.0)])
def test_the_strong_attack_stops_where_it_has_won(attack) -> None:
    """Only the accuracy is read of it, which a later step can but raise again."""
    model, (x, labels) = network().double(), images(30, 3).tensors
    norm = getattr(attack, "norm", "linf")
    whole = PGD(norm=norm, eps=attack.eps, step_size=attack.eps / 8, steps=20)
    one, other = (each.run(model, x, labels, seed=0) for each in (_strong(attack), whole))
    assert one.success.sum() > 3
    assert not (other.success & ~one.success).any()
    assert one.forwards.sum() < other.forwards.sum() / 2
    assert other.images[~one.success].equal(one.images[~one.success])


def test_empty_maps_are_counted_and_warned_of(tmp_path: Path, trainer) -> None:
    task = Task()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        task.model = model = Classifier("small_cnn", 3, 16, 1).double().eval()
    x, labels = images(31, 1).tensors
    layer = "network.features.6"
    shares = {}
    for source in (0, 1, 2):
        own = x[labels == source]
        maps = [grad_cam(model, image[None], torch.tensor([source]), layer=layer) for image in own]
        shares[source] = sum(not each.any() for each in maps) / len(own)
    assert max(shares.values()) > 0.1 > min(shares.values())
    pairs = [(source, (source + 1) % 3) for source in shares]
    many = [f"{a} → {b} {100 * shares[a]:.0f} %" for a, b in pairs if shares[a] > 0.1]
    callback = Neutralization(ATTACK, pairs, layer=f"model.{layer}", adaptive_attack=ATTACK, examples=0)
    with pytest.warns(UserWarning, match=rf"0 everywhere for many images \({', '.join(many)}\), whose RoI is empty"):
        trainer(callback).test(task, Source())
    for (source, _, _), row in read(tmp_path).items():
        assert float(row["empty_maps"]) == pytest.approx(shares[int(source)])


class Counted(FGSM):
    """Counts how often each image is attacked."""

    images = 0

    def __call__(self, model, images, *args, **kwargs):
        Counted.images += len(images)
        return super().__call__(model, images, *args, **kwargs)


@pytest.mark.parametrize("kinds", ["mmm", "mmo", "mon", "nmn", "nnn"])
def test_a_blob_is_attacked_once_whoever_has_chosen_it(tmp_path: Path, trainer, monkeypatch, kinds) -> None:
    """Given, pair and all: the middle (m), another blob (o) or nothing (n)."""
    blobs = {kind: torch.zeros(16, 16, dtype=torch.bool) for kind in "mon"}
    blobs["m"][5:9], blobs["o"][:, 3] = True, True
    monkeypatch.setattr(Neutralization, "_draw", lambda self, trainer: None)
    calls = {"all": 0}

    def counting(module, inputs):
        calls["all"] += len(inputs[0])

    def tested(kinds):
        callback = Neutralization(ATTACK, [(0, 1)], search=True, grid=[0.5], adaptive_attack=Counted(eps=EPS))
        made = (Choice(callback.given, blobs[kind]) for kind in kinds)
        choices = dict(zip(("given", "pair", "all"), made, strict=False))
        monkeypatch.setattr(Neutralization, "_search", lambda self, *_: self.choices.update({(0, 1): choices}))
        Counted.images = 0
        task = Task()
        task.register_forward_pre_hook(counting)
        calls["all"] = 0
        folder = tmp_path / kinds
        trainer(callback, default_root_dir=folder).test(task, Source())
        return callback.results, Counted.images, calls["all"]

    results, attacked, passes = tested(kinds)
    distinct = set(kinds) - {"n"}
    # eight images of the class, once more without a blob
    assert attacked == 8 * (1 + len(distinct))
    _, _, without = tested("nn")
    # five accuracies and two attacks of one step for an image of the source class, one accuracy for one of the target's
    assert passes - without == len(distinct) * (8 * (5 + 2) + 8)
    for kind, result in zip(kinds, results, strict=True):
        (alone, _), _, _ = tested(2 * kind)
        assert result["scores"] == alone["scores"]


def test_gradient_maps_and_all_classes(tmp_path: Path, trainer) -> None:
    options = {"map_attack": "gradient", "decision": "all", "blob_from": "representatives", "cam": "grad_cam_plus_plus"}
    trainer(Neutralization(ATTACK, [(0, 1)], 0.6, 0.2, 0.3, **options)).test(Task(), Source())
    (row,) = read(tmp_path).values()
    x, labels = images(23, 2).tensors
    model = network().double()
    clean = float((model(x[labels == 0]).argmax(1) == 0).double().mean())
    assert float(row["clean"]) == clean
    made = ATTACK(model, x[labels == 0], labels[labels == 0], targets=torch.ones(8, dtype=torch.long))
    assert float(row["adversarial"]) == float((model(made).argmax(1) == 0).double().mean())
    assert 0 < float(row["area"]) < 1


def test_data_that_does_not_fit_is_refused_before_any_attack(trainer) -> None:
    class Never(FGSM):
        def __call__(self, *args, **kwargs):
            raise AssertionError("attacked")

    with pytest.raises(ValueError, match=r"Neutralization: the data must be a data module with training images"):
        trainer(Neutralization(Never(), [(0, 1)])).test(Task(), DataLoader(images(6, 0)))
    with pytest.raises(ValueError, match=r"Neutralization: pairs must be of the 3 classes from 0, got \(0, 7\)"):
        trainer(Neutralization(Never(), [(0, 7)])).test(Task(), Source())
    data = AdversarialDataModule(Digits(test_limit=9), {"v": Classifier("small_cnn", 10, 16, 1)}, {"fgsm": ATTACK})
    with pytest.raises(ValueError, match=r"the data must be clean pairs \(images, labels\), got an AdversarialDataMod"):
        trainer(Neutralization(Never(), [(0, 1)])).test(Task(), data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attack": "fgsm"}, "Neutralization: attack must be an Attack, got 'fgsm'"),
        ({"pairs": [(0, 0)]}, r"pairs must be of two different classes from 0, got \(0, 0\)"),
        ({"pairs": []}, "pairs must be one or more different ones, got"),
        ({"value": 255}, r"Neutralization: value must be in \[0, 1\], got 255"),
        ({"protocol": "leak"}, "Neutralization: protocol must be one of split, paper, got 'leak'"),
        ({"decision": "both"}, "Neutralization: decision must be one of pair, all, got 'both'"),
        ({"keep": "none"}, "Neutralization: keep must be one of source, both, got 'none'"),
        ({"map_attack": "cam"}, "map_attack must be an Attack, gradient or None, got 'cam'"),
        ({"grid": []}, "grid must hold at least one value"),
        ({"grid": [0.5, float("nan")]}, "Neutralization: grid must be finite, got nan"),
        ({"delta1": float("nan")}, "Neutralization: delta1 must be finite, got nan"),
        ({"theta": float("inf")}, "Neutralization: theta must be finite, got inf"),
        ({"confidence": 1}, r"confidence must be in \(0, 1\), got 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        Neutralization(**{"attack": ATTACK, **arguments})


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, trainer) -> None:
    for protocol in PROTOCOLS:
        trainer(callback(protocol), default_root_dir=tmp_path / protocol).test(Task(), Source())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    for variable in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED"):
        environment.pop(variable, None)
    command = [sys.executable, __file__, str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for protocol in PROTOCOLS:
        folders = tmp_path / protocol, tmp_path / "two" / protocol
        one, two = (json.loads((folder / "neutralization.json").read_text()) for folder in folders)
        for first, second in zip(one["rows"], two["rows"], strict=True):
            for name in ("ssim_samples", "ssim_representatives"):
                mine, other = first.pop(name), second.pop(name)
                assert mine is other is None or other == pytest.approx(mine, abs=1e-9)
        assert one == two
        names = [sorted(path.name for path in (folder / "neutralization").iterdir()) for folder in folders]
        assert names[0] == names[1]


PROTOCOLS = ("split", "paper")


def callback(protocol):
    options = {"search": True, "grid": [0.3, 0.7], "max_drop": 0.2, "adaptive_attack": ATTACK, "examples": 1}
    return Neutralization(ATTACK, [(0, 1), (2, 0)], protocol=protocol, **options)


def main(folder):
    """A test run on two processes, called by the test above; 23 images: Lightning's sampler gives one of them twice."""
    torch.set_num_threads(1)
    for protocol in PROTOCOLS:
        pl.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            logger=False,
            callbacks=[callback(protocol)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=f"{folder}/{protocol}",
        ).test(Task(), Source(), verbose=False)


if __name__ == "__main__":
    main(sys.argv[1])
