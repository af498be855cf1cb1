"""How many images are attacked at once: as many as fit."""

from __future__ import annotations

import gc
from typing import Literal

import torch

ChunkSize = int | Literal["auto"]
# where halving starts
_MOST_ON_GPU, _MOST = 1024, 256
_WORDS = ("out of memory", "can't allocate memory", "alloc_failed")


class Chunk:
    """The size of a chunk: a number, or `auto`, which starts large and is halved when the memory does not suffice.

    What does not fit is tried again in smaller parts. A crafted image does not depend on the images beside it, so the
    result is the same.

    Args:
        size: Images, or `auto`.
    """

    def __init__(self, size: ChunkSize) -> None:
        self.given = size
        self._found: int | None = None

    def size(self, device: torch.device | str) -> int:
        """The present size on a device."""
        if self.given != "auto":
            return self.given
        if self._found is None:
            self._found = _MOST_ON_GPU if torch.device(device).type == "cuda" else _MOST
        return self._found

    def halve(self, tried: int, problem: str) -> None:
        """Takes half of what has been tried and frees what the attempt held; call it after its exception is gone.

        Raises:
            RuntimeError: The size was given, or a single image does not fit.
        """
        if self.given != "auto":
            raise RuntimeError(
                f"AdversarialDataModule: craft_batch_size {self.given} does not fit into the memory (set it to auto, "
                f"which halves it until it fits, or lower it; {problem})"
            )
        if tried == 1:
            raise RuntimeError(
                "AdversarialDataModule: craft_batch_size auto has come down to 1, and one image does not fit into the "
                f"memory (use a smaller victim or another attack; {problem})"
            )
        self._found = tried // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
