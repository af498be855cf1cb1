"""Stratified orders."""

import pytest
import torch

from lit_adv.data.sampling import rank_and_world, stratified_order


@pytest.mark.parametrize("counts", [(50, 50, 50), (80, 15, 5), (1, 1, 30), (40,)])
def test_every_beginning_has_each_class_in_its_share(counts):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    order = stratified_order(labels, seed=3)
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    for length in range(1, len(labels) + 1):
        found = labels[order[:length]].bincount(minlength=len(counts))
        share = torch.tensor(counts) * length / len(labels)
        assert (found - share).abs().max() <= 1.01


def test_order_is_fixed_by_the_seed_alone():
    labels = torch.arange(100) % 7
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = stratified_order(labels, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, stratified_order(labels, seed=0))
    assert not torch.equal(one, stratified_order(labels, seed=1))


def test_labels_need_not_be_contiguous():
    order = stratified_order(torch.tensor([5, 5, 9, 9]), seed=0)
    assert sorted(order.tolist()) == [0, 1, 2, 3]


def test_one_process():
    assert rank_and_world() == (0, 1)
