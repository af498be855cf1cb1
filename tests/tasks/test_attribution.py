"""REDRL's heads for victim and budget: their answers, their losses, what a held-out victim means, and that nothing
changes without them."""

import math

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_adv.attacks import FGSM, PGD, DeepFool
from lit_adv.data import AdversarialBatch, AdversarialDataModule
from lit_adv.models import Attribution, AttributionHeads
from lit_adv.tasks import REDRL
from lit_adv.tasks.attribution import AttributionScores, AttributionTargets, attribution_losses

K, SIDE = 3, 8


class Source(pl.LightningDataModule):
    num_classes = K

    def __init__(self):
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.sets = [
            TensorDataset(torch.rand(n, 3, SIDE, SIDE, generator=draws), torch.randint(0, K, (n,), generator=draws))
            for n in (24, 5, 7)
        ]

    def train_dataloader(self):
        return DataLoader(self.sets[0])

    def val_dataloader(self):
        return DataLoader(self.sets[1])

    def test_dataloader(self):
        return DataLoader(self.sets[2])


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, K))


def data(**changes):
    attacks = {"pgd/8": PGD(eps=8 / 255, steps=2), "deepfool": DeepFool(steps=2), "pgd/32": PGD(eps=32 / 255, steps=2)}
    attacks |= {"fgsm": FGSM(eps=0.25)}
    arguments = {"source": Source(), "victims": {name: network(seed) for seed, name in enumerate("abc")}}
    return AdversarialDataModule(**{**arguments, "attacks": attacks, "batch_size": 8, **changes})


def task(**changes):
    arguments = {"width": 4, "blocks": 1, "recognizer": "small", "weight_features": 0, "heads": ("victim", "budget")}
    return REDRL(**{**arguments, **changes})


def trainer(folder, **changes):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=folder, **{**quiet, **changes})


def rows(attack, setting, victim):
    attack, setting, victim = map(torch.tensor, (attack, setting, victim))
    images, zero = torch.rand(len(attack), 3, SIDE, SIDE), torch.zeros(len(attack), dtype=torch.int64)
    return AdversarialBatch(images, images, zero, attack, setting, victim, zero)


def test_the_answers_are_victims_trained_on_and_log2_of_grey_levels():
    targets = AttributionTargets(data(held_out=("b",)))
    # classes: clean, pgd (8, 32), deepfool, fgsm
    victim, budget = targets.of(rows([0, 1, 1, 2, 3], [0, 0, 1, 0, 0], [-1, 0, 1, 2, 2]))
    assert victim.tolist() == [-1, 0, -1, 1, 1]
    assert budget[1:3].tolist() == pytest.approx([3, 5])
    assert budget[4].item() == pytest.approx(math.log2(63.75))
    assert budget[[0, 3]].isnan().all()


def test_losses_are_kendall_s_row_by_row():
    torch.manual_seed(0)
    heads = AttributionHeads(5, 3, 2, budget=True)
    with torch.no_grad():
        heads.log_variances.copy_(torch.tensor([0.3, -0.7, 1.1]))
    logits, attack = torch.randn(6, 3), torch.tensor([0, 1, 1, 2, 2, 1])
    named = logits.argmax(1)
    named[1] = attack[1]
    logits[1, 1] = 9  # one recognised at least
    victim = torch.tensor([-1, 0, 1, -1, 1, 0])
    budget = torch.tensor([math.nan, 3, 4, math.nan, math.nan, 5])
    said = Attribution(torch.randn(6, 2, requires_grad=True), torch.randn(6, requires_grad=True))
    loss, parts = attribution_losses(heads, logits, said, attack, victim, budget, smoothing=0.1)

    expected, sums = 0.0, {"attack": [], "victim": [], "budget": []}
    s_attack, s_victim, s_budget = heads.log_variances.tolist()
    for row in range(6):
        one = F.cross_entropy(logits[row], attack[row], label_smoothing=0.1).item()
        sums["attack"].append(one)
        expected += math.exp(-s_attack) * one + s_attack / 2
        if victim[row] >= 0:
            one = F.cross_entropy(said.victim[row], victim[row], label_smoothing=0.1).item()
            sums["victim"].append(one)
            expected += math.exp(-s_victim) * one + s_victim / 2
        if not budget[row].isnan() and logits[row].argmax() == attack[row]:
            one = (said.budget[row] - budget[row]).item() ** 2
            sums["budget"].append(one)
            expected += 0.5 * math.exp(-s_budget) * one + s_budget / 2
    assert 0 < len(sums["budget"]) < 3
    assert loss.item() == pytest.approx(expected / 6, rel=1e-5)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(
        {name: sum(each) / len(each) for name, each in sums.items()}, rel=1e-5
    )


def test_a_task_without_answers_teaches_nothing():
    heads = AttributionHeads(5, 3, 2, budget=True)
    heads.set_budgets(torch.tensor([[math.nan], [3.0], [math.nan]]))
    features, attack = torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)
    logits = torch.randn(4, 3, requires_grad=True)
    said = heads(features, logits.argmax(1))
    nothing = torch.full((4,), math.nan)
    loss, parts = attribution_losses(heads, logits, said, attack, torch.full((4,), -1), nothing)
    loss.backward()
    assert parts["victim"] == parts["budget"] == 0
    # in the graph for all that, as several ranks need it
    assert all(
        p.grad is not None and not p.grad.any() for head in (heads.victim, heads.budget) for p in head.parameters()
    )
    assert heads.log_variances.grad.tolist()[1:] == [0, 0]
    assert heads.log_variances.grad[0] != 0
    torch.testing.assert_close(loss, F.cross_entropy(logits, attack))


def test_a_variance_settles_at_the_loss_of_the_images_that_count():
    heads = AttributionHeads(5, 3, 2)
    optimizer = torch.optim.SGD(heads.parameters(), 0.3)
    torch.manual_seed(0)
    logits, named = torch.randn(8, 3), torch.randn(8, 2)
    attack, victim = torch.zeros(8, dtype=torch.int64), torch.tensor([0, 1, 1, 0, -1, -1, -1, -1])
    for _ in range(600):
        optimizer.zero_grad()
        loss, parts = attribution_losses(heads, logits, Attribution(named, None), attack, victim, torch.zeros(8))
        loss.backward()
        optimizer.step()
    # exp(-s) l + s/2 is smallest at exp(s) = 2 l
    for s, name in zip(heads.log_variances, ("attack", "victim"), strict=True):
        assert s.exp().item() == pytest.approx(2 * parts[name].item(), rel=1e-3)


def test_without_heads_nothing_is_there_and_with_them_psi_starts_the_same(tmp_path):
    torch.manual_seed(3)
    plain = task(heads=(), num_attacks=4, in_channels=3)
    plain.configure_model()
    torch.manual_seed(3)
    other = task(num_attacks=4, in_channels=3, num_victims=3)
    other.configure_model()
    weights = other.state_dict()
    assert not any(name.startswith("attribution") for name in plain.state_dict())
    assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())
    assert set(weights) - set(plain.state_dict()) == {n for n in weights if n.startswith("attribution.")} != set()
    images = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(plain.eval()(images).logits, other.eval()(images).logits)
    assert plain(images).attribution is None
    batch = rows([0, 1], [0, 0], [-1, 0])
    recovery = plain(batch.adversarial)
    plain.hparams["weight_classification"] = 0  # no Phi at hand
    losses = plain.losses(batch, recovery)
    assert set(losses) == {"loss", "attack", "reconstruction"}
    expected = F.cross_entropy(recovery.logits, batch.attack, label_smoothing=0.1)
    assert torch.equal(losses["loss"], expected + 0.01 * losses["reconstruction"])


def test_variances_do_not_decay():
    made = task(num_attacks=4, in_channels=3, num_victims=3)
    made.configure_model()
    decayed, spared = made.configure_optimizers()["optimizer"].param_groups
    assert any(p is made.attribution.log_variances for p in spared["params"])
    assert all(p is not made.attribution.log_variances for p in decayed["params"])
    assert spared["weight_decay"] == 0


@pytest.mark.parametrize("inputs", ["residual", "image"])
def test_a_run_with_a_victim_held_out_reports_what_it_saw_and_what_not(tmp_path, inputs):
    torch.manual_seed(0)
    module, source = task(inputs=inputs, learning_rate=3e-2, warmup_epochs=0), data(held_out=("b",))
    run = trainer(tmp_path, max_epochs=4)
    run.fit(module, datamodule=source)
    assert module.hparams["num_victims"] == 2
    assert "recognition_by_victim" not in module.results  # validation shows none of b
    assert sum(module.results["victim"]["taken_for"]["b"].values()) == 0
    assert module.attribution.log_variances.abs().min() > 0
    numbers = run.test(module, datamodule=source, verbose=False)[0]
    results = module.results

    # everything once more by hand
    module.eval()
    seen = {"seen": [], "unseen": []}
    victims, budgets, taken = [], [], {name: [0, 0] for name in "abc"}
    for batch in source.batches("test"):
        with torch.no_grad():
            recovery = module(batch.adversarial)
        named = recovery.logits.argmax(1)
        for row in range(len(named)):
            attack, victim = int(batch.attack[row]), int(batch.victim[row])
            if attack == 0:
                continue
            hit = int(named[row]) == attack
            seen["unseen" if victim == 1 else "seen"].append((attack, hit))
            answer = int(recovery.attribution.victim[row].argmax())
            taken["abc"[victim]][answer] += 1
            if victim != 1:
                victims.append((attack, "ac"[answer] == "abc"[victim]))
            radius = {(1, 0): 8, (1, 1): 32, (3, 0): 63.75}.get((attack, int(batch.setting[row])))
            if radius is not None and hit:
                guess = min(255, 2 ** recovery.attribution.budget[row].item())
                budgets.append((attack, abs(guess - radius), max(guess / radius, radius / guess) <= 1.5))

    def mean(pairs):
        return sum(value for _, value, *_ in pairs) / len(pairs) if pairs else None

    for name, pairs in seen.items():
        found = results["recognition_by_victim"][name]
        assert found["micro"] == pytest.approx(mean(pairs))
        assert found["counts"] == {
            one: sum(a == n for a, _ in pairs) for n, one in enumerate(["pgd", "deepfool", "fgsm"], 1)
        }
        by_class = [mean([p for p in pairs if p[0] == n]) for n in (1, 2, 3)]
        assert list(found["per_class"].values()) == pytest.approx(by_class)
        assert numbers[f"test/recognition_{name}_victims"] == pytest.approx(sum(by_class) / 3)
    assert sum(results["victim"]["counts"].values()) == len(victims) == 7 * 4 * 2
    assert results["victim"]["accuracy"] == pytest.approx(mean(victims))
    assert numbers["test/victim"] == pytest.approx(mean(victims))
    assert {name: list(row.values()) for name, row in results["victim"]["taken_for"].items()} == taken
    assert results["victim"]["taken_for"]["b"].keys() == {"a", "c"}
    assert results["budget"]["counts"] == {"pgd": 7 * 2 * 3, "fgsm": 7 * 3}
    assert sum(results["budget"]["recognised"].values()) == len(budgets)
    assert results["budget"]["mae"] == pytest.approx(mean(budgets), rel=1e-4)
    assert results["budget"]["within"] == pytest.approx(sum(near for *_, near in budgets) / len(budgets))
    hierarchy = results["hierarchy"]
    assert hierarchy["families"] == {
        "clean": "clean",
        "pgd": "iterative",
        "deepfool": "minimal_norm",
        "fgsm": "one_step",
    }
    assert hierarchy["counts"] == {"clean": 7, "iterative": 42, "minimal_norm": 21, "one_step": 21}
    assert numbers["test/hierarchical_f1"] == pytest.approx(hierarchy["f1"])


def test_without_held_out_victims_and_heads_there_is_the_hierarchy_alone(tmp_path):
    module = task(heads=())
    numbers = trainer(tmp_path).test(module, datamodule=data(), verbose=False)[0]
    assert not {"victim", "budget", "recognition_by_victim"} & set(module.results)
    assert "test/family" in numbers
    assert not any("victim" in name or "budget" in name for name in numbers)


def test_predictions_say_victim_and_radius(tmp_path):
    module, source = task(), data()
    trainer(tmp_path).fit(module, datamodule=source)
    batch = next(source.batches("test"))
    outputs = module.eval().predict_step(batch, 0)
    assert outputs["victim"].shape == outputs["budget"].shape == batch.label.shape
    with torch.no_grad():
        said = module(batch.adversarial).attribution
    torch.testing.assert_close(outputs["budget"] * 255, 2**said.budget, equal_nan=True)
    assert outputs["budget"].isnan().equal(torch.isin(outputs["prediction"], torch.tensor([0, 2])))


def test_a_checkpoint_goes_on_loads_alone_and_keeps_to_its_heads(tmp_path):
    module, source = task(), data(held_out=("c",))
    run = trainer(tmp_path)
    run.fit(module, datamodule=source)
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = REDRL.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    images = torch.rand(3, 3, SIDE, SIDE)
    module.eval()
    torch.testing.assert_close(module(images).attribution, again(images).attribution, equal_nan=True)
    trainer(tmp_path, max_epochs=2).fit(task(), datamodule=data(held_out=("c",)), ckpt_path=tmp_path / "a.ckpt")
    with pytest.raises(
        ValueError, match=r"heads is \['victim'\], but the checkpoint was trained with \['victim', 'bud"
    ):
        trainer(tmp_path).test(task(heads=("victim",)), datamodule=source, ckpt_path=tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="trains on the victims b, c, but the checkpoint's victim head knows a, b"):
        trainer(tmp_path).test(task(), datamodule=data(held_out=("a",)), ckpt_path=tmp_path / "a.ckpt")


def test_a_checkpoint_from_before_the_heads_still_loads(tmp_path):
    run, source = trainer(tmp_path), data()
    module = task(heads=())
    run.fit(module, datamodule=source)
    run.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for field in ("heads", "num_victims"):
        stored["redrl"].pop(field)
        stored["hyper_parameters"].pop(field)
    stored.pop("trained_victims")
    torch.save(stored, tmp_path / "old.ckpt")
    trainer(tmp_path, max_epochs=2).fit(task(heads=()), datamodule=data(), ckpt_path=tmp_path / "old.ckpt")
    images = torch.rand(2, 3, SIDE, SIDE)
    again = REDRL.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True).eval()
    assert torch.equal(again(images).logits, module.eval()(images).logits)
    with pytest.raises(ValueError, match=r"heads is \['victim'\], but the checkpoint was trained with \[\]"):
        trainer(tmp_path).fit(task(heads=("victim",)), datamodule=data(), ckpt_path=tmp_path / "old.ckpt")


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        ({}, {"held_out": ("a", "b")}, "victim needs at least two victims to train on, got 1"),
        ({}, {"attacks": {"deepfool": DeepFool(steps=2)}}, "budget needs an attack with a Linf radius, got deepfool"),
        ({"phi": "b"}, {"held_out": ("b",)}, r"victims that are not held out \(a, c\), got 'b'"),
        ({"num_victims": 5}, {}, "num_victims is 5, but the data module has 3"),
    ],
)
def test_heads_that_do_not_fit_the_data_are_refused_before_crafting(tmp_path, monkeypatch, fields, changes, message):
    monkeypatch.setattr(AdversarialDataModule, "setup", lambda *_: pytest.fail("too late"))
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(task(**fields), datamodule=data(**changes))


def test_phi_is_a_victim_that_is_trained_on(tmp_path):
    module, source = task(heads=()), data(held_out=("a",))
    trainer(tmp_path).fit(module, datamodule=source)
    assert module.frozen("phi") is source.victim("b")


@pytest.mark.parametrize("heads", [("victim", "victim"), ("attack",)])
def test_unknown_heads_are_refused(heads):
    with pytest.raises(ValueError, match="heads must be some of victim and budget, each once"):
        REDRL(heads=heads)


def test_scores_are_told_apart_by_split():
    source = data(held_out=("b",))
    assert AttributionScores(source, apart=True).groups.keys() == {"seen", "unseen"}
    assert not AttributionScores(source).groups
    assert not AttributionScores(data(), apart=True).groups
