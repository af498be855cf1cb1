"""Which images a run uses, and which rank this is."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside distributed runs."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """A random order in which the first n images, for every n, have each class in its share.

    Args:
        labels: `(N,)` int64.
        seed: Fixes the order; the global generators are not touched.

    Returns:
        A permutation `(N,)` of the positions.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    _, position, counts = torch.unique(labels[shuffled], return_inverse=True, return_counts=True)
    grouped = torch.argsort(position, stable=True)
    starts = counts.cumsum(0) - counts
    within = torch.empty(len(labels), dtype=torch.float64)
    within[grouped] = torch.arange(len(labels), dtype=torch.float64) - starts[position[grouped]]
    # the k-th of a class with n images belongs at (k + 1/2) / n of the way
    return shuffled[torch.argsort((within + 0.5) / counts[position], stable=True)]
