"""Perturbations drawn by a network, and the network's own steps."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from lit_adv.attacks import GeneratedPerturbation
from lit_adv.attacks.generated import EdgeGenerator, reranked
from lit_adv.models import PerturbationNetwork


def make(seed=0, **fields):
    torch.manual_seed(seed)
    return GeneratedPerturbation(generator=PerturbationNetwork(3, 8, 1), eps=24 / 255, **fields)


def test_adds_what_the_network_draws_in_one_pass_of_it(net, pictures):
    attack, model, x = make(), net(), pictures(4)
    calls = []
    attack.generator.register_forward_hook(lambda *_: calls.append(1))
    found = attack.run(model, x, model(x).argmax(1))
    assert len(calls) == 1
    assert found.forwards.tolist() == found.backwards.tolist() == [0] * 4
    expected = (x + attack.eps * attack.generator(x)).clamp(0, 1)
    torch.testing.assert_close(found.images, expected)


def test_update_is_a_step_of_adam_on_the_generator_alone(net, pictures):
    model, x = net().train(), pictures(6)
    y = torch.arange(6) % 4
    attack = make(learning_rate=0.01, objective="ce")
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loss = attack.update(model, x, y)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.conv.weight.grad is None
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    # the same by hand
    reference = make().generator
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.01)
    by_hand = -nn.functional.cross_entropy(model.eval()((x + attack.eps * reference(x)).clamp(0, 1)), y)
    by_hand.backward()
    optimizer.step()
    torch.testing.assert_close(loss, by_hand.detach())
    for own, other in zip(attack.generator.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in attack.generator.parameters())


def test_updates_learn_to_fool_targeted_or_not(net, pictures):
    model, x = net(), pictures(64)
    y = model(x).argmax(1)
    for targets in (None, torch.full_like(y, 2)):
        attack = make(objective="margin", learning_rate=3e-3)
        goal = {} if targets is None else {"targets": targets}
        with torch.inference_mode():  # as inside Lightning's validation
            start = attack.run(model, x, y, **goal).success.float().mean()
            losses = [attack.update(model, x.clone(), y, targets).item() for _ in range(60)]
            end = attack.run(model, x, y, **goal).success.float().mean()
        assert losses[-1] < losses[0] - 0.1
        assert end > start + 0.2


def test_goes_on_from_its_training_state(net, pictures):
    model, x = net(), pictures(6)
    y = model(x).argmax(1)
    whole = make()
    for _ in range(6):
        whole.update(model, x, y)
    first, second = make(), make(seed=5)
    for _ in range(3):
        first.update(model, x, y)
    second.load_training_state(first.training_state())
    for _ in range(3):
        second.update(model, x, y)
    assert second.fingerprint() == whole.fingerprint()
    assert first.fingerprint() != whole.fingerprint()


def test_reranked_probabilities():
    """Baluja & Fischer 2018, section 2.1, by hand: 1.5 * 0.5 in the target's place, then scaled by 1 / 1.55."""
    y = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    expected = torch.tensor([[0.5, 0.3, 0.75], [0.2, 0.2, 0.9]]) / torch.tensor([[1.55], [1.3]])
    torch.testing.assert_close(reranked(y, torch.tensor([2, 2]), 1.5), expected)


def _rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, x, y = torch.load(folder / "case.pt", weights_only=False)
    attack = make()
    for _ in range(2):
        attack.update(model, x[rank::2], y[rank::2])
    torch.save(attack.generator.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_learn_what_one_does(net, pictures, tmp_path):
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), pictures(8)
    y = torch.arange(8) % 4
    torch.save((model, x, y), tmp_path / "case.pt")
    mp.spawn(_rank, (tmp_path,), nprocs=2)
    attack = make()
    for _ in range(2):
        attack.update(model, x, y)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for key, value in attack.generator.state_dict().items():
        assert torch.equal(ranks[0][key], ranks[1][key])
        torch.testing.assert_close(ranks[0][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generator": 3}, "generator must be a network, got int"),
        ({"eps": 8}, r"eps must be in \[0, 1\] for linf, got 8"),
        ({"objective": "rank"}, "objective must be one of"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=f"GeneratedPerturbation: {message}"):
        GeneratedPerturbation(**({"generator": EdgeGenerator()} | fields))
