"""Crafted images on disk: one row an image, written by any process at any time, never a wrong image."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

FORMAT = 1
_RECORD = np.dtype([("digest", "S8"), ("flags", "u1"), ("pad", "V7")])


class AdversarialCache:
    """The adversarial images of one variant (setting and victim) of one split of a data set.

    A row is an image and a record: a digest of (clean image, label, adversarial image, flags) and the flags. A row
    whose digest does not fit, because it was never written, was torn by a kill, or belongs to another clean image, is
    a miss. Rows are read and written by position with pread and pwrite, not through a memory map: a full disk is then
    an error that can be caught, where a memory map ends the process.

    Args:
        folder: Where caches lie.
        key: Everything that affects pixels, as text; each key has a folder of its own.
        shape: ``(C, H, W)`` of a row.
        dtype: ``uint8``, or ``float32`` where images are not rounded.

    Attributes:
        rows: Only rows before this one are written; None: all.
    """

    record_bytes = _RECORD.itemsize

    def __init__(self, folder: str | Path, key: str, shape: tuple[int, ...], dtype: str) -> None:
        name = hashlib.sha256(f"{FORMAT}\n{key}\n{shape}\n{dtype}".encode()).hexdigest()[:32]
        self.folder = Path(folder) / name
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.row_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self.writable = True
        self.rows: int | None = None
        self._key = key
        self._files: tuple[int, int, int] | None = None

    def read(
        self, rows: Iterable[int], clean: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows that are there.

        Args:
            rows: Positions in the clean data set, B of them.
            clean: ``(B, C, H, W)`` the clean images as stored (same dtype as the cache).
            labels: ``(B,)`` int64.

        Returns:
            Images ``(B, C, H, W)``, zeros where there is none; flags ``(B,)`` uint8; hit ``(B,)`` bool.
        """
        rows = list(rows)
        images = np.zeros((len(rows), *self.shape), self.dtype)
        flags = np.zeros(len(rows), np.uint8)
        hit = np.zeros(len(rows), bool)
        files = self._open(create=False)
        if files is None:
            return images, flags, hit
        for place, row in enumerate(rows):
            try:
                record = os.pread(files[1], _RECORD.itemsize, row * _RECORD.itemsize)
                if len(record) < _RECORD.itemsize or not any(record[:8]):
                    continue
                stored = os.pread(files[0], self.row_bytes, row * self.row_bytes)
            except OSError:  # an unreadable row is crafted again, as if it were not there
                continue
            if len(stored) == self.row_bytes and record[:8] == _digest(clean[place], labels[place], stored, record[8]):
                images[place] = np.frombuffer(stored, self.dtype).reshape(self.shape)
                flags[place] = record[8]
                hit[place] = True
        return images, flags, hit

    def write(
        self, rows: Iterable[int], clean: np.ndarray, labels: np.ndarray, images: np.ndarray, flags: np.ndarray
    ) -> None:
        """Stores rows; a disk that takes no more is a warning, and this process writes no further rows here."""
        rows = list(rows)
        if not self.writable or (self.rows is not None and all(row >= self.rows for row in rows)):
            return
        try:
            files = self._open(create=True)
            assert files is not None
            for place, row in enumerate(rows):
                if self.rows is not None and row >= self.rows:
                    continue
                stored = np.ascontiguousarray(images[place]).tobytes()
                flag = int(flags[place])
                record = _digest(clean[place], labels[place], stored, flag) + bytes([flag]) + bytes(7)
                _write(files[0], stored, row * self.row_bytes)
                # the record last: until it is there, the row does not exist
                _write(files[1], record, row * _RECORD.itemsize)
        except OSError as error:
            self.writable = False
            warnings.warn(
                f"adversarial cache {self.folder} cannot be written ({error.strerror or error}); images that are not "
                "in it are crafted each time (free some disk space, or set cache_dir to another disk)",
                RuntimeWarning,
                stacklevel=2,
            )

    def written(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows, ascending, that have been written; whether they are whole is seen when they are read."""
        try:
            records = np.fromfile(self.folder / "rows.bin", _RECORD)
        except OSError:
            return rows[:0]
        rows = rows[: np.searchsorted(rows, len(records))]
        return rows[records["digest"][rows] != b""]

    def _open(self, create: bool) -> tuple[int, int] | None:
        # a forked worker must not share its parent's descriptors' lifetime
        if self._files is None or self._files[2] != os.getpid():
            images, records = self.folder / "images.bin", self.folder / "rows.bin"
            if create:
                self.folder.mkdir(parents=True, exist_ok=True)
                _describe(self.folder / "key.json", self._key, self.shape, str(self.dtype))
            elif not (images.exists() and records.exists()):
                return None
            mode = os.O_RDWR | (os.O_CREAT if create else 0)
            try:
                first = os.open(images, mode, 0o644)
            except OSError:
                if create:
                    raise
                return None  # not readable by us: nothing is there
            try:
                second = os.open(records, mode, 0o644)
            except OSError:
                os.close(first)
                if create:
                    raise
                return None
            self._files = (first, second, os.getpid())
        return self._files[:2]

    def close(self) -> None:
        """Closes the files; the next use opens them again."""
        if self._files is not None and self._files[2] == os.getpid():
            os.close(self._files[0])
            os.close(self._files[1])
        self._files = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": None}

    def __del__(self) -> None:
        self.close()


def _digest(clean: np.ndarray, label: int, stored: bytes, flags: int) -> bytes:
    digest = hashlib.blake2b(np.ascontiguousarray(clean).tobytes(), digest_size=8)
    digest.update(int(label).to_bytes(8, "little", signed=True) + bytes([flags]))
    digest.update(stored)
    return digest.digest()


def _write(file: int, content: bytes, offset: int) -> None:
    written = os.pwrite(file, content, offset)
    if written != len(content):
        raise OSError(28, "disk full: a row was written in part")


def _describe(path: Path, key: str, shape: tuple[int, ...], dtype: str) -> None:
    """What the folder holds, for people; the program knows it from the folder's name."""
    if path.exists():
        return
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(
        json.dumps({"format": FORMAT, "key": key.split("\n"), "shape": shape, "dtype": dtype}, indent=1)
    )
    os.replace(temporary, path)
