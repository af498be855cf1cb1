"""DeepFool: the nearest decision boundary of the linearised network, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.norms import DenseNormName, Norm, norm, rows


@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """DeepFool, Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2.

    An image that is not fooled within ``steps`` comes back clean. Targeted, each step goes to the boundary between the
    target and its strongest rival. A step costs two forward passes (one without a graph, which
    tells who is done) and a backward pass for every candidate but the label: s steps cost 2 s + 1 and (K - 1) s. Memory
    does not grow with the number of classes.

    Args:
        norm: Norm in which the boundary is nearest.
        steps: Most steps an image takes.
        overshoot: The perturbation is enlarged by this share, to cross the boundary rather than to reach it.
        candidates: Classes looked at, the label included: those with the largest clean logits. None looks at all.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    norm: DenseNormName = "l2"
    steps: int = 50
    overshoot: float = 0.02
    candidates: int | None = 10
    fold: bool | None = None

    minimal_norm = True

    def __post_init__(self) -> None:
        norm(self.norm, "DeepFool", ("linf", "l2"))
        if self.steps < 1:
            raise ValueError(f"DeepFool: steps must be at least 1, got {self.steps}")
        if not 0 <= self.overshoot < math.inf:
            raise ValueError(f"DeepFool: overshoot must be at least 0, got {self.overshoot:g}")
        if self.candidates is not None and self.candidates < 2:
            raise ValueError(f"DeepFool: candidates must be at least 2 (the label is one), got {self.candidates}")

    @classmethod
    def example(cls) -> DeepFool:
        return cls(steps=10)

    def _passes(self, classes: int) -> tuple[float, float]:
        looked_at = classes if self.candidates is None else min(self.candidates, classes)
        return 2 * self.steps + 1, (looked_at - 1) * self.steps

    def _craft(self, problem: Problem) -> Tensor:
        result = problem.x.clone()
        active = torch.arange(len(result), device=result.device)
        part, x, total = problem, problem.x, torch.zeros_like(problem.x)
        candidates: Tensor | None = None
        for _ in range(self.steps):
            # without a graph first: the gradients, which cost more, are then taken of nobody who is done
            done = part.succeeded(part.logits(x))
            if bool(done.any()):
                result[active[done]] = x[done]
                kept = (~done).nonzero()[:, 0]
                if not len(kept):
                    return result
                active, part, x, total = active[kept], part.take(kept), x[kept], total[kept]
                candidates = None if candidates is None else candidates[kept]
            leaf, logits = part.graph(x)
            if candidates is None:
                candidates = self._rivals(logits, part)
            # beyond 1 lies no image; without the clamp a vanishing gradient ends in infinity
            total = (total + self._to_boundary(part, leaf, logits, candidates, total)).clamp_(-1, 1)
            x = part.restrict(part.x + (1 + self.overshoot) * total)
            part.iterated()
        done = part.succeeded(part.logits(x))
        result[active] = torch.where(rows(done), x, part.x)
        return result

    def _rivals(self, logits: Tensor, problem: Problem) -> Tensor:
        """The classes whose boundaries are looked at, ``(B, candidates - 1)``; one column, unused, where targeted."""
        if problem.targeted:
            return problem.classes[:, None]
        count = logits.shape[1] if self.candidates is None else min(self.candidates, logits.shape[1])
        others = logits.detach().scatter(1, problem.classes[:, None], -math.inf)
        return others.topk(count - 1, dim=1).indices

    def _to_boundary(self, problem: Problem, leaf: Tensor, logits: Tensor, candidates: Tensor, total: Tensor) -> Tensor:
        """The shortest step to one of the linearised boundaries, at least a thousandth of the way so far."""
        ball = norm(self.norm)
        nearest, _, normal = nearest_boundary(problem, ball, leaf, logits, candidates)
        # where pixels are clipped every step falls short, and in half precision many images land on the boundary:
        # without a least length they would never cross; 1e-4 is what the authors' code adds to every distance
        gone = ball.size(total)
        nearest = torch.maximum(nearest, torch.where(gone > 0, 1e-3 * gone, 1e-4))
        return rows(nearest.nan_to_num(posinf=0.0)) * ball.steepest(normal)


def nearest_boundary(
    problem: Problem, ball: Norm, leaf: Tensor, logits: Tensor, rivals: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest of the linearised boundaries; one backward pass each, of which only the best is kept.

    Args:
        problem: The rows.
        ball: Norm of the distance.
        leaf: ``(B, C, H, W)``, from `Problem.graph`.
        logits: ``(B, K)``, with their graph.
        rivals: ``(B, n)`` classes other than the one to leave. Where targeted the one boundary is that between the
            target and its strongest rival.

    Returns:
        Distance ``(B,)``, infinite where all gradients vanish; the logit on the far side minus the one to leave,
        ``(B,)``; its gradient ``(B, C, H, W)``.
    """
    own = logits.gather(1, problem.classes[:, None])
    if problem.targeted:
        gaps = own - logits.scatter(1, problem.classes[:, None], -math.inf).amax(1, keepdim=True)
    else:
        gaps = logits.gather(1, rivals) - own
    nearest = torch.full_like(own[:, 0], math.inf).detach()
    chosen, normal = torch.zeros_like(nearest), torch.zeros_like(leaf)
    last = gaps.shape[1] - 1
    for column in range(last + 1):
        gap = gaps[:, column]
        gradient = problem.backward(gap.sum(), leaf, keep_graph=column < last)
        gap, slope = gap.detach(), ball.dual(gradient)
        distance = torch.where(slope > 0, gap.abs() / slope, math.inf)
        closer = distance < nearest
        nearest, chosen = torch.where(closer, distance, nearest), torch.where(closer, gap, chosen)
        normal = torch.where(rows(closer), gradient, normal)
    return nearest, chosen, normal
