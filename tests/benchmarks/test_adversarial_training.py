"""The contestants of the benchmark do the same work, and its figures say what they should."""

import pytest
import torch
from torch import nn

from benchmarks import adversarial_training as bench


def small(name, side, channels):
    torch.manual_seed(0)
    return bench.classifier("small_cnn", 10, side, channels)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(bench, "_network", small)


def there():
    return {name: make for name, make in bench.makers().items() if bench._takes_part(name, bench.PEERS)}


@pytest.mark.parametrize("name", bench.makers())
def test_a_step_trains_and_takes_the_same_passes(name):
    makers = there()
    if name not in makers:
        pytest.skip(f"{name} is not installed")
    model = small("", 32, 3)
    before = [weight.detach().clone() for weight in model.parameters()]
    calls = []
    model.register_forward_hook(lambda module, *_: calls.append(module.training))
    step = makers[name](model, 8 / 255, 2 / 255, 4)
    step(torch.rand(6, 3, 32, 32), torch.arange(6))
    extra = 1 if name == "foolbox" else 0  # it looks whether it has succeeded
    assert len(calls) == 5 + extra
    assert calls[-1]
    assert all(isinstance(weight, nn.Parameter) for weight in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_figures(monkeypatch):
    taken = {"lit_adv": 2.0, bench.OURS: 1.0, "plain": 3.0, "plain, bf16": 1.5}
    queue = [value for _ in range(2) for value in taken.values()]
    monkeypatch.setattr(bench, "timed", lambda call, device: queue.pop(0))
    makers = {name: make for name, make in bench.makers().items() if name in taken}
    figures = {f.name: f for f in bench.speeds(makers, "small_cnn", 6, 2, 1, torch.device("cpu"))}
    assert figures["lit_adv in float32 over the best in float32"].value == pytest.approx(1.5)
    assert figures["lit_adv, bf16 over the best in float32"].value == pytest.approx(3.0)
    assert figures["lit_adv, bf16 over the best in float32"].kept
    assert figures["lit_adv, bf16 over plain, bf16"].value == pytest.approx(1.5)
