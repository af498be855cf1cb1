"""The attack call: what every attack takes, gives and guarantees."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lit_adv.attacks.fingerprint import fingerprint
from lit_adv.attacks.folding import folded
from lit_adv.attacks.metering import Cost, Meter, Spent, measured
from lit_adv.attacks.norms import Norm, norm
from lit_adv.attacks.objectives import Objective, margin
from lit_adv.attacks.randomness import Draws, row_seeds
from lit_adv.attacks.regions import Region

Mode = Literal["eval", "keep"]


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """What `Attack.run` returns; every field but ``norms`` is a tensor with one row an image.

    Attributes:
        images: ``(B, C, H, W)``, dtype and device of the input.
        success: bool, re-checked on ``images``: prediction != label, or == target where targeted. A model that gives
            NaN has not been fooled.
        target: int64, the class to reach; -1 where untargeted.
        logits: ``(B, K)``, the model's answer to ``images``.
        iterations: int64, steps taken (over all restarts and searches).
        forwards: int64, times the image went through the model, the final check not counted.
        backwards: int64, times a gradient came back.
        queries: int64, model outputs the attack has looked at (= ``forwards``).
        norms: ``l0`` (pixels changed in any channel), ``l1``, ``l2``, ``linf`` of the perturbation.
    """

    images: Tensor
    success: Tensor
    target: Tensor
    logits: Tensor
    iterations: Tensor
    forwards: Tensor
    backwards: Tensor
    queries: Tensor
    norms: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.images)

    def robust_accuracy(self, eps: float | Sequence[float] | Tensor, norm: str = "linf") -> Tensor:
        """Share of the images for which no success within ``eps`` was found, in [0, 1]; NaN where there is no image.

        Run the attack with the labels: then an image misclassified without any perturbation is not robust at 0.

        Args:
            eps: Radius or radii, in pixel units of [0, 1] (``l0``: pixels).
            norm: ``linf``, ``l2``, ``l1`` or ``l0``.

        Returns:
            float64, the shape of ``eps``: a curve over radii where there are several.

        Raises:
            ValueError: No such norm.
        """
        if norm not in self.norms:
            raise ValueError(f"AttackResult.robust_accuracy: norm must be one of {', '.join(self.norms)}, got {norm!r}")
        radii = torch.as_tensor(eps, dtype=torch.float64, device=self.success.device)
        needed = self.norms[norm].double().masked_fill(~self.success, math.inf)
        # a perturbation of 8/255 in float32 is a little more or less than 8/255
        return (needed > radii[..., None] * (1 + 1e-6) + 1e-7).double().mean(-1)

    def mean_norm(self, norm: str = "l2") -> float:
        """Mean size of the perturbations that succeed; NaN where none does."""
        return float(self.norms[norm][self.success].double().mean())

    def to(self, device: torch.device | str) -> AttackResult:
        """The same on another device, e.g. before results of several ranks are joined."""
        fields = {f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self) if f.name != "norms"}
        return AttackResult(norms={name: size.to(device) for name, size in self.norms.items()}, **fields)

    @classmethod
    def cat(cls, results: Sequence[AttackResult]) -> AttackResult:
        """The results of several batches, or ranks, as one."""
        if not results:
            raise ValueError("AttackResult.cat: results must hold at least one result, got none")
        # an empty batch has not seen the model and knows neither its classes nor anything else
        filled = [result for result in results if len(result)] or [results[0]]
        fields = {
            field.name: torch.cat([getattr(result, field.name) for result in filled])
            for field in dataclasses.fields(cls)
            if field.name != "norms"
        }
        norms = {name: torch.cat([result.norms[name] for result in filled]) for name in filled[0].norms}
        return cls(norms=norms, **fields)


class Problem:
    """What a concrete attack works on: images, goal classes, mask, random numbers and counted access to the model.

    All tensors have one row an image still worked on; `take` gives the same problem for some of the rows.

    Attributes:
        x: ``(B, C, H, W)`` clean images in the working precision (float32, or float64 for float64 images).
        classes: ``(B,)`` the classes to reach where targeted, else those to leave.
        targeted: Whether ``classes`` are targets.
        mask: ``(B, 1, H, W)`` of zeros and ones, or None where every pixel may change.
        draws: The rows' random numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        classes: Tensor,
        targeted: bool,
        mask: Tensor | None,
        draws: Draws,
        *,
        owner: str = "Problem",
        labels: Tensor | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.x = x
        self.classes = classes
        self.targeted = targeted
        self.mask = mask
        self.draws = draws
        self._model = self._whole = model
        self._owner = owner
        self._index: Tensor | None = None
        self._meter = meter
        self._given = classes if labels is None else torch.cat([classes, labels])
        self._bad = _bad_input(x, self._given)
        self._checked = [False]  # shared by `take`: one wait for the device a call
        self.counts = torch.zeros(3, len(x), dtype=torch.int64, device=x.device)  # iterations, forwards, backwards

    def __len__(self) -> int:
        return len(self.x)

    @property
    def max_queries(self) -> int | None:
        """Most forward passes an image may take in this call, or None; a pass beyond it ends the call."""
        return None if self._meter is None else self._meter.max_queries

    def take(self, chosen: Tensor) -> Problem:
        """The problem for the rows ``chosen``; counts go on into the whole problem's.

        An index may stand there several times, as for the candidates of a population: each is counted.
        """
        part = self._twin()
        part.x = self.x[chosen]
        part.classes = self.classes[chosen]
        part.mask = None if self.mask is None else self.mask[chosen]
        part.draws = self.draws.take(chosen)
        part._index = chosen if self._index is None else self._index[chosen]
        return part

    def logits(self, x: Tensor) -> Tensor:
        """Logits of ``x`` without a graph, in the working precision."""
        with torch.no_grad():
            return self._forward(x)

    def gradient(self, x: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """One forward and one backward pass.

        Returns:
            Logits ``(B, K)``, the objective ``(B,)`` and its gradient in ``x``, zero outside the mask. An element that
            is not a number, which a saturated model can give, is 0.
        """
        x = x.detach().requires_grad_()
        logits = self._forward(x)
        losses = objective(logits, self.classes, self.targeted)
        return logits.detach(), losses.detach(), self.backward(losses.sum(), x)

    def graph(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` as a leaf and its logits with their graph, for attacks that take several gradients of one pass."""
        x = x.detach().requires_grad_()
        # a compiled model's graph gives one gradient only; where nothing is compiled, the compiler is not even loaded
        eager = "torch._dynamo" in sys.modules
        with torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext():
            return x, self._forward(x)

    def backward(self, total: Tensor, x: Tensor, *, keep_graph: bool = False) -> Tensor:
        """The masked gradient of a scalar in ``x``; never touches the parameters' ``.grad``."""
        self._count(2)
        gradient = None
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, x, retain_graph=keep_graph, allow_unused=True)
        if gradient is None:  # a model that ignores its input
            return torch.zeros_like(x)
        if 0 in gradient.stride():  # that of a sum is one number, expanded, and cannot be written to
            gradient = gradient.contiguous()
        gradient = gradient.nan_to_num_(0.0)
        return gradient if self.mask is None else gradient.mul_(self.mask)

    def succeeded(self, logits: Tensor) -> Tensor:
        """Which rows have reached their goal, ``(B,)`` bool."""
        return reached(logits, self.classes, self.targeted)

    def restrict(self, x: Tensor) -> Tensor:
        """``x`` clamped to [0, 1] inside the mask, the clean pixels outside."""
        x = x.clamp(0, 1)
        return x if self.mask is None else torch.where(self.mask > 0, x, self.x)

    def iterated(self) -> None:
        """Counts one iteration of every row."""
        self._count(0)

    def in_float32(self) -> bool:
        """Whether images and model are in float32, cast for its operations or not."""
        return self.x.dtype == torch.float32 == _dtype(self._model, self.x)

    def cast(self) -> bool:
        """Whether operations are cast to a lower precision."""
        return torch.is_autocast_enabled(self.x.device.type)

    def fold(self, *, required: bool) -> None:
        """Calls a folded snapshot of the model from now on, where there is one; with the check of the input."""
        # compared without autocast, whose rounding is larger than what a wrong snapshot may be off
        with torch.autocast(self.x.device.type, enabled=False):
            found = folded(self._model, self.x[:1].to(_dtype(self._model, self.x)))
        if found is not None:
            snapshot, agree, classes = found
            bad, agrees = torch.stack([self._bad | (self._given >= classes).any(), agree]).tolist()
            if bad:
                raise ValueError(f"{self._owner}: {_explain(self.x, self._given, classes)}")
            self._checked[0] = True
            if agrees:
                self._model = snapshot
                return
        if required:
            raise ValueError(
                f"{self._owner}: fold must be False or None for this model: it is compiled, has hooks or writes to its"
                " own attributes, which a snapshot would lose, or its snapshot gives other answers"
            )

    @property
    def folded(self) -> bool:
        """Whether a snapshot is called in the model's place."""
        return self._model is not self._whole

    def lost(self, crafted: Tensor) -> Tensor:
        """The rows ``(n,)`` of ``crafted`` that fool the snapshot, or all but fool it, but not the model itself."""
        with torch.no_grad():
            missed = (~self.succeeded(_call(self._whole, crafted))).nonzero()[:, 0]
            if not len(missed):
                return missed
            part, logits = self.take(missed), _call(self._model, crafted[missed]).to(crafted.dtype)
            # from batch to batch the snapshot's own answers differ by their rounding too
            near = 1e-3 * logits.abs().amax(1)
            return missed[margin(logits, part.classes, part.targeted) <= near]

    def anew(self, chosen: Tensor) -> Problem:
        """The problem for the rows ``chosen`` as it was at the start, for the model itself."""
        part = self.take(chosen).itself()
        part.draws = Draws(part.draws.seeds)
        return part

    def itself(self) -> Problem:
        """The same problem for the model itself, where a snapshot is called in its place."""
        part = self._twin()
        part._model = self._whole
        return part

    def check(self) -> None:
        """Raises ValueError for images or classes that no attack can take; waits for the device, once a call."""
        if not self._checked[0]:
            self._checked[0] = True
            if bool(self._bad.any()):
                raise ValueError(f"{self._owner}: {_explain(self.x, self._given)}")

    def _twin(self) -> Problem:
        # quicker than copy.copy, and called in every step
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def _forward(self, x: Tensor) -> Tensor:
        if self._meter is not None:
            self._meter.before(self.counts[1], self._index, len(x))
        logits = _call(self._model, x)
        self._count(1)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"{self._owner}: model must return logits of shape ({len(x)}, K), got {found}")
        if not self._checked[0]:
            self._bad = self._bad | (self._given >= logits.shape[1]).any()
            if bool(self._bad.any()):
                self._checked[0] = True
                raise ValueError(f"{self._owner}: {_explain(self.x, self._given, logits.shape[1], self._index)}")
            self._checked[0] = True
        logits = logits.to(x.dtype)
        if self._meter is not None:
            self._meter.after(x.detach(), self.x, self.succeeded(logits.detach()), self._index)
        return logits

    def _count(self, what: int) -> None:
        if self._index is None:
            self.counts[what].add_(1)
        else:
            self.counts[what].index_add_(0, self._index, torch.ones_like(self._index))


class Attack(ABC):
    """An adversarial attack: hyperparameters in, ``attack(model, images, labels)`` gives adversarial images.

    Concrete attacks are frozen keyword-only dataclasses that say how to craft; this class gives all of them the same
    guarantees. The model is left as it was, also after an exception: the train flag of every module, buffers,
    parameters, ``.grad``, hooks; batch statistics do not move, since every module is in eval mode meanwhile (what a
    model's own forward pass writes elsewhere is its own affair). The global random state and the input are untouched,
    also where the model draws random numbers. The call works inside ``no_grad``, ``inference_mode`` and autocast, with
    models in bfloat16 or float64 and with models wrapped in DistributedDataParallel (the wrapped module is called, so
    nothing is reduced). Pixels stay in [0, 1], in the budget, and bit for bit as they were outside the region.

    An image's result does not depend on the rest of its batch, but for the rounding of the model, whose answer to an
    image can differ in the last bits from batch to batch: invisible in float64, while in float32 it can flip the sign
    of a gradient near 0.
    """

    minimal_norm: ClassVar[bool] = False  # looks for the smallest perturbation: images that succeed already stay as are
    family: ClassVar[str | None] = None  # in hierarchical scores; None derives it (`traits.attack_family`)
    fold: bool | None = False  # a field of the attacks that take many passes
    max_queries: int | None = None  # a field of the attacks that only see the model's answers

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        targets: Tensor | None = None,
        region: Region | None = None,
        seed: int | Tensor | None = None,
        mode: Mode = "eval",
    ) -> Tensor:
        """Adversarial versions of ``images``.

        Args:
            model: Maps images in [0, 1] to logits ``(B, K)``; normalisation is its own first layer.
            images: ``(B, C, H, W)``, floating point, in [0, 1].
            labels: ``(B,)`` int64, the classes to leave. Pass the clean predictions for the papers' fooling rate.
            targets: ``(B,)`` int64, the classes to reach; the attack is targeted where they are given.
            region: The only pixels that may change; all of them without one.
            seed: An int, a ``(B,)`` int64 tensor of one seed an image, or None for fresh random numbers.
            mode: ``eval`` puts every module into eval mode meanwhile; ``keep`` leaves each in its own, as some
                adversarial training does. What a module in train mode writes into its buffers is undone, but an image's
                result then depends on its batch, and nothing is folded.

        Returns:
            ``(B, C, H, W)`` with the dtype and device of ``images``. Where the attack fails: its last iterate if it has
            a budget, the clean image if not.

        Raises:
            ValueError: Images outside [0, 1], not finite or not floating point, labels or targets of another shape or
                not a class of the model, logits of another shape, a mode that is none of the two.
        """
        return self._attack(model, images, labels, targets, region, seed, mode)[0]

    def run(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        targets: Tensor | None = None,
        region: Region | None = None,
        seed: int | Tensor | None = None,
        mode: Mode = "eval",
        max_queries: int | None = None,
        max_seconds: float | None = None,
        progress: bool = False,
    ) -> AttackResult:
        """As the call, with success, counts and norms for every image; one forward pass more, for the re-check.

        Args:
            model: See the call.
            images: See the call.
            labels: See the call.
            targets: See the call.
            region: See the call.
            seed: See the call.
            mode: See the call; the re-check is made in it too.
            max_queries: Most forward passes an image may take; the call ends before the first that is too many for any
                image of the batch, with what has been found by then.
            max_seconds: Ends the call at the first pass after this time.
            progress: Shows a progress bar on the error stream.
        """
        for field, limit in (("max_queries", max_queries), ("max_seconds", max_seconds)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{type(self).__name__}: {field} must be greater than 0, got {limit!r}")
        limits = max_queries, max_seconds, progress
        adversarial, counts = self._attack(model, images, labels, targets, region, seed, mode, *limits)
        goal = (labels if targets is None else targets).to(images.device)
        logits = adversarial.new_zeros(0, 0)
        if len(images):
            with _untouched(model, mode) as inner, torch.no_grad():
                logits = _call(inner, adversarial).clone()
        success = reached(logits, goal, targets is not None) if len(images) else goal.bool()
        delta = (adversarial.double() - images.double()).flatten(2)
        pixels = delta.abs().amax(1) if delta.shape[1] else delta.sum(1)
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32  # half precision cannot count pixels
        return AttackResult(
            images=adversarial,
            success=success,
            target=torch.full_like(goal, -1) if targets is None else goal.clone(),
            logits=logits,
            iterations=counts[0],
            forwards=counts[1],
            backwards=counts[2],
            queries=counts[1].clone(),
            norms={
                "l0": (pixels > 0).sum(1).to(dtype),
                "l1": delta.abs().sum((1, 2)).to(dtype),
                "l2": delta.square().sum((1, 2)).sqrt().to(dtype),
                "linf": (pixels.amax(1) if pixels.shape[1] else pixels.sum(1)).to(dtype),
            },
        )

    def cost(self, model: nn.Module, images: Tensor) -> Cost:
        """What the attack will take at most on ``images``, from a few passes of up to 32 of them.

        Args:
            model: Maps images in [0, 1] to logits.
            images: ``(B, C, H, W)``, as for the call.
        """
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        _check_shapes(type(self).__name__, images, labels, None)
        if not len(images):
            return Cost(forwards=0, backwards=0, images=0, seconds=0)
        with _untouched(model) as inner:
            few = images[:32].detach().clone().requires_grad_()
            with torch.no_grad():
                classes = _call(inner, few).shape[1]
                forward = measured(lambda: _call(inner, few), few.device) / len(few)

            def gradient() -> None:
                total = _call(inner, few).sum()
                if total.requires_grad:
                    torch.autograd.grad(total, few, allow_unused=True)

            both = measured(gradient, few.device) / len(few)
        found = self._passes_of(classes, images.shape[1:])
        forwards, backwards = (math.nan, math.nan) if found is None else found
        if self.max_queries is not None:
            forwards = min(forwards, self.max_queries)
        seconds = len(images) * (forwards * forward + backwards * max(both - forward, 0))
        return Cost(forwards=forwards, backwards=backwards, images=len(images), seconds=seconds)

    def within_budget(self, clean: Tensor, images: Tensor) -> Tensor:
        """``images`` brought into the attack's ball around ``clean`` where they have left it."""
        budget = self._budget()
        return images if budget is None else budget[0].enforce(clean, images, budget[1])

    def fingerprint(self) -> str:
        """SHA-256 over class and fields, 64 hexadecimal digits, the same in every process."""
        return fingerprint(self)

    @classmethod
    @abstractmethod
    def example(cls) -> Attack:
        """A small valid instance, quick enough for a test."""

    @abstractmethod
    def _craft(self, problem: Problem) -> Tensor:
        """Adversarial images for ``problem``, ``(B, C, H, W)`` in its working precision."""

    def _passes(self, classes: int) -> tuple[float, float] | None:
        """Most forward and backward passes an image takes with a model of so many classes; None: unknown."""
        return None

    def _passes_of(self, classes: int, shape: torch.Size) -> tuple[float, float] | None:
        """`_passes`, for attacks that take more of them for larger images ``(C, H, W)``."""
        return self._passes(classes)

    def _region(self, images: Tensor, seeds: Tensor, region: Region | None) -> Tensor | None:
        """The mask of a call; attacks with a place of their own combine it with the region."""
        return None if region is None else region(images, seeds)

    def _budget(self) -> tuple[Norm, float] | None:
        """Norm and radius that the result must keep, or None."""
        if not hasattr(self, "eps") or not hasattr(self, "norm"):
            return None
        return norm(self.norm, type(self).__name__), float(self.eps)

    def _attack(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        targets: Tensor | None,
        region: Region | None,
        seed: int | Tensor | None,
        mode: Mode = "eval",
        max_queries: int | None = None,
        max_seconds: float | None = None,
        progress: bool = False,
    ) -> tuple[Tensor, Tensor]:
        name = type(self).__name__
        _check_shapes(name, images, labels, targets)
        _check_place(name, model, images, labels, targets)
        if region is not None and not isinstance(region, Region):
            raise ValueError(f"{name}: region must be a Region such as Center(size=16), got {type(region).__name__}")
        if mode not in ("eval", "keep"):
            raise ValueError(f"{name}: mode must be eval or keep, got {mode!r}")
        with contextlib.ExitStack() as stack:
            inner = stack.enter_context(_untouched(model, mode))
            # for models that draw random numbers, as none of the attacks does
            stack.enter_context(torch.random.fork_rng(devices=[images.device] if images.is_cuda else []))
            # clones: a tensor made in inference mode cannot enter autograd
            x = images.detach().clone().to(torch.float64 if images.dtype == torch.float64 else torch.float32)
            labels = labels.detach().to(images.device, copy=True)
            goal = labels if targets is None else targets.detach().to(images.device, copy=True)
            seeds = row_seeds(x, seed, name)
            if not len(images):
                return images.detach().clone(), torch.zeros(3, 0, dtype=torch.int64, device=images.device)
            mask = self._region(x, mix_seeds(seeds), region)
            if mask is not None:
                mask = mask.expand(len(x), -1, -1, -1)
            limits = [limit for limit in (max_queries, self.max_queries) if limit is not None]
            meter = None
            if limits or max_seconds is not None or progress:
                tick = stack.enter_context(self._bar(x.shape)) if progress else None
                meter = Meter(x, min(limits, default=None), max_seconds, self._measure(), tick)
            problem = Problem(
                inner, x, goal, targets is not None, mask, Draws(seeds), owner=name, labels=labels, meter=meter
            )
            if self._folds(problem) and not _trains(inner):
                problem.fold(required=bool(self.fold))
            elif self.fold:
                raise ValueError(f"{name}: fold must be False or None for a model in train mode, got True")
            try:
                crafted = self._solve(problem)
                if self.minimal_norm and problem.folded:
                    # so near to the boundary that the snapshot's rounding decides
                    lost = problem.lost(crafted)
                    if len(lost):
                        crafted = crafted.index_copy(0, lost, self._solve(problem.anew(lost)))
            except Spent:
                assert meter is not None
                crafted = self._keep_budget(problem, meter.images)
            problem.check()
            if self._budget() is None:
                return crafted.to(images.dtype), problem.counts
            return _round_towards(crafted, x, images.dtype), problem.counts

    def _solve(self, problem: Problem) -> Tensor:
        """`_craft`, kept in the box, the mask and the budget; also for an attack that is a part of another."""
        budget = self._budget()
        if budget is not None and budget[1] == 0:
            return problem.x
        return self._keep_budget(problem, self._craft(problem).detach())

    def _keep_budget(self, problem: Problem, crafted: Tensor) -> Tensor:
        crafted = problem.restrict(crafted)
        budget = self._budget()
        return crafted if budget is None else problem.restrict(budget[0].enforce(problem.x, crafted, budget[1]))

    def _measure(self) -> Callable[[Tensor], Tensor] | None:
        """How large a perturbation is to an attack that looks for a small one."""
        return norm(getattr(self, "norm", "l2")).size if self.minimal_norm else None

    def _folds(self, problem: Problem) -> bool:
        """Whether a folded snapshot is asked for, or repays itself."""
        if self.fold is not None:
            return self.fold
        passes = self._passes_of(10, problem.x.shape[1:])
        # in low precision a boundary is too blurred to say whether it was the snapshot that missed it
        if passes is None or (self.minimal_norm and problem.cast()):
            return False
        # a snapshot costs about a pass of 32 images; float64 is asked for where every bit matters
        return passes[0] >= 5 and passes[0] * len(problem) >= 240 and problem.in_float32()

    @contextlib.contextmanager
    def _bar(self, shape: torch.Size) -> Iterator[Callable[[int], None]]:
        from rich.console import Console
        from rich.progress import Progress

        found = self._passes_of(10, shape[1:])
        total = None if found is None or not math.isfinite(found[0]) else found[0] * shape[0]
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(type(self).__name__, total=total)
            yield lambda rows: bar.advance(task, rows)


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes ``(B,)`` as an attack sees them: in eval mode, unwrapped, in the precision of the weights."""
    with _untouched(model) as inner, torch.no_grad():
        # cloned, as a tensor made in inference mode cannot enter autograd
        answer: Tensor = _call(inner, images.detach().clone()).argmax(1) if len(images) else images.new_zeros(0).long()
    return answer


@contextlib.contextmanager
def examined(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Problem]:
    """What an attack without targets and region works on, for those who measure gradients rather than follow them.

    Model, random state and input are as they were afterwards.

    Args:
        model: Maps images in [0, 1] to logits.
        images: ``(B, C, H, W)`` in [0, 1].
        labels: ``(B,)`` int64.
    """
    with _untouched(model) as inner, torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        x = images.detach().clone().to(torch.float64 if images.dtype == torch.float64 else torch.float32)
        labels = labels.detach().to(images.device, copy=True)
        yield Problem(inner, x, labels, False, None, Draws(torch.zeros_like(labels)), owner="examined")


def reached(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    """Which rows have reached their goal, ``(B,)`` bool; NaN is no success."""
    hit = logits.argmax(1) == classes
    return (hit if targeted else ~hit) & ~logits.isnan().any(1)


def mix_seeds(seeds: Tensor) -> Tensor:
    """Seeds for a second, independent use of the same rows' seeds."""
    return seeds ^ 0x5DEECE66D


@contextlib.contextmanager
def _untouched(model: nn.Module, mode: Mode = "eval") -> Iterator[nn.Module]:
    """The module to call, in ``mode`` and with autograd on; module flags and buffers are as before afterwards."""
    inner = model
    while isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel):
        inner = inner.module
    modules = list(inner.modules()) if isinstance(inner, nn.Module) else []
    # most models come in eval mode, and setting a module's attribute takes its time
    trained = [module for module in modules if module.training]
    # modules in train mode write to their buffers: they get copies of them
    buffers = [dict(module._buffers) for module in modules] if trained and mode == "keep" else []
    trained = [] if mode == "keep" else trained
    # inside a larger model a wrapper has to be called, and would broadcast its buffers
    wrappers = [module for module in modules if isinstance(module, nn.parallel.DistributedDataParallel)]
    synced = [(wrapper.require_forward_param_sync, wrapper.require_backward_grad_sync) for wrapper in wrappers]
    try:
        for module in trained:
            # the attribute, not eval(): a module may override train(), and a frozen one must come back as it was
            module.training = False
        for wrapper in wrappers:
            wrapper.require_forward_param_sync = wrapper.require_backward_grad_sync = False
        with torch.inference_mode(False), torch.enable_grad():
            copies: dict[int, Tensor | None] = {}
            for module, own in zip(modules, buffers, strict=False):
                for name, buffer in own.items():
                    if id(buffer) not in copies:
                        copies[id(buffer)] = None if buffer is None else buffer.clone()
                    module._buffers[name] = copies[id(buffer)]
            yield inner
    finally:
        for module in trained:
            module.training = True
        for module, own in zip(modules, buffers, strict=False):
            module._buffers.update(own)
        for wrapper, (forward, backward) in zip(wrappers, synced, strict=True):
            wrapper.require_forward_param_sync, wrapper.require_backward_grad_sync = forward, backward


def _trains(model: Any) -> bool:
    return isinstance(model, nn.Module) and any(module.training for module in model.modules())


def _call(model: Any, x: Tensor) -> Any:
    """The model's output for ``x``, given in the precision of its parameters."""
    kind = x.device.type
    # a weight cast under no_grad and kept by autocast would reach the user's own step without its gradient
    uncached = (
        torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False)
        if torch.is_autocast_enabled(kind)
        else contextlib.nullcontext()
    )
    # a copy, since a model may normalise in place
    x = x.to(_dtype(model, x), copy=True)
    with uncached:
        return model(x)


def _dtype(model: Any, x: Tensor) -> torch.dtype:
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((p.dtype for p in parameters if p.is_floating_point()), x.dtype)


def _check_shapes(name: str, images: Tensor, labels: Tensor, targets: Tensor | None) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        found = (
            f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise ValueError(
            f"{name}: images must be a floating-point tensor (B, C, H, W) in [0, 1], got {found} "
            "(8-bit images: images.float() / 255)"
        )
    if images.layout != torch.strided or (len(images) and not images.numel()):
        found = f"shape {tuple(images.shape)}" if images.layout == torch.strided else f"layout {images.layout}"
        raise ValueError(f"{name}: images must be dense and have pixels, got {found} (look at how they are loaded)")
    for field, classes in (("labels", labels), ("targets", targets)):
        if classes is None and field == "targets":
            continue
        if not isinstance(classes, Tensor) or classes.shape != images.shape[:1] or classes.dtype != torch.int64:
            found = (
                f"{classes.dtype} of shape {tuple(classes.shape)}"
                if isinstance(classes, Tensor)
                else type(classes).__name__
            )
            raise ValueError(f"{name}: {field} must be an int64 tensor of shape ({len(images)},), got {found}")


def _check_place(name: str, model: nn.Module, images: Tensor, labels: Tensor, targets: Tensor | None) -> None:
    """Refuses tensors without values, and images that lie where nothing of the model does."""
    for field, tensor in (("images", images), ("labels", labels), ("targets", targets)):
        if tensor is not None and tensor.device.type == "meta":
            raise ValueError(f"{name}: {field} must hold values, got a tensor on the device meta (load or make them)")
    # sharded and offloaded models, which bring their weights by hooks of their own, know better
    plain = isinstance(model, nn.Module) and not model._forward_pre_hooks and "forward" not in vars(model)
    weights = list(model.parameters()) if plain else []
    if weights and all(type(each) is nn.Parameter and each.device != images.device for each in weights):
        raise ValueError(
            f"{name}: images must be on the model's device, {weights[0].device}, got {images.device} "
            f"(images.to('{weights[0].device}'))"
        )


def _bad_input(x: Tensor, classes: Tensor) -> Tensor:
    if not x.numel():
        return (classes < 0).any()
    low, high = x.aminmax()  # both NaN where there is one, which no comparison holds for
    return ~((low >= 0) & (high <= 1)) | (classes < 0).any()


def _explain(x: Tensor, classes: Tensor, num_classes: int | None = None, places: Tensor | None = None) -> str:
    if not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
        # an attack may ask about several copies of each image
        row = row if places is None else int(places[row])
        return (
            f"images must be finite, image {row} of the batch holds NaN or infinity (look at the data or the network)"
        )
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        if low < -0.01 and high < 10:
            hint = "normalisation belongs inside the model: hand over the images before mean and std"
        else:
            hint = "8-bit images: divide by 255" if high > 2 else "use images.clamp(0, 1)"
        return f"images must be in [0, 1], got values from {low:.6g} to {high:.6g} ({hint})"
    top = f" to {num_classes - 1}" if num_classes is not None else ""
    return f"labels and targets must be classes 0{top} of the model, got {int(classes.min())} to {int(classes.max())}"


def _round_towards(crafted: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``crafted`` in ``dtype``; where rounding would enlarge the perturbation, the next number towards ``x``."""
    rounded = crafted.to(dtype)
    if dtype == crafted.dtype:
        return rounded
    grown = (rounded.to(x.dtype) - x).abs() > (crafted - x).abs()
    return torch.where(grown, torch.nextafter(rounded, x.to(dtype)), rounded)
