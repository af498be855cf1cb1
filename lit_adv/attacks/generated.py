"""Perturbations drawn by a network: learnt once, or beside the classifier that is to resist them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_adv.attacks.attack import Attack, Problem, _call, _check_shapes, _untouched
from lit_adv.attacks.norms import norm
from lit_adv.attacks.objectives import ObjectiveName, objective
from lit_adv.attacks.radius import Radius


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratedPerturbation(Attack):
    """x + eps G(x), G a network that was trained to fool, Baluja & Fischer 2018, arXiv:1703.09387.

    One forward pass of G an image, and none of the network attacked. G is trained by the task `PerturbationGenerator`
    against a network that stays as it is, or by `update` against one in training: a step of G for each of its steps.
    The second is the remedy for degenerate minima: where a single gradient step is the adversary, a classifier can win
    by making its own gradients useless; a G that goes on learning is not stopped by that.

    Args:
        generator: G, from images in [0, 1] to ``(B, C, H, W)`` in [-1, 1], such as
            `lit_adv.models.PerturbationNetwork`.
        eps: Linf radius in pixel units of [0, 1].
        objective: What `update` minimises. The cross-entropy of a network that is sure has next to no gradient.
        learning_rate: Adam's, in `update`.
    """

    norm: ClassVar[str] = "linf"

    generator: nn.Module
    eps: Radius = 8 / 255
    objective: ObjectiveName = "margin"
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.generator, nn.Module):
            raise ValueError(f"{name}: generator must be a network, got {type(self.generator).__name__}")
        norm(self.norm, name).check(name, self.eps)
        objective(self.objective, name)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"{name}: learning_rate must be above 0, got {self.learning_rate:g}")

    @classmethod
    def example(cls) -> GeneratedPerturbation:
        return cls(generator=EdgeGenerator(), eps=16 / 255)

    def update(self, model: nn.Module, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """One Adam step of the generator, in place, towards fooling ``model`` as it is now.

        The model is left as it was: modes, buffers, parameters and ``.grad``. In a run of several processes the
        gradients are averaged over them, so that their generators stay the same; each must then call this equally
        often.

        Args:
            model: Maps images in [0, 1] to logits.
            images: ``(B, C, H, W)`` in [0, 1].
            labels: ``(B,)`` int64, the classes to leave.
            targets: ``(B,)`` int64, the classes to reach.

        Returns:
            The objective before the step, a scalar: the mean over the images, of this process.

        Raises:
            ValueError: Images, labels or targets of another shape or type.
        """
        name = type(self).__name__
        _check_shapes(name, images, labels, targets)
        goal = labels if targets is None else targets
        with _untouched(model) as inner:
            parameters = self._trained(images.device)
            x = images.detach().clone()
            logits = _call(inner, perturbed(self.generator, x, self.eps))
            loss = objective(self.objective)(logits.float(), goal.clone(), targets is not None).mean()
            gradients = _averaged(torch.autograd.grad(loss, parameters))
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer = self._optimizer()
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def training_state(self) -> dict[str, Any]:
        """What `update` goes on from: the states of generator and optimiser, for a checkpoint."""
        return {"generator": self.generator.state_dict(), "optimizer": self._optimizer().state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Takes what `training_state` gave."""
        self.generator.load_state_dict(state["generator"])
        self._optimizer().load_state_dict(state["optimizer"])

    def _passes(self, classes: int) -> tuple[float, float]:
        return 0, 0

    def _craft(self, problem: Problem) -> Tensor:
        self._trained(problem.x.device)
        with _untouched(self.generator) as inner, torch.no_grad():
            return problem.restrict(perturbed(inner, problem.x, self.eps))

    def _trained(self, device: torch.device) -> list[nn.Parameter]:
        """The generator's parameters, moved to where the images are."""
        first = next(self.generator.parameters(), None)
        if first is not None and first.device != device:
            self.generator.to(device)
        return [parameter for parameter in self.generator.parameters() if parameter.requires_grad]

    def _optimizer(self) -> torch.optim.Adam:
        kept: torch.optim.Adam | None = self.__dict__.get("_adam")
        if kept is None:
            kept = torch.optim.Adam(self.generator.parameters(), lr=self.learning_rate)
            # no field: what is learnt is in the generator, and two attacks with the same one are the same
            self.__dict__["_adam"] = kept
        return kept


def perturbed(generator: nn.Module, x: Tensor, eps: float) -> Tensor:
    """``x + eps G(x)`` in [0, 1], in the precision of ``x``; gradients reach the generator."""
    return (x + eps * _call(generator, x).to(x.dtype).clamp(-1, 1)).clamp(0, 1)


def reranked(probabilities: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """r_alpha(y, t): the target's probability becomes alpha times the largest, all are scaled to sum to 1.

    Baluja & Fischer 2018, section 2.1: the target leads and all other classes keep their order.

    Args:
        probabilities: ``(B, K)`` y, of the clean images.
        targets: ``(B,)`` int64 t.
        alpha: Above 1.
    """
    raised = probabilities.scatter(1, targets[:, None], alpha * probabilities.amax(1, keepdim=True))
    return raised / raised.sum(1, keepdim=True)


class EdgeGenerator(nn.Module):
    """Turns each pixel away from the mean around it, by a learnt gain; for small examples."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(-20.0))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` in (-1, 1)."""
        around = nn.functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return (self.gain * (x - around)).tanh()


def _averaged(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return gradients
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(joined)
    joined /= dist.get_world_size()
    parts = joined.split([gradient.numel() for gradient in gradients])
    return tuple(part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True))
