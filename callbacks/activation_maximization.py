"""Images that classes or channels respond to most, at the end of a test."""

from __future__ import annotations

from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_adv.attacks.attack import _call, _untouched
from lit_adv.explain import PRESETS, Regularizers, activation_maximization
from lit_adv.explain.activation_maximization import check_ascent
from lit_adv.explain.layers import activations, check_layer
from lit_adv.plots import maximization_figure

from .figures import log_figure
from .shown_images import class_names
from .visualization import Visualization, task_name


class ActivationMaximization(Visualization):
    """Draws images made by gradient ascent, ``figures/activation_maximization.png``, see `activation_maximization`.

    Args:
        classes: Whose logits are ascended, or, of a ``layer``, its channels; None takes the first ten.
        layer: Its name, see ``named_modules`` of the task; None takes the logits.
        presets: Ways to keep the image like a picture, a row each: ``blur_norm``, ``decay_norm``, ``decay_blur``,
            ``blur_contribution``, ``none``.
        custom: One more way of your own.
        steps: Of the ascent.
        step_size: Root mean square of the pixels' change in a step.
        seed: Of the noise that it starts with.

    Raises:
        ValueError: An argument is out of range; in the test, there is no such layer or class.
    """

    def __init__(
        self,
        classes: Sequence[int] | None = None,
        layer: str | None = None,
        presets: Sequence[str] = ("blur_norm", "decay_norm", "decay_blur", "blur_contribution"),
        custom: Regularizers | None = None,
        steps: int = 200,
        step_size: float = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__(images=1)
        ways: dict[str, Regularizers] = {}
        for name in presets:
            if name not in PRESETS:
                raise ValueError(f"{self._name}: presets must be some of {', '.join(PRESETS)}, got {name!r}")
            ways[name] = check_ascent(self._name, (1, 1, 1), classes or [0], name, steps, step_size, 0)
        if custom is not None:
            ways["custom"] = custom
        if not ways:
            raise ValueError(f"ActivationMaximization: presets must be one or more of {', '.join(PRESETS)}, got none")
        if classes is not None and (not classes or min(classes) < 0):
            raise ValueError(f"ActivationMaximization: classes must be one or more numbers >= 0, got {list(classes)}")
        self.classes = None if classes is None else list(classes)
        self.layer, self.ways = layer, ways
        self.steps, self.step_size, self.seed = steps, step_size, seed

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, image: Tensor) -> None:
        if self.layer is not None:
            check_layer(self._name, pl_module, self.layer)
        self._shape = tuple(image.shape[1:])
        count = self._answers(pl_module, image).shape[1]
        self._classes = list(range(min(10, count))) if self.classes is None else self.classes
        if max(self._classes) >= count:
            raise ValueError(f"ActivationMaximization: classes must be in [0, {count}), got {max(self._classes)}")

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pictures, captions = {}, {}
        for way, rules in self.ways.items():
            pictures[way] = activation_maximization(
                pl_module,
                self._shape,
                self._classes,
                layer=self.layer,
                regularizers=rules,
                steps=self.steps,
                step_size=self.step_size,
                seed=self.seed,
            )
            answers = self._answers(pl_module, pictures[way])
            mine = answers[torch.arange(len(answers)), self._classes].tolist()
            captions[way] = [f"{100 * each:.0f} %" if self.layer is None else f"{each:.3g}" for each in mine]
        if self.layer is None:
            names = list(class_names(trainer, self._classes).values())
            title = f"What each class responds to, with its probability: {task_name(pl_module)}"
        else:
            names = [str(channel) for channel in self._classes]
            title = f"What channels of {self.layer} respond to, with their activation: {task_name(pl_module)}"
        log_figure(trainer, "activation_maximization", maximization_figure(pictures, names, captions, title))

    def _answers(self, pl_module: pl.LightningModule, images: Tensor) -> Tensor:
        """Probabilities, or activations in the middle of the map, ``(B, K)``."""
        if self.layer is not None:
            output = activations(pl_module, images, self.layer)
            if output.ndim not in (2, 4):
                raise ValueError(
                    "ActivationMaximization: layer must give maps (B, C, h, w) or vectors (B, D), got "
                    f"{tuple(output.shape)} from {self.layer}"
                )
            return output[..., output.shape[2] // 2, output.shape[3] // 2] if output.ndim == 4 else output
        with _untouched(pl_module) as inner, torch.no_grad():
            probabilities: Tensor = _call(inner, images.detach().clone()).softmax(1)
        return probabilities
