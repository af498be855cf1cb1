"""Which adversarial images, crafted on one classifier, fool another: a source x victim matrix for a batch."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import Attack, Problem, _bad_input, _check_shapes, _explain, _untouched, mix_seeds
from lit_adv.attacks.gradient import ILLC, SteepestDescent
from lit_adv.attacks.metering import Meter, Spent
from lit_adv.attacks.randomness import Draws, mix, row_seeds
from lit_adv.attacks.regions import Mask, Region
from lit_adv.attacks.substitute import Oracle

Procedure = Literal["until_fooled", "attack_then_test"]


@dataclass(frozen=True, kw_only=True)
class TransferResult:
    """What `transfer` returns, for S sources, T victims and B images.

    Attributes:
        attempted: ``(S, T, B)`` bool: source and victim both classify the image rightly.
        success: ``(S, T, B)`` bool: attempted, and the victim no longer gives the label.
        iterations: ``(S, T, B)`` int64: until the success; 0 where there is none.
        norms: ``(S, T, B)`` float64 each, of the perturbation that succeeds, NaN where there is none: ``l0`` (share of
            the pixels with any channel changed), ``l2`` (over all elements), ``linf``; in pixel units of [0, 1].
        forwards: ``(B,)`` int64: times the image went through any of the models.
        backwards: ``(B,)`` int64: times a gradient came back from any of the sources.
        images: ``(S, T, B, C, H, W)``, the first image that fools the victim, the clean one where there is none; None
            unless asked for.
    """

    attempted: Tensor
    success: Tensor
    iterations: Tensor
    norms: dict[str, Tensor]
    forwards: Tensor
    backwards: Tensor
    images: Tensor | None


def transfer(
    attack: Attack | Mapping[str, Attack],
    sources: Mapping[str, nn.Module],
    victims: Mapping[str, Any],
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    region: Region | None = None,
    seed: int | Tensor | None = None,
    procedure: Procedure = "until_fooled",
    keep_images: bool = False,
) -> TransferResult:
    """Attacks every source and tests every victim; images that both classify rightly count.

    ``until_fooled`` is the procedure of Ozbulak et al.'s code (regional perturbations): after each step the victim is
    asked, and the first iterate that it no longer gives the label for is the one that transfers. The source's own
    answer stops nothing. One path of iterates serves all victims; a source that is also a victim (the same object) is
    not asked twice; an image leaves once all its victims are fooled. S backward and at most S x T forward passes an
    iteration and image, and at most T for the clean image; a source that is no victim costs one forward pass more, the
    one of its gradient, and a random start costs S more. Attacks that are no plain steps
    down a gradient (Carlini-Wagner, DeepFool, Square, ...) have every image that they look at tested, in their order,
    and an image leaves them only with the last of its batch; their restarts and searches go on meanwhile.

    ``attack_then_test`` lets the attack end by itself and tests what it returns.

    Args:
        attack: Any attack, or one for each source by the source's name.
        sources: By name, networks from images in [0, 1] to logits ``(B, K)``; left as they are.
        victims: By name, networks, functions from images to logits ``(B, K)`` or classes ``(B,)`` (tensors or arrays),
            or scikit-learn estimators with classes 0 to K - 1.
        images: ``(B, C, H, W)``, floating point, in [0, 1].
        labels: ``(B,)`` int64, the true classes.
        targets: ``(B,)`` int64, none of them the label: the attack goes there. Success is a lost label all the same.
        region: The only pixels that may change.
        seed: As in the attack call.
        procedure: See above.
        keep_images: Also return the images that transfer.

    Raises:
        ValueError: No source or victim, one without an attack, an unknown procedure, targets that are labels, labels
            that a source or victim does not know, or what the attack call raises it for.
    """
    attacks = _attacks(attack, sources)
    if not victims:
        raise ValueError("transfer: victims must be at least one model by name, got none")
    if procedure not in get_args(Procedure):
        raise ValueError(f"transfer: procedure must be one of {', '.join(get_args(Procedure))}, got {procedure!r}")
    _check_shapes("transfer", images, labels, targets)
    labels = labels.to(images.device)
    targets = None if targets is None else targets.to(images.device)
    given = labels if targets is None else torch.cat([labels, targets])
    # here, since images that no model classifies rightly never come to an attack
    if bool(_bad_input(images, given)):
        raise ValueError(f"transfer: {_explain(images, given)}")
    if targets is not None and bool((targets == labels).any()):
        row = int((targets == labels).nonzero()[0])
        raise ValueError(f"transfer: targets must differ from labels, got {int(labels[row])} for image {row} in both")
    # a tensor made in inference mode cannot enter autograd
    with torch.inference_mode(False):
        book = _Book(sources, victims, images, labels, targets, region, seed, keep_images)
        if not len(images):
            return book.result()
        if procedure == "attack_then_test":
            _attack_then_test(book, attacks, region is not None, seed)
        else:
            _until_fooled(book, attacks)
        return book.result()


def random_targets(images: Tensor, labels: Tensor, num_classes: int, seed: int | Tensor | None = None) -> Tensor:
    """A class for each image, uniform over all but its label, ``(B,)`` int64.

    Args:
        images: ``(B, C, H, W)``, by which an int seed gives each image its own number.
        labels: ``(B,)`` int64.
        num_classes: K, at least 2.
        seed: As in the attack call.
    """
    if num_classes < 2:
        raise ValueError(f"random_targets: num_classes must be at least 2, got {num_classes}")
    # apart from the numbers that the attack itself draws
    drawn = Draws(mix(row_seeds(images, seed) + 1)).integers((1,), num_classes - 1)[:, 0]
    labels = labels.to(drawn.device)
    return drawn + (drawn >= labels)


class _Book:
    """The batch, who may be attacked, who has been fooled and by what."""

    def __init__(
        self,
        sources: Mapping[str, nn.Module],
        victims: Mapping[str, Any],
        images: Tensor,
        labels: Tensor,
        targets: Tensor | None,
        region: Region | None,
        seed: int | Tensor | None,
        keep_images: bool,
    ) -> None:
        self.sources = list(sources.values())
        self.victims = list(victims.values())
        self.oracles = [Oracle(victim) for victim in self.victims]
        self.images = images
        # clones, since what is given may be of inference mode
        self.x = images.detach().clone().to(torch.float64 if images.dtype == torch.float64 else torch.float32)
        self.labels = labels.detach().clone()
        self.targets = None if targets is None else targets.detach().clone()
        self.seeds = row_seeds(self.x, seed)
        self.region = None if region is None else region(self.x, mix_seeds(self.seeds)).expand(len(images), -1, -1, -1)
        shape = len(self.sources), len(self.victims), len(images)
        self.attempted = torch.zeros(shape, dtype=torch.bool, device=images.device)
        self.open = self.attempted.clone()
        self.success = self.attempted.clone()
        self.iterations = torch.zeros(shape, dtype=torch.int64, device=images.device)
        # Apple's GPUs have no float64
        wide = torch.float32 if images.device.type == "mps" else torch.float64
        self.norms = torch.full((3, *shape), torch.nan, dtype=wide, device=images.device)
        self.passes = torch.zeros(2, len(images), dtype=torch.int64, device=images.device)
        self.kept = self.x.expand(*shape[:2], *self.x.shape).clone() if keep_images else None

    def shared(self, source: int, victim: int) -> bool:
        return self.victims[victim] is self.sources[source]

    def attempt(self, right_sources: list[Tensor], right_victims: list[Tensor]) -> None:
        self.attempted = torch.stack(right_sources)[:, None] & torch.stack(right_victims)[None]
        self.open = self.attempted.clone()

    def keeps_label(self, model: int, x: Tensor, rows: Tensor) -> Tensor:
        """Whether a victim, asked now, gives the label; an answer that is not a number fools nobody."""
        self.passes[0].index_add_(0, rows, torch.ones_like(rows))
        answer = self.oracles[model]._answer(x)
        return self.judge(answer, rows)

    def judge(self, answer: Tensor, rows: Tensor) -> Tensor:
        """The same for logits ``(n, K)`` or classes ``(n,)`` that are already there."""
        if answer.ndim == 1:
            return answer == self.labels[rows]
        return (answer.argmax(1) == self.labels[rows]) | answer.isnan().any(1)

    def clean(self, model: Any) -> Tensor:
        """Whether a model gives the label for the clean images; one that gives no number does not."""
        self.passes[0] += 1
        answer = Oracle(model)._answer(self.x)
        if answer.ndim == 2 and bool((self.labels >= answer.shape[1]).any()):
            raise ValueError(f"transfer: {_explain(self.x, self.labels, answer.shape[1])}")
        return _right(answer, self.labels)

    def test(self, source: int, victim: int, x: Tensor, rows: Tensor, iterations: Tensor, answer: Any = None) -> None:
        """Tests the images ``x`` of some rows on a victim that they have not fooled yet.

        Args:
            source: Where they were crafted.
            victim: Which victim.
            x: ``(n, C, H, W)``.
            rows: ``(n,)`` their places in the batch; of a row that stands there several times the first success counts.
            iterations: ``(n,)``, after how many they are there.
            answer: The victim's answer to ``x`` where it is known.
        """
        still = self.open[source, victim, rows].nonzero()[:, 0]
        if not len(still):
            return
        x, rows, iterations = x[still], rows[still], iterations[still]
        kept = self.keeps_label(victim, x, rows) if answer is None else self.judge(answer[still], rows)
        fooled = (~kept).nonzero()[:, 0]
        if not len(fooled):
            return
        fooled = fooled[_first(rows[fooled])]
        x, rows = x[fooled], rows[fooled]
        delta = (x.to(self.norms.dtype) - self.x[rows].to(self.norms.dtype)).flatten(2)
        pixels = delta.abs().amax(1)
        self.norms[:, source, victim, rows] = torch.stack(
            [(pixels > 0).to(delta.dtype).mean(1), delta.square().sum((1, 2)).sqrt(), pixels.amax(1)]
        )
        self.open[source, victim, rows] = False
        self.success[source, victim, rows] = True
        self.iterations[source, victim, rows] = iterations[fooled]
        if self.kept is not None:
            self.kept[source, victim, rows] = x

    def result(self) -> TransferResult:
        names = ("l0", "l2", "linf")
        return TransferResult(
            attempted=self.attempted,
            success=self.success,
            iterations=self.iterations,
            norms=dict(zip(names, self.norms, strict=True)),
            forwards=self.passes[0],
            backwards=self.passes[1],
            images=None if self.kept is None else self.kept.to(self.images.dtype),
        )


def _attack_then_test(book: _Book, attacks: list[Attack], masked: bool, seed: int | Tensor | None) -> None:
    answers: dict[int, Tensor] = {}
    for model in [*book.sources, *book.victims]:
        if id(model) not in answers:
            answers[id(model)] = book.clean(model)
    book.attempt([answers[id(model)] for model in book.sources], [answers[id(model)] for model in book.victims])
    for number, (attack, source) in enumerate(zip(attacks, book.sources, strict=True)):
        rows = book.attempted[number].any(0).nonzero()[:, 0]
        if not len(rows):
            continue
        result = attack.run(
            source,
            book.images[rows],
            book.labels[rows],
            targets=None if book.targets is None else book.targets[rows],
            region=Mask(book.region[rows]) if masked and book.region is not None else None,
            seed=seed[rows.to(seed.device)] if isinstance(seed, Tensor) else seed,
        )
        # and the check at the end
        book.passes[0].index_add_(0, rows, result.forwards + 1)
        book.passes[1].index_add_(0, rows, result.backwards)
        crafted = result.images.to(book.x.dtype)
        for victim in range(len(book.victims)):
            answer = result.logits if book.shared(number, victim) else None
            book.test(number, victim, crafted, rows, result.iterations, answer)


def _until_fooled(book: _Book, attacks: list[Attack]) -> None:
    with contextlib.ExitStack() as stack:
        inner = [stack.enter_context(_untouched(source)) for source in book.sources]
        # for models that draw random numbers, as none of the attacks does
        stack.enter_context(torch.random.fork_rng(devices=[book.x.device] if book.x.is_cuda else []))
        paths = [
            (_Steps if _steps_alone(attack, book.targets is not None) else _Watch)(book, number, attack, model)
            for number, (attack, model) in enumerate(zip(attacks, inner, strict=True))
        ]
        # a first gradient pass that is of the clean image tells whether the source is right about it
        answers: dict[int, Tensor] = {}
        for model, path in zip(book.sources, paths, strict=True):
            known = path.begin()
            if known is not None:
                answers[id(model)] = known
        for model in [*book.sources, *book.victims]:
            if id(model) not in answers:
                answers[id(model)] = book.clean(model)
        book.attempt([answers[id(model)] for model in book.sources], [answers[id(model)] for model in book.victims])
        for path in paths:
            path.go()
            book.passes += path.problem.counts[1:]


class _Path(ABC):
    """The iterates of an attack on one source."""

    kind: type[Problem] = Problem

    def __init__(self, book: _Book, source: int, attack: Attack, model: nn.Module) -> None:
        self.book, self.source, self.attack = book, source, attack
        mask = attack._region(book.x, mix_seeds(book.seeds), None if book.region is None else Mask(book.region))
        if mask is not None:
            mask = mask.expand(len(book.x), -1, -1, -1)
        targeted = book.targets is not None
        goal = book.labels if book.targets is None else book.targets
        owner = type(attack).__name__
        meter = None
        if attack.max_queries is not None:
            meter = Meter(book.x, attack.max_queries, None, attack._measure(), None)
        self.problem = self.kind(
            model, book.x, goal, targeted, mask, Draws(book.seeds), owner=owner, labels=book.labels, meter=meter
        )

    def begin(self) -> Tensor | None:
        """Whether the source is right about the clean images, where that is found out anyway."""
        return None

    @abstractmethod
    def go(self) -> None:
        """Takes all iterations and asks the victims."""


class _Steps(_Path):
    """Plain steps down the gradient; an image leaves once all its victims are fooled."""

    attack: SteepestDescent

    def begin(self) -> Tensor | None:
        self.loss = self.attack._loss(self.problem)
        self.x = self.attack._start(self.problem)
        self.logits, _, self.gradient = self.problem.gradient(self.x, self.loss)
        return _right(self.logits, self.book.labels) if self.x is self.problem.x else None

    def go(self) -> None:
        attack, book, source = self.attack, self.book, self.source
        own = [victim for victim in range(len(book.victims)) if book.shared(source, victim)]
        others = [victim for victim in range(len(book.victims)) if victim not in own]
        steps, step_size = attack._schedule()
        rows = book.open[source].any(0).nonzero()[:, 0]
        part, x, gradient = self.problem.take(rows), self.x[rows], self.gradient[rows]
        direction = torch.zeros_like(x)
        for step in range(1, steps + 1):
            if not len(rows):
                return
            direction = attack._accumulate(direction, gradient)
            x = attack._step(part, x, direction, step_size)
            part.iterated()
            count = torch.full_like(rows, step)
            for victim in others:
                book.test(source, victim, x, rows, count)
            if step == steps:
                self._test_itself(own, x, rows, count)
                return
            rows, part, x, direction = self._leave(rows, part, x, direction)
            if not len(rows):
                return
            # the pass for the next step is also the source's answer to this one
            logits, _, gradient = part.gradient(x, self.loss)
            for victim in own:
                book.test(source, victim, x, rows, torch.full_like(rows, step), logits)
            rows, part, x, direction, gradient = self._leave(rows, part, x, direction, gradient)

    def _test_itself(self, own: list[int], x: Tensor, rows: Tensor, count: Tensor) -> None:
        still = self.book.open[self.source, own][:, rows].any(0).nonzero()[:, 0] if own else rows[:0]
        if not len(still):
            return
        # every one of `own` is the same model
        logits = self.problem.take(rows[still]).logits(x[still])
        for victim in own:
            self.book.test(self.source, victim, x[still], rows[still], count[still], logits)

    def _leave(self, rows: Tensor, part: Problem, *tensors: Tensor) -> Any:
        going = self.book.open[self.source][:, rows].any(0)
        if bool(going.all()):
            return rows, part, *tensors
        kept = going.nonzero()[:, 0]
        return rows[kept], part.take(kept), *(tensor[kept] for tensor in tensors)


class _WatchedProblem(Problem):
    """Shows every image that goes through the model."""

    watch: Callable[[Tensor, Tensor, Tensor], None] | None = None

    def _forward(self, x: Tensor) -> Tensor:
        logits = super()._forward(x)
        if self.watch is not None:
            index = torch.arange(len(x), device=x.device) if self._index is None else self._index
            self.watch(x.detach(), logits.detach(), index)
        return logits


class _Watch(_Path):
    """Any other attack, told nothing: what it looks at is tested."""

    kind = _WatchedProblem
    problem: _WatchedProblem

    def go(self) -> None:
        book, source = self.book, self.source
        rows = book.open[source].any(0).nonzero()[:, 0]
        if not len(rows):
            return
        self.problem.watch = self._test
        # where the queries are used up, all that was found has been tested
        with contextlib.suppress(_AllFooled, Spent):
            crafted = self.attack._solve(self.problem.take(rows))
            # which it may not have looked at in this precision, or not at all
            self.problem.watch = None
            part = self.problem.take(rows)
            self._test(crafted, part.logits(crafted), rows)

    def _test(self, x: Tensor, logits: Tensor, rows: Tensor) -> None:
        book, source = self.book, self.source
        x = _restricted(self.problem, x, rows)
        count = self.problem.counts[1, rows]
        for victim in range(len(book.victims)):
            book.test(source, victim, x, rows, count, logits if book.shared(source, victim) else None)
        if not bool(book.open[source].any()):
            raise _AllFooled


class _AllFooled(Exception):  # no error: it ends an attack that has nothing left to do
    """Every image has fooled all its victims."""


def _attacks(attack: Attack | Mapping[str, Attack], sources: Mapping[str, nn.Module]) -> list[Attack]:
    """One attack a source."""
    if not sources:
        raise ValueError("transfer: sources must be at least one network by name, got none")
    given = dict.fromkeys(sources, attack) if isinstance(attack, Attack) else dict(attack)
    for name in sources:
        if not isinstance(given.get(name), Attack):
            raise ValueError(f"transfer: attack must be an attack, or one for each source, got none for {name!r}")
    unknown = [name for name in given if name not in sources]
    if unknown:
        raise ValueError(f"transfer: attack must be for sources ({', '.join(sources)}), got one for {unknown[0]!r}")
    return [given[name] for name in sources]


def _steps_alone(attack: Attack, targeted: bool) -> bool:
    """Whether an attack is its steps and nothing else, so that images may leave between them."""
    kind = type(attack)
    if not isinstance(attack, SteepestDescent) or attack.restarts > 1:
        return False
    loss = getattr(kind, "_loss")  # noqa: B009
    own = any(getattr(kind, name) is not getattr(SteepestDescent, name) for name in ("_craft", "_descend"))
    # a loss of its own may belong to the whole batch, of which images could not leave; a targeted ILLC has none
    return not own and (loss is SteepestDescent._loss or (isinstance(attack, ILLC) and targeted))


def _right(answer: Tensor, labels: Tensor) -> Tensor:
    if answer.ndim == 1:
        return answer == labels
    return (answer.argmax(1) == labels) & ~answer.isnan().any(1)


def _restricted(problem: Problem, x: Tensor, rows: Tensor) -> Tensor:
    x = x.to(problem.x.dtype).clamp(0, 1)
    return x if problem.mask is None else torch.where(problem.mask[rows] > 0, x, problem.x[rows])


def _first(rows: Tensor) -> Tensor:
    """Where each number stands for the first time, ``(distinct,)``."""
    place = torch.arange(len(rows), device=rows.device)
    _, group = rows.unique(return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(rows), device=rows.device)
    return first.scatter_reduce_(0, group, place, "amin")
