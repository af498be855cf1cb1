"""REDRL: the invariants of its networks, losses and schedule, and that training touches nothing frozen."""

import copy
import types

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_adv.attacks import FGSM, PGD
from lit_adv.data import AdversarialBatch, AdversarialDataModule
from lit_adv.models import freeze_
from lit_adv.tasks import REDRL

K, SIDE = 4, 8


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, K))


def features(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())


def task(seed=0, **changes):
    arguments = {"width": 8, "blocks": 2, "recognizer": "small", "num_attacks": 3, "in_channels": 3}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = REDRL(**{**arguments, "feature_weights": None, **changes})
        made.set_frozen(network(1), features())
        if made.hparams["num_attacks"] is not None:
            made.configure_model()
    return made


def batch(count=6, seed=0):
    draws = torch.Generator().manual_seed(seed)
    clean = torch.rand(count, 3, SIDE, SIDE, generator=draws)
    attack = torch.arange(count) % 3
    noise = 0.1 * torch.rand(clean.shape, generator=draws) * (attack > 0).view(-1, 1, 1, 1)
    label = torch.randint(0, K, (count,), generator=draws)
    zero = torch.zeros(count, dtype=torch.int64)
    return AdversarialBatch(clean, (clean + noise).clamp(0, 1), label, attack, zero, -(attack == 0).long(), zero)


class Source(pl.LightningDataModule):
    num_classes = K

    def __init__(self):
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.sets = [
            TensorDataset(torch.rand(n, 3, SIDE, SIDE, generator=draws), torch.randint(0, K, (n,), generator=draws))
            for n in (24, 7, 9)
        ]

    def train_dataloader(self):
        return DataLoader(self.sets[0])

    def val_dataloader(self):
        return DataLoader(self.sets[1])

    def test_dataloader(self):
        return DataLoader(self.sets[2])


def data(**changes):
    arguments = {
        "source": Source(),
        "victims": {"a": network(1), "b": network(2)},
        "attacks": {"pgd/8": PGD(eps=16 / 255, steps=2), "pgd/16": PGD(eps=32 / 255, steps=2), "fgsm": FGSM(eps=0.1)},
        "batch_size": 8,
    }
    return AdversarialDataModule(**{**arguments, **changes})


def trainer(folder, **changes):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=folder, **{**quiet, **changes})


def test_the_paper_s_weights_and_each_ablation():
    parts = batch()
    whole = task()
    recovery = whole(parts.adversarial)
    losses = whole.losses(parts, recovery)
    total = losses["attack"] + 0.01 * losses["reconstruction"] + 0.1 * losses["features"] + losses["classification"]
    torch.testing.assert_close(losses["loss"], total, rtol=1e-6, atol=0)
    ablations = {
        "A": ({"weight_features": 0, "weight_classification": 0}, {"reconstruction"}),
        "B": ({"weight_classification": 0}, {"reconstruction", "features"}),
        "C": ({"weight_features": 0}, {"reconstruction", "classification"}),
    }
    for weights, kept in ablations.values():
        less = task(**weights)
        found = less.losses(parts, less(parts.adversarial))
        assert set(found) == {"loss", "attack"} | kept
        expected = losses["attack"]
        for name in ("reconstruction", "features", "classification"):
            if name in kept:
                expected = expected + less.hparams[f"weight_{name}"] * losses[name]
        assert torch.equal(found["loss"], expected)


@settings(max_examples=20)
@given(st.floats(-0.5, 0.5), st.integers(1, 4))
def test_reconstruction_is_a_sum_over_pixels(shift, scale):
    made = task()
    parts = batch()
    parts = parts._replace(clean=parts.clean.repeat(1, 1, scale, scale))
    recovery = made(parts.adversarial)._replace(reconstructed=parts.clean + shift)
    made.hparams["weight_classification"] = 0  # Phi takes one size
    losses = made.losses(parts, recovery)
    assert losses["reconstruction"].item() == pytest.approx(3 * (SIDE * scale) ** 2 * abs(shift), rel=1e-4, abs=1e-3)


def test_a_perfect_reconstruction_costs_only_phi_s_confidence_whatever_the_label():
    made, parts = task(), batch()
    recovery = made(parts.adversarial)._replace(reconstructed=parts.clean.clone().requires_grad_())
    losses = made.losses(parts, recovery)
    assert losses["reconstruction"] == 0
    assert losses["features"] == 0
    confidence = made.frozen("phi")(parts.clean).softmax(1).amax(1)
    torch.testing.assert_close(losses["classification"], -confidence.log().mean())
    other = made.losses(parts._replace(label=(parts.label + 1) % K), recovery)
    assert torch.equal(losses["loss"], other["loss"])
    losses["loss"].backward()
    assert torch.isfinite(recovery.reconstructed.grad).all()  # the 2-norm has no gradient at 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.2])
def test_attack_loss_is_smoothed_cross_entropy(smoothing):
    made, parts = task(label_smoothing=smoothing), batch()
    recovery = made(parts.adversarial)
    target = (1 - smoothing) * F.one_hot(parts.attack, 3) + smoothing / 3
    expected = -(target * recovery.logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(made.losses(parts, recovery)["attack"], expected, rtol=1e-6, atol=1e-6)


def test_features_are_compared_by_the_norm_of_the_whole_map():
    made, parts = task(), batch()
    recovery = made(parts.adversarial)
    network = made.frozen("features").double()
    wanted, found = network(parts.clean.double()), network(recovery.reconstructed.double())
    slow = sum(float((w - f).flatten().norm()) for w, f in zip(wanted, found.detach(), strict=True)) / len(parts.clean)
    made.frozen("features").float()
    assert made.losses(parts, recovery)["features"].item() == pytest.approx(slow, rel=1e-5)


def test_the_residual_is_clamped_and_the_losses_are_not():
    made, parts = task(), batch()
    with torch.no_grad():
        made.reconstructor.conv_last.bias += 3.0
    recovery = made(parts.adversarial)
    assert (recovery.reconstructed > 1).all()
    assert torch.equal(recovery.residual, parts.adversarial - 1)
    assert recovery.residual.abs().max() <= 1
    losses = made.losses(parts, recovery)
    assert losses["reconstruction"] > (parts.clean - 1).abs().flatten(1).sum(1).mean()
    (gradient,) = torch.autograd.grad(losses["attack"], made.reconstructor.conv_last.bias)
    assert not gradient.any()  # outside [0, 1], the recogniser does not reach G


def test_g_learns_from_recognition_alone():
    made, parts = task(weight_reconstruction=0, weight_features=0, weight_classification=0), batch()
    made.losses(parts, made(parts.adversarial))["loss"].backward()
    assert all(p.grad is not None for p in made.reconstructor.parameters())
    assert any(p.grad.abs().max() > 0 for p in made.reconstructor.parameters())


@pytest.mark.parametrize(("inputs", "channels"), [("residual", 6), ("delta", 6), ("image", 3)])
def test_what_psi_sees(inputs, channels):
    made, parts = task(inputs=inputs), batch()
    first = next(m for m in made.psi.modules() if isinstance(m, nn.Conv2d))
    assert first.in_channels == channels
    seen = []
    made.psi.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    recovery = made(parts.adversarial, parts.clean)
    assert recovery.logits.shape == (6, 3)
    assert torch.equal(seen[0][:, -3:], parts.adversarial)
    if inputs == "delta":
        assert torch.equal(seen[0][:, :3], parts.adversarial - parts.clean)
        assert not seen[0][parts.attack == 0, :3].any()
    if inputs != "image":
        made.eval()
        swapped = made.psi(torch.cat([seen[0][:, 3:], seen[0][:, :3]], 1))
        assert not torch.allclose(swapped, made.psi(seen[0]))
    if inputs != "residual":
        assert made.reconstructor is None
        assert set(made.losses(parts, recovery)) == {"loss", "attack"}


def test_delta_needs_the_clean_images():
    with pytest.raises(ValueError, match="needs the clean images"):
        task(inputs="delta")(batch().adversarial)


def test_the_paper_s_rate():
    made = task()
    factors = [made.rate_factor(epoch) for epoch in range(12)]
    wanted = [0.109, 0.208, 0.307, 0.406, 0.505, 0.604, 0.703, 0.802, 0.901, 1, 1, 1]
    assert factors == pytest.approx(wanted, abs=1e-12)
    assert [made.rate_factor(e) for e in (38, 39, 68, 69, 88, 89, 99)] == pytest.approx(
        [1, 0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3]
    )


def test_weight_decay_spares_biases(tmp_path):
    made = task()
    groups = made.configure_optimizers()["optimizer"].param_groups
    biases = {id(p) for name, p in made.named_parameters() if name.endswith("bias")}
    assert {id(p) for p in groups[1]["params"]} == biases
    assert groups[1]["weight_decay"] == 0
    assert groups[0]["weight_decay"] == 5e-4
    assert len(groups[0]["params"]) + len(groups[1]["params"]) == len(list(made.parameters()))


def test_the_optimiser_is_fused_but_where_a_scaled_loss_forbids_it(tmp_path):
    made = task()
    assert made.configure_optimizers()["optimizer"].defaults["fused"] is True
    made._trainer = types.SimpleNamespace(precision="16-mixed")
    assert made.configure_optimizers()["optimizer"].defaults["fused"] is False


def test_a_compiled_g_answers_and_is_saved_alike():
    plain, compiled = task(), task(compile=True)
    assert plain.reconstructor._compiled_call_impl is None
    assert compiled.reconstructor._compiled_call_impl is not None
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    compiled.load_state_dict(plain.state_dict())
    images = batch().adversarial
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).reconstructed, plain(images).reconstructed)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_training_leaves_phi_and_f_as_they_were(tmp_path, inference_mode):
    module, source = task(num_attacks=None, in_channels=None), data()
    frozen = {"phi": source.victim("a"), "features": freeze_(features(3)), "b": source.victim("b")}
    module._frozen.pop("phi")
    module.set_frozen(features=frozen["features"])
    before = {name: copy.deepcopy(net.state_dict()) for name, net in frozen.items()}
    run = trainer(tmp_path, max_epochs=2, inference_mode=inference_mode)
    run.fit(module, datamodule=source)
    run.test(module, datamodule=source, verbose=False)
    assert module.frozen("phi") is source.victim("a")
    for name, net in frozen.items():
        assert all(torch.equal(value, net.state_dict()[key]) for key, value in before[name].items()), name
        assert all(p.grad is None for p in net.parameters())
        assert not any(part.training for part in net.modules())
    assert not any(key.startswith(("phi", "features", "_frozen")) for key in module.state_dict())


def test_results_count_every_sample_once(tmp_path):
    module, source = task(num_attacks=None, in_channels=None), data(eval_batch_size=5)
    run = trainer(tmp_path)
    module._frozen.pop("phi")
    numbers = run.test(module, datamodule=source, verbose=False)[0]
    results = module.results
    assert results["stage"] == "test"
    counts = results["recognition"]["counts"]
    assert counts == {"clean": 9, "pgd": 9 * 4, "fgsm": 9 * 2}
    confusion = torch.tensor(results["recognition"]["confusion"])
    assert confusion.sum(1).tolist() == list(counts.values())
    accuracy = results["recognition"]["per_class"]
    micro = sum(counts[name] * accuracy[name] for name in counts) / sum(counts.values())
    assert results["recognition"]["micro"] == pytest.approx(micro)
    assert results["recognition"]["macro"] == pytest.approx(sum(accuracy.values()) / 3)
    assert numbers["test/recognition"] == pytest.approx(results["recognition"]["macro"])
    assert results["recognition"]["weighted"] is None
    for victim, row in results["reconstruction"].items():
        assert {name: cell["images"] for name, cell in row.items()} == {"clean": 9, "pgd": 18, "fgsm": 9}
        model = source.victim(victim)
        images, labels = source._sets["test"].tensors
        images = (images * 255).round() / 255
        assert row["clean"]["before"] == pytest.approx((model(images).argmax(1) == labels).float().mean().item())
        made = module.reconstructor(images).clamp(0, 1)
        assert row["clean"]["after"] == pytest.approx((model(made).argmax(1) == labels).float().mean().item())
    assert sum(row["images"] for row in results["crafting"]) == 9 * 6


def test_the_paper_s_classes_have_its_weighted_total(tmp_path):
    attacks = {name: FGSM(eps=0.05) for name in ("pgd", "deepfool", "cw_l2", "cw_linf", "patch")}
    module = REDRL(width=4, blocks=1, recognizer="small", weight_features=0)
    trainer(tmp_path).test(module, datamodule=data(attacks=attacks), verbose=False)
    found = module.results["recognition"]
    weights = {"clean": 1, "pgd": 12, "deepfool": 4, "cw_l2": 8, "cw_linf": 12, "patch": 24}
    total = sum(weights[name] * found["per_class"][name] for name in weights) / 61
    assert found["weighted"] == pytest.approx(total)


def test_a_checkpoint_holds_what_trains_and_loads_alone(tmp_path):
    module = REDRL(width=8, blocks=1, recognizer="small", feature_weights=None, feature_layer="relu1_1")
    run = trainer(tmp_path)
    run.fit(module, datamodule=data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert {key.partition(".")[0] for key in stored["state_dict"]} == {"reconstructor", "psi"}
    assert stored["attack_classes"] == ["clean", "pgd", "fgsm"]
    again = REDRL.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    module.eval()
    images = batch().adversarial
    assert torch.equal(module(images).logits, again(images).logits)


@pytest.mark.parametrize(
    ("change", "attacks", "message"),
    [
        ({"width": 16}, {}, "width is 16, but the checkpoint was trained with 8"),
        ({"inputs": "image"}, {}, "inputs is 'image', but the checkpoint was trained with 'residual'"),
        ({}, {"pgd": FGSM(), "fgsm": FGSM(), "more": FGSM()}, "num_attacks is 4, but .* trained with 3"),
        ({}, {"fgsm": FGSM(), "pgd": FGSM()}, "attack classes are clean, fgsm, pgd, .* trained on clean, pgd, fgsm"),
    ],
)
def test_another_architecture_or_class_list_is_refused(tmp_path, change, attacks, message):
    base = {"width": 8, "blocks": 1, "recognizer": "small", "weight_features": 0.0}
    run = trainer(tmp_path)
    run.fit(REDRL(**base), datamodule=data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    other = data(attacks=attacks) if attacks else data()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(REDRL(**{**base, **change}), datamodule=other, ckpt_path=tmp_path / "a.ckpt")


def test_a_victim_trained_anew_is_noticed(tmp_path):
    base = {"width": 8, "blocks": 1, "recognizer": "small", "weight_features": 0.0}
    run = trainer(tmp_path)
    run.fit(REDRL(**base), datamodule=data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    other = data(victims={"a": network(7), "b": network(8)})
    with pytest.raises(
        ValueError, match="the weights of victim a, b are not those that the checkpoint was trained with"
    ):
        trainer(tmp_path, max_epochs=2).fit(REDRL(**base), datamodule=other, ckpt_path=tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match="it was trained with other weights of victim a, b"):
        trainer(tmp_path).test(REDRL(**base), datamodule=other, ckpt_path=tmp_path / "a.ckpt", verbose=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attacks": 6}, "num_attacks is 6, but the data module has 3"),
        ({"in_channels": 1}, "in_channels is 1, but the data module has 3"),
        ({"phi": "c"}, r"phi must be one of the data module's victims \(a, b\), got 'c'"),
    ],
)
def test_what_contradicts_the_data_is_refused(tmp_path, change, message):
    module = REDRL(width=4, blocks=1, recognizer="small", weight_features=0, **change)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(module, datamodule=data())


@pytest.mark.parametrize(
    "field", ["width", "weight_features", "label_smoothing", "learning_rate", "inputs", "schedule"]
)
def test_bad_fields_are_refused_by_name(field):
    with pytest.raises(ValueError, match=f"REDRL: {field} must"):
        REDRL(**{field: -1})


def test_one_batch_can_be_learnt_by_heart(tmp_path):
    made, parts = task(), batch()
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    first = made.losses(parts, made(parts.adversarial))
    for _ in range(60):
        optimizer.zero_grad()
        losses = made.losses(parts, made(parts.adversarial))
        losses["loss"].backward()
        optimizer.step()
    assert losses["reconstruction"] < 0.5 * first["reconstruction"]
    assert losses["attack"] < 0.7 * first["attack"]
    assert torch.isfinite(losses["loss"])


def test_missing_feature_weights_are_found_before_anything_is_crafted(tmp_path, monkeypatch):
    crafted = []
    monkeypatch.setattr(AdversarialDataModule, "prefill", lambda *_: crafted.append(1))
    module = REDRL(width=4, blocks=1, recognizer="small", feature_weights=str(tmp_path / "vgg.pth"))
    with pytest.raises(FileNotFoundError, match=r"vgg\.pth"):
        trainer(tmp_path).fit(module, datamodule=data(cache_dir=str(tmp_path), prefill=True))
    assert not crafted
