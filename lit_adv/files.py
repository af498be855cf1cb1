"""Files that are there whole or not at all."""

from __future__ import annotations

import csv
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


def file_names(names: Sequence[str]) -> list[str]:
    """Names that can be a file's, each its own, for names of classes and the like.

    Args:
        names: Whatever somebody has called them; what is no letter, digit or underscore becomes an underscore, and the
            place is added where two would be alike or nothing is left.
    """
    plain = [re.sub(r"\W+", "_", name).strip("_") for name in names]
    found: list[str] = []
    for number, each in enumerate(plain):
        name = each if each and plain.count(each) == 1 else f"{each}_{number}".lstrip("_")
        while name in found or (name != each and name in plain):
            name += "_"
        found.append(name)
    return found
