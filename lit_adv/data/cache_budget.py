"""How much disk an adversarial cache takes and may take."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
# what file systems allot at least, and leave out of files with gaps
_BLOCK = 4096


def parse_size(size: int | str) -> int:
    """Bytes of a number or of text such as `20 GB` (10^9) or `20 GiB` (2^30).

    Raises:
        ValueError: It is neither, or not positive.
    """
    if isinstance(size, bool):
        raise ValueError(f"must be a size such as 20 GB, got {size}")
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", str(size))
    if found is None or found[2].lower() not in _UNITS:
        raise ValueError(f"must be a number of bytes or a size such as 20 GB or 20 GiB, got {size!r}")
    count = int(float(found[1]) * _UNITS[found[2].lower()])
    if count < 1:
        raise ValueError(f"must be positive, got {size!r} (null sets no limit)")
    return count


def size_text(count: float) -> str:
    """Bytes for people, in units of 1000."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def disk_bytes(rows: np.ndarray, row_bytes: int) -> int:
    """Disk that rows of a file take, in whole blocks of 4096 bytes: a file with gaps takes none for them.

    Args:
        rows: Positions of the rows, ascending, ``(n,)``.
        row_bytes: Size of a row.
    """
    if not len(rows):
        return 0
    if rows[-1] - rows[0] == len(rows) - 1:
        # without gaps, and without an array for each of many versions of a large set
        return (int((rows[-1] + 1) * row_bytes - 1) // _BLOCK - int(rows[0] * row_bytes) // _BLOCK + 1) * _BLOCK
    rows = rows.astype(np.int64)
    first, last = rows * row_bytes // _BLOCK, ((rows + 1) * row_bytes - 1) // _BLOCK
    shared = int((first[1:] == last[:-1]).sum())
    return int((last - first + 1).sum() - shared) * _BLOCK


def taken(folder: Path) -> int:
    """Disk that the files of a folder and its folders take, 0 where there is none."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += path.stat().st_blocks * 512 if path.is_file() else 0
        except OSError:  # removed since it was listed
            continue
    return total


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of a folder that may not be there yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def share_that_fits(files: Sequence[tuple[np.ndarray, int]], row_bytes: Sequence[int], budget: int) -> float:
    """The largest share of every data set, in steps of 1/4096, whose rows fit together.

    Args:
        files: The rows wanted of a data set, ascending, and the length of that data set.
        row_bytes: Sizes of a row: each entry of `files` stands for a file of each size.
        budget: Bytes.
    """

    def needed(share: float) -> int:
        kept = [rows[: np.searchsorted(rows, int(share * length))] for rows, length in files]
        return sum(disk_bytes(one, size) for one in kept for size in row_bytes)

    low, high = 0, 4096
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle / 4096) <= budget else (low, middle - 1)
    return low / 4096
