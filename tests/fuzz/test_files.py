"""Files with any damage: loaded, or refused by name; no code is run, and no header's claim is allocated."""

import io
import json
import random
import resource
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lit_adv import runs
from lit_adv.attacks import PGD, UniversalPerturbation
from lit_adv.data import PictureFolder, load_attack, save_attack, verify_set
from lit_adv.data.adversarial_set import read_image, read_manifest, stored_images, write_tar
from lit_adv.data.cache import AdversarialCache
from lit_adv.data.picture_folder import look_at, read_picture
from lit_adv.diagnosis import said_by_us
from lit_adv.models import Classifier
from lit_adv.models.classifier import export_classifier, load_classifier

# one number an example: Hypothesis' own Random draws too much for files and configs of this size
RUNS = st.builds(random.Random, st.integers(0, 2**64 - 1))
JSON_VALUES = (None, -1, 0, 10**9, 10**30, "x", "../x", [], {}, 1e300, True, "small_cnn", {"a": 1}, [1, 2])


def damaged(content, draw):
    """Bytes with a few of them wrong, most often near the beginning, where headers are."""
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        if not content:
            break
        at = draw.randrange(len(content)) if draw.random() < 0.5 else draw.randrange(min(len(content), 400))
        kind = draw.randrange(8)
        if kind == 0:
            del content[at:]
        elif kind == 1:
            content[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            content[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 12)))
        elif kind == 3:
            content[at : at + 8] = b"\xff" * 8
        elif kind == 4:
            del content[at : at + draw.randrange(1, 30)]
        elif kind == 5:
            words = (b"\0\0\0\0", b"9999", b"-1  ", b"1e9\n", b"null", b'"",[', b"\x7f\xff\xff\xff", b"NaN", b"../")
            content[at : at + 4] = draw.choice(words)
        elif kind == 6:
            content += bytes(draw.randrange(256) for _ in range(draw.randrange(20)))
        else:
            digits = [place for place, byte in enumerate(content[:4000]) if 48 <= byte <= 57]
            if digits:
                place = draw.choice(digits)
                content[place : place + 1] = b"99999999999"
    return bytes(content)


def repacked(content, draw):
    """A zip file some of whose members are missing, damaged or named outside of it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            member, kind = source.read(name), draw.random()
            if kind < 0.08:
                continue
            if kind > 0.92:
                name = f"../{name}"
            target.writestr(name, damaged(member, draw) if draw.random() < 0.25 else member)
    return out.getvalue()


def misdescribed(content, draw):
    """A safetensors file whose header says something else."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    key = draw.choice(list(header))
    kind = draw.randrange(6)
    if kind == 0:
        del header[key]
    elif kind == 1:
        header[key] = draw.choice(JSON_VALUES)
    elif kind == 2 and key != "__metadata__":
        header[key]["shape"] = draw.choice(([10**12], [-1], [2**62, 4], "a", []))
    elif kind == 3 and key != "__metadata__":
        header[key]["dtype"] = draw.choice(("F64", "I8", "X", "BOOL", None))
    elif kind == 4:
        header["../../x"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    else:
        texts = header["__metadata__"]
        name = draw.choice(list(texts))
        try:
            texts[name] = json.dumps(changed(json.loads(texts[name]), draw))
        except ValueError:
            texts[name] = "{"
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def changed(content, draw):
    """JSON with one value anywhere in it another or missing."""
    if isinstance(content, dict | list) and content and draw.random() < 0.85:
        key = draw.choice(list(content)) if isinstance(content, dict) else draw.randrange(len(content))
        if draw.random() < 0.15:
            del content[key]
        else:
            content[key] = changed(content[key], draw)
        return content
    return draw.choice(JSON_VALUES)


def refused(error, *names):
    """Whether it is a refusal of ours with the file's name in it."""
    return isinstance(error, (ValueError, OSError)) and said_by_us(error) and any(name in str(error) for name in names)


@pytest.fixture(scope="module", autouse=True)
def _little_memory():
    """Two gigabytes more than are taken now: what a header claims then shows as a MemoryError or a RuntimeError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each kind of file that holds weights or an attack, as bytes."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    model = Classifier("small_cnn", 10, 8, 1)
    export_classifier(model, folder / "a.safetensors")
    export_classifier(model, folder / "a.pt2")
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    kept = {"state_dict": state, "classifier": model.spec, "epoch": 3, "global_step": 7, "config": {"a": 1}}
    torch.save(kept, folder / "a.ckpt")
    save_attack(PGD(eps=8 / 255), folder / "b.safetensors")
    save_attack(UniversalPerturbation(eps=0.1, perturbation=torch.full((1, 8, 8), 0.01)), folder / "c.safetensors")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@given(RUNS)
def test_weights_checkpoints_and_attacks(whole, tmp_path_factory, draw):
    name = draw.choice(list(whole))
    content = whole[name]
    if draw.random() < 0.6:
        content = damaged(content, draw)
    elif name.endswith(".safetensors"):
        content = misdescribed(content, draw)
    else:
        content = repacked(content, draw)
    path = tmp_path_factory.getbasetemp() / f"damaged{Path(name).suffix}"
    path.write_bytes(content)
    loaders = {"a.ckpt": (load_classifier, runs.read_checkpoint), "a.safetensors": (load_classifier,)}
    for load in loaders.get(name, (load_classifier,) if name == "a.pt2" else (load_attack,)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load(path)
        except (ValueError, OSError) as error:
            wrong = None if refused(error, "damaged") else error
        else:
            wrong = None
        assert wrong is None, (name, wrong)


# written sets


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The two forms of a set of four images, as files."""
    import hashlib

    from lit_adv.data.adversarial_set import COLUMNS, png, sha256, table_of
    from lit_adv.files import write_json, write_rows

    found = {}
    for form in ("folder", "webdataset"):
        folder = tmp_path_factory.mktemp(form)
        rows, images = [], []
        for index in range(4):
            content = png(torch.full((1, 8, 8), index, dtype=torch.uint8))
            rows.append(
                {
                    "file": f"images/train/0/pgd/{index:08d}-x.png",
                    "split": "train",
                    "label": 0,
                    "class": "0",
                    "attack": "pgd",
                    "setting": "pgd",
                    "victim": "a",
                    "index": index,
                    "success": 1,
                    "l0": 3,
                    "l2": 0.5,
                    "linf": 0.1,
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
            )
            images.append((f"{index:08d}-x", content, rows[-1]))
            if form == "folder":
                path = folder / rows[-1]["file"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        table = table_of(folder, "train", 0)
        table.parent.mkdir()
        write_rows(table, COLUMNS, rows)
        if form == "webdataset":
            (folder / "shards").mkdir()
            write_tar(folder / "shards" / "train-000000.tar", images)
        described = {"format": 1, "form": form, "images_per_shard": 4}
        described["splits"] = {"train": {"images": 4, "shards": 1, "clean": "0"}}
        counts = {"images": 4, "tables": {"tables/train-000000.csv": sha256(table)}}
        write_json(folder / "manifest.json", {"complete": True, "set": described, "counts": counts})
        assert verify_set(folder).whole
        found[form] = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return found


@given(RUNS)
def test_written_sets(written, tmp_path_factory, draw):
    files = written[draw.choice(list(written))]
    folder = tmp_path_factory.mktemp("set")
    victim = draw.choice(sorted(files))
    for name, content in files.items():
        if name == victim:
            if name.suffix == ".json" and draw.random() < 0.7:
                content = json.dumps(changed(json.loads(content), draw)).encode()
            else:
                content = damaged(content, draw)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    try:
        check = verify_set(folder)
    except (ValueError, OSError) as error:
        wrong = None if refused(error, folder.name) else error
        check = None
    else:
        wrong = None
    assert wrong is None, repr(wrong)
    if check is None:
        return
    same = all((folder / name).read_bytes() == content for name, content in files.items())
    # the manifest has fields beside those that are compared, a tar file dates, owners and padding
    assert not check.whole or same or victim.suffix in (".json", ".tar")
    try:
        for _, path, member in stored_images(folder, read_manifest(folder)):
            read_image(path, member)
    except (ValueError, OSError) as error:
        wrong = None if refused(error, folder.name) else error
    assert wrong is None, repr(wrong)


# caches


@given(RUNS)
def test_caches_give_what_was_written_or_nothing(tmp_path_factory, draw):
    folder = tmp_path_factory.mktemp("cache")
    images = np.arange(4 * 12, dtype=np.uint8).reshape(4, 3, 2, 2)
    labels = np.arange(4)
    cache = AdversarialCache(folder, "key", (3, 2, 2), "uint8")
    cache.write(range(4), images, labels, images + 1, np.ones(4, np.uint8))
    cache.close()
    for path in cache.folder.iterdir():
        if draw.random() < 0.6:
            path.write_bytes(damaged(path.read_bytes(), draw))
    again = AdversarialCache(folder, "key", (3, 2, 2), "uint8")
    found, flags, hit = again.read(range(4), images, labels)
    assert np.array_equal(found[hit], (images + 1)[hit])
    assert not found[~hit].any()
    assert set(flags[hit].tolist()) <= {1}
    assert set(again.written(np.arange(4)).tolist()) <= set(range(4))
    again.write(range(4), images, labels, images + 1, np.ones(4, np.uint8))
    assert again.read(range(4), images, labels)[2].all()
    again.close()


# pictures


@pytest.fixture(scope="module")
def pictures():
    """Pictures of many kinds: (ending, bytes)."""
    base = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    kinds = (
        *(("png", "RGB"), ("png", "P"), ("png", "LA"), ("png", "1"), ("jpg", "RGB"), ("jpg", "CMYK")),
        *(("jpg", "L"), ("gif", "P"), ("bmp", "RGB"), ("tif", "RGB"), ("tif", "F"), ("tif", "CMYK"), ("webp", "RGBA")),
    )
    found = []
    names = {"jpg": "JPEG", "tif": "TIFF"}
    for ending, mode in kinds:
        buffer = io.BytesIO()
        (base if mode not in ("I", "F") else base.convert("L")).convert(mode).save(buffer, names.get(ending, ending))
        found.append((ending, buffer.getvalue()))
    buffer = io.BytesIO()
    base.save(buffer, "GIF", save_all=True, append_images=[base.rotate(90)])
    return [*found, ("gif", buffer.getvalue())]


@given(RUNS)
def test_pictures_are_read_or_named_with_a_reason(pictures, tmp_path_factory, draw):
    folder = tmp_path_factory.mktemp("pictures")
    names = ("-rf", "a\nb", "\u202egpj", "%s", "a b", "'", "\U0001f600", "x" * 200, "{}", "--", "a.tar")
    for name in draw.sample(names, 2):
        ending, content = draw.choice(pictures)
        content = damaged(content, draw) if draw.random() < 0.8 else bytes(draw.randrange(256) for _ in range(40))
        ending = draw.choice(("png", "jpg", "JPG", "webp", "gif")) if draw.random() < 0.2 else ending
        (folder / f"{name}.{ending}").write_bytes(content)
    channels = draw.choice((1, 3))
    data = PictureFolder(str(folder), in_channels=channels, max_pixels=10**6)
    data.setup("predict")
    assert len(data.files) == 2
    rows, failed = [], []
    with warnings.catch_warnings():
        # what the library has to say of a damaged picture that it reads all the same
        warnings.simplefilter("ignore")
        for batch in data.predict_dataloader():
            assert batch.images.dtype == torch.uint8
            assert batch.images.shape[1] == channels
            rows += batch.rows
            failed += batch.failed
            for image, row in zip(batch.images, batch.rows, strict=True):
                assert image.shape[1:] == (data.files[row].height, data.files[row].width)
    problems = [row for row, file in enumerate(data.files) if file.problem]
    assert sorted([*rows, *problems, *(row for row, _ in failed)]) == [0, 1]
    assert all(reason for _, reason in failed)


def test_a_decompression_bomb_is_not_opened(tmp_path):
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))))
    assert (
        "too large" in look_at(path.name, path, 10**9).problem
        or "max_pixels" in look_at(path.name, path, 10**6).problem
    )
    with pytest.raises(Exception, match="decompression bomb"):
        read_picture(path)
