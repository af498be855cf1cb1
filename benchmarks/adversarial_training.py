"""Speed of adversarial training beside plain PyTorch loops with other libraries' attacks.

    python -m benchmarks.adversarial_training [--batch 32] [--steps 10] [--model resnet18] [--rounds 3] [--device cuda]
                                              [--threads 1] [--accuracy 0] [--peers torchattacks] [--out docs]

A step is what a user's training does with a batch: craft with PGD (eps 8/255, steps of 2/255, random start) on the
network in eval mode, then one pass in train mode, its backward pass and the optimiser's step (SGD, momentum 0.9). The
loops by hand are those that the libraries' pages show; `plain` crafts by a hand-written loop of `autograd.grad`. All
are in float32, but for the rows that say bf16: there crafting, and crafting alone, is under autocast to bfloat16
(ours: `crafting_precision`; the plain loop's is there to show how much of the gain that is). The same network, batch
and settings for all, in one process; all take turns and the best of some rounds counts, as processor time on the CPU
and between two events on a GPU. ``--accuracy N`` also trains each for N epochs on scikit-learn's
digits from the same weights, and gives the accuracy of all under one and the same attack, so that it shows whether the
quicker step teaches less.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.attacks import timed
from benchmarks.perceptual import Figure, show, write
from lit_adv.attacks import APGD, PGD
from lit_adv.attacks.attack import predictions
from lit_adv.data import Digits
from lit_adv.models import Classifier, classifier
from lit_adv.tasks import AdversarialTraining

EPS, STEP = 8 / 255, 2 / 255
Step = Callable[[Tensor, Tensor], None]
Maker = Callable[[Classifier, float, float, int], Step]
OURS = "lit_adv, bf16"
PEERS = ("plain", "torchattacks", "foolbox")
WANTED = 1.3


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table and writes ``adversarial_training.csv``."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    steps = {name: make for name, make in makers().items() if _takes_part(name, options.peers)}
    figures = speeds(steps, options.model, options.batch, options.steps, options.rounds, device)
    if options.accuracy:
        figures += accuracies(steps, options.accuracy, options.steps)
    show(figures)
    if options.out:
        write(figures, options.out / "adversarial_training.csv")


def makers() -> dict[str, Maker]:
    """A training step of each library: made for a network, radius, step size and number of steps."""
    return {
        "lit_adv": partial(_ours, low=False),
        OURS: partial(_ours, low=True),
        "plain": partial(_plain, low=False),
        "plain, bf16": partial(_plain, low=True),
        "torchattacks": _torchattacks,
        "foolbox": _foolbox,
    }


def speeds(
    makers: dict[str, Maker], name: str, batch: int, steps: int, rounds: int, device: torch.device
) -> list[Figure]:
    """Images per second of a training step of each, and ours over the best of the others.

    Args:
        makers: As `makers` gives them.
        name: Architecture, on 32 x 32 colour images with ten classes.
        batch: Images a step.
        steps: Of the attack.
        rounds: Turns of each; the best counts.
        device: Where.
    """
    x, y = torch.rand(batch, 3, 32, 32).to(device), (torch.arange(batch) % 10).to(device)
    running = {each: make(_network(name, 32, 3).to(device), EPS, STEP, steps) for each, make in makers.items()}
    best: dict[str, float] = {}
    for number in range(rounds + 1):
        for each, step in running.items():
            taken = timed(lambda step=step: step(x, y), device)  # type: ignore[misc]
            if number:  # the first turn allocates and chooses algorithms
                best[each] = min(best.get(each, taken), taken)
                print(f"{each}: {batch / taken:.3g} images/s", file=sys.stderr, flush=True)
    setting = f"{name}, 32x32, batch {batch}, PGD-{steps}, {device.type}"
    figures = [Figure(f"{each}: {setting}", batch / taken, "images/s") for each, taken in best.items()]
    quickest = min(best[each] for each in PEERS if each in best)
    figures.append(Figure("lit_adv in float32 over the best in float32", quickest / best["lit_adv"], "times"))
    ratio = quickest / best[OURS]
    figures.append(Figure(f"{OURS} over the best in float32", ratio, "times", f"at least {WANTED}", ratio >= WANTED))
    figures.append(Figure(f"{OURS} over plain, bf16", best["plain, bf16"] / best[OURS], "times"))
    return figures


def accuracies(makers: dict[str, Maker], epochs: int, steps: int) -> list[Figure]:
    """Clean and robust accuracy of each after the same epochs on digits, from the same weights and batches."""
    data = Digits(image_size=16, batch_size=64)
    data.setup("fit")
    data.setup("test")
    x_test, y_test = data.test_dataset.batch(range(len(data.test_dataset)))
    eps, figures = 16 / 255, []
    judge = APGD(eps=eps, steps=50)
    for each, make in makers.items():
        model = _network("resnet20", 16, 1)
        step = make(model, eps, eps / 4, steps)
        loader = data.train_dataloader()
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            for x, y in loader:
                step(x, y)
        model.eval()
        right = predictions(model, x_test) == y_test
        robust = right & ~judge.run(model, x_test, y_test, seed=0).success
        setting = f"{each}: resnet20 on digits, {epochs} epochs"
        figures.append(Figure(f"{setting}, clean", 100 * float(right.float().mean()), "%"))
        figures.append(Figure(f"{setting}, APGD-50", 100 * float(robust.float().mean()), "%"))
    return figures


def _ours(model: Classifier, eps: float, step_size: float, steps: int, low: bool) -> Step:
    spec = model.spec
    shape = {field: spec[field] for field in ("name", "num_classes", "image_size", "in_channels")}
    attack = PGD(eps=eps, step_size=step_size, steps=steps)
    task = AdversarialTraining(**shape, attack=attack, crafting_precision="bf16" if low else "same")
    task._build(model)
    device = next(model.parameters()).device
    task.to(device)
    return _trained(model, task.training_loss)


def _plain(model: Classifier, eps: float, step_size: float, steps: int, low: bool) -> Step:
    def craft(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        moved = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(steps):
            moved.requires_grad_()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
                loss = F.cross_entropy(model(moved), y)
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = (moved.detach() + step_size * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        model.train()
        return moved

    return _trained(model, lambda x, y: F.cross_entropy(model(craft(x, y)), y))


def _torchattacks(model: Classifier, eps: float, step_size: float, steps: int) -> Step:
    import torchattacks

    attack = torchattacks.PGD(model, eps=eps, alpha=step_size, steps=steps, random_start=True)
    # as its page says for training: the model's mode is put back after each call
    return _trained(model, lambda x, y: F.cross_entropy(model(attack(x, y)), y))


def _foolbox(model: Classifier, eps: float, step_size: float, steps: int) -> Step:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=steps, random_start=True)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        _, moved, _ = attack(wrapped, x, y, epsilons=eps)
        model.train()
        return F.cross_entropy(model(moved), y)

    return _trained(model, loss)


def _trained(model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Step:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)

    def step(x: Tensor, y: Tensor) -> None:
        loss = loss_of(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _network(name: str, side: int, channels: int) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return copy.deepcopy(classifier(name, 10, side, channels))


def _takes_part(name: str, peers: Sequence[str]) -> bool:
    if name not in PEERS[1:]:
        return True
    found = name in peers and importlib.util.find_spec(name) is not None
    if name in peers and not found:
        print(f"{name}: left out, it is not installed")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adversarial_training")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", nargs="*", default=list(PEERS[1:]))
    parser.add_argument("--accuracy", type=int, default=0, metavar="EPOCHS", help="also train on digits; 0 does not")
    parser.add_argument("--out", type=Path, help="folder for adversarial_training.csv")
    return parser


if __name__ == "__main__":
    main()
