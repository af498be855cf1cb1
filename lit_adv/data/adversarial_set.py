"""Adversarial images in files: what a written set looks like, and whether it is whole."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_adv.data.adversarial import AdversarialDataModule, Split
from lit_adv.files import inside, safe_names, write_json

FORMAT = 1
COLUMNS = (
    *("file", "split", "label", "class", "attack", "setting", "victim", "index"),
    *("success", "l0", "l2", "linf", "sha256"),
)
MANIFEST = "manifest.json"
# of a set; a damaged number must not be counted up to
_MOST_IMAGES = 10**9
TABLE = "table.csv"
PARQUET = "table.parquet"


@dataclass
class SetCheck:
    """What `verify_set` found; whole where no list holds a name.

    Attributes:
        images: Images in the tables.
        checked: Images whose bytes were read.
        missing: Files, or shards of the table, that should be there.
        damaged: Files whose bytes are not those that were written.
        extra: Files that belong to nothing.
        complete: Whether the run that wrote the set came to its end.
    """

    images: int = 0
    checked: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    complete: bool = True

    @property
    def whole(self) -> bool:
        """Whether the set is complete, and nothing missing, damaged or extra."""
        return self.complete and not (self.missing or self.damaged or self.extra)


def describe(
    data: AdversarialDataModule, splits: tuple[Split, ...], images_per_shard: int, form: str
) -> dict[str, Any]:
    """All that the files of a set depend on, for its manifest; the splits must have been read."""
    return {
        "format": FORMAT,
        "lit_adv": version("lit_adv"),
        "form": form,
        "images_per_shard": images_per_shard,
        "seed": data.seed,
        "quantise": data.quantise,
        "survive_rounding": data.survive_rounding,
        "labels": data.labels,
        "source": type(data.source).__name__,
        "classes": class_names(data),
        "attacks": {
            key: {
                "attack": repr(attack),
                "fingerprint": attack.fingerprint(),
                "region": repr(data.regions[key]) if key in data.regions else None,
            }
            for key, attack in data.attacks.items()
        },
        "victims": data.victim_fingerprints(),
        "splits": {
            split: {
                "images": data.plan(split, images_per_shard).images,
                "shards": data.plan(split, images_per_shard).shards,
                "clean": data.split_digest(split),
            }
            for split in splits
        },
    }


def class_names(data: AdversarialDataModule) -> list[str]:
    """The names of the labels, their numbers where the source has none."""
    names = getattr(data.source, "classes", None)
    if isinstance(names, list | tuple) and len(names) == data.num_classes:
        return [str(name) for name in names]
    return [str(number) for number in range(data.num_classes)]


class Names:
    """File names of a set's images.

    A class's folder begins with its number, in as many digits as the largest has: folders in their alphabetical order
    are then the labels in theirs, which is how torchvision's `ImageFolder` numbers them.
    """

    def __init__(self, data: AdversarialDataModule) -> None:
        names = class_names(data)
        width = len(str(len(names) - 1))
        plain = names == [str(number) for number in range(len(names))]
        self._classes = [
            f"{number:0{width}d}" if plain else f"{number:0{width}d}_{safe}"
            for number, safe in enumerate(safe_names(names))
        ]
        attacks = [name for name in data.attack_classes if name != "clean"]
        self._attacks = {"clean": "clean", **dict(zip(attacks, safe_names(attacks), strict=True))}
        keys = list(data.attacks)
        self._settings = dict(zip(keys, safe_names([key.replace("/", "-") for key in keys]), strict=True))
        # two keys such as a/b-c and a-b/c may read alike
        if len(set(self._settings.values())) < len(keys):
            self._settings = dict(zip(keys, safe_names(keys), strict=True))
        self._victims = dict(zip(data.victim_names, safe_names(data.victim_names), strict=True))
        versions = [f"{one}--{other}" for one in self._settings.values() for other in self._victims.values()]
        if len(set(versions)) < len(versions):
            raise ValueError(
                "AdversarialWriter: data: names of attacks and victims must give each version a file name of its own, "
                f"got {', '.join(keys)} and {', '.join(data.victim_names)} (rename one: no '--' in a name)"
            )

    def key(self, row: dict[str, Any]) -> str:
        """The image's name without a suffix, which no other of its split has."""
        stem = f"{row['index']:08d}"
        if row["attack"] == "clean":
            return f"{stem}-clean"
        # two hyphens, which keep a-b on c apart from a on b-c
        return f"{stem}-{self._settings[row['setting']]}--{self._victims[row['victim']]}"

    def file(self, row: dict[str, Any]) -> str:
        """Where the image lies in an image folder."""
        folder = f"images/{row['split']}/{self._classes[row['label']]}/{self._attacks[row['attack']]}"
        return f"{folder}/{self.key(row)}.png"


def png(levels: Tensor) -> bytes:
    """A PNG of 8-bit levels `(C, H, W)` uint8, C 1 or 3; lossless, and the same bytes for the same levels."""
    array = np.ascontiguousarray(levels.permute(1, 2, 0).numpy())
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def read_png(content: bytes) -> Tensor:
    """The levels `(C, H, W)` uint8 of `png`."""
    with Image.open(io.BytesIO(content)) as picture:
        array = np.array(picture)
    return torch.from_numpy(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0).copy())


def row_json(row: dict[str, Any]) -> bytes:
    """The row, also one read from a table, as it stands beside an image in a tar file: numbers, null for no value."""
    return (json.dumps({name: _typed(name, row[name]) for name in COLUMNS}) + "\n").encode()


def write_tar(path: Path, images: Iterable[tuple[str, bytes, dict[str, Any]]]) -> None:
    """A shard in WebDataset's form: `KEY.png`, `KEY.cls` (the label) and `KEY.json` (the row) after each other."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, content, row in images:
            members = (("png", content), ("cls", str(row["label"]).encode()), ("json", row_json(row)))
            for suffix, stored in members:
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(stored)
                tar.addfile(entry, io.BytesIO(stored))


def shard_name(split: str, shard: int) -> str:
    """The name of a shard without a suffix."""
    return f"{split}-{shard:06d}"


def table_of(folder: Path, split: str, shard: int) -> Path:
    """The table of a shard, whose presence says that the shard was written."""
    return folder / "tables" / f"{shard_name(split, shard)}.csv"


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table.

    Raises:
        ValueError: It is damaged, or has other columns.
    """
    remedy = "remove it, and start the same lightning predict again, which writes what is missing"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), tuple(reader.fieldnames or ())
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error
    # the last column is the hash, which a table that was cut off has but in part
    if columns != COLUMNS or any(None in row or None in row.values() or len(row["sha256"]) != 64 for row in rows):
        raise ValueError(
            f"{path} is no whole table of an adversarial set (its columns must be {', '.join(COLUMNS)}; {remedy})"
        )
    return rows


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a set.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no adversarial set: there is no {MANIFEST} (give the folder beside it)"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); write the set again") from error
    if not isinstance(content, dict) or not isinstance(content.get("set"), dict):
        raise ValueError(f"{path} is no manifest of an adversarial set")
    if content["set"].get("format") != FORMAT:
        raise ValueError(f"{path}: the format is {content['set'].get('format')}, this version reads {FORMAT}")
    wrong = _misfit(content)
    if wrong:
        raise ValueError(f"{path} is damaged: {wrong} (write the set again)")
    return content


def write_manifest(folder: Path, described: dict[str, Any], counts: dict[str, Any] | None) -> None:
    """The manifest; without counts, that of a set that is not complete."""
    content = {"complete": counts is not None, "set": described, "counts": counts or {}}
    write_json(folder / MANIFEST, content, indent=2)


def is_written(folder: Path, split: str, shard: int, form: str) -> bool:
    """Whether a shard was written and all of its files are still there; their bytes are not read."""
    table = table_of(folder, split, shard)
    if not table.is_file():
        return False
    if form == "webdataset":
        return _tar_of(folder, split, shard).is_file()
    return all((folder / row["file"]).is_file() for row in read_table(table))


def verify_set(folder: str | Path, sample: int | None = None, seed: int = 0) -> SetCheck:
    """Compares the files of a set with its tables.

    Every table is read and every file looked for; the SHA-256 of the bytes is computed of all images, or of a sample.

    Args:
        folder: Holds `manifest.json`.
        sample: So many images, drawn by the seed; None for all.
        seed: Of the sample.

    Raises:
        FileNotFoundError: There is no set.
        ValueError: The manifest is damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    form, check, expected = manifest["set"]["form"], SetCheck(complete=manifest["complete"]), {MANIFEST}
    tables, hashes = [], manifest["counts"].get("tables", {})
    for split, about in manifest["set"]["splits"].items():
        for shard in range(about["shards"]):
            path = table_of(folder, split, shard)
            name = path.relative_to(folder).as_posix()
            expected.add(name)
            if not path.is_file():
                check.missing.append(name)
                continue
            try:
                rows = read_table(path)
            except ValueError:
                check.damaged.append(name)
                continue
            if name in hashes and sha256(path) != hashes[name]:
                check.damaged.append(name)
            tables.append((split, shard, rows))
            check.images += len(rows)
    # the merged tables, which are there once the set is complete
    for name in (name for name in hashes if name in (TABLE, PARQUET)):
        expected.add(name)
        if not (folder / name).is_file():
            check.missing.append(name)
        elif sha256(folder / name) != hashes[name]:
            check.damaged.append(name)
    chosen = None
    if sample is not None and sample < check.images:
        chosen = set(np.random.default_rng(seed).choice(check.images, sample, replace=False).tolist())
    start = 0
    for split, shard, rows in tables:
        wanted = [chosen is None or start + number in chosen for number in range(len(rows))]
        start += len(rows)
        if form == "webdataset":
            expected.add(_tar_of(folder, split, shard).relative_to(folder).as_posix())
            _check_tar(folder, split, shard, rows, wanted, check)
        else:
            expected |= {row["file"] for row in rows}
            _check_files(folder, rows, wanted, check)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    unread = any(name.startswith("tables/") for name in (*check.missing, *check.damaged))
    # a table that cannot be read may name any of the pictures
    check.extra += sorted(name for name in found - expected if not (unread and name.startswith(("images/", "shards/"))))
    return check


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored_images(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[dict[str, str], Path, str | None]]:
    """Each row of a set with the file that holds its image, and the member of that file where it is a tar file."""
    for split, about in manifest["set"]["splits"].items():
        for shard in range(about["shards"]):
            for row in read_table(table_of(folder, split, shard)):
                if manifest["set"]["form"] == "webdataset":
                    yield row, _tar_of(folder, split, shard), row["file"].rpartition("/")[2]
                else:
                    path = inside(folder, row["file"])
                    if path is None:
                        raise ValueError(f"{folder}: the table names {row['file']!r}, which is outside of the folder")
                    yield row, path, None


def read_image(path: Path, member: str | None) -> Tensor:
    """The levels `(C, H, W)` uint8 of one stored image.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged.
    """
    try:
        if member is None:
            return read_png(path.read_bytes())
        with tarfile.open(path, "r:") as tar:
            file = tar.extractfile(member)
            # a folder or a link in its place
            content = b"" if file is None else file.read()
        return read_png(content)
    except FileNotFoundError:
        raise
    # as PIL says that it is no picture, that it is truncated, and that it is too large to be true
    except (
        OSError,
        SyntaxError,
        ValueError,
        KeyError,
        EOFError,
        tarfile.TarError,
        Image.DecompressionBombError,
    ) as error:
        where = path.name if member is None else f"{path.name}/{member}"
        raise ValueError(f"{path.parent / where} is damaged ({error}); write the set again") from error


def _misfit(content: dict[str, Any]) -> str:
    """What in a manifest is not what `write_manifest` writes, as far as anything here relies on it."""
    described, counts = content["set"], content.get("counts")
    tables = counts.get("tables", {}) if isinstance(counts, dict) else None
    size, splits = described.get("images_per_shard"), described.get("splits")
    if not isinstance(content.get("complete"), bool):
        return "complete must be true or false"
    if not isinstance(tables, dict) or not all(isinstance(digest, str) for digest in tables.values()):
        return "counts must hold the tables' SHA-256"
    if described.get("form") not in ("folder", "webdataset"):
        return f"form must be folder or webdataset, got {described.get('form')!r:.40}"
    if type(size) is not int or size < 1:
        return f"images_per_shard must be a number of at least 1, got {size!r:.40}"
    if not isinstance(splits, dict) or not splits.keys() <= {"train", "val", "test"}:
        return "splits must be of train, val and test"
    for split, about in splits.items():
        images = about.get("images") if isinstance(about, dict) else None
        if type(images) is not int or not 0 <= images <= _MOST_IMAGES or about.get("shards") != -(-images // size):
            return f"{split} must have a number of images and as many shards as they fill"
    return ""


def _check_files(folder: Path, rows: list[dict[str, str]], wanted: list[bool], check: SetCheck) -> None:
    for row, read in zip(rows, wanted, strict=True):
        path = inside(folder, row["file"])
        if path is None:
            check.damaged.append(f"{row['file']} (the name leads out of the folder)")
        elif not path.is_file():
            check.missing.append(row["file"])
        elif read:
            check.checked += 1
            if hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
                check.damaged.append(row["file"])


def _check_tar(
    folder: Path, split: str, shard: int, rows: list[dict[str, str]], wanted: list[bool], check: SetCheck
) -> None:
    path = _tar_of(folder, split, shard)
    name = path.relative_to(folder).as_posix()
    if not path.is_file():
        check.missing.append(name)
        return
    try:
        with tarfile.open(path, "r:") as tar:
            members = {entry.name: entry for entry in tar.getmembers()}
            for row, read in zip(rows, wanted, strict=True):
                key = row["file"].rpartition("/")[2].removesuffix(".png")
                pieces = {suffix: members.pop(f"{key}.{suffix}", None) for suffix in ("png", "cls", "json")}
                check.missing += [f"{name}/{key}.{suffix}" for suffix, entry in pieces.items() if entry is None]
                if not read or None in pieces.values():
                    continue
                check.checked += 1
                files = {suffix: tar.extractfile(entry) for suffix, entry in pieces.items()}  # type: ignore[arg-type]
                held = {suffix: b"" if file is None else file.read() for suffix, file in files.items()}
                good = {
                    "png": hashlib.sha256(held["png"]).hexdigest() == row["sha256"],
                    "cls": held["cls"] == row["label"].encode(),
                    "json": held["json"] == row_json(row),
                }
                check.damaged += [f"{name}/{key}.{suffix}" for suffix, whole in good.items() if not whole]
            check.extra += [f"{name}/{left}" for left in sorted(members)]
    # a number in a header that is none, or that leads out of the file
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        check.damaged.append(f"{name} ({error})")


def _tar_of(folder: Path, split: str, shard: int) -> Path:
    return folder / "shards" / f"{shard_name(split, shard)}.tar"


def _typed(name: str, cell: Any) -> Any:
    """A cell, or its text in the table, as the column's type."""
    if cell is None or cell == "":
        return None
    kinds = dict.fromkeys(("label", "index", "success", "l0"), int) | dict.fromkeys(("l2", "linf"), float)
    return kinds.get(name, str)(cell)
