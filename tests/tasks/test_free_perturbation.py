"""The perturbation carried on: the same for one process and for two, whatever the sizes of their batches."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lit_adv.tasks.free_perturbation import FreePerturbation

SIZES = (5, 7, 2)  # of the whole batches


def batches():
    torch.manual_seed(0)
    return [torch.rand(size, 1, 2, 2) for size in SIZES]


def carried(rank, world):
    """Every batch adds its images to what is carried on; what was taken comes back as well."""
    free, taken = FreePerturbation(), []
    for images in batches():
        mine = images[rank::world]
        delta = free.take(mine)
        taken.append(delta.clone())
        free.put(delta + mine)
    return free.whole, taken


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(carried(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_one_process_carries_by_place():
    whole, taken = carried(0, 1)
    first, second, third = batches()
    expected = second.clone()
    expected[:5] += first
    assert torch.equal(taken[1], torch.cat([first, torch.zeros(2, 1, 2, 2)]))
    expected[:2] += third
    assert torch.equal(whole, expected)


def test_two_processes_carry_what_one_does(tmp_path):
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    whole, taken = carried(0, 1)
    for rank in (0, 1):
        theirs, parts = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(theirs, whole)
        assert all(torch.equal(part, all_of[rank::2]) for part, all_of in zip(parts, taken, strict=True))


def test_images_of_another_size_begin_anew():
    free = FreePerturbation()
    free.put(torch.ones(3, 1, 2, 2))
    assert torch.equal(free.take(torch.zeros(2, 1, 4, 4)), torch.zeros(2, 1, 4, 4))
