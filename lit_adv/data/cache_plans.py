"""What the jobs that run now will write into one cache folder, so that they keep one limit together."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FOLDER = "plans"


class CachePlans:
    """The plans in a cache folder: a file a job, which its process holds locked for as long as it lives.

    A plan whose lock is free is that of a process that has ended, however it ended, and is removed. Locks are those of
    `flock`, which Linux passes on to NFS servers that lock; where nothing can be locked (Windows, some network disks)
    there are no plans, and jobs that start at the same time do not see each other.

    Args:
        folder: The cache folder; it must be there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / _FOLDER
        self._held: tuple[int, Path, int] | None = None

    @contextlib.contextmanager
    def deciding(self) -> Iterator[dict[str, tuple[int, float]]]:
        """One job at a time: bytes and share of a split's images by cache, of all jobs that live."""
        if fcntl is None:
            yield {}
            return
        try:
            self.folder.mkdir(exist_ok=True)
            guard = (self.folder / "lock").open("w")
        except OSError:  # a folder that is only read
            yield {}
            return
        with guard:
            try:
                fcntl.flock(guard, fcntl.LOCK_EX)
            except OSError:
                yield {}
                return
            yield self._alive()

    def announce(self, planned: dict[str, tuple[int, float]]) -> None:
        """Says what this process will have written, until it ends; call it while deciding."""
        if fcntl is None or not self.folder.is_dir():
            return
        self.withdraw()
        path = self.folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self._held = (file, path, os.getpid())
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(file, json.dumps(planned).encode())

    def withdraw(self) -> None:
        """Takes this process's plan back."""
        # a forked worker must not end its parent's plan
        if self._held is not None and self._held[2] == os.getpid():
            with contextlib.suppress(OSError):
                self._held[1].unlink()
            os.close(self._held[0])
        self._held = None

    def __del__(self) -> None:
        self.withdraw()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_held": None}

    def _alive(self) -> dict[str, tuple[int, float]]:
        found: dict[str, tuple[int, float]] = {}
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError), path.open("r+") as file:
                if not _is_held(file):
                    path.unlink(missing_ok=True)
                    continue
                for name, (count, share) in json.load(file).items():
                    found[name] = max(found.get(name, (0, 0.0)), (int(count), float(share)))
        return found


def _is_held(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
