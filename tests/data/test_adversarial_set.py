"""Whether a written set is whole: everything that can be wrong with it is found, by name."""

import csv
import io
import shutil
import tarfile

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import AdversarialWriter

from lit_adv.attacks import FGSM
from lit_adv.data import AdversarialDataModule, Arrays, verify_set
from lit_adv.data.adversarial_set import png, read_png, read_table
from lit_adv.models import Classifier
from lit_adv.tasks import Crafting


@pytest.fixture(scope="module", params=["folder", "webdataset"])
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    draws = np.random.default_rng(0)
    images = {name: draws.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8) for name in ("x_train", "x_test")}
    np.savez(folder / "images.npz", **images, y_train=np.arange(10) % 2, y_test=np.arange(10) % 2)
    data = AdversarialDataModule(
        Arrays(path=folder / "images.npz", validation=4), {"a": Classifier("small_cnn", 2, 8)}, {"fgsm": FGSM(eps=0.1)}
    )
    writer = AdversarialWriter(form=request.param, max_images_per_shard=6, folder=str(folder / "set"))
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = pl.Trainer(accelerator="cpu", logger=False, callbacks=[writer], inference_mode=False, **quiet)
    run.predict(Crafting(), datamodule=data, return_predictions=False)
    return folder / "set"


@pytest.fixture
def written(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "set")


def rows(written):
    with (written / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def change(path, place=-20):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def holder(written, row):
    """The file that holds an image, and the name that is told of it."""
    if row["file"].startswith("images"):
        return written / row["file"], row["file"]
    tar = row["file"].rpartition("/")[0]
    return written / tar, tar


def test_a_whole_set(written):
    check = verify_set(written)
    assert check.whole
    assert (check.images, check.checked) == (20, 20)
    check = verify_set(written, sample=7)
    assert check.whole
    assert check.checked == 7


def test_a_missing_file(written):
    path, name = holder(written, rows(written)[9])
    path.unlink()
    check = verify_set(written, sample=1)
    assert check.missing == [name]
    assert not check.whole


@pytest.mark.parametrize("number", [0, 9, 19])
def test_a_changed_picture(written, number):
    row = rows(written)[number]
    path, name = holder(written, row)
    if name == row["file"]:
        change(path)
    else:
        with tarfile.open(path) as tar:
            place = tar.getmember(row["file"].rpartition("/")[2]).offset_data
        change(path, place + 50)
    check = verify_set(written)
    assert check.damaged == [row["file"]]
    assert not check.missing
    assert not check.extra


def test_samples_find_damage_where_they_look(written):
    for row in rows(written):
        path, _ = holder(written, row)
        if path.suffix == ".png":
            change(path)
        else:
            with tarfile.open(path) as tar:
                place = tar.getmember(row["file"].rpartition("/")[2]).offset_data
            change(path, place + 50)
    found = [set(verify_set(written, sample=5, seed=seed).damaged) for seed in range(3)]
    assert [len(names) for names in found] == [5, 5, 5]
    assert len(set.union(*found)) > 5


def test_extra_files(written):
    (written / "shards").mkdir(exist_ok=True)
    for name in ("note.txt", "shards/.test-000000.77.tmp.tar", ".hidden"):
        (written / name).touch()
    assert verify_set(written).extra == sorted(["note.txt", "shards/.test-000000.77.tmp.tar", ".hidden"])


@pytest.mark.parametrize("name", ["table.csv", "tables/test-000001.csv"])
def test_a_table_that_is_missing_or_changed(written, name):
    content = (written / name).read_text()
    (written / name).write_text(content.replace(",1,", ",0,", 1))
    assert name in verify_set(written).damaged
    (written / name).unlink()
    assert name in verify_set(written).missing


def test_a_table_cannot_send_the_reader_elsewhere(written):
    if (written / "shards").exists():
        pytest.skip("the names in a tar file are not looked up on the disk")
    secret = written.parent / "secret"
    secret.write_text("secret")
    table = written / "tables" / "test-000000.csv"
    first = rows(written)[0]["file"]
    table.write_text(table.read_text().replace(first, "../secret", 1))
    assert "../secret (the name leads out of the folder)" in verify_set(written).damaged


def test_members_of_a_shard(written):
    if not (written / "shards").exists():
        pytest.skip("an image folder has no shards")
    path = written / "shards" / "test-000000.tar"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]
    with tarfile.open(path, "w") as tar:
        # the first sample's label and the second's picture are gone, the third's row is another, and one is new
        for number, (member, content) in enumerate(members):
            if number in (1, 3):
                continue
            if number == 8:
                content = content.replace(b'"test"', b'"tset"')
            tar.addfile(member, io.BytesIO(content))
        tar.addfile(tarfile.TarInfo("other.png"), io.BytesIO())
    check = verify_set(written)
    names = [f"shards/test-000000.tar/{member.name}" for member, _ in members]
    assert sorted(check.missing) == sorted([names[1], names[3]])
    assert check.damaged == [names[8]]
    assert check.extra == ["shards/test-000000.tar/other.png"]
    path.write_bytes(path.read_bytes()[:3000])
    assert not verify_set(written).whole
    path.write_bytes(b"no tar")
    assert verify_set(written).damaged[0].startswith("shards/test-000000.tar (")


@pytest.mark.parametrize(
    "damage",
    [lambda table: table[:-100], lambda table: table[:-30], lambda table: table.replace(b"test", b"te\xfft")],
    ids=["row", "hash", "text"],
)
def test_a_damaged_table_says_what_mends_it(written, damage):
    path = written / "tables" / "test-000000.csv"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"test-000000.csv .*remove it, and start the same lightning predict again"):
        read_table(path)


@pytest.mark.parametrize("lose", [lambda path: path.unlink(), lambda path: path.write_text("torn")])
def test_pictures_of_a_table_that_cannot_be_read_are_not_extra(written, lose):
    lose(written / "tables" / "test-000000.csv")
    (written / "note.txt").touch()
    check = verify_set(written)
    assert not check.whole
    assert check.extra == ["note.txt"]


def test_what_is_no_set(written, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no adversarial set"):
        verify_set(tmp_path)
    manifest = (written / "manifest.json").read_text()
    (written / "manifest.json").write_text(manifest[:50])
    with pytest.raises(ValueError, match="is damaged"):
        verify_set(written)
    (written / "manifest.json").write_text(manifest.replace('"format": 1', '"format": 9'))
    with pytest.raises(ValueError, match="the format is 9, this version reads 1"):
        verify_set(written)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_lossless_and_repeats(channels):
    levels = torch.randint(0, 256, (channels, 5, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read_png(png(levels)), levels)
    assert png(levels) == png(levels.clone())
