"""Adversarial images in files: what is written, by whom, and what a kill leaves."""

import csv
import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import AdversarialWriter
from PIL import Image
from torchvision.datasets import ImageFolder

from lit_adv.attacks import FGSM, PGD
from lit_adv.data import AdversarialDataModule, Arrays, Degradation, verify_set
from lit_adv.data.adversarial_set import COLUMNS
from lit_adv.models import Classifier
from lit_adv.tasks import Crafting

HOSTILE = ["../../up", "/abs", "Cat", "cat"]


@dataclass(frozen=True, kw_only=True)
class Killing(FGSM):
    """Ends the process at its third call, where it is told to."""

    def _attack(self, *given, **named):
        Killing.calls += 1
        if Killing.calls == 3 and os.environ.get("KILL"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._attack(*given, **named)


Killing.calls = 0


def source(folder, classes=None):
    path = Path(folder) / "images.npz"
    if not path.exists():
        draws = np.random.default_rng(0)
        named = {} if classes is None else {"classes": np.array(classes)}
        np.savez(
            path,
            x_train=draws.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8),
            y_train=np.arange(12) % 4,
            x_test=draws.integers(0, 256, (11, 8, 8, 3), dtype=np.uint8),
            y_test=np.arange(11) % 4,
            **named,
        )
    return Arrays(path=path, validation=4)


def data(folder, classes=None, **given):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        victims = {name: Classifier("small_cnn", 4, 8) for name in ("a", "b")}
    arguments = {
        "victims": victims,
        "attacks": {
            "pgd/8": PGD(eps=8 / 255, steps=2),
            "pgd/16": PGD(eps=16 / 255, steps=2),
            "kill": Killing(eps=0.05),
        },
        "eval_batch_size": 4,
    }
    return AdversarialDataModule(source(folder, classes), **{**arguments, **given})


def write(place, module=None, devices=1, task=None, trainer=None, **given):
    given = {"max_images_per_shard": 6, **given}
    run = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        callbacks=[AdversarialWriter(**given)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        default_root_dir=place / "run",
        **(trainer or {}),
    )
    run.predict(task or Crafting(), datamodule=data(place) if module is None else module, return_predictions=False)
    return place / "run" / "adversarial"


def table(written):
    with (written / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(written):
    return {
        path.relative_to(written).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in written.rglob("*")
        if path.is_file()
    }


def levels(path):
    return torch.from_numpy(np.moveaxis(np.array(Image.open(path)), -1, 0).copy())


def crafted(module, split="test"):
    found = {}
    for batch in module.batches(split):
        for row in range(len(batch.label)):
            key = tuple(int(getattr(batch, name)[row]) for name in ("index", "attack", "setting", "victim"))
            found[key] = (batch.clean[row], batch.adversarial[row], int(batch.label[row]))
    return found


def test_every_version_is_written_as_it_is_crafted(tmp_path):
    written, module = write(tmp_path), data(tmp_path)
    expected, rows = crafted(module), table(written)
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(expected) == 11 * (1 + 3 * 2)
    for row in rows:
        attack = module.attack_classes.index(row["attack"])
        setting = module.settings[row["attack"]].index(row["setting"]) if attack else 0
        victim = module.victim_names.index(row["victim"]) if attack else -1
        clean, adversarial, label = expected.pop((int(row["index"]), attack, setting, victim))
        assert torch.equal(levels(written / row["file"]) / 255, adversarial)
        assert row["sha256"] == hashlib.sha256((written / row["file"]).read_bytes()).hexdigest()
        assert (int(row["label"]), row["class"], row["split"]) == (label, str(label), "test")
        delta = adversarial.double() - clean.double()
        assert float(row["l2"]) == pytest.approx(float(delta.norm()), rel=1e-4)
        assert float(row["linf"]) == pytest.approx(float(delta.abs().max()), rel=1e-4)
        assert int(row["l0"]) == int((delta != 0).any(0).sum())
        if attack:
            network = module.victim(row["victim"])
            before, after = (int(network(image[None]).argmax()) for image in (clean, adversarial))
            assert int(row["success"]) == (before != after)
        else:
            assert row["success"] == row["setting"] == row["victim"] == ""
    assert not expected
    assert verify_set(written).whole


def test_the_success_counts_are_the_data_modules_own(tmp_path):
    written, module = write(tmp_path), data(tmp_path)
    list(module.batches("test"))
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["counts"]["images"] == 77
    assert sum(row["success_after"] for row in module.report("test")) > 0
    for row in module.report("test"):
        version = manifest["counts"]["versions"][f"test: {row['setting']} on {row['victim']}"]
        assert (version["images"], version["success"]) == (row["images"], row["success_after"])
    about = manifest["set"]
    assert about["victims"] == module.victim_fingerprints()
    assert about["attacks"]["pgd/8"]["fingerprint"] == module.attacks["pgd/8"].fingerprint()
    assert (about["seed"], about["labels"], about["quantise"]) == (0, "prediction", "round")


def test_torchvision_reads_the_folder_with_the_same_labels(tmp_path):
    written = write(tmp_path, data(tmp_path, classes=["zebra", "ant", "Cat", "cat"]))
    read = ImageFolder(str(written / "images" / "test"))
    assert read.classes[0].startswith("0_zebra")
    assert read.classes[1].startswith("1_ant")
    labels = {row["file"]: int(row["label"]) for row in table(written)}
    assert len(read) == len(labels)
    for path, label in read.samples:
        assert labels[Path(path).relative_to(written).as_posix()] == label


def test_all_splits_without_augmentation_or_degradation(tmp_path):
    plain = data(tmp_path, variants=3)
    shifted = data(tmp_path, variants=3, augment=True, degradation=Degradation())
    written = write(tmp_path, shifted, splits=("train", "val", "test"))
    rows = table(written)
    counts = {split: sum(row["split"] == split for row in rows) for split in ("train", "val", "test")}
    # in training a version each of pgd and kill; in evaluation all
    assert counts == {"train": 8 * 3, "val": 4 * 7, "test": 77}
    assert files(write(tmp_path / "plain", plain, splits=("train", "val", "test"))) == files(written)
    expected = crafted(plain, "val")
    checked = 0
    for row in rows:
        if row["split"] == "val" and row["attack"] != "clean":
            attack, victim = plain.attack_classes.index(row["attack"]), plain.victim_names.index(row["victim"])
            setting = plain.settings[row["attack"]].index(row["setting"])
            adversarial = expected[int(row["index"]), attack, setting, victim][1]
            assert torch.equal(levels(written / row["file"]) / 255, adversarial)
            checked += 1
    assert checked == 4 * 6


def test_webdataset_shards(tmp_path):
    written = write(tmp_path, form="webdataset")
    rows = {row["file"]: row for row in table(written)}
    shards = sorted((written / "shards").iterdir())
    assert [path.name for path in shards] == [f"test-{number:06d}.tar" for number in range(13)]
    seen = 0
    for path in shards:
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            # a sample is what has one name up to its first dot, and lies together
            names = [member.name.partition(".") for member in members]
            keys = [key for key, _, _ in names]
            assert [suffix for _, _, suffix in names] == ["png", "cls", "json"] * (len(members) // 3)
            assert keys[::3] == keys[1::3] == keys[2::3]
            assert len(set(keys)) == len(keys) // 3 <= 6
            for start in range(0, len(members), 3):
                picture, label, about = (tar.extractfile(member).read() for member in members[start : start + 3])
                row = rows[f"shards/{path.name}/{members[start].name}"]
                assert hashlib.sha256(picture).hexdigest() == row["sha256"]
                assert int(label) == json.loads(about)["label"] == int(row["label"])
                assert {key: "" if value is None else str(value) for key, value in json.loads(about).items()} == row
                seen += 1
    assert seen == len(rows) == 77
    assert verify_set(written).whole


# the library closes its files when they are collected
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_the_webdataset_library_reads_the_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    written = write(tmp_path, form="webdataset")
    urls = sorted(map(str, (written / "shards").iterdir()))
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "json"))
    assert len(found) == 77
    assert all(image.shape == (8, 8, 3) and label == about["label"] for image, label, about in found)
    gc.collect()


def test_parquet_has_the_tables_rows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    written = write(tmp_path)
    rows = parquet.read_table(written / "table.parquet").to_pylist()
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows] == table(written)


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_a_second_run_writes_only_what_is_missing(tmp_path, form, monkeypatch):
    written = write(tmp_path, form=form)
    before = files(written)
    Killing.calls = 0
    monkeypatch.setattr(PGD, "_attack", lambda *given, **named: pytest.fail("crafted again"))
    write(tmp_path, form=form)
    assert Killing.calls == 0
    # the last shard has 5 images, all of that attack: two batches
    gone = table(written)[-1]["file"]
    (written / gone if form == "folder" else written / gone.rpartition("/")[0]).unlink()
    write(tmp_path, form=form)
    assert Killing.calls == 2
    assert files(written) == before


def test_a_run_cut_short_is_not_complete_and_goes_on(tmp_path, capsys):
    whole = files(write(tmp_path))
    written = write(tmp_path / "short", data(tmp_path), trainer={"limit_predict_batches": 5})
    assert "the same command goes on" in capsys.readouterr().out
    assert not verify_set(written).whole
    assert not verify_set(written).complete
    write(tmp_path / "short", data(tmp_path))
    assert files(written) == whole


@pytest.mark.parametrize(("form", "at"), [("folder", 3), ("folder", 20), ("webdataset", 0), ("webdataset", 5)])
def test_a_full_disk_leaves_only_whole_shards_and_the_run_goes_on(tmp_path, monkeypatch, form, at):
    whole = files(write(tmp_path, form=form))
    replace, renamed = os.replace, []

    def full(source, target):
        if not str(target).endswith(".json"):
            renamed.append(target)
        if len(renamed) > at:
            raise OSError(28, "No space left on device")
        replace(source, target)

    (tmp_path / "full").mkdir()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "full", data(tmp_path), form=form)
    monkeypatch.setattr(os, "replace", replace)
    written = tmp_path / "full" / "run" / "adversarial"
    check = verify_set(written)
    assert not check.complete
    assert not check.damaged
    # of each shard that has a table, all is there
    assert all(name.startswith("tables/") for name in check.missing)
    assert not list(written.rglob("*.tmp.*"))
    write(tmp_path / "full", data(tmp_path), form=form)
    assert files(written) == whole


def test_another_set_is_not_written_over(tmp_path):
    written = write(tmp_path)
    before = files(written)
    with pytest.raises(ValueError, match=r"holds a set with other seed .delete it"):
        write(tmp_path, data(tmp_path, seed=1))
    victims = {name: Classifier("small_cnn", 4, 8) for name in ("a", "b")}
    with pytest.raises(ValueError, match="holds a set with other victims"):
        write(tmp_path, data(tmp_path, victims=victims))
    assert files(written) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").touch()
    with pytest.raises(ValueError, match="holds files of something else"):
        write(tmp_path, folder=str(tmp_path / "mine"))


def test_names_of_the_data_set_stay_in_the_folder(tmp_path):
    inner = tmp_path / "deep" / "deeper"
    inner.mkdir(parents=True)
    attacks = {"../pgd/../../8": FGSM(eps=0.1), "nul": FGSM(eps=0.1), "x" * 300: FGSM(eps=0.1)}
    victims = {"/etc": Classifier("small_cnn", 4, 8), "A": Classifier("small_cnn", 4, 8)}
    victims["a"] = Classifier("small_cnn", 4, 8)
    module = data(inner, classes=HOSTILE, attacks=attacks, victims=victims)
    written = write(inner, module)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(written)]
    assert outside == [inner / "images.npz"]
    rows = table(written)
    assert len({row["file"].casefold() for row in rows}) == len(rows) == 11 * (1 + 3 * 3)
    # the names themselves are kept
    assert {row["class"] for row in rows} == set(HOSTILE)
    assert {row["setting"] for row in rows} == {"", *attacks}
    assert verify_set(written).whole


def test_any_task_will_do(tmp_path):
    class Other(pl.LightningModule):
        def predict_step(self, batch, batch_idx):
            return batch.label

    assert verify_set(write(tmp_path, task=Other())).whole


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="quantise none"):
        write(tmp_path, data(tmp_path, quantise="none"))
    with pytest.raises(TypeError, match="data must be an AdversarialDataModule, got Arrays"):
        write(tmp_path, source(tmp_path))
    for field, value in (("splits", ()), ("splits", ("all",)), ("form", "zip"), ("max_images_per_shard", 0)):
        with pytest.raises(ValueError, match=f"AdversarialWriter: {field} must be"):
            AdversarialWriter(**{field: value})


def process(folder, *options, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")}
    clean |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
    command = [sys.executable, __file__, str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=clean)


@pytest.mark.slow
def test_two_processes_after_a_kill_write_the_files_of_one(tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    whole = files(write(one))
    killed = process(tmp_path, "1", KILL="1")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    written = tmp_path / "run" / "adversarial"
    left = files(written)
    assert 0 < sum(name.startswith("tables/") for name in left) < 13
    done = process(tmp_path, "2")
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [
        json.loads((folder / "manifest.json").read_text())["counts"] for folder in (written, one / "run/adversarial")
    ]
    assert counts[0] == counts[1]
    # there, the attack's class is __main__'s
    assert {**files(written), "manifest.json": ""} == {**whole, "manifest.json": ""}


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(
        Path(sys.argv[1]),
        devices=int(sys.argv[2]),
    )
