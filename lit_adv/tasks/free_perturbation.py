"""The perturbation that free adversarial training carries from batch to batch."""

import torch
import torch.distributed as dist
from torch import Tensor

from lit_adv.data.sampling import rank_and_world


class FreePerturbation:
    """One perturbation for each place in the batch of all processes, 0 at first; Shafahi et al. 2019, algorithm 1.

    Places are dealt to the processes in turn, as the data modules deal images, and every process knows all of them
    after a batch, so that a checkpoint of one of them is complete, for any number of processes.

    Attributes:
        whole: ``(places, C, H, W)``, pixel units of [0, 1]; None before the first batch.
    """

    def __init__(self) -> None:
        self.whole: Tensor | None = None

    def take(self, images: Tensor) -> Tensor:
        """This process's share for ``images`` ``(B, C, H, W)``, a copy."""
        rank, world = rank_and_world()
        needed = rank + world * (len(images) - 1) + 1
        self._grow(needed, images)
        assert self.whole is not None
        return self.whole[rank::world][: len(images)].clone()

    def put(self, delta: Tensor) -> None:
        """Keeps this process's share ``(B, C, H, W)`` of a batch; collective."""
        rank, world = rank_and_world()
        if world == 1:
            self._grow(len(delta), delta)
            assert self.whole is not None
            self.whole[: len(delta)] = delta
            return
        counts = torch.zeros(world, dtype=torch.int64, device=delta.device)
        counts[rank] = len(delta)
        dist.all_reduce(counts)
        places = max(number + world * (int(count) - 1) + 1 for number, count in enumerate(counts) if count)
        self._grow(places, delta)
        assert self.whole is not None
        new, told = torch.zeros_like(self.whole), torch.zeros_like(self.whole[:, :1, :1, :1])
        new[rank::world][: len(delta)] = delta
        told[rank::world][: len(delta)] = 1
        dist.all_reduce(new)
        dist.all_reduce(told)
        self.whole = torch.where(told > 0, new, self.whole)

    def _grow(self, places: int, like: Tensor) -> None:
        held = like.new_zeros(0, *like.shape[1:]) if self.whole is None else self.whole.to(like.device)
        if held.shape[1:] != like.shape[1:]:
            held = like.new_zeros(0, *like.shape[1:])  # a checkpoint of images of another size
        missing = places - len(held)
        self.whole = torch.cat([held, like.new_zeros(missing, *like.shape[1:])]) if missing > 0 else held
