"""What keeps the weights of Parseval networks on their constraints while any task trains them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lit_adv.models.parseval_layers import ConvexSum, ParsevalConv2d, ParsevalLayer, ParsevalLinear
from lit_adv.models.parseval_retraction import check_beta, check_rows, parseval_retraction_, project_l1_ball


class ParsevalRetraction(pl.Callback):
    """Takes the constrained weights of a Parseval network back after each step of the optimisers.

    For any task whose model has Parseval layers, `AdversarialTraining` among them; `ParsevalTraining` brings its own.
    Frames take one step of `parseval_retraction_`, rows in the infinity norm return to the l1 ball, coefficients of
    residual sums to the simplex. Layers that are not trained, as those of a frozen network beside the model, are left
    alone. It hangs on the optimisers themselves: batches that only accumulate gradients, and steps that mixed precision
    skips, change nothing. All ranks compute the same from the same weights, without a word to each other.

    Where the optimiser decays the weights as well, singular values settle at sqrt(1 - rate decay / beta) instead of 1.

    Args:
        beta: Length of the step, in (0, 0.5].
        rows: Share of the rows (of the shorter side) that take each step, in (0, 1].

    Raises:
        ValueError: An argument is out of range; in training, there is no Parseval layer.
    """

    def __init__(self, beta: float = 3e-4, rows: float = 1.0) -> None:
        check_beta(type(self).__name__, beta)
        check_rows(type(self).__name__, rows)
        self.beta, self.rows = beta, rows
        self.steps = 0
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follows the optimisers from now on."""
        frames, rows, sums = constrained(pl_module)
        if not frames and not rows and not sums:
            raise ValueError(
                f"ParsevalRetraction: the model of {type(pl_module).__name__} must have Parseval layers that are"
                " trained, got none (take a name such as parseval_wrn10_2)"
            )
        self._release()

        def stepped(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._retract(optimizer, frames, rows, sums)

        self._hooks = [optimizer.register_step_post_hook(stepped) for optimizer in trainer.optimizers]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lets go."""
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Lets go."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """How many steps there were, which the sample of rows depends on."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the sample where it was."""
        self.steps = int(state_dict["steps"])

    @torch.no_grad()
    def _retract(self, optimizer: Optimizer, frames: list[Tensor], rows: list[Tensor], sums: list[ConvexSum]) -> None:
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        # a fused optimiser is called although its step is skipped, and told so by this tensor
        skipped: Tensor | None = getattr(optimizer, "found_inf", None)
        beta = self.beta if skipped is None else self.beta * (skipped == 0).to(torch.float32).squeeze()
        parseval_retraction_([weight for weight in frames if id(weight) in own], beta, self.rows, self.steps)
        for weight in rows:
            if id(weight) in own:
                weight.copy_(project_l1_ball(weight.flatten(1)).reshape(weight.shape))
        for each in sums:
            if id(each.coefficients) in own:
                each.project_()
        self.steps += 1

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def constrained(module: nn.Module) -> tuple[list[Tensor], list[Tensor], list[ConvexSum]]:
    """What is trained under a constraint: weights that are frames, weights with rows in the l1 ball, convex sums."""
    layers = [layer for layer in _trained(module) if layer.weight.requires_grad]
    sums = [each for each in module.modules() if isinstance(each, ConvexSum) and each.coefficients.requires_grad]
    frames: list[Tensor] = [layer.weight for layer in layers if layer.constraint == "l2"]
    return frames, [layer.weight for layer in layers if layer.constraint == "linf"], sums


def _trained(module: nn.Module) -> Iterable[ParsevalLayer]:
    return (layer for layer in module.modules() if isinstance(layer, ParsevalConv2d | ParsevalLinear))
