"""The search: which blobs there are, what each image goes through for them, and which one is taken."""

import itertools

import pytest
import torch
from lit_adv.callbacks.blob_search import BlobSearch, Point, RegionCounts, common_choice, grid_points, wanted_blobs
from lit_adv.callbacks.class_pairs import ClassPair
from torch import nn

from lit_adv.attacks import FGSM
from lit_adv.explain import blob_of_masks, blob_of_representatives, representative
from lit_adv.models import Classifier, neutralize

GRID = [0.2, 0.5, 0.8]


class Counting(nn.Module):
    """A classifier that counts the images it is called with, and those that a gradient comes back for."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.net = Classifier("small_cnn", 3, 16, 1).eval()
            # random weights prefer one class: without that preference all are found
            with torch.no_grad():
                self.net.network.linear.bias -= self.net(images()).mean(0)
        self.forwards = self.backwards = 0

    def forward(self, x):
        self.forwards += len(x)
        logits = self.net(x)
        if logits.requires_grad and torch.is_grad_enabled() and x.requires_grad:
            logits.register_hook(lambda gradient: setattr(self, "backwards", self.backwards + len(gradient)))
        return logits


def images(count=12, seed=0):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def maps(count=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    # the same middle in all images, so that blobs have a shape
    shape = torch.linspace(-1, 1, 16).abs().expand(16, 16)
    return tuple((torch.rand(count, 16, 16, generator=generator) + s).clamp(0, 2) / 2 for s in (1 - shape, shape))


def counted(seed=1):
    counts = RegionCounts(GRID, GRID, (16, 16), torch.device("cpu"))
    importance, attack = maps(seed=seed)
    for rows in (slice(0, 5), slice(5, 12)):
        counts.update(importance[rows], attack[rows])
    return counts


def searched(model=None, keep="source", source=0, target=1, seed=1, chunk_size=40, attack=None):
    pair = ClassPair(model or Counting(), source, target, "pair")
    attack = attack or FGSM(eps=0.1)
    return BlobSearch(pair, counted(seed), grid_points(GRID), "images", 0.0, attack, 0, chunk_size, keep)


def scored(search, max_drop=0.3):
    x, labels = images(24), torch.arange(24) % 3
    for rows in (slice(0, 10), slice(10, 24)):
        search.score_modified(x[rows], labels[rows])
    (wanted,) = wanted_blobs([search], max_drop)
    for rows in (slice(0, 10), slice(10, 24)):
        search.score_attacked(x[rows], labels[rows], wanted)
    return x, labels, wanted


@pytest.mark.parametrize("source", ["images", "representatives"])
def test_blobs_of_counts_are_those_of_the_masks(source) -> None:
    counts, (importance, attack) = counted(), maps()
    assert counts.images == 12
    sizes = set()
    for one, two, theta in itertools.product(GRID, repeat=3):
        masks = importance >= one, attack >= two
        means = [representative(each) for each in masks]
        for found, expected in zip(counts.representatives(one, two), means, strict=True):
            assert torch.equal(found, expected)
        expected = blob_of_masks(*masks, theta) if source == "images" else blob_of_representatives(*means, theta)
        found = counts.blob(Point(one, two, theta), source)
        assert torch.equal(found, expected)
        sizes.add(int(found.sum()))
    assert len(sizes) > 3


def test_an_image_passes_three_times_for_a_blob_and_once_backwards() -> None:
    model = Counting()
    search = searched(model)
    assert 3 < len(search.blobs) < 27  # distinct ones alone
    _, labels, wanted = scored(search, max_drop=1.0)
    mine = int((labels == 0).sum())
    assert wanted.all()
    assert model.forwards == mine + 3 * mine * len(search.blobs)  # and once clean
    assert model.backwards == mine * len(search.blobs)


def test_a_blob_that_costs_too_much_is_not_attacked() -> None:
    model = Counting()
    search = searched(model)
    _, labels, wanted = scored(search, max_drop=0.0)
    mine = int((labels == 0).sum())
    assert 0 < wanted.sum() < len(wanted)
    assert model.backwards == mine * int(wanted.sum())
    assert wanted[search.nothing]


@pytest.mark.parametrize("chunk_size", [1, 40, 10_000])
@pytest.mark.parametrize("keep", ["source", "both"])
def test_scores_are_those_of_each_blob_by_itself(keep, chunk_size) -> None:
    model = Counting().double()
    search = searched(model, keep, chunk_size=chunk_size)
    x, labels = images(24).double(), torch.arange(24) % 3
    search.score_modified(x, labels)
    search.score_attacked(x, labels, torch.ones(len(search.blobs), dtype=torch.bool))
    two = nn.Sequential(model, Two())
    for place, blob in enumerate(search.blobs):
        own, other = (neutralize(x[labels == label], blob) for label in (0, 1))
        zeros = torch.zeros(8, dtype=torch.long)
        lost = [int((two(x[labels == 0]).argmax(1) == 0).sum()) - int((two(own).argmax(1) == 0).sum())]
        if keep == "both":
            lost.append(int((two(x[labels == 1]).argmax(1) == 1).sum()) - int((two(other).argmax(1) == 1).sum()))
        assert float(search.drop[place]) == max(lost) / 8
        made = FGSM(eps=0.1)(two, own, zeros, seed=0)
        assert float(search.robust[place]) == float((two(made).argmax(1) == 0).double().mean())
    assert len(set(search.drop.tolist())) > 1


class Two(nn.Module):
    def forward(self, logits):
        return logits[:, :2]


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_the_best_that_is_allowed(seed) -> None:
    search = searched()
    search.score_modified(images(24), torch.arange(24) % 3)
    # any counts will do, with ties; here more is gained where more is lost
    generator = torch.Generator().manual_seed(seed)
    search.clean = torch.tensor([8])
    search.modified = 8 - torch.randint(0, 5, (1, len(search.blobs)), generator=generator)
    search.attacked = 8 - search.modified[0] + torch.randint(0, 2, (len(search.blobs),), generator=generator)
    search.modified[0, search.nothing], search.attacked[search.nothing] = 8, 1
    robustness = set()
    for max_drop in (0.0, 0.125, 0.3, 1.0):
        choice = search.choose(max_drop)
        (number,) = (n for n, blob in enumerate(search.blobs) if torch.equal(blob, choice.blob))
        for other in {int(place) for place in search.places} | {search.nothing}:
            lost, kept = 8 - int(search.modified[0, other]), int(search.attacked[other])
            if lost / 8 <= max_drop:
                assert (kept, -lost, -int(search.blobs[other].sum())) <= (
                    int(search.attacked[number]),
                    int(search.modified[0, number]) - 8,
                    -int(choice.blob.sum()),
                )
        assert 8 - int(search.modified[0, number]) <= 8 * max_drop
        assert choice.point is None or torch.equal(choice.blob, counted().blob(choice.point))
        robustness.add(int(search.attacked[number]))
    assert len(robustness) > 1


def test_nothing_is_better_than_a_blob_that_gains_nothing() -> None:
    search = searched()
    search.score_modified(images(24), torch.arange(24) % 3)
    search.modified = search.clean[:, None].expand_as(search.modified)
    assert search.choose(1.0).point is None
    assert not search.choose(1.0).blob.any()


def test_one_point_for_all_pairs_is_the_best_mean() -> None:
    searches = [searched(seed=1), searched(source=1, target=2, seed=2)]
    for each in searches:
        scored(each, max_drop=1.0)
    choices = common_choice(searches, 1.0)
    assert choices[0].point == choices[1].point
    means = [sum(float(each.robust[each.places[number]]) for each in searches) / 2 for number in range(27)]
    nothing = sum(float(each.robust[each.nothing]) for each in searches) / 2
    best = max([*means, nothing])
    reached = [
        float(each.robust[next(i for i, blob in enumerate(each.blobs) if torch.equal(blob, choice.blob))])
        for each, choice in zip(searches, choices, strict=True)
    ]
    assert sum(reached) / 2 == best
    # whatever is allowed for all together has been attacked in each
    wanted = wanted_blobs(searches, 0.1)
    drops = [sum(float(each.drop[each.places[number]]) for each in searches) / 2 for number in range(27)]
    for each, blobs in zip(searches, wanted, strict=True):
        for number, drop in enumerate(drops):
            if drop <= 0.1 or each.drop[each.places[number]] <= 0.1:
                assert blobs[each.places[number]]


@pytest.mark.parametrize("decision", ["pair", "all"])
def test_a_pair_is_a_binary_problem_or_a_targeted_one(decision) -> None:
    model, x = Counting(), images()
    pair = ClassPair(model, 2, 1, decision)
    logits = model(x)
    expected = logits[:, 2] > logits[:, 1] if decision == "pair" else logits.argmax(1) == 2
    assert torch.equal(pair.right(x), expected)
    expected = logits[:, 1] > logits[:, 2] if decision == "pair" else logits.argmax(1) == 1
    assert torch.equal(pair.right(x, target=True), expected)
    made = pair.attacked(FGSM(eps=0.01), x, 0)
    leaf = x.clone().requires_grad_()
    if decision == "pair":
        loss = nn.functional.softplus(model(leaf)[:, 1] - model(leaf)[:, 2])  # the binary cross-entropy, to grow
    else:
        loss = -nn.functional.cross_entropy(model(leaf), torch.ones(12, dtype=torch.long), reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    sure = gradient.abs() > 1e-4
    assert sure.float().mean() > 0.5
    torch.testing.assert_close(made[sure], (x + 0.01 * gradient.sign()).clamp(0, 1)[sure])
