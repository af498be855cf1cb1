"""Files that are there whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which takes its place when the block ends.

    A reader sees the old file or the new one, never half of one; after an exception the old one stays.

    Args:
        path: The file to write; its folder is made if it is missing.

    Yields:
        The path to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file with a header.

    Args:
        path: The file, replaced as a whole.
        columns: The fields, in this order.
        rows: Mappings of just these fields; None becomes an empty cell.

    Raises:
        ValueError: A row has another field.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file, replaced as a whole.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(content, indent=indent, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def safe_names(names: Sequence[str]) -> list[str]:
    """File names that stand for any names: letters, digits, `_` and `-` alone, at most 64, no two the same.

    They can neither leave a folder nor mean a device, and differ where a file system does not tell `a` from `A`; they
    have no dot, so that nothing in them is taken for a suffix. A name that had to be changed ends in eight digits of
    its SHA-256, so that what a name becomes depends on the others only where two differ in case alone.
    """
    folded = [name.casefold() for name in names]
    found = []
    for name in names:
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:_LONGEST]
        clashes = folded.count(name.casefold()) > 1
        if safe != name or not safe or safe.startswith("-") or clashes or safe.casefold() in _DEVICES:
            digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
            safe = f"{safe[: _LONGEST - 9].lstrip('-') or 'name'}-{digest}"
        found.append(safe)
    return found


def inside(folder: Path, name: str) -> Path | None:
    """The file of that name in a folder, or None where the name, or a link on the way, leads out of the folder."""
    if not name or "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        return None
    path = folder / name
    return path if path.resolve().is_relative_to(folder.resolve()) else None


_LONGEST = 64
# names that Windows takes for devices, whatever their suffix
_DEVICES = {"con", "prn", "aux", "nul", *(f"{kind}{number}" for kind in ("com", "lpt") for number in range(10))}
