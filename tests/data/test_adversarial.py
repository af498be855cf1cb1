"""The adversarial data module: every image where it should be, made by whom it should be, the same every time."""

import importlib
import linecache
import sys
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from lit_adv.attacks import FGSM, PGD, Attack, BoundedPatch, CarliniWagnerLinf, Center, DeepFool
from lit_adv.data import AdversarialDataModule
from lit_adv.data import adversarial as module_of_data
from lit_adv.models import fingerprint

K, SIDE = 3, 8


class Source(pl.LightningDataModule):
    """Anybody's data module: random 8-bit images in loaders, with the attributes ours have."""

    num_classes = K

    def __init__(self, train=40, val=9, test=11, seed=0):
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.sets = [
            TensorDataset(
                torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=draws) / 255,
                torch.randint(0, K, (count,), generator=draws),
            )
            for count in (train, val, test)
        ]

    def train_dataloader(self):
        return DataLoader(self.sets[0], batch_size=4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.sets[1])

    def test_dataloader(self):
        return DataLoader(self.sets[2])


def network(seed=0, classes=K):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE**2, classes)
        )


def attacks():
    return {
        "pgd/4": PGD(eps=4 / 255, steps=2),
        "fgsm": FGSM(eps=16 / 255),
        "pgd/16": PGD(eps=16 / 255, steps=2),
    }


def module(cache=None, **changes):
    arguments = {
        "source": Source(),
        "victims": {"a": network(1), "b": network(2)},
        "attacks": attacks(),
        "batch_size": 8,
        "eval_batch_size": 7,
        "cache_dir": None if cache is None else str(cache),
    }
    return AdversarialDataModule(**{**arguments, **changes})


def everything(data, split="test"):
    """All rows of an epoch, by (index, attack, setting, victim)."""
    found = {}
    for batch in data.batches(split):
        for row in range(len(batch.label)):
            key = tuple(int(field[row]) for field in (batch.index, batch.attack, batch.setting, batch.victim))
            assert key not in found
            found[key] = (batch.clean[row], batch.adversarial[row], int(batch.label[row]))
    return found


def test_classes_settings_and_victims_have_names():
    data = module()
    assert data.attack_classes == ["clean", "pgd", "fgsm"]
    assert data.settings == {"pgd": ["pgd/4", "pgd/16"], "fgsm": ["fgsm"]}
    assert data.victim_names == ["a", "b"]
    assert data.num_classes == K


def test_evaluation_shows_every_image_clean_and_in_each_variant_once():
    source = Source()
    data = module(source=source)
    found = everything(data)
    wanted = {(index, 0, 0, -1) for index in range(11)}
    wanted |= {(i, a, s, v) for i in range(11) for a, s in [(1, 0), (1, 1), (2, 0)] for v in (0, 1)}
    assert set(found) == wanted
    images, labels = source.sets[2].tensors
    for (index, attack, _, _), (clean, adversarial, label) in found.items():
        assert torch.equal(clean, images[index])
        assert label == labels[index]
        assert attack or torch.equal(clean, adversarial)


def test_crafted_images_are_the_attacks_own_within_half_a_grey_level():
    data = module()
    eps = {(1, 0): 4 / 255, (1, 1): 16 / 255, (2, 0): 16 / 255}
    for (_, attack, setting, victim), (clean, adversarial, _) in everything(data).items():
        if attack:
            levels = adversarial * 255
            assert torch.equal(levels.round() / 255, adversarial)
            assert (adversarial - clean).abs().max() <= eps[attack, setting] + 0.5 / 255
        if (attack, setting) == (2, 0):
            model = data.victim("ab"[victim])
            again = FGSM(eps=16 / 255)(model, clean[None], model(clean[None]).argmax(1))
            assert torch.equal((again * 255).round() / 255, adversarial[None])


def test_a_crafted_image_does_not_depend_on_batch_order_or_split():
    first = everything(module(eval_batch_size=7))
    second = everything(module(eval_batch_size=13, craft_batch_size=2, batch_size=3))
    differing = sum(not torch.equal(first[key][1], second[key][1]) for key in first)
    assert differing <= len(first) // 20  # float32: a gradient near 0 may change its sign with the batch
    trained = {}
    data = module(batch_size=5)
    for _ in range(6):
        trained |= everything(data, "train")
    other = module(batch_size=16, variants=None)
    for key, value in everything(other, "train").items():
        if key in trained:
            assert torch.equal(trained[key][1], value[1])


def test_seed_attack_and_victim_change_the_image_and_global_randomness_does_not():
    first = everything(module())
    torch.manual_seed(99)
    assert all(torch.equal(first[key][1], value[1]) for key, value in everything(module()).items())
    changed = {
        "seed": everything(module(seed=1)),
        "victims": everything(module(victims={"a": network(3), "b": network(4)})),
        "attacks": everything(module(attacks={**attacks(), "pgd/4": PGD(eps=4 / 255, steps=3)})),
    }
    for name, other in changed.items():
        assert any(not torch.equal(first[k][1], other[k][1]) for k in first if k[1] == 1), name


def test_training_draws_classes_evenly_and_one_setting_and_victim_for_a_class_and_batch():
    data = module(source=Source(train=60), batch_size=20, attacks={"pgd/4": attacks()["pgd/4"], **attacks()})
    data.setup("fit")
    loader = data.train_dataloader()
    counts, epochs = np.zeros(3), 60
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for keys in loader.sampler:
            for attack in (1, 2):
                mine = {variant for _, variant in keys if variant in data._variants_of(attack)}
                assert len(mine) <= 1
            for _, variant in keys:
                counts[0 if variant < 0 else data.attack_classes.index(data._class_of(variant)[0])] += 1
    total = counts.sum()
    assert total == 60 * epochs
    assert np.abs(counts - total / 3).max() < 5 * np.sqrt(total * 2 / 9)


@pytest.mark.parametrize("variants", [None, 4])
def test_paired_batches_show_each_image_in_every_class(variants):
    data = module(source=Source(train=20), batch_size=13, paired=True, variants=variants)
    data.setup("fit")
    loader = data.train_dataloader()
    shown = []
    assert len(loader) == 5
    for batch in loader:
        assert len(batch.label) == 12
        for index in batch.index.unique():
            assert sorted(batch.attack[batch.index == index].tolist()) == [0, 1, 2]
            assert len(batch.clean[batch.index == index].unique(dim=0)) == 1
        shown += batch.index.unique().tolist()
    assert sorted(shown) == list(range(20))


def test_which_versions_exist_does_not_depend_on_the_pieces_they_are_drawn_in(monkeypatch):
    found = []
    for piece in (1 << 16, 7):
        monkeypatch.setattr(module_of_data, "_PIECE", piece)
        data = module(source=Source(train=60), variants=4)
        data.setup("fit")
        found.append(data._table(1))
    choices, draws = data._variants_of(1), np.random.default_rng([data.seed, 1, 1]).random((60, 4))
    assert np.array_equal(found[0], choices[draws.argsort(axis=1)[:, :2]])
    assert np.array_equal(found[0], found[1])


def test_variants_fix_for_each_image_which_versions_exist():
    data = module(source=Source(train=60), variants=5)
    shown = {}
    for epoch in range(40):
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for keys in loader.sampler:
            for index, variant in keys:
                shown.setdefault(index, set()).add(variant)
    assert all(len(variants) == 5 for variants in shown.values())
    per_class = {len([v for v in variants if v in data._variants_of(1)]) for variants in shown.values()}
    assert per_class == {2}
    assert len({frozenset(variants) for variants in shown.values()}) > 5  # not the same ones for all images


def test_the_cache_replaces_crafting_and_a_changed_field_or_weight_misses(tmp_path, monkeypatch):
    first = everything(module(tmp_path))
    calls = []
    real = Attack.__call__
    monkeypatch.setattr(
        Attack, "__call__", lambda self, *args, **kw: calls.append(type(self)) or real(self, *args, **kw)
    )
    again = everything(module(tmp_path))
    assert not calls
    assert all(torch.equal(first[key][1], again[key][1]) for key in first)
    everything(module(tmp_path, attacks={**attacks(), "fgsm": FGSM(eps=15 / 255)}))
    assert set(calls) == {FGSM}
    calls.clear()
    weights = network(1)
    with torch.no_grad():
        weights[0].bias[0] += 1e-6
    everything(module(tmp_path, victims={"a": weights, "b": network(2)}))
    assert len(calls) > 0
    calls.clear()
    statistics = network(2)
    statistics[1].running_mean[0] += 1e-6
    everything(module(tmp_path, victims={"a": network(1), "b": statistics}))
    assert len(calls) > 0
    for change in ({"seed": 3}, {"quantise": "floor"}, {"labels": "true"}, {"regions": {"fgsm": Center(4)}}):
        calls.clear()
        everything(module(tmp_path, **change))
        assert len(calls) > 0, change


def test_the_report_counts_the_last_pass_cached_or_not(tmp_path):
    data = module(tmp_path)
    everything(data)
    first = data.report()
    everything(data)
    assert data.report() == first
    assert {(row["setting"], row["victim"]) for row in first} == {(s, v) for s in attacks() for v in "ab"}
    for row in first:
        assert row["images"] == 11
        model = data.victim(row["victim"])
        key = (data.attack_classes.index(row["attack"]), data.settings[row["attack"]].index(row["setting"]))
        mine = [v for k, v in everything(data).items() if k[1:3] == key and k[3] == "ab".index(row["victim"])]
        fooled = sum(int(model(a[None]).argmax() != model(c[None]).argmax()) for c, a, _ in mine)
        assert row["success_after"] == fooled
        assert row["unchanged"] == sum(torch.equal(c, a) for c, a, _ in mine)


def test_labels_say_which_class_is_left():
    source = Source(test=30)
    for labels in ("true", "prediction"):
        data = module(source=source, labels=labels, attacks={"fgsm": FGSM(eps=8 / 255)}, victims={"a": network(1)})
        model = data.victim("a")
        for (_, attack, _, _), (clean, adversarial, label) in everything(data).items():
            if attack:
                leave = torch.tensor([label]) if labels == "true" else model(clean[None]).argmax(1)
                again = FGSM(eps=8 / 255)(model, clean[None], leave)
                assert torch.equal((again * 255).round() / 255, adversarial[None])


def test_regions_hold_after_rounding():
    data = module(regions={"fgsm": Center(4)})
    mask = Center(4)(torch.zeros(1, 3, SIDE, SIDE))[0].bool().expand(3, -1, -1)
    for (_, attack, _, _), (clean, adversarial, _) in everything(data).items():
        if attack == 2:
            assert torch.equal(clean[~mask], adversarial[~mask])
            assert not torch.equal(clean, adversarial)


@pytest.mark.parametrize("quantise", ["round", "floor", "none"])
def test_clean_images_go_through_the_same_rounding(quantise):
    draws = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    source = Source()
    source.sets[2] = TensorDataset(draws, torch.zeros(5, dtype=torch.int64))
    rounded = {"round": (draws * 255).round() / 255, "floor": (draws * 255).floor() / 255, "none": draws}[quantise]
    for (index, attack, _, _), (clean, adversarial, _) in everything(module(source=source, quantise=quantise)).items():
        assert torch.equal(clean, rounded[index])
        if attack == 0:
            assert torch.equal(adversarial, rounded[index])
        elif quantise == "floor":
            assert torch.equal((adversarial * 255).round() / 255, adversarial)


@pytest.mark.parametrize("quantise", ["floor", "none"])
def test_clean_batches_are_the_split_dealt_to_the_processes(quantise, monkeypatch):
    source = Source(val=9)
    images, labels = source.sets[1].tensors
    source.sets[1] = TensorDataset((images * 0.999 + 1e-4), labels)
    data = module(source=source, quantise=quantise, eval_batch_size=2)
    adversarial = importlib.import_module("lit_adv.data.adversarial")
    for rank in range(2):
        monkeypatch.setattr(adversarial, "rank_and_world", lambda rank=rank: (rank, 2))
        batches = list(data.clean_batches("val"))
        assert [len(x) for x, _ in batches] == [2, 2, 1] if rank == 0 else [2, 2]
        mine = source.sets[1].tensors[0][rank::2]
        wanted = (mine * 255).floor() / 255 if quantise == "floor" else mine
        torch.testing.assert_close(torch.cat([x for x, _ in batches]), wanted)
        assert torch.equal(torch.cat([y for _, y in batches]), labels[rank::2])


def test_survive_rounding_enlarges_only_what_rounding_undid():
    source = Source(test=40)
    plain = module(source=source, attacks={"deepfool": DeepFool()}, victims={"a": network(1)})
    kept = module(source=source, attacks={"deepfool": DeepFool()}, victims={"a": network(1)}, survive_rounding=True)
    before, after = everything(plain), everything(kept)
    (row,), (other,) = plain.report(), kept.report()
    assert row["success_before"] == other["success_before"]
    assert other["success_after"] > row["success_after"]
    model = plain.victim("a")
    for key, (clean, adversarial, _) in before.items():
        if key[1] and model(adversarial[None]).argmax() != model(clean[None]).argmax():
            assert torch.equal(adversarial, after[key][1])


class Sampled(Source):
    """One data set, split by samplers, as many tutorials do it."""

    def __init__(self, **options):
        super().__init__(train=30)
        self.options = options

    def train_dataloader(self):
        return DataLoader(self.sets[0], batch_size=4, sampler=SubsetRandomSampler(range(20)), **self.options)

    def val_dataloader(self):
        return DataLoader(self.sets[0], batch_size=4, sampler=SubsetRandomSampler([25, 22, 29]))


def test_a_split_by_samplers_is_kept():
    made = module(source=Sampled())
    made.setup("fit")
    clean = {split: {float(dataset[i][0].sum()) for i in range(len(dataset))} for split, dataset in made._sets.items()}
    assert (len(clean["train"]), len(clean["val"])) == (20, 3)
    assert not clean["train"] & clean["val"]


def test_what_a_loader_does_to_batches_is_not_dropped_in_silence():
    with pytest.raises(ValueError, match="Sampled: train_dataloader must put its batches together in the ordinary way"):
        module(source=Sampled(collate_fn=lambda rows: rows)).setup("fit")
    source = Sampled()
    weighted = DataLoader(source.sets[0], sampler=WeightedRandomSampler([1.0] * 30, 30))
    source.train_dataloader = lambda: weighted
    with pytest.raises(
        ValueError, match="must have an ordinary sampler or one with indices, got WeightedRandomSampler"
    ):
        module(source=source).setup("fit")


def test_a_source_that_flips_now_and_then_is_noticed():
    source = Source()

    class Flipping(TensorDataset):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return (image.flip(-1) if torch.rand(()) < 0.5 else image), label

    source.sets[0] = Flipping(*source.sets[0].tensors)
    for seed in range(10):
        torch.manual_seed(seed)
        with pytest.raises(ValueError, match="gives another image each time"):
            module(source=source).setup("fit")


def test_a_source_must_say_how_many_classes_it_has():
    class Silent(Source):
        num_classes = None

    with pytest.raises(ValueError, match="Silent: needs an attribute num_classes"):
        module(source=Silent()).setup("fit")


def test_an_edited_attack_of_one_s_own_is_crafted_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    code = """
from dataclasses import dataclass
from lit_adv.attacks import FGSM
@dataclass(frozen=True, kw_only=True)
class Edited(FGSM):
    def _craft(self, problem):
        return problem.x * {share}
"""
    found = []
    for share in (0.5, 0.5, 0.9):
        (tmp_path / "edited.py").write_text(code.format(share=share))
        sys.modules.pop("edited", None)
        linecache.clearcache()
        importlib.invalidate_caches()
        attack = importlib.import_module("edited").Edited(eps=1.0)
        made = module(attacks={"own": attack}, victims={"a": network(1)}, cache_dir=str(tmp_path / "cache"))
        rows = everything(made)
        found.append(torch.stack([adversarial for key, (_, adversarial, _) in sorted(rows.items()) if key[1]]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_fast_dev_run_crafts_only_what_it_shows(tmp_path, capsys):
    made = module(cache_dir=str(tmp_path), prefill=True)
    made.trainer = SimpleNamespace(fast_dev_run=True)
    made.setup("fit")
    assert "crafted" not in capsys.readouterr().out


def test_survive_rounding_keeps_the_budget_of_a_minimal_norm_attack():
    eps = 0.1
    attack = CarliniWagnerLinf(eps=eps, c=20.0, steps=20, variant="carlini")
    options = {"source": Source(test=40), "attacks": {"cw_linf": attack}, "victims": {"a": network(1)}}
    (row,), (other,) = (
        (everything(made), made.report())[1] for made in (module(**options), module(**options, survive_rounding=True))
    )
    assert other["success_after"] > row["success_after"]
    kept = everything(module(**options, survive_rounding=True))
    assert max(float((adversarial - clean).abs().max()) for clean, adversarial, _ in kept.values()) <= eps + 0.5 / 255


@pytest.mark.parametrize("flips", [True, False])
def test_augmentation_mirrors_only_where_the_data_allow_it(flips):
    source = Source(train=16)
    source.flips = flips
    image = torch.zeros(3, 8, 8)
    image[:, :, :4] = 1  # bright on the left
    source.sets[0] = TensorDataset(image.expand(16, 3, 8, 8).clone(), torch.zeros(16, dtype=torch.int64))
    shown = torch.cat([batch.clean for batch in module(source=source, augment=True).batches("train")])
    left = shown[..., 1:3].mean((1, 2, 3)) > shown[..., 5:7].mean((1, 2, 3))
    assert bool(left.all()) != flips


def test_prefill_crafts_what_is_shown_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Stops(FGSM):
        def _craft(self, problem):
            if len(seen) == 2:
                raise KeyboardInterrupt
            seen.append(len(problem))
            return super()._craft(problem)

    seen = []
    first = module(tmp_path, attacks={"fgsm": Stops(eps=8 / 255)}, craft_batch_size=4)
    first.setup("test")
    with pytest.raises(KeyboardInterrupt):
        first.prefill(("test",))
    assert sum(seen) == 8
    seen = [0, 0, 0]
    second = module(tmp_path, attacks={"fgsm": Stops(eps=8 / 255)}, craft_batch_size=4)
    second.setup("test")
    second.prefill(("test",))
    assert sum(seen) == 22 - 8
    printed = capsys.readouterr().out
    assert "8 crafted" not in printed
    assert "3 crafted, 8 cached" in printed
    assert "fgsm on b (test)" in printed
    seen = []
    everything(second)
    assert not seen


def test_augmentation_moves_clean_and_adversarial_alike_and_repeats():
    data = module(augment=True, source=Source(train=64), batch_size=64)
    (batch,) = data.batches("train")
    originals = data.source.sets[0].tensors[0][batch.index]
    assert not torch.equal(batch.clean, originals)
    same = batch.attack == 0
    assert torch.equal(batch.clean[same], batch.adversarial[same])
    # zeros that move in lie at the same places in both
    shifted = (batch.clean == 0).all(1) & (batch.adversarial == 0).all(1)
    assert shifted.any()
    (again,) = data.batches("train")
    assert torch.equal(batch.clean, again.clean)
    assert torch.equal(batch.adversarial, again.adversarial)
    assert (
        sum(torch.equal(a.flip(-1), b) or torch.equal(a, b) for a, b in zip(batch.clean, originals, strict=True)) < 40
    )


def test_victims_are_frozen_and_unchanged():
    model = network(1).train()
    data = module(victims={"a": model})
    before = fingerprint(model)
    everything(data)
    assert data.victim("a") is model
    assert not any(part.training for part in model.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    model.train()
    assert not model.training
    assert fingerprint(model) == before


def test_workers_read_the_cache(tmp_path):
    first = everything(module(tmp_path))
    second = everything(module(tmp_path, num_workers=1))
    assert all(torch.equal(first[key][1], second[key][1]) for key in first)


class Doubling(Source):
    def setup(self, stage):
        self.val_dataset = RandomImages()


class RandomImages(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.rand(3, SIDE, SIDE), 0


BAD = {
    "victims must name at least one": {"victims": {}},
    "attacks must name at least one": {"attacks": {}},
    "batch_size must be at least 1, got 0": {"batch_size": 0},
    "quantise must be round, floor or none, got 'ceil'": {"quantise": "ceil"},
    "labels must be prediction or true": {"labels": "least"},
    "variants must be at least 3": {"variants": 2},
    "prefill needs a cache_dir": {"prefill": True},
    "batch_size must be at least 3 where paired": {"paired": True, "batch_size": 2},
    "a key must be class or class/setting and not clean, got 'clean/1'": {"attacks": {"clean/1": FGSM()}},
    "attacks: x must be an Attack, got str": {"attacks": {"x": "PGD"}},
    "'cw' is not one of the attacks": {"regions": {"cw": Center(3)}},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_fields_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        module(**BAD[message])


def test_a_missing_checkpoint_says_how_to_get_it():
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'runs/x.ckpt' for a .*lightning fit"):
        module(victims={"a": "runs/x.ckpt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"victims": {"a": network(0, 7)}}, "victim a has 7 classes, the data have 3"),
        ({"victims": {"a": nn.Sequential(nn.Flatten(), nn.Linear(12, K))}}, "victim a does not take images of shape"),
        ({"source": Doubling()}, "another image each time"),
    ],
)
def test_what_does_not_fit_is_refused_at_setup(change, message):
    data = module(**change)
    with pytest.raises(ValueError, match=message):
        data.setup("validate")


@pytest.mark.parametrize("value", [float("nan"), 1.5])
def test_bad_pixels_are_refused_by_index(value):
    source = Source()
    source.sets[2].tensors[0][4, 0, 0, 0] = value
    with pytest.raises(ValueError, match="image 4 of the test set holds values outside"):
        everything(module(source=source))


def test_a_patch_survives_the_round_trip(tmp_path):
    data = module(tmp_path, attacks={"patch/3": BoundedPatch(size=3, eps=32 / 255, steps=3)}, victims={"a": network(1)})
    for (_, attack, _, _), (clean, adversarial, _) in everything(data).items():
        changed = (clean != adversarial).any(0)
        if attack and changed.any():
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            assert rows.max() - rows.min() < 3
            assert columns.max() - columns.min() < 3


def test_no_warnings_from_read_only_arrays(tmp_path):
    everything(module(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        everything(module(tmp_path))


def victims_shown(data, split):
    return {(attack, victim) for _, attack, _, victim in everything(data, split) if attack}


@pytest.mark.parametrize("changes", [{}, {"variants": 3}, {"paired": True}])
def test_a_victim_held_out_is_shown_in_the_test_alone(changes):
    data = module(held_out=("a",), **changes)
    assert data.victim_names == ["a", "b"]
    assert data.trained_victims == ["b"]
    shown = set()
    for _ in range(4):
        shown |= victims_shown(data, "train")
    assert shown == {(1, 1), (2, 1)}
    assert victims_shown(data, "val") == {(1, 1), (2, 1)}
    assert len(everything(data, "val")) == 9 * (1 + 3)
    assert victims_shown(data, "test") == {(1, 0), (1, 1), (2, 0), (2, 1)}


def test_holding_a_victim_out_changes_no_image_of_the_others():
    whole, less = everything(module(), "test"), everything(module(held_out=("a",)), "test")
    assert whole.keys() == less.keys()
    assert all(torch.equal(whole[key][1], less[key][1]) for key in whole)
    seen = everything(module(held_out=("a",)), "val")
    every = everything(module(), "val")
    assert all(torch.equal(value[1], every[key][1]) for key, value in seen.items())


def test_prefill_crafts_nothing_of_a_victim_held_out_but_for_the_test(tmp_path, capsys):
    data = module(tmp_path, held_out=("b",))
    data.prepare_data()
    data.setup()
    data.prefill(("train", "val"))
    out = capsys.readouterr().out
    assert "on a (train)" in out
    assert "on b" not in out
    data.prefill(("test",))
    assert "pgd/4 on b (test)" in capsys.readouterr().out


def test_families_and_budgets_come_from_the_attacks():
    given = {
        "pgd/linf": PGD(eps=4 / 255),
        "pgd/l2": PGD(norm="l2", eps=1),
        "few/a": PGD(norm="l0", eps=3),
        "few/b": PGD(),
        "deepfool": DeepFool(),
    }
    data = module(attacks=given)
    assert data.attack_families == {"pgd": "iterative", "few": "mixed", "deepfool": "minimal_norm"}
    assert data.budgets == {"pgd": [4 / 255, None], "few": [None, 8 / 255], "deepfool": [None]}
    named = module(attacks=given, families={"few": "mine"})
    assert named.attack_families == {"pgd": "iterative", "few": "mine", "deepfool": "minimal_norm"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": ("c",)}, r"held_out must name some of the victims \(a, b\) .*, got c"),
        ({"held_out": ("a", "b")}, "leave at least one to train on, got a, b"),
        ({"families": {"clean": "x"}}, r"families must give names to attack classes \(pgd, fgsm\), got 'clean': 'x'"),
        ({"families": {"pgd": ""}}, "got 'pgd': ''"),
    ],
)
def test_bad_names_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"AdversarialDataModule: .*{message}"):
        module(**changes)


@pytest.mark.parametrize("quantise", ["round", "floor", "none"])
def test_sources_of_levels_and_of_floats_give_the_same(quantise):
    class Levels(Source):
        def __init__(self):
            super().__init__()
            self.sets = [
                TensorDataset((part.tensors[0] * 255).round().to(torch.uint8), part.tensors[1]) for part in self.sets
            ]

    floats, levels = (everything(module(source=one, quantise=quantise)) for one in (Source(), Levels()))
    assert floats.keys() == levels.keys()
    for key, values in floats.items():
        assert all(torch.equal(mine, yours) for mine, yours in zip(values[:2], levels[key][:2], strict=True))
        assert values[2] == levels[key][2]


def test_levels_stay_what_they_are_in_every_rounding():
    """A set of our own is read as levels: no float in between may change one."""
    levels = torch.arange(256, dtype=torch.uint8)
    for quantise in ("round", "floor"):
        assert torch.equal(module_of_data._to_stored(quantise, levels), levels)
        assert torch.equal(module_of_data._to_stored(quantise, levels / 255), levels)
    assert torch.equal(module_of_data._to_stored("none", levels), levels / 255)
