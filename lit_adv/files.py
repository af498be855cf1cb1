"""Files that are there whole or not at all."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import platform
import re
import shutil
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
    temporary = path.with_name(f".{path.stem}.{_host()}-{os.getpid()}.tmp{path.suffix}")
    try:
        # which looks how much is free while what was written is still there
        with saying_what_is_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `replacing` below a folder that processes of this machine left when killed."""
    for path in folder.rglob(".*.tmp*"):
        found = re.fullmatch(rf"\..*\.{re.escape(_host())}-(\d+)\.tmp(\..*)?", path.name)
        if found and not _lives(int(found[1])):
            path.unlink(missing_ok=True)


@contextmanager
def saying_what_is_full(path: Path) -> Iterator[None]:
    """Name the file, the room that is left and the remedy where the block finds no room to write.

    Raises:
        OSError: The disk, a quota, or the largest size of a file allows no more; with the number of the original.
    """
    try:
        yield
    except OSError as error:
        # one inside another has said it
        if error.errno not in _FULL or isinstance(error, _Full):
            raise
        raise _Full(error.errno, _why_full(error, path)) from error


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, all of it or nothing.

    Raises:
        OSError: There is no room.
    """
    content = text.encode("utf-8")
    # without a buffer, which would be written again when the file is closed
    with saying_what_is_full(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            os.truncate(path, before)
            raise


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


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", platform.node())


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return process != os.getpid()


class _Full(OSError):
    def __str__(self) -> str:
        return str(self.args[1])


def _why_full(error: OSError, path: Path) -> str:
    said = error.strerror or str(error)
    folder = next((folder for folder in (path.parent, *path.parent.parents) if folder.is_dir()), Path())
    try:
        free = f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB are free there"
    except OSError:
        free = "how much is free cannot be told"
    return f"{path} cannot be written: {said} ({free}; make room, and start the same command again: it goes on)"


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LONGEST = 64
# names that Windows takes for devices, whatever their suffix
_DEVICES = {"con", "prn", "aux", "nul", *(f"{kind}{number}" for kind in ("com", "lpt") for number in range(10))}
