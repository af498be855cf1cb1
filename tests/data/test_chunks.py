"""Chunks that fit: halved when memory runs out, with the same images."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from lit_adv.attacks import PGD
from lit_adv.data import AdversarialDataModule, Arrays
from lit_adv.data.chunks import Chunk, is_out_of_memory
from lit_adv.tasks import Crafting


class Small(nn.Module):
    """A network with memory for so many images, which notes how many it is given."""

    def __init__(self, most, problem):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(3 * 64, 3).double()
        self.most, self.problem, self.seen = most, problem, []

    def forward(self, images):
        self.seen.append(len(images))
        # an image of zeros is how the data module tries a victim
        if len(images) > self.most and images.any():
            raise self.problem
        return self.layer(images.double().flatten(1))


def data(tmp_path, victim, size, **given):
    draws = np.random.default_rng(0)
    path = Path(tmp_path) / "images.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(
        path,
        x_train=draws.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8),
        y_train=np.arange(9) % 3,
        x_test=draws.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8),
        y_test=np.arange(40) % 3,
    )
    return AdversarialDataModule(
        Arrays(path=path, validation=3),
        {"a": victim},
        {"pgd": PGD(eps=8 / 255, steps=2)},
        eval_batch_size=80,
        craft_batch_size=size,
        **given,
    )


def images(module):
    return torch.cat([batch.adversarial for batch in module.batches("test")])


PROBLEMS = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), RuntimeError("[enforce] out of memory")]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_auto_halves_until_it_fits_and_crafts_the_same(tmp_path, problem):
    whole = images(data(tmp_path, Small(1000, None), 256))
    victim = Small(11, problem)
    module = data(tmp_path, victim, "auto")
    assert torch.equal(images(module), whole)
    # 40 -> 20 -> 10, and from then on 10
    assert [count for count in victim.seen if count > 11] == [40, 20]
    victim.seen.clear()
    assert torch.equal(images(module), whole)
    assert max(victim.seen) == 10


def test_what_has_been_crafted_when_memory_runs_out_is_kept_once(tmp_path):
    module = data(tmp_path, Small(11, PROBLEMS[0]), "auto", cache_dir=str(tmp_path / "cache"))
    whole = images(data(tmp_path, Small(1000, None), 256))
    assert torch.equal(images(module), whole)
    again = Small(0, AssertionError("crafted again"))
    again.load_state_dict(module.victim("a").state_dict())
    module._victims["a"] = again.eval()
    assert torch.equal(images(module), whole)


def test_prefill_halves_and_keeps_the_same(tmp_path):
    crafted = images(data(tmp_path, Small(1000, None), 256))
    victim = Small(11, PROBLEMS[0])
    module = data(tmp_path, victim, "auto", cache_dir=str(tmp_path / "cache"))
    module.prepare_data()
    module.setup("test")
    module.prefill(("test",))
    assert [count for count in victim.seen if count > 11] == [40, 20]
    victim.most = 0  # nothing is crafted any more
    assert torch.equal(images(module), crafted)


def test_prediction_halves_and_shows_the_same(tmp_path):
    crafted = images(data(tmp_path, Small(1000, None), 256))
    victim = Small(11, PROBLEMS[0])
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    shown = []

    task = Crafting()
    task.predict_step = lambda batch: shown.append(batch.adversarial) or 0
    trainer.predict(task, datamodule=data(tmp_path, victim, "auto"), return_predictions=False)
    assert [count for count in victim.seen if count > 11] == [40, 20]
    assert torch.equal(torch.cat(shown), crafted)


def test_ranks_that_halve_differently_craft_the_same(tmp_path):
    crafted = images(data(tmp_path, Small(1000, None), 256))
    # forked, which does not import all anew
    mp.start_processes(_rank, args=(str(tmp_path), (11, 3)), nprocs=2, start_method="fork")
    # 20 images each: halved to 10, and to 5, 2
    assert [(tmp_path / f"most{rank}").read_text() for rank in (0, 1)] == ["10", "2"]
    module = data(tmp_path, Small(0, AssertionError("crafted again")), 256, cache_dir=str(tmp_path / "cache"))
    assert torch.equal(images(module), crafted)


def _rank(rank, folder, most):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    victim = Small(most[rank], PROBLEMS[0])
    module = data(Path(folder) / str(rank), victim, "auto", cache_dir=f"{folder}/cache")
    module.prepare_data()
    module.setup("test")
    module.prefill(("test",))
    dist.barrier()
    assert all(torch.isfinite(batch.adversarial).all() for batch in module.batches("test"))
    (Path(folder) / f"most{rank}").write_text(str(max(count for count in victim.seen if count <= most[rank])))
    dist.barrier()
    dist.destroy_process_group()


def test_a_size_that_was_given_is_not_changed_in_silence(tmp_path):
    with pytest.raises(RuntimeError, match=r"craft_batch_size 64 does not fit into the memory .set it to auto"):
        images(data(tmp_path, Small(11, PROBLEMS[0]), 64))


def test_one_image_that_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="has come down to 1"):
        images(data(tmp_path, Small(0, PROBLEMS[0]), "auto"))


def test_other_errors_pass(tmp_path):
    with pytest.raises(RuntimeError, match="a mistake"):
        images(data(tmp_path, Small(0, RuntimeError("a mistake")), "auto"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(MemoryError())


def test_sizes_to_start_from():
    assert Chunk(5).size("cuda") == 5
    assert (Chunk("auto").size("cpu"), Chunk("auto").size("cuda:1")) == (256, 1024)
    with pytest.raises(ValueError, match="craft_batch_size must be at least 1 or auto, got 0"):
        AdversarialDataModule(None, {"a": nn.Identity()}, {"pgd": PGD(eps=0.1, steps=1)}, craft_batch_size=0)
