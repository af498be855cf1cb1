"""The contract of the attack call, tried on every concrete attack that there is."""

import dataclasses
import importlib.util
import inspect
import math
import random
import subprocess
import sys
import typing

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import lit_adv.attacks as attacks
from lit_adv.attacks import (
    APGD,
    BIM,
    EAD,
    FAB,
    FGSM,
    FMN,
    FPGAP,
    JSMA,
    MIFGSM,
    PGAP,
    PGD,
    AdversarialPatch,
    Attack,
    AttackResult,
    AutoAttack,
    BoundedPatch,
    CarliniWagnerL2,
    CarliniWagnerLinf,
    Center,
    DeepFool,
    EnsembleTransfer,
    FoolboxAttack,
    Frame,
    Mask,
    OnePixel,
    RandomNoise,
    RandomPatch,
    RandomPixels,
    Square,
    SubstituteModel,
    TorchattacksAttack,
    UniversalPerturbation,
)
from lit_adv.attacks.transfer import TinyNetwork


def concrete(cls):
    for subclass in cls.__subclasses__():
        yield from concrete(subclass)
        if not inspect.isabstract(subclass) and subclass.__module__.startswith("lit_adv."):
            yield subclass


def is_blind(attack):
    return attack._passes(4) == (0, 0)


def is_bounded(attack):
    return getattr(attack, "eps", None) is not None


EXAMPLES = {cls.__name__: cls.example() for cls in concrete(Attack)}
SETTINGS = {
    "PGD-l2": PGD(norm="l2", eps=0.5, step_size=0.2, steps=3),
    "PGD-restarts": PGD(steps=2, restarts=2, objective="margin"),
    "PGD-until-success": PGD(steps=4, stop_at_success=True, objective="dlr"),
    "DeepFool-linf": DeepFool(norm="linf", steps=10, candidates=3),
    "CarliniWagnerL2-tanh": CarliniWagnerL2(c=10.0, learning_rate=0.1, steps=15, search_steps=0, box="tanh"),
    "CarliniWagnerLinf-carlini": CarliniWagnerLinf(eps=0.2, c=1e-4, steps=4, variant="carlini", learning_rate=0.1),
    "EAD-l1": EAD(c=10.0, beta=0.01, learning_rate=0.05, steps=12, search_steps=0, rule="l1", momentum=False),
    "FMN-l1": FMN(norm="l1", steps=12, step_size=0.5),
    "FMN-l0": FMN(norm="l0", steps=20),
    "BoundedPatch-share": BoundedPatch(size=0.5, eps=0.1, step_size=0.05, steps=2, random_start=False),
    "FoolboxAttack-alone": FoolboxAttack(
        name="L2PGD", options={"steps": 3, "random_start": True}, norm="l2", eps=0.5, per_image=True
    ),
    "TorchattacksAttack-alone": TorchattacksAttack(
        name="PGDL2", options={"steps": 3, "alpha": 0.2}, norm="l2", eps=0.5, per_image=True
    ),
    "PGD-l1": PGD(norm="l1", eps=3.0, step_size=1.0, steps=4),
    "PGD-l0": PGD(norm="l0", eps=9, step_size=100.0, steps=4, restarts=2),
    "PGD-momentum": PGD(steps=3, momentum=0.9, stop_at_success=True),
    "MIFGSM-l2": MIFGSM(norm="l2", eps=0.5, steps=3),
    "RandomNoise-l1": RandomNoise(norm="l1", eps=4.0),
    "AdversarialPatch-square": AdversarialPatch(patch=torch.eye(5)[None].double(), shape="square", rotation=90.0),
    "UniversalPerturbation-l2": UniversalPerturbation(
        norm="l2", eps=0.7, perturbation=torch.tensor([[[-2.0]]]).double(), rates=(0.5,)
    ),
    "EnsembleTransfer-losses": EnsembleTransfer(
        attack=BIM(steps=2), models=(TinyNetwork(3), TinyNetwork(4)), weights=(2, 1), average="losses"
    ),
    "EnsembleTransfer-probabilities": EnsembleTransfer(
        attack=PGD(objective="margin", steps=2), models=[TinyNetwork(3), TinyNetwork(4)], average="probabilities"
    ),
    "SubstituteModel-patch": SubstituteModel(attack=BoundedPatch(size=3, steps=2), substitute=TinyNetwork(5)),
    "JSMA-darker": JSMA(theta=-0.3, gamma=0.1, on="probs"),
    "OnePixel-paper": OnePixel(population=8, generations=3, stop_at_success=False),
    "Square-l2": Square(norm="l2", eps=0.5, queries=10, objective="ce", rescale=False),
    "Square-l1": Square(norm="l1", eps=3.0, queries=10, p_init=0.1),
    "APGD-targets": APGD(norm="l1", eps=4.0, steps=7, objective="dlr", target_classes=2, wide_start=True),
    "APGD-to-the-end": APGD(norm="l2", eps=0.5, steps=4, restarts=2, eot_iter=2, stop_at_success=False),
    "FAB-targets": FAB(norm="l1", eps=9.0, steps=4, target_classes=2, restarts=2, stop_at_success=True),
    "FAB-unbounded": FAB(norm="l2", steps=3, restarts=2),
    "PGAP-anchored": PGAP(eps1=0.05, eps2=0.1, steps=3, reference="anchored", stop_at_success=False),
    "FPGAP-channels": FPGAP(eps1=0.02, eps2=0.05, steps=3, per_channel=True, box=False),
    "AutoAttack-plus": AutoAttack(norm="l2", eps=0.1, version="plus", steps=2, queries=3),
}
# attacks of other libraries, tried where those are installed, and what they do not promise (more in test_adapters.py)
PEERS = {"FoolboxAttack": "foolbox", "TorchattacksAttack": "torchattacks", "ARTAttack": "art"}
NOT_OF_PEERS = {
    "test_run_reports_what_the_returned_images_do": "does not tell its iterations",
    "test_fingerprint_changes_with_every_field": "is known by name and options, which are no numbers",
}
MISSING = {name for name, library in PEERS.items() if importlib.util.find_spec(library) is None}
ALL = {name: attack for name, attack in (EXAMPLES | SETTINGS).items() if type(attack).__name__ not in MISSING}
BOUNDED = {name: attack for name, attack in ALL.items() if "eps" in {f.name for f in dataclasses.fields(attack)}}
# some never call the model, so that they learn nothing of it, not even the number of classes
SIGHTED = {name: attack for name, attack in ALL.items() if not is_blind(attack)}
# the repr of a tensor or of a network is no Python, and those that hold one are equal to themselves alone
SPELT = {name: attack for name, attack in ALL.items() if type(attack).__eq__ is not object.__eq__}
DRAWS = (
    "AdversarialPatch",
    "BoundedPatch",
    "LaVAN",
    "OnePixel",
    "RandomNoise",
    "RandomSearch",
    "SemiRandomNoise",
    "Square",
)
RANDOM = {n: a for n, a in ALL.items() if getattr(a, "random_start", False) or type(a).__name__ in DRAWS}
MINIMAL = {name: attack for name, attack in ALL.items() if attack.minimal_norm}
REGIONS = {
    "Center": Center(4),
    "Frame": Frame(0.5),
    "RandomPixels": RandomPixels(0.4),
    "RandomPatch": RandomPatch((5, 3)),
    "Mask": Mask(torch.arange(64).view(8, 8) % 3 == 0),
}


@pytest.fixture(autouse=True)
def not_of_peers(request):
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    library, reason = PEERS.get(type(params.get("attack")).__name__), NOT_OF_PEERS.get(request.node.originalname)
    if library is not None:
        pytest.importorskip(library)  # without the warnings of its import
        if reason is not None:
            pytest.skip(f"{library} {reason}")


def each(attack_table):
    return pytest.mark.parametrize("attack", list(attack_table.values()), ids=list(attack_table))


every_attack = each(ALL)


@pytest.fixture
def case(net, pictures):
    """A model, six images and their predictions."""
    model, x = net(), pictures(6)
    return model, x, predict(model, x)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def state(model):
    """Everything of a model that an attack could disturb."""
    return {
        "training": [module.training for module in model.modules()],
        "tensors": [tensor.clone() for tensor in model.state_dict().values()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "versions": [tensor._version for tensor in model.state_dict().values()],
        "hooks": [
            len(getattr(module, name))
            for module in model.modules()
            for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        ],
    }


def assert_same_state(before, after):
    for key in ("training", "requires_grad", "hooks", "versions"):
        assert before[key] == after[key], key
    for key in ("tensors", "grads"):
        for old, new in zip(before[key], after[key], strict=True):
            assert (old is None) == (new is None), key
            assert old is None or torch.equal(old, new), key


def mixed(model):
    """Train mode with one child in eval mode, one parameter frozen, one with a gradient."""
    model.train()
    model.bn.eval()
    model.conv.bias.requires_grad_(False)
    model.head.weight.grad = torch.full_like(model.head.weight, 3.25)
    return model


class Failing(nn.Module):
    """Raises in the n-th forward pass; n = 0 only counts."""

    def __init__(self, inner, n):
        super().__init__()
        self.inner, self.n, self.calls = inner, n, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.n:
            raise KeyboardInterrupt if self.n == 1 else RuntimeError("out of memory")
        return self.inner(x)


class Wrapped(nn.Module):
    """A model whose logits go through a function."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x):
        return self.change(self.inner(x))


class Ignoring(nn.Module):
    def __init__(self, trainable):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 1.0, 0.5]), requires_grad=trainable)

    def forward(self, x):
        return self.logits.expand(len(x), -1)


class InPlace(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.sub_(0.1).mul_(1.1))


def test_every_public_attack_is_found():
    public = {
        cls
        for cls in vars(attacks).values()
        if inspect.isclass(cls) and issubclass(cls, Attack) and not inspect.isabstract(cls)
    }
    assert public == {type(attack) for attack in EXAMPLES.values()}
    assert len(public) >= 8


# what the call leaves behind


@every_attack
@pytest.mark.parametrize("how", ["call", "run"])
def test_model_is_left_as_it_was(attack, how, case):
    model, x, y = case
    mixed(model)
    before = state(model)
    (attack if how == "call" else attack.run)(model, x, y, seed=1)
    assert_same_state(before, state(model))


@every_attack
def test_model_is_in_eval_mode_during_the_call(attack, case):
    model, x, y = case
    expected = attack(model, x, y, seed=1)
    assert torch.equal(attack(mixed(model), x, y, seed=1), expected)


@each({name: attack for name, attack in ALL.items() if type(attack).__name__ not in PEERS})
@pytest.mark.parametrize("how", ["call", "run"])
def test_modes_can_be_kept(attack, how, case):
    model, x, y = case
    attack = dataclasses.replace(attack, fold=None) if getattr(attack, "fold", False) is not False else attack
    mixed(model)
    model.bn.train()
    seen = []
    handle = model.conv.register_forward_hook(lambda *_: seen.append([m.training for m in model.modules()]))
    loss = nn.functional.cross_entropy(model(x), y)  # its graph holds buffers, which must not be written to
    before = state(model)
    (attack if how == "call" else attack.run)(model, x, y, seed=1, mode="keep")
    assert_same_state(before, state(model))
    assert all(training == before["training"] for training in seen)
    loss.backward()
    handle.remove()


def test_kept_modes_change_the_answer_and_are_not_folded(case):
    model, x, y = case
    attack = PGD(steps=3, random_start=False)
    assert torch.equal(attack(model, x, y, mode="keep"), attack(model, x, y))  # all in eval mode
    model.train()
    model.drop.eval()
    kept = attack(model, x, y, mode="keep")
    assert not torch.equal(kept, attack(model, x, y))
    z = x.clone()
    for _ in range(3):  # the same steps by hand, with the statistics of the batch
        z.requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y, reduction="sum"), z)
        z = (x + (z.detach() + attack.step_size * slope.sign() - x).clamp(-attack.eps, attack.eps)).clamp(0, 1)
    torch.testing.assert_close(kept, z)
    with pytest.raises(ValueError, match="PGD: fold must be False or None for a model in train mode"):
        PGD(fold=True)(model, x, y, mode="keep")
    with pytest.raises(ValueError, match="PGD: mode must be eval or keep, got 'train'"):
        attack(model, x, y, mode="train")


@each(SIGHTED)
def test_everything_is_restored_after_an_exception_in_the_model(attack, case):
    inner, x, y = case
    counting = Failing(inner, 0)
    attack(counting, x, y, seed=1)
    mixed(inner)
    for n in {1, (counting.calls + 1) // 2, counting.calls}:
        model = Failing(inner, n)
        before, keeps = state(model), (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        with pytest.raises(KeyboardInterrupt if n == 1 else RuntimeError):
            attack(model, x, y, seed=1)
        assert model.calls == n
        assert_same_state(before, state(model))
        assert keeps == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())


@every_attack
def test_global_random_state_is_untouched(attack, case):
    model, x, y = case
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    attack.run(model, x, y, region=RandomPixels(0.5))
    attack.run(model, x, y, seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    now = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(now, before[2], strict=True))


@every_attack
def test_input_is_untouched(attack, case):
    model, x, y = case
    targets, seeds, mask = (y + 1) % 4, torch.arange(6), torch.ones(8, 8)
    given = x, y, targets, seeds, mask
    copies, versions = [each.clone() for each in given], [each._version for each in given]
    attack.run(model, x, y, seed=seeds, region=Mask(mask))
    out = attack(model, x, y, targets=targets, seed=seeds, region=Mask(mask))
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))
    assert [each._version for each in given] == versions
    out.add_(1)  # not a view of the input either
    assert torch.equal(x, copies[0])


@every_attack
def test_images_that_require_grad(attack, case):
    model, x, y = case
    expected = attack(model, x, y, seed=1)
    x.requires_grad_()
    out = attack(model, x, y, seed=1)
    assert torch.equal(out, expected)
    assert not out.requires_grad
    assert x.grad is None


@every_attack
def test_a_model_that_works_in_place_changes_nothing(attack, case):
    inner, x, _ = case
    model = InPlace(inner)
    y, clean = predict(model, x.clone()), x.clone()
    result = attack.run(model, x, y, seed=1)
    assert torch.equal(x, clean)
    assert float(result.images.min()) >= 0
    assert float(result.images.max()) <= 1
    assert torch.equal(result.success, predict(model, result.images.clone()) != y)
    plain = Wrapped(inner, lambda logits: logits)
    plain.forward = lambda x: inner((x - 0.1) * 1.1)
    torch.testing.assert_close(result.images, attack(plain, x, y, seed=1), atol=1e-3, rtol=0)


@every_attack
def test_between_forward_and_backward_of_a_training_step(attack, case):
    model, x, y = case
    model.train()
    model.drop.eval()
    gradients = []
    for attacked in (False, True):
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if attacked:
            attack(model, x, y, seed=1)
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# where the call works


@every_attack
def test_under_no_grad(attack, case):
    model, x, y = case
    expected = attack(model, x, y, seed=1)
    with torch.no_grad():
        out = attack(model, x, y, seed=1)
        assert not torch.is_grad_enabled()
    assert torch.equal(out, expected)


@every_attack
def test_under_inference_mode(attack, case):
    model, x, y = case
    targets, seeds = (y + 1) % 4, torch.arange(6)
    mask = (torch.arange(64).view(8, 8) % 2).float()
    keywords = {"targets": targets, "seed": seeds, "region": Mask(mask)}
    expected = attack.run(model, x, y, **keywords)
    untargeted = attack(model, x, y, seed=1)
    with torch.inference_mode():
        inside = {"targets": targets.clone(), "seed": seeds.clone(), "region": Mask(mask.clone())}
        images, labels = x.clone(), y.clone()
        assert images.is_inference()
        out = attack.run(model, images, labels, **inside)
        assert torch.is_inference_mode_enabled()
        assert torch.equal(attack(model, images, labels, seed=1), untargeted)
    assert torch.equal(out.images, expected.images)
    assert torch.equal(out.success, expected.success)
    assert not out.images.is_inference()


@every_attack
@pytest.mark.parametrize("how", ["call", "run"])
def test_under_autocast_a_later_training_step_keeps_its_gradients(attack, how, case):
    model, x, y = case
    model.train()
    model.drop.eval()
    gradients = []
    for attacked in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = (attack if how == "call" else attack.run)(model, x, y, seed=1) if attacked else x
            assert torch.is_autocast_cache_enabled()
            nn.functional.cross_entropy(model(x), y).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    out = out if how == "call" else out.images
    assert out.dtype == torch.float32
    assert bool(torch.isfinite(out).all())
    assert not torch.equal(out, x)


@every_attack
@pytest.mark.parametrize(
    ("images", "weights"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
    ],
    ids=str,
)
def test_dtypes(attack, images, weights, case):
    model, x, _ = case
    model, x = model.to(weights), x.to(images)
    y = predict(model, x.to(weights))
    result = attack.run(model, x, y, seed=1)
    out = result.images
    assert out.dtype == images
    assert out.shape == x.shape
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert torch.equal(result.success, predict(model, out.to(weights)) != y)
    assert not torch.equal(out, x)
    if is_bounded(attack):
        delta = (out.double() - x.double()).flatten(1)
        size = delta.abs().amax(1) if attack.norm == "linf" else delta.norm(dim=1)
        # no more than the last bit of a float32 in [0, 1], whatever the images' dtype is
        assert float(size.max()) <= attack.eps + (1e-12 if images == torch.float64 else 1.2e-7)


@every_attack
def test_float64_is_worked_in_float64(attack, net, pictures):
    model, x = net().double(), pictures(3, dtype=torch.float64)
    seen = []
    model.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    out = attack(model, x, predict(model, x), seed=1)
    assert set(seen) == {torch.float64}
    assert not torch.equal(out, out.float().double())


@every_attack
def test_channels_last_images(attack, case):
    model, x, y = case
    model, x = model.double(), x.double()
    expected = attack(model, x, y, seed=1, region=RandomPixels(0.5))
    out = attack(model, x.to(memory_format=torch.channels_last), y, seed=1, region=RandomPixels(0.5))
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)


@pytest.fixture(scope="module")
def compiled(net):
    # splits forward and backward as the default backend does, without its C++ compiler
    return torch.compile(net().double(), backend="aot_eager", dynamic=True)


@every_attack
@pytest.mark.filterwarnings("ignore")  # of the compiler itself
def test_compiled_model(attack, compiled, net, pictures):
    model, x = net().double(), pictures(3, dtype=torch.float64)
    y = predict(model, x)
    expected = attack(model, x, y, seed=1)
    compiled.train()
    out = attack(compiled, x, y, seed=1)
    assert all(module.training for module in compiled.modules())
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@every_attack
@pytest.mark.usefixtures("process_group")
def test_distributed_model_reduces_nothing(attack, case, monkeypatch):
    model, x, y = case
    expected = attack.run(model, x, y, seed=1)
    mixed(model)
    model.bn.train()
    model.conv.bias.requires_grad_(True)
    wrapped = nn.parallel.DistributedDataParallel(model)
    reduced, broadcast = [], []
    sync = wrapped._sync_buffers
    monkeypatch.setattr(wrapped, "_sync_buffers", lambda: broadcast.append(1) or sync())

    def hook(seen, bucket):
        seen.append(1)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped.register_comm_hook(reduced, hook)
    before = state(wrapped)
    result = attack.run(wrapped, x, y, seed=1)
    assert_same_state(before, state(wrapped))
    assert not reduced
    assert not broadcast
    assert torch.equal(result.images, expected.images)
    # the counters do count, and the reducer is still in a state to train
    loss = wrapped(x).sum()
    attack(wrapped, x, y, seed=1)
    assert not reduced
    loss.backward()
    assert reduced
    assert broadcast


@every_attack
def test_empty_batch(attack, case):
    model, x, y = case
    mixed(model)
    before = state(model)
    for keywords in ({}, {"region": RandomPatch(2)}, {"targets": y[:0]}, {"seed": 1}, {"seed": y[:0]}):
        out = attack(model, x[:0], y[:0], **keywords)
        assert out.shape == (0, 3, 8, 8)
        assert out.dtype == x.dtype
    result = attack.run(model, x[:0], y[:0])
    assert result.success.shape == result.forwards.shape == result.norms["linf"].shape == (0,)
    assert_same_state(before, state(model))


# rows do not know of each other


@every_attack
@pytest.mark.parametrize("seed", ["int", "rows"])
def test_same_result_alone_as_in_a_batch(attack, seed, net, pictures):
    model, x = net().double(), pictures(5, dtype=torch.float64)
    y = predict(model, x)
    y[3] = (y[3] + 1) % 4  # one that succeeds already, and leaves early
    seeds = torch.tensor([5, 0, -7, 5, 2**62])
    region = RandomPixels(0.7)

    def craft(rows):
        return attack(model, x[rows], y[rows], seed=11 if seed == "int" else seeds[rows], region=region)

    together = craft(torch.arange(5))
    alone = torch.cat([craft(torch.tensor([row])) for row in range(5)])
    torch.testing.assert_close(alone, together, atol=1e-12, rtol=0)
    torch.testing.assert_close(craft(torch.arange(5).flip(0)).flip(0), together, atol=1e-12, rtol=0)


@every_attack
def test_counts_are_of_each_row(attack, net, pictures):
    model, x = net().double(), pictures(4, dtype=torch.float64)
    y = predict(model, x)
    together = attack.run(model, x, y, seed=1)
    alone = AttackResult.cat([attack.run(model, x[i : i + 1], y[i : i + 1], seed=1) for i in range(4)])
    assert torch.equal(together.iterations, alone.iterations)
    assert torch.equal(together.backwards, alone.backwards)
    assert torch.equal(together.success, alone.success)


@each(MINIMAL)
@pytest.mark.parametrize("targeted", [False, True])
def test_images_that_succeed_already_stay_as_they_are(attack, targeted, case):
    model, x, prediction = case
    rows = torch.tensor([True, False, True, False, False, True])
    if targeted:
        labels, targets = (prediction + 2) % 4, torch.where(rows, prediction, (prediction + 1) % 4)
    else:
        labels, targets = torch.where(rows, (prediction + 1) % 4, prediction), None
    result = attack.run(model, x, labels, targets=targets, seed=1)
    assert torch.equal(result.images[rows], x[rows])
    assert bool(result.success[rows].all())
    assert not torch.equal(result.images[~rows], x[~rows])


@every_attack
def test_seeds(attack, case):
    model, x, y = case
    region = RandomPixels(0.5)
    for seed in (0, 1, 2**70, torch.arange(6)):
        assert torch.equal(attack(model, x, y, seed=seed), attack(model, x, y, seed=seed))
        again = attack(model, x, y, seed=seed, region=region)
        assert torch.equal(again, attack(model, x, y, seed=seed, region=region))
    assert not torch.equal(attack(model, x, y, seed=0, region=region), attack(model, x, y, seed=1, region=region)), (
        "the region's draw must depend on the seed"
    )


@each(RANDOM)
def test_other_seed_other_result(attack, case):
    model, x, y = case
    assert not torch.equal(attack(model, x, y, seed=0), attack(model, x, y, seed=1))
    assert not torch.equal(attack(model, x, y), attack(model, x, y))
    same = x[:1].expand(3, -1, -1, -1), y[:1].expand(3)
    out = attack(model, *same, seed=torch.tensor([4, 4, 5]))
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])


# what comes back


@every_attack
@pytest.mark.parametrize(
    ("channels", "height", "width", "classes", "count"),
    [(3, 12, 9, 4, 3), (1, 9, 12, 4, 1), (1, 8, 8, 2, 4), (2, 4, 11, 7, 2)],
)
def test_shapes_box_and_budget(attack, channels, height, width, classes, count, net, pictures):
    if getattr(attack, "objective", "") == "dlr" and classes < 3:
        attack = dataclasses.replace(attack, objective="margin")
    model, x = net(channels, classes), pictures(count, channels, height, width)
    x[0, 0, 0, 0], x[0, 0, 1, 1] = 0, 1
    y = predict(model, x)
    out = attack(model, x, y, seed=1)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    if is_bounded(attack):
        delta = (out - x).double().flatten(1)
        size = delta.abs().amax(1) if attack.norm == "linf" else delta.norm(dim=1)
        assert float(size.max()) <= attack.eps + 1.2e-7


@each(BOUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eps_0_returns_the_images(attack, dtype, case):
    model, x, y = case
    x = x.to(dtype)
    for region in (None, RandomPixels(0.5)):
        result = dataclasses.replace(attack, eps=0).run(model, x, y, region=region)
        assert torch.equal(result.images, x)
        assert result.images.data_ptr() != x.data_ptr()


@each(SIGHTED)
def test_targets(attack, case):
    model, x, y = case
    targets = (y + 1) % 4
    out = attack(model, x, y, targets=targets, seed=1)

    def losses(images):
        with torch.no_grad():
            return nn.functional.cross_entropy(model(images), targets, reduction="none")

    # the fields' budgets are small: what is asked for is the direction
    assert float(losses(out).sum()) < float(losses(x).sum())
    result = attack.run(model, x, y, targets=targets, seed=1)
    assert torch.equal(result.images, out)
    assert torch.equal(result.success, predict(model, out) == targets)
    # the labels have no say
    assert torch.equal(attack(model, x, (y + 2) % 4, targets=targets, seed=1), out)


@every_attack
@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS.keys())
@pytest.mark.parametrize("targeted", [False, True])
def test_only_the_region_changes(attack, region, targeted, case):
    model, x, y = case
    x[:, :, 0] = 0.0
    x[:, :, 1] = 1.0
    seeds = torch.arange(6)
    out = attack(model, x, y, region=region, seed=seeds, targets=(y + 1) % 4 if targeted else None)
    changed = (out != x).any(1)
    inside = attacks.attack.mix_seeds(attacks.randomness.row_seeds(x, seeds))
    mask = region(x, inside).expand(6, -1, -1, -1)[:, 0] > 0
    assert not bool((changed & ~mask).any())
    # a patch may miss the region; what stops at success leaves an image that is misclassified as it is
    if not attack.minimal_norm and not isinstance(attack, BoundedPatch | AutoAttack | PGAP | FPGAP):
        assert bool(changed.any())


@every_attack
def test_masks_of_ones_and_of_zeros(attack, case):
    model, x, y = case
    plain = attack.run(model, x, y, seed=1)
    for mask in (torch.ones(8, 8), torch.ones(6, 1, 8, 8, dtype=torch.bool)):
        assert torch.equal(attack(model, x, y, seed=1, region=Mask(mask)), plain.images)
    result = attack.run(model, x, y, seed=1, region=Mask(torch.zeros(8, 8)))
    assert torch.equal(result.images, x)
    assert not bool(result.success.any())


@every_attack
def test_one_mask_an_image(attack, net, pictures):
    model, x = net().double(), pictures(3, dtype=torch.float64)
    y = predict(model, x)
    masks = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8), torch.eye(8)[None]])
    out = attack(model, x, y, seed=1, region=Mask(masks))
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1], seed=1, region=Mask(masks[i])) for i in range(3)])
    torch.testing.assert_close(out, alone, atol=1e-12, rtol=0)


@every_attack
def test_a_constant_added_to_all_logits_changes_nothing(attack, net, pictures):
    model, x = net().double(), pictures(6, dtype=torch.float64)
    y = predict(model, x)
    expected = attack(model, x, y, seed=1)
    for constant in (50.0, -1000.0):
        shifted = Wrapped(model, lambda logits, constant=constant: logits + constant)
        torch.testing.assert_close(attack(shifted, x, y, seed=1), expected, atol=1e-6, rtol=0)


@every_attack
@pytest.mark.parametrize("factor", [0.0, 1e-12, 1e4, 1e20])
def test_saturated_or_dead_logits(attack, factor, case):
    inner, x, _ = case
    model = Wrapped(inner, lambda logits: factor * logits)
    y = predict(model, x)
    result = attack.run(model, x, y, seed=1)
    assert bool(torch.isfinite(result.images).all())
    assert float(result.images.min()) >= 0
    assert float(result.images.max()) <= 1


@every_attack
def test_gradients_that_are_not_numbers(attack, case):
    """The root has an infinite slope at 0, which times 0 is not a number; the lower half of the image is sound."""

    class Rooted(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + (0 * x[:, :, :4]).sqrt().sum((1, 2, 3))[:, None].expand(-1, 4)

    model, x, y = case
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Rooted(model)(leaf)[:, 0].sum(), leaf)
    assert bool(gradient[:, :, :4].isnan().all())
    result = attack.run(Rooted(model), x, y, seed=1)
    assert bool(torch.isfinite(result.images).all())
    assert bool((result.images != x)[:, :, 4:].any())


@every_attack
@pytest.mark.parametrize("trainable", [True, False])
def test_a_model_that_ignores_its_input(attack, trainable, pictures):
    x = pictures(3)
    result = attack.run(Ignoring(trainable), x, torch.tensor([0, 1, 2]), seed=1)
    assert bool(torch.isfinite(result.images).all())
    assert result.success.tolist() == [True, False, True]
    if attack.minimal_norm and not is_bounded(attack):
        assert torch.equal(result.images, x)


@every_attack
def test_run_reports_what_the_returned_images_do(attack, case):
    model, x, y = case
    result = attack.run(model, x, y, seed=1)
    assert torch.equal(result.images, attack(model, x, y, seed=1))
    assert torch.equal(result.success, predict(model, result.images) != y)
    black_box = any(field.name == "max_queries" for field in dataclasses.fields(attack))
    for counts in (result.forwards, result.backwards, result.iterations):
        assert counts.dtype == torch.int64
        assert bool((counts > 0).all()) != (is_blind(attack) or (black_box and counts is result.backwards))
    assert torch.equal(result.queries, result.forwards)
    delta = result.images.double() - x.double()
    expected = {
        "l0": (delta != 0).any(1).flatten(1).sum(1),
        "l1": delta.abs().sum((1, 2, 3)),
        "l2": delta.flatten(1).norm(dim=1),
        "linf": delta.abs().amax((1, 2, 3)),
    }
    assert result.norms.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(result.norms[name].double(), values.double(), atol=1e-6, rtol=1e-6)


@every_attack
def test_counts_equal_what_the_model_saw(attack, case):
    inner, x, y = case
    rows = {"forward": 0, "backward": 0}

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            rows["forward"] += len(x)
            if x.requires_grad:
                x.register_hook(lambda g: rows.update(backward=rows["backward"] + len(g)))
            return self.inner(x)

    result = attack.run(Counting(), x, y, seed=1)
    assert rows["forward"] == int(result.forwards.sum()) + len(x)
    assert rows["backward"] == int(result.backwards.sum())


def test_results_join():
    parts = [
        AttackResult(
            images=torch.full((n, 1, 2, 2), float(n)),
            success=torch.ones(n, dtype=torch.bool),
            target=torch.full((n,), -1),
            logits=torch.zeros(n, 3 if n else 0),
            **{name: torch.full((n,), n) for name in ("iterations", "forwards", "backwards", "queries")},
            norms={name: torch.full((n,), float(n)) for name in ("l0", "linf")},
        )
        for n in (2, 0, 3)
    ]
    joined = AttackResult.cat(parts)
    assert joined.images.shape == (5, 1, 2, 2)
    assert joined.iterations.tolist() == [2, 2, 3, 3, 3]
    assert joined.norms["linf"].tolist() == [2, 2, 3, 3, 3]
    assert joined.success.dtype == torch.bool
    with pytest.raises(ValueError, match="results"):
        AttackResult.cat([])


# what is refused

BAD_IMAGES = {
    "8 bits": (lambda x: x * 255, r"images must be in \[0, 1\].*255"),
    "normalised": (lambda x: (x - 0.5) / 0.25, "images must be in.*inside the model"),
    "a little too high": (lambda x: x.index_fill(0, torch.tensor(4), 1.001), r"images must be in.*1\.001.*clamp"),
    "a little negative": (lambda x: x - 1e-3, "images must be in"),
    "nan": (lambda x: x.index_fill(0, torch.tensor(2), math.nan), "images must be finite, image 2"),
    "inf": (lambda x: x.index_fill(0, torch.tensor(5), math.inf), "images must be finite, image 5"),
    "integers": (lambda x: (x * 255).to(torch.uint8), "images must be a floating-point tensor.*uint8"),
    "one image": (lambda x: x[0], r"images must be .*\(3, 8, 8\)"),
    "no tensor": (lambda x: x.numpy(), "images must be .*ndarray"),
}
BAD_CLASSES = {
    "shape": lambda y: y[:, None],
    "length": lambda y: y[:-1],
    "floats": lambda y: y.float(),
    "int32": lambda y: y.int(),
    "too high": lambda y: y.index_fill(0, torch.tensor(1), 4),
    "negative": lambda y: y.index_fill(0, torch.tensor(1), -1),
    "no tensor": lambda y: y.tolist(),
}


@every_attack
@pytest.mark.parametrize(("spoil", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_bad_images_are_refused(attack, spoil, message, case):
    model, x, y = case
    mixed(model)
    before = state(model)
    for call in (attack, attack.run):
        with pytest.raises(ValueError, match=message):
            call(model, spoil(x), y, seed=1)
    assert_same_state(before, state(model))


@every_attack
@pytest.mark.parametrize("spoil", BAD_CLASSES.values(), ids=BAD_CLASSES.keys())
def test_bad_classes_are_refused(attack, spoil, case):
    if is_blind(attack) and spoil is BAD_CLASSES["too high"]:
        pytest.skip("never learns how many classes there are")
    model, x, y = case
    with pytest.raises(ValueError, match="labels"):
        attack(model, x, spoil(y))
    with pytest.raises(ValueError, match="targets"):
        attack(model, x, y, targets=spoil((y + 1) % 4))


@each(BOUNDED)
def test_bad_images_are_refused_where_nothing_is_crafted(attack, case):
    model, x, y = case
    with pytest.raises(ValueError, match="images"):
        dataclasses.replace(attack, eps=0)(model, x * 255, y)


@each(SIGHTED)
def test_bad_logits_and_seeds_are_refused(attack, case):
    model, x, y = case
    with pytest.raises(ValueError, match="model must return logits"):
        attack(Wrapped(model, lambda logits: logits[:, :, None]), x, y)
    with pytest.raises(ValueError, match=r"model must return logits.*tuple"):
        attack(Wrapped(model, lambda logits: (logits, logits)), x, y)
    for seed in (torch.arange(5), torch.arange(6.0), torch.arange(6)[:, None]):
        with pytest.raises(ValueError, match="seed must be"):
            attack(model, x, y, seed=seed)


@every_attack
def test_a_mask_of_another_size_is_refused(attack, case):
    model, x, y = case
    for mask in (torch.ones(8, 7), torch.ones(5, 1, 8, 8)):
        with pytest.raises(ValueError, match="Mask: mask must fit"):
            attack(model, x, y, region=Mask(mask))


# attacks as values


@every_attack
def test_fields_are_frozen(attack):
    for field in dataclasses.fields(attack):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(attack, field.name, getattr(attack, field.name))


@every_attack
def test_fields_are_keywords_only(attack):
    first = dataclasses.fields(attack)[0]
    with pytest.raises(TypeError):
        type(attack)(getattr(attack, first.name))


@each(SPELT)
def test_repr_is_the_call_that_makes_it(attack):
    again = eval(repr(attack), dict(vars(attacks)))
    assert again == attack
    assert again.fingerprint() == attack.fingerprint()


def others(attack, field):
    """Values for a field other than its own, some of which are valid."""
    value = getattr(attack, field.name)
    hint = typing.get_type_hints(type(attack))[field.name]
    named = [option for option in typing.get_args(hint) if isinstance(option, str)]
    if named:
        return [option for option in named if option != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, Attack):
        return [PGD(steps=11), FGSM(eps=0.001)]
    if isinstance(value, torch.nn.Module):
        return [TinyNetwork(2), Wrapped(value, abs)]
    if field.name == "models":
        return [value[:1], value[::-1], (*value, value[0])]
    if "tuple" in str(hint):
        return [(0.25, 0.75), (0.75, 0.25)]
    if value is None:
        return [3, 0.001] if any(issubclass(kind, float) for kind in typing.get_args(hint)) else [3]
    return [value + 1] if isinstance(value, int) else [0.7 * value + 0.0037]


@every_attack
def test_fingerprint_changes_with_every_field(attack):
    seen = {attack.fingerprint()}
    count = 1
    for field in dataclasses.fields(attack):
        changed = []
        for value in others(attack, field):
            try:
                changed.append(dataclasses.replace(attack, **{field.name: value}))
            except ValueError:
                continue
        assert changed or field.name == "confidence", field.name  # which only f6 takes
        seen |= {other.fingerprint() for other in changed}
        count += len(changed)
    assert len(seen) == count


def test_fingerprints_are_the_same_in_another_process():
    code = (
        "import lit_adv.attacks as a\n"
        "def walk(c):\n"
        "    for s in c.__subclasses__():\n"
        "        walk(s)\n"
        "        if not s.__abstractmethods__: print(s.__name__, s.example().fingerprint())\n"
        "walk(a.Attack)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    theirs = dict(line.split() for line in done.stdout.splitlines())
    assert theirs == {name: attack.fingerprint() for name, attack in EXAMPLES.items()}
    assert len(set(theirs.values())) == len(theirs)
