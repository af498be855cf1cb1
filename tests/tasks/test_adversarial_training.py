"""Adversarial training: every variant against a loop written by hand, and what must hold whatever the settings."""

import copy
import math

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn

from lit_adv.attacks import BIM, FGSM, KLPGD, PGD, DeepFool, GeneratedPerturbation
from lit_adv.attacks.attack import predictions
from lit_adv.attacks.randomness import Draws, mix_int, row_seeds
from lit_adv.data.datasets import TensorImages
from lit_adv.data.digits import Digits
from lit_adv.data.image_datamodule import ImageDataModule
from lit_adv.models import PerturbationNetwork, fingerprint, load_classifier
from lit_adv.runs import Checkpoint
from lit_adv.tasks import AdversarialTraining

SHAPE = {"num_classes": 4, "image_size": 8, "in_channels": 1}
PLAIN = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0}
SEED = mix_int(0, 0)  # of the first epoch


class Noise(ImageDataModule):
    """Four classes of 8x8 images: a brighter row in one of four places."""

    native_size = 8
    in_channels = 1

    @property
    def classes(self):
        return ["a", "b", "c", "d"]

    def prepare_data(self):
        """Nothing to do."""

    def _source(self, split):
        if split == "val":
            return None
        count = 48 if split == "train" else 21
        labels = torch.arange(count) % 4
        images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count)) * 0.6
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, 2 * label] += 0.3
        return TensorImages(images, labels)


class Net(nn.Module):
    """Convolution, batch norm, linear."""

    spec = {"name": "net", **SHAPE}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(24, 4)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(self.bn(self.conv(x)).tanh(), 2).flatten(1))


class Flat(nn.Sequential):
    spec = {"name": "flat", **SHAPE}  # noqa: RUF012


def made(net=None, double=True, **settings):
    """A task in train mode around a small network, without a trainer."""
    torch.manual_seed(0)
    task = AdversarialTraining("small_cnn", **{**SHAPE, **settings})
    task._build(net or Net())
    return task.double() if double else task


def batch(count=6, seed=0, dtype=torch.float64):
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return images.to(dtype), torch.arange(count) % 4


def trainer(tmp_path, epochs=1, **options):
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "default_root_dir": tmp_path}
    return pl.Trainer(max_epochs=epochs, **(settings | options))


def descend(model, loss, rate=0.1):
    """One step of plain gradient descent."""
    weights = list(model.parameters())
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.data -= rate * gradient


def ascend(model, x, start, eps, step_size, steps, loss):
    """Madry's loop, on the network in eval mode."""
    model.eval()
    moved = start
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(moved)), moved)
        moved = torch.minimum(torch.maximum(moved.detach() + step_size * gradient.sign(), x - eps), x + eps)
        moved = moved.clamp(0, 1)
    model.train()
    return moved.detach()


def by_hand(model, batches, kind):
    """The variants as their papers have them, one step of descent a batch."""
    delta = torch.zeros_like(batches[0][0])
    for x, y in batches:
        draws = Draws(row_seeds(x, SEED))
        if kind == "free":
            for _ in range(3):
                part = delta[: len(x)].clone().requires_grad_()
                loss = F.cross_entropy(model((x + part).clamp(0, 1)), y)
                (gradient,) = torch.autograd.grad(loss, part, retain_graph=True)
                descend(model, loss)
                delta[: len(x)] = (part.detach() + 0.1 * gradient.sign()).clamp(-0.1, 0.1)
            continue
        if kind in ("trades", "trades_awp"):
            noise = 0.001 * draws.normal((1, 8, 8), torch.float64)
            model.eval()
            p = model(x).softmax(1).detach()
            start = (x + noise).clamp(0, 1)
            moved = ascend(model, x, start, 0.1, 0.05, 3, lambda z, p=p: (p * (p.log() - z.log_softmax(1))).sum())
        else:
            start = (x + (draws.uniform((1, 8, 8), torch.float32).double() * 2 - 1) * 0.1).clamp(0, 1)
            moved = ascend(model, x, start, 0.1, 0.05, 3, lambda z, y=y: F.cross_entropy(z, y))

        def loss_of(model, x=x, y=y, moved=moved):
            if kind in ("madry", "awp"):
                return F.cross_entropy(model(moved), y)
            if kind == "together":
                z = model(torch.cat([x, moved]))
                return 0.25 * F.cross_entropy(z[: len(x)], y) + 0.75 * F.cross_entropy(z[len(x) :], y)
            z, z_adv = model(x), model(moved)
            if kind == "apart":
                return 0.25 * F.cross_entropy(z, y) + 0.75 * F.cross_entropy(z_adv, y)
            p, q = z.softmax(1), z_adv.softmax(1)
            kl = (p * (p.log() - q.log())).sum(1)
            if kind in ("trades", "trades_awp"):
                return F.cross_entropy(z, y) + 6 * kl.mean()
            total = 0.0
            for i, label in enumerate(y.tolist()):
                others = [q[i, k] for k in range(4) if k != label]
                total = total - q[i, label].log() - (1 - max(others)).log() + 5 * kl[i] * (1 - p[i, label])
            return total / len(y)

        if kind in ("awp", "trades_awp"):
            worse = copy.deepcopy(model)
            gradients = torch.autograd.grad(loss_of(worse), list(worse.parameters()))
            worse = copy.deepcopy(model)
            for weight, gradient in zip(worse.parameters(), gradients, strict=True):
                if weight.ndim > 1:
                    weight.data += 0.01 * weight.data.norm() * gradient / gradient.norm()
            gradients = torch.autograd.grad(loss_of(worse), list(worse.parameters()))
            for weight, gradient in zip(model.parameters(), gradients, strict=True):
                weight.data -= 0.1 * gradient
            for buffer, new in zip(model.buffers(), worse.buffers(), strict=True):
                buffer.copy_(new)
        else:
            descend(model, loss_of(model))
    return model


ATTACK = PGD(eps=0.1, step_size=0.05, steps=3, fold=False)
KL = KLPGD(eps=0.1, step_size=0.05, steps=3, fold=False)
VARIANTS = {
    "madry": {"attack": ATTACK},
    "apart": {"attack": ATTACK, "clean_weight": 0.25},
    "together": {"attack": ATTACK, "clean_weight": 0.25, "halves": "together"},
    "trades": {"attack": KL, "loss": "trades"},
    "mart": {"attack": ATTACK, "loss": "mart"},
    "awp": {"attack": ATTACK, "awp": 0.01},
    "trades_awp": {"attack": KL, "loss": "trades", "awp": 0.01},
    "free": {"attack": FGSM(eps=0.1), "replays": 3},
}


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*")
@pytest.mark.parametrize("kind", VARIANTS)
def test_two_steps_are_those_of_a_loop_by_hand(tmp_path, kind):
    """With batch norm, and in free training with a smaller last batch: weights and running statistics."""
    task = made(**PLAIN, **VARIANTS[kind])
    expected = by_hand(copy.deepcopy(task.model), [batch(6, 1), batch(4, 2)], kind)
    task.configure_model = lambda: None
    loader = torch.utils.data.DataLoader([batch(6, 1), batch(4, 2)], batch_size=None)
    trainer(tmp_path, precision="64-true").fit(task, loader)
    for (name, value), wanted in zip(task.model.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-9, rtol=1e-7, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("clean_weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("halves", ["apart", "together"])
def test_without_a_radius_the_loss_is_the_clean_one(clean_weight, halves):
    task = made(attack=PGD(eps=0, step_size=0.1), clean_weight=clean_weight, halves=halves)
    x, y = batch()
    torch.testing.assert_close(task.training_loss(x, y), F.cross_entropy(task.model(x), y), atol=1e-12, rtol=0)


def test_clean_weight_1_never_attacks(monkeypatch):
    calls = []
    monkeypatch.setattr(PGD, "_attack", lambda *_: calls.append(1))
    task = made(attack=PGD(), clean_weight=1.0, double=False)
    x, y = batch(dtype=torch.float32)
    assert task.training_loss(x, y) == F.cross_entropy(task.model(x), y)
    assert not calls
    with pytest.raises(TypeError):  # the patch is where an attack passes
        made(attack=PGD(), clean_weight=0.9, double=False).training_loss(x, y)
    assert calls


@pytest.mark.parametrize("attack", [PGD(eps=0.1), KLPGD(eps=0.1), FGSM(eps=0.1)])
def test_images_are_in_ball_and_box(attack):
    x, y = batch(dtype=torch.float32)
    crafted = made(attack=attack, double=False).craft(x, y)
    assert (crafted - x).abs().max() <= 0.1 + 1e-6
    assert crafted.min() >= 0
    assert crafted.max() <= 1
    assert (crafted != x).any()
    assert not crafted.requires_grad


@pytest.mark.parametrize("mode", ["eval", "keep"])
@pytest.mark.parametrize("variant", ["madry", "trades", "awp"])
def test_crafting_leaves_the_network_as_it_was(mode, variant):
    task = made(crafting_mode=mode, **VARIANTS[variant])
    task.model.head.eval()
    before = copy.deepcopy(task.model.state_dict())
    flags = {name: module.training for name, module in task.model.named_modules()}
    computed = []
    for weight in task.model.parameters():
        weight.register_hook(lambda _: computed.append(1))
    x, y = batch()
    task.craft(x, y)
    assert not computed  # no gradient of a parameter, not even one thrown away
    assert flags == {name: module.training for name, module in task.model.named_modules()}
    assert all(weight.grad is None for weight in task.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    task.training_loss(x, y)
    task.on_after_backward()
    weights = dict(task.model.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    assert all(weight.grad is None for weight in weights.values())


def test_crafting_mode_decides_about_batch_statistics():
    x, y = batch(dtype=torch.float32)
    task = made(attack=FGSM(eps=0.1), double=False)
    task.model.bn.running_mean += 1
    for mode, train in (("eval", False), ("keep", True)):
        task.hparams["crafting_mode"] = mode
        model = copy.deepcopy(task.model).train(train)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        torch.testing.assert_close(task.craft(x, y), (x + 0.1 * gradient.sign()).clamp(0, 1))


def test_crafting_in_bfloat16_leaves_the_loss_in_float32():
    x, y = batch(dtype=torch.float32)
    task = made(attack=PGD(steps=2), crafting_precision="bf16", double=False)
    seen = []
    task.model.head.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    loss = task.training_loss(x, y)
    assert seen == [torch.bfloat16] * 2 + [torch.float32]
    assert loss.dtype == torch.float32
    crafted = task.craft(x, y)
    assert crafted.dtype == torch.float32
    assert (crafted - x).abs().max() <= 8 / 255 + 1e-6


def test_on_a_linear_network_many_steps_reach_what_one_reaches():
    flat = Flat(nn.Flatten(), nn.Linear(64, 4))
    flat[1].weight.data[2:] = 0  # two classes, so that the gradient's sign is the same everywhere
    flat[1].bias.data[2:] = -1e4
    x, y = 0.4 + 0.2 * batch()[0], torch.arange(6) % 2
    losses = []
    for attack in (FGSM(eps=0.05), BIM(eps=0.05, step_size=0.0125, steps=8), PGD(eps=0.05, step_size=0.0125, steps=8)):
        task = made(flat, attack=attack)
        losses.append(float(task.training_loss(x, y).detach()))
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-12)
    assert losses[0] > float(F.cross_entropy(flat(x), y).detach())


def test_passes_of_a_step():
    """K forward and K backward passes of an attack of K steps, and one of each for the weights."""
    task = made(attack=PGD(steps=7, fold=False), double=False)
    forwards, backwards = [], []

    def count(module, inputs, output):
        forwards.append(1)
        output.register_hook(lambda _: backwards.append(1))

    task.model.register_forward_hook(count)
    x, y = batch(dtype=torch.float32)
    task.training_loss(x, y).backward()
    assert (len(forwards), len(backwards)) == (8, 8)


def test_predicted_labels_do_not_leak(monkeypatch):
    given = []
    craft = PGD.__call__
    monkeypatch.setattr(PGD, "__call__", lambda self, m, x, y, **k: given.append(y) or craft(self, m, x, y, **k))
    x, y = batch(dtype=torch.float32)
    for label in ("true", "predicted"):
        task = made(attack=PGD(), attack_label=label, double=False)
        task.training_loss(x, y)
    expected = predictions(task.model, x)
    assert torch.equal(given[0], y)
    assert torch.equal(given[1], expected)
    assert not torch.equal(expected, y)


def test_random_numbers_are_of_seed_epoch_and_image(monkeypatch):
    x, y = batch(dtype=torch.float32)
    attack = PGD(steps=1, step_size=0.001, fold=False)  # so that the start shows
    task = made(attack=attack, double=False)
    torch.manual_seed(5)
    first = task.craft(x, y)
    assert torch.equal(task.craft(x, y), first)
    assert torch.allclose(task.craft(x.flip(0), y.flip(0)).flip(0), first, atol=1e-6)
    assert not torch.allclose(made(attack=attack, seed=1, double=False).craft(x, y), first, atol=1e-3)
    monkeypatch.setattr(AdversarialTraining, "current_epoch", 1)
    assert not torch.allclose(task.craft(x, y), first, atol=1e-3)


def test_what_is_attacked_by_default():
    assert made().attack == PGD(eps=8 / 255, step_size=2 / 255, steps=10)
    assert made(loss="trades").attack == KLPGD(eps=8 / 255, step_size=2 / 255, steps=10)
    assert made(replays=2).attack == FGSM(eps=8 / 255)
    assert made(attack=FGSM(eps=0.2)).val_attack == PGD(eps=0.2, step_size=0.05, steps=10)
    assert made(attack=DeepFool()).val_attack == DeepFool()
    assert made(val_attack=BIM()).val_attack == BIM()
    assert AdversarialTraining.monitor == "val/robust_acc"


def drawing():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return GeneratedPerturbation(generator=PerturbationNetwork(1, width=4, blocks=1), eps=0.1, learning_rate=0.01)


def test_an_attack_that_learns_takes_a_step_before_each_of_the_network(monkeypatch):
    x, y = batch(dtype=torch.float32)
    given = drawing()
    task, alone = made(double=False, attack=given, update_attack=True), drawing()
    for _ in range(2):
        found = task.craft(x, y)
        alone.update(task.model, x, y)
        torch.testing.assert_close(found, alone(task.model, x, y))
    fixed = made(double=False, attack=drawing())
    torch.testing.assert_close(fixed.craft(x, y), fixed.craft(x, y), rtol=0, atol=0)
    assert all(parameter is not other for parameter in task.parameters() for other in given.generator.parameters())


def fitted(tmp_path, epochs=2, callbacks=(), ckpt=None, **settings):
    pl.seed_everything(0, verbose=False)
    task = AdversarialTraining("small_cnn", **copy.deepcopy(settings))  # an attack may learn
    saves = any(isinstance(each, Checkpoint) for each in callbacks)
    run = trainer(tmp_path, epochs, callbacks=list(callbacks), enable_checkpointing=saves)
    run.fit(task, datamodule=Noise(batch_size=10, validation=9), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return task, run


SHORT = {"attack": PGD(eps=0.1, step_size=0.05, steps=2), "learning_rate": 0.05}
LONG = {
    "cyclic_ema": {**SHORT, "schedule": "cyclic", "ema_decay": 0.9},
    "free": {"attack": FGSM(eps=0.1), "replays": 2, "milestones": (1,), "ema_decay": 0.9},
    "free_cyclic": {"attack": FGSM(eps=0.1), "replays": 2, "schedule": "cyclic"},
    "awp": {**SHORT, "awp": 0.01, "milestones": (1,)},
    "generator": {"attack": drawing(), "update_attack": True, "learning_rate": 0.05},
}


class Halt(pl.Callback):
    """Ends a run, as a crash would, once it has taken some steps."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise ArithmeticError("halted")


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("steps", [4, 6])
def test_resuming_continues_exactly(tmp_path, kind, steps):
    """Bit for bit, after the first epoch's four batches and in the middle of the second."""
    settings = LONG[kind]
    m = settings.get("replays", 1)
    whole, run = fitted(tmp_path, 3, **settings)
    assert run.global_step == 12 * m  # 39 images in batches of 10
    with pytest.raises(ArithmeticError, match="halted"):
        fitted(tmp_path, 3, [Checkpoint(every_n_train_steps=2 * m), Halt(steps * m)], **settings)
    last = tmp_path / "checkpoints" / "last.ckpt"
    again, _ = fitted(tmp_path, 3, [Checkpoint()], ckpt=last, **settings)
    assert fingerprint(again.model) == fingerprint(whole.model)
    assert fingerprint(again.network) == fingerprint(whole.network)


def test_cyclic_rate_rises_and_falls(tmp_path):
    rates = []

    class Rates(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    for extra in ({"attack": PGD(steps=1)}, {"attack": FGSM(), "replays": 2}):
        rates.clear()
        fitted(tmp_path, 2, [Rates()], schedule="cyclic", learning_rate=0.8, **extra)
        total = 8 * extra.get("replays", 1)
        expected = [0.8 * (1 - abs(2 * (step + 0.5) / total - 1)) for step in range(total)]
        assert rates == pytest.approx(expected)
        assert 0 < min(rates) < max(rates) < 0.8
    rates.clear()
    task = AdversarialTraining("small_cnn", schedule="cyclic", learning_rate=0.8, attack=FGSM(), replays=2)
    run = trainer(tmp_path, 3, callbacks=[Rates()], enable_checkpointing=False, max_steps=6)
    run.fit(task, datamodule=Noise(batch_size=10, validation=9))
    assert rates == pytest.approx([0.8 * (1 - abs(2 * (step + 0.5) / 6 - 1)) for step in range(6)])


def test_free_training_follows_its_milestones(tmp_path):
    task, run = fitted(tmp_path, 2, attack=FGSM(), replays=2, milestones=(1,), learning_rate=0.1)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)
    assert task._free.whole.shape == (10, 1, 8, 8)
    assert 0 < task._free.whole.abs().max() <= 8 / 255 + 1e-7


def test_robust_accuracy_is_counted_image_by_image(tmp_path):
    task, run = fitted(tmp_path, 4, **{**SHORT, "val_attack": PGD(eps=0.02, step_size=0.01, steps=3)})
    data = Noise(eval_batch_size=8)
    assert {"val/acc", "val/robust_acc", "val/loss", "train/loss"} <= run.callback_metrics.keys()
    result = run.test(task, datamodule=data, verbose=False)[0]
    x, y = data.test_dataset.batch(range(21))
    right = predictions(task.model, x) == y
    stays = predictions(task.model, task.val_attack(task.model, x, y, seed=0)) == y
    assert result["test/acc"] == pytest.approx(right.float().mean().item())
    assert result["test/robust_acc"] == pytest.approx((right & stays).float().mean().item())
    assert 0 < result["test/robust_acc"] <= result["test/acc"]


def test_average_is_what_is_validated_and_saved(tmp_path):
    seen = []

    class Weights(pl.Callback):
        def on_train_start(self, trainer, module):
            seen.append(module.model.network.linear.weight.detach().clone())

        def on_train_batch_end(self, trainer, module, *_):
            self.on_train_start(trainer, module)

    task, run = fitted(tmp_path, 2, [Weights()], **SHORT, ema_decay=0.4)
    expected = seen[0]
    for number, weight in enumerate(seen[1:]):
        share = min(0.4, (1 + number) / (10 + number))
        expected = share * expected + (1 - share) * weight
    torch.testing.assert_close(task.average.network.linear.weight, expected)
    assert fingerprint(task.average) != fingerprint(task.model)
    x, _ = batch(dtype=torch.float32)
    assert torch.equal(task.eval()(x), task.average(x))
    assert torch.equal(task.train()(x), task.model(x))
    path = tmp_path / "a.ckpt"
    run.save_checkpoint(path)
    assert fingerprint(load_classifier(path)) == fingerprint(task.average)
    again = AdversarialTraining.load_from_checkpoint(path, weights_only=True)
    assert fingerprint(again.model) == fingerprint(again.average) == fingerprint(task.average)
    data, plain = Noise(), AdversarialTraining("small_cnn")  # as one without an average reads it
    found = trainer(tmp_path).test(plain, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)[0]
    assert found["test/acc"] == run.test(task, datamodule=data, verbose=False)[0]["test/acc"]
    x, y = data.test_dataset.batch(range(21))
    assert found["test/acc"] == pytest.approx((predictions(task.average, x) == y).float().mean().item())


def test_a_network_trained_against_a_generator_is_read_without_it(tmp_path):
    attack = GeneratedPerturbation(generator=PerturbationNetwork(1, width=2, blocks=0), eps=0.1)
    task, run = fitted(tmp_path, 1, attack=attack, update_attack=True)
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = AdversarialTraining.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert fingerprint(again.model) == fingerprint(task.model)
    with pytest.raises(ValueError, match="attack must learn where update_attack is set, got PGD"):
        trainer(tmp_path, 1).fit(again, datamodule=Noise(batch_size=10, validation=9))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_that_fails_leaves_no_perturbed_weights(monkeypatch, where):
    task, (x, y) = made(awp=0.1, attack=FGSM(eps=0.1)), batch()
    before = copy.deepcopy(task.state_dict())

    def failing(*_, **__):
        raise KeyboardInterrupt

    if where == "forward":
        own, calls = task._loss, []
        monkeypatch.setattr(task, "_loss", lambda *a: failing() if calls.append(1) or len(calls) > 1 else own(*a))
        with pytest.raises(KeyboardInterrupt):
            task.training_loss(x, y)
    else:
        loss = task.training_loss(x, y)
        assert any(not torch.equal(value, before[key]) for key, value in task.model.state_dict(prefix="model.").items())
        monkeypatch.setattr(torch.Tensor, "backward", failing)
        with pytest.raises(KeyboardInterrupt):
            task.backward(loss)
    for key, value in task.model.named_parameters(prefix="model"):
        assert torch.equal(value, before[key]), key


def test_attacks_are_no_part_of_a_checkpoint(tmp_path):
    task, run = fitted(tmp_path, 1, **SHORT, val_attack=PGD(steps=1))
    path = tmp_path / "a.ckpt"
    run.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert not {"attack", "val_attack"} & content["hyper_parameters"].keys()
    assert content["hyper_parameters"]["clean_weight"] == 0.0
    again = AdversarialTraining.load_from_checkpoint(path, weights_only=True, attack=FGSM())
    assert again.attack == FGSM()
    assert fingerprint(again.model) == fingerprint(task.model)


@pytest.mark.parametrize(("field", "before", "now"), [("schedule", "steps", "cyclic"), ("replays", 1, 2)])
def test_a_run_goes_on_as_it_began(tmp_path, field, before, now):
    _, run = fitted(tmp_path, 1, attack=FGSM())
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=f"{field} must be {before!r} to resume this checkpoint, got {now!r}"):
        fitted(tmp_path, 2, ckpt=tmp_path / "a.ckpt", attack=FGSM(), **{field: now})


@pytest.mark.slow
def test_learns_to_resist(tmp_path):
    attack, found = PGD(eps=0.1, step_size=0.03, steps=5), {}
    data = Digits(image_size=8, batch_size=32, train_limit=500, test_limit=200)
    for weight in (0.0, 1.0):
        pl.seed_everything(0, verbose=False)
        task = AdversarialTraining("small_cnn", attack=attack, clean_weight=weight, learning_rate=0.03)
        run = trainer(tmp_path, 7)
        run.fit(task, datamodule=data)
        found[weight] = run.test(task, datamodule=data, verbose=False)[0]
    assert found[0.0]["test/robust_acc"] > found[1.0]["test/robust_acc"] + 0.15
    assert found[0.0]["test/acc"] > 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clean_weight": 1.5}, r"AdversarialTraining: clean_weight must be in \[0, 1\], got 1.5"),
        ({"clean_weight": math.nan}, "clean_weight must be in"),
        ({"loss": "kl"}, "loss must be adversarial or trades or mart, got 'kl'"),
        ({"beta": 6.0}, "beta 6.0 does not go together with loss adversarial"),
        ({"beta": -1.0, "loss": "mart"}, "beta must be at least 0, got -1.0"),
        ({"clean_weight": 0.5, "loss": "trades"}, "clean_weight 0.5 does not go together with loss trades"),
        ({"label_smoothing": 0.1, "loss": "mart"}, "label_smoothing 0.1 does not go together with loss mart"),
        ({"replays": 0}, "replays must be at least 1, got 0"),
        ({"replays": 2, "loss": "mart"}, "loss 'mart' does not go together with replays 2"),
        ({"replays": 2, "clean_weight": 0.5}, "clean_weight 0.5 does not go together with replays 2"),
        ({"replays": 2, "awp": 0.01}, "awp 0.01 does not go together with replays 2"),
        ({"replays": 2, "attack_label": "predicted"}, "attack_label 'predicted' does not go together with replays 2"),
        ({"update_attack": True, "attack": PGD()}, "attack must learn where update_attack is set, got PGD"),
        ({"replays": 2, "attack": PGD()}, "attack must be FGSM with replays 2 .*got PGD"),
        ({"awp": 1.0}, r"awp must be in \[0, 1\), got 1.0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"attack_label": "pred"}, "attack_label must be true or predicted, got 'pred'"),
        ({"crafting_mode": "train"}, "crafting_mode must be eval or keep, got 'train'"),
        ({"crafting_precision": "fp16"}, "crafting_precision must be same or bf16, got 'fp16'"),
        ({"halves": "both"}, "halves must be apart or together, got 'both'"),
        ({"schedule": "cosine"}, "schedule must be steps or cyclic, got 'cosine'"),
        ({"name": "resnet19"}, "AdversarialTraining: name must be one of"),
    ],
)
def test_bad_fields(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdversarialTraining(**{"name": "small_cnn", **arguments})
