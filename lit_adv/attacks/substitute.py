"""Black-box attack by a substitute: a network of one's own that learns from the answers of the one attacked."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_adv.attacks.attack import Attack, Problem, _call, _untouched
from lit_adv.attacks.gradient import FGSM
from lit_adv.attacks.norms import Norm
from lit_adv.attacks.randomness import Draws, mix
from lit_adv.attacks.transfer import TinyNetwork, craft_on


@dataclass(frozen=True, kw_only=True, eq=False)
class SubstituteModel(Attack):
    """Practical black-box attack, Papernot et al. 2017, arXiv:1602.02697, algorithm 1.

    `fit` trains a substitute on the answers of an oracle and returns the attack that holds it. That attack crafts on
    the substitute alone; the model of the call is the oracle, which is asked nothing more and may be anything that
    answers (see `Oracle`); `run` tells whether it is fooled.

    Args:
        attack: Any attack, with which the substitute is attacked.
        substitute: The trained network. None until `fit` has made it.
        queries: Images that `fit` had the oracle label, which it fills in.
    """

    attack: Attack
    substitute: nn.Module | None = None
    queries: int = 0

    def __post_init__(self) -> None:
        if self.queries < 0:
            raise ValueError(f"SubstituteModel: queries must be at least 0, got {self.queries}")

    @classmethod
    def example(cls) -> SubstituteModel:
        return cls(attack=FGSM(eps=8 / 255), substitute=TinyNetwork())

    def fit(
        self,
        oracle: Any,
        images: Tensor,
        substitute: nn.Module,
        *,
        rounds: int = 6,
        step_size: float = 0.1,
        alternate: int | None = None,
        reservoir: int | None = None,
        epochs: int = 10,
        batch_size: int = 128,
        learning_rate: float = 0.01,
        seed: int = 0,
    ) -> SubstituteModel:
        """Labels, trains and augments in turn: D <- D and {x + lambda sign(dZ_O(x)/dx)}, for all x in D.

        After ``rounds`` rounds there are ``2^rounds`` times as many images, each labelled once by the oracle.

        Args:
            oracle: A network or any function from images ``(B, C, H, W)`` to logits ``(B, K)`` or labels ``(B,)``, or
                a scikit-learn estimator for flattened images.
            images: ``(N, C, H, W)`` in [0, 1], a hundred or two, some of each class. They say where the training runs.
            substitute: The network to train, which stays as it is: a copy is trained. It needs as many classes.
            rounds: Rounds of augmentation (the paper's rho).
            step_size: lambda, in pixel units of [0, 1].
            alternate: The sign of lambda changes after so many rounds (the paper's tau); None never changes it.
            reservoir: Most new images a round, drawn at random from all (Papernot et al. 2016, arXiv:1605.07277).
            epochs: Epochs over the data each time it has grown.
            batch_size: Of this training.
            learning_rate: Adam's.
            seed: Of this training and of the reservoir.

        Returns:
            The attack with the trained substitute in eval mode, and the number of queries.

        Raises:
            ValueError: There is no image, a field is out of range, or the oracle gives a class the substitute lacks.
        """
        if images.ndim != 4 or not len(images):
            raise ValueError(
                f"SubstituteModel: images must be (N, C, H, W) with N > 0, got shape {tuple(images.shape)}"
            )
        positive = {
            "step_size": step_size,
            "alternate": alternate,
            "reservoir": reservoir,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
        }
        for field, value in positive.items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"SubstituteModel: {field} must be greater than 0, got {value:g}")
        if rounds < 0:
            raise ValueError(f"SubstituteModel: rounds must be at least 0, got {rounds}")
        ask = Oracle(oracle).labels
        training = _Training(substitute, images.device, epochs, batch_size, learning_rate, seed)
        x = images.detach().clone()
        labels = ask(x)
        training.run(x, labels)
        for number in range(rounds):
            base, base_labels = x, labels
            if reservoir is not None and reservoir < len(x):
                scores = Draws(mix(torch.arange(len(x)) ^ mix(torch.tensor(seed))), number).uniform((1,))[:, 0]
                chosen = scores.argsort(stable=True)[:reservoir].to(x.device)
                base, base_labels = x[chosen], labels[chosen]
            sign = -1 if alternate is not None and number // alternate % 2 else 1
            new = jacobian_augmentation(training.network, base, base_labels, sign * step_size)
            x, labels = torch.cat([x, new]), torch.cat([labels, ask(new)])
            training.run(x, labels)
        network = training.network.eval().requires_grad_(False)
        return dataclasses.replace(self, substitute=network, queries=len(x))

    def _passes(self, classes: int) -> tuple[float, float]:
        return 0, 0

    def _budget(self) -> tuple[Norm, float] | None:
        return self.attack._budget()

    def _craft(self, problem: Problem) -> Tensor:
        if self.substitute is None:
            raise ValueError(
                "SubstituteModel: substitute must be trained first, got None (attack = attack.fit(oracle, images,"
                " network))"
            )
        return craft_on(self.substitute, self.attack, problem)


class Oracle(nn.Module):
    """Anything that answers, as a model that attacks can be called with: logits as they are, labels as 0 and 1.

    No gradient passes through it.

    Args:
        answer: A network or any function from images ``(B, C, H, W)`` to logits ``(B, K)`` or labels ``(B,)``, as a
            tensor or an array; or a scikit-learn estimator with classes 0 to K - 1, which gets ``(B, C * H * W)``.
        num_classes: K, needed for functions that give labels.
    """

    def __init__(self, answer: Any, num_classes: int | None = None) -> None:
        super().__init__()
        self.answer = answer
        known = getattr(answer, "classes_", None)
        self.num_classes = int(max(known)) + 1 if num_classes is None and known is not None else num_classes

    def forward(self, x: Tensor) -> Tensor:
        """``(B, K)``."""
        answer = self._answer(x)
        if answer.ndim == 2:
            return answer
        if self.num_classes is None:
            raise ValueError("Oracle: num_classes must be given where labels are all that is answered, got None")
        return F.one_hot(answer, self.num_classes).to(x.dtype)

    def labels(self, x: Tensor) -> Tensor:
        """``(B,)`` int64."""
        answer = self._answer(x)
        return answer if answer.ndim == 1 else answer.argmax(1)

    def _answer(self, x: Tensor) -> Tensor:
        x = x.detach()
        if isinstance(self.answer, nn.Module):
            with _untouched(self.answer) as inner, torch.no_grad():
                given = _call(inner, x)
        elif hasattr(self.answer, "predict"):
            given = self.answer.predict(x.flatten(1).cpu().numpy())
        else:
            given = self.answer(x)
        answer = torch.as_tensor(given, device=x.device).detach()
        if answer.ndim not in (1, 2) or len(answer) != len(x):
            raise ValueError(
                f"Oracle: answer must be logits ({len(x)}, K) or labels ({len(x)},), got shape {tuple(answer.shape)}"
            )
        return answer.long() if answer.ndim == 1 else answer


def jacobian_augmentation(network: nn.Module, x: Tensor, labels: Tensor, step_size: float) -> Tensor:
    """``clip(x + step_size sign(dZ_label/dx))``, Papernot et al. 2017, section 4.3.

    Args:
        network: The substitute; left as it is.
        x: ``(B, C, H, W)`` in [0, 1].
        labels: ``(B,)`` int64, the oracle's.
        step_size: In pixel units of [0, 1]; negative to step against the gradient.
    """
    made = []
    with _untouched(network) as inner:
        for part, classes in zip(x.split(256), labels.split(256), strict=True):
            leaf = part.detach().clone().requires_grad_()
            total = _call(inner, leaf).gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
            made.append((part + step_size * gradient.sign()).clamp(0, 1))
    return torch.cat(made)


class _Training:
    """Trains a copy of a network on data that grows; no global random number is used up."""

    def __init__(
        self, network: nn.Module, device: torch.device, epochs: int, batch_size: int, learning_rate: float, seed: int
    ) -> None:
        self.network = copy.deepcopy(network).to(device).requires_grad_(True)
        self.epochs, self.batch_size = epochs, batch_size
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate)
        self._device = device
        self._seed = seed

    def run(self, x: Tensor, labels: Tensor) -> None:
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._seed)
            self._seed += 1
            self.network.train()
            for _ in range(self.epochs):
                for rows in torch.randperm(len(x)).split(self.batch_size):
                    if len(rows) == 1 and len(x) > 1:  # batch norm has no variance of one image
                        continue
                    here = rows.to(self._device)
                    logits = _call(self.network, x[here])
                    highest = logits.shape[1]
                    if bool((labels[here] >= highest).any()):
                        raise ValueError(
                            f"SubstituteModel: substitute must have a class for each of the oracle's answers, got"
                            f" {highest} classes and the answer {int(labels.max())}"
                        )
                    self._optimizer.zero_grad()
                    F.cross_entropy(logits.float(), labels[here]).backward()
                    self._optimizer.step()
