"""Tiny-ImageNet: layout, labels of the validation folder, and the archive, served from this machine."""

import functools
import hashlib
import http.server
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from lit_adv.data.tiny_imagenet import TinyImageNet

WNIDS = ["n02", "n01", "n03"]


@pytest.fixture
def unpacked(tmp_path):
    """Three classes, out of alphabetical order, of images whose grey level tells the class and number."""
    folder = tmp_path / "set" / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tbullfrog\nn99\tbus\n")
    lines = []
    for label, wnid in enumerate(WNIDS):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(np.full((64, 64, 3), 60 * label + 10 * number, dtype=np.uint8))
            image.save(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
        Image.new("L", (64, 64), 60 * label + 5).save(folder / "val" / "images" / f"val_{label}.JPEG")
        lines.append(f"val_{label}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    return folder


def test_labels_and_pixels(unpacked):
    for root in (unpacked, unpacked.parent):
        data = TinyImageNet(root=str(root), validation=3)
        data.prepare_data()
        data.setup()
        assert data.num_classes == 3
        assert data.classes == ["bullfrog", "goldfish", "n03"]
        assert (len(data.train_dataset), len(data.val_dataset), len(data.test_dataset)) == (9, 3, 3)
        for dataset in (data.train_dataset, data.val_dataset, data.test_dataset):
            images, labels = dataset.batch(range(len(dataset)))
            assert images.shape[1:] == (3, 64, 64)
            assert torch.equal((images[:, 0, 0, 0] * 255 / 60).floor().long(), labels)
    assert sorted(data.test_dataset.labels.tolist()) == [0, 1, 2]


def test_limits_and_size(unpacked):
    data = TinyImageNet(root=str(unpacked), image_size=32, train_limit=3, validation=3, test_limit=2)
    data.setup()
    assert data.train_dataset[0][0].shape == (3, 32, 32)
    assert (len(data.train_dataset), len(data.test_dataset)) == (3, 2)


def test_no_validation_images(unpacked):
    data = TinyImageNet(root=str(unpacked), validation=0)
    data.setup("fit")
    assert data.val_dataloader() == []


def test_missing(tmp_path, unpacked):
    empty = TinyImageNet(root=str(tmp_path / "none"))
    assert empty.num_classes == 200
    with pytest.raises(
        FileNotFoundError, match=r"'wnids.txt' is not in '.*none/tiny-imagenet-200' \(use `--data.download true`"
    ):
        empty.prepare_data()
    (unpacked / "val" / "val_annotations.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"'val/val_annotations.txt' is not in"):
        TinyImageNet(root=str(unpacked)).setup("test")


def test_damaged(unpacked):
    path = unpacked / "train" / "n01" / "images" / "n01_2.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"n01_2.JPEG' is truncated or not an image"):
        TinyImageNet(root=str(unpacked)).setup("fit")
    (unpacked / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn77\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match=r"val_annotations.txt' has a line without a known class: 'val_0.JPEG"):
        TinyImageNet(root=str(unpacked)).setup("test")


@pytest.fixture
def served(tmp_path, unpacked, monkeypatch):
    """The archive, its address and its hash; `serve(names)` packs other paths."""
    site = tmp_path / "site"
    site.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def pack(names):
        with zipfile.ZipFile(site / "tiny.zip", "w") as archive:
            for path in sorted(unpacked.rglob("*")):
                archive.write(path, path.relative_to(unpacked.parent))
            for name in names:
                archive.writestr(name, "x")
        digest = hashlib.md5((site / "tiny.zip").read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(TinyImageNet, "md5", digest)

    pack([])
    monkeypatch.setattr(TinyImageNet, "url", f"http://127.0.0.1:{server.server_address[1]}/tiny.zip")
    yield pack
    server.shutdown()
    server.server_close()
    thread.join()


def test_download(served, tmp_path):
    root = tmp_path / "new"
    data = TinyImageNet(root=str(root), download=True)
    data.prepare_data()
    data.setup()
    assert len(data.test_dataset) == 3
    assert sorted(path.name for path in root.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]
    TinyImageNet(root=str(root), download=True).prepare_data()


def test_wrong_hash(served, tmp_path, monkeypatch):
    monkeypatch.setattr(TinyImageNet, "md5", "0" * 32)
    with pytest.raises(ValueError, match=r"tiny-imagenet-200.zip' is not the published archive, its MD5 is not 0000"):
        TinyImageNet(root=str(tmp_path / "new"), download=True).prepare_data()
    assert not (tmp_path / "new" / "tiny-imagenet-200").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "tiny-imagenet-200/../../outside.txt"])
def test_archive_cannot_leave_its_folder(served, tmp_path, name):
    served([name])
    with pytest.raises(ValueError, match="has a path outside its folder"):
        TinyImageNet(root=str(tmp_path / "new"), download=True).prepare_data()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["tiny-imagenet-200.zip"]
    assert not (tmp_path / "outside.txt").exists()


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyImageNet, "url", "http://127.0.0.1:9/tiny.zip")
    with pytest.raises(RuntimeError, match=r"TinyImageNet: the download to '.*' failed.*by hand"):
        TinyImageNet(root=str(tmp_path), download=True).prepare_data()
