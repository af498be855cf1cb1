"""Ways to learn a classifier, from networks to nearest neighbours, for studies of what transfers between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC, NuSVC
from torch import Tensor, nn

from lit_adv.attacks.substitute import _Training
from lit_adv.data.sampling import stratified_order
from lit_adv.models import Classifier
from lit_adv.models.classifier import ClassifierName, check_name


class Technique(ABC):
    """A rule that learns a classifier from images."""

    @abstractmethod
    def fit(self, images: Tensor, labels: Tensor, num_classes: int, seed: int = 0) -> nn.Module:
        """A classifier in eval mode on the images' device.

        Args:
            images: ``(N, C, H, W)``, square, in [0, 1].
            labels: ``(N,)`` int64.
            num_classes: K.
            seed: Of all that is random.

        Returns:
            From images in [0, 1] to logits ``(B, K)``.
        """


@dataclass(frozen=True, kw_only=True)
class NetworkTechnique(Technique):
    """A network, trained with Adam and cross-entropy.

    Args:
        name: The architecture.
        epochs: Passes over the images.
        batch_size: Images a step.
        learning_rate: Adam's.
    """

    name: ClassifierName = "small_cnn"
    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_name(self.name, "NetworkTechnique")
        for field, least in (("epochs", 1), ("batch_size", 2)):
            if getattr(self, field) < least:
                raise ValueError(f"NetworkTechnique: {field} must be at least {least}, got {getattr(self, field)}")
        if not self.learning_rate > 0:
            raise ValueError(f"NetworkTechnique: learning_rate must be above 0, got {self.learning_rate}")

    def fit(self, images: Tensor, labels: Tensor, num_classes: int, seed: int = 0) -> nn.Module:
        devices = [images.device] if images.is_cuda else []
        with torch.inference_mode(False), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            network = Classifier(self.name, num_classes, images.shape[-1], images.shape[1])
            training = _Training(network, images.device, self.epochs, self.batch_size, self.learning_rate, seed)
            training.run(images.clone(), labels.clone())
        return training.network.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True, eq=False)
class EstimatorTechnique(Technique):
    """A scikit-learn classifier, such as logistic regression, SVM, decision tree or nearest neighbours.

    Args:
        estimator: Of which a copy is fitted to flat images. Where it has a ``random_state`` that is None, it gets the
            seed.
    """

    estimator: BaseEstimator

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, BaseEstimator) or not is_classifier(self.estimator):
            got = type(self.estimator).__name__
            raise ValueError(f"EstimatorTechnique: estimator must be a scikit-learn classifier, got {got}")

    def fit(self, images: Tensor, labels: Tensor, num_classes: int, seed: int = 0) -> nn.Module:
        estimator: Any = clone(self.estimator)
        if estimator.get_params().get("random_state", seed) is None:
            estimator.set_params(random_state=seed)
        estimator.fit(images.flatten(1).double().cpu().numpy(), labels.cpu().numpy())
        # tensors made in inference mode cannot enter autograd
        with torch.inference_mode(False):
            return EstimatorClassifier(estimator, num_classes).to(images.device).eval()


class EstimatorClassifier(nn.Module):
    """A fitted scikit-learn classifier as a network: images to scores whose largest is the estimator's prediction.

    A linear classifier (one with ``coef_``) is computed in torch, and its gradient is exact. Nearest neighbours score a
    class by ``log sum_i exp(-||x - x_i||^2)`` over its training images, the soft vote of Papernot et al. 2016
    (arXiv:1605.07277, section 3.2), whose gradient an attack can follow. The scores of all others are
    log-probabilities, or 0 and 1 where there are none, and without a gradient. Where the largest of these scores is not
    of the class that the estimator predicts (a soft vote, Platt's probabilities of an SVM), that class is raised to the
    top.

    Args:
        estimator: Fitted to flat images with labels from 0.
        num_classes: K; a class that was not among the labels gets the lowest score.

    Raises:
        ValueError: Labels beyond K; in the call, a gradient is asked for where there is none.
    """

    weight: Tensor
    bias: Tensor
    known: Tensor

    def __init__(self, estimator: Any, num_classes: int) -> None:
        super().__init__()
        self.estimator, self.num_classes = estimator, num_classes
        classes = np.asarray(estimator.classes_)
        if classes.min() < 0 or classes.max() >= num_classes:
            raise ValueError(f"EstimatorClassifier: labels must be in [0, {num_classes}), got {classes.tolist()}")
        self.register_buffer("known", torch.from_numpy(classes.astype(np.int64)))
        self.kind = "answers"
        coefficients = getattr(estimator, "coef_", None)
        # one row a class, or one in all for two; a kernel machine has one for each pair, which are three for three
        pairwise = isinstance(estimator, SVC | NuSVC) and len(classes) > 2
        rows = 1 if len(classes) == 2 else len(classes)
        if isinstance(coefficients, np.ndarray) and len(coefficients) == rows and not pairwise:
            weight, bias = torch.tensor(coefficients), torch.tensor(np.atleast_1d(estimator.intercept_))
            if len(weight) == 1:
                weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
            self.kind = "linear"
            self.register_buffer("weight", weight.double())
            self.register_buffer("bias", bias.double())
        elif isinstance(estimator, KNeighborsClassifier):
            self.kind = "neighbours"
            # the estimator's own copy
            self.register_buffer("weight", torch.as_tensor(np.asarray(estimator._fit_X)).double())
            self.register_buffer("bias", torch.as_tensor(np.asarray(estimator._y)))

    def forward(self, images: Tensor) -> Tensor:
        """``(B, K)`` scores of ``(B, C, H, W)``."""
        flat = images.flatten(1).double()
        if self.kind == "linear":
            scores = flat @ self.weight.T + self.bias
        elif self.kind == "neighbours":
            scores = self._raised(self._soft_vote(flat), flat, images.dtype)
        elif images.requires_grad:
            raise ValueError(
                f"EstimatorClassifier: {type(self.estimator).__name__} gives no gradient to attack it by (use an attack"
                " that only looks at answers, such as Square, or let it be a victim alone)"
            )
        else:
            scores = self._raised(self._answers(flat), flat, images.dtype)
        lowest = scores.detach().amin(1, keepdim=True) - 1
        return lowest.expand(-1, self.num_classes).index_copy(1, self.known, scores).to(images.dtype)

    def _soft_vote(self, flat: Tensor) -> Tensor:
        distances = (flat.square().sum(1)[:, None] - 2 * flat @ self.weight.T + self.weight.square().sum(1)).neg()
        columns = [distances[:, self.bias == place].logsumexp(1) for place in range(len(self.known))]
        return torch.stack(columns, 1)

    def _answers(self, flat: Tensor) -> Tensor:
        if hasattr(self.estimator, "predict_proba"):
            found = self.estimator.predict_proba(flat.detach().cpu().numpy())
            return torch.from_numpy(found).to(flat).clamp(min=1e-12).log()
        return nn.functional.one_hot(self._predicted(flat), len(self.known)).double()

    def _raised(self, scores: Tensor, flat: Tensor, dtype: torch.dtype) -> Tensor:
        """The scores with the predicted class on top, also after rounding to ``dtype``."""
        predicted, known = self._predicted(flat), scores.detach()
        top, own = known.amax(1), known.gather(1, predicted[:, None])[:, 0]
        margin = max(1e-3, 2 * torch.finfo(dtype).eps) * top.abs().clamp(min=1)
        lift = torch.where(known.to(dtype).argmax(1) == predicted, 0.0, top - own + margin)
        return scores + torch.zeros_like(scores).scatter(1, predicted[:, None], lift[:, None])

    def _predicted(self, flat: Tensor) -> Tensor:
        """Places of the predicted classes among those known, ``(B,)``."""
        answers = self.estimator.predict(flat.detach().cpu().numpy())
        return torch.from_numpy(np.searchsorted(self.estimator.classes_, answers)).to(flat.device)


def disjoint_subsets(labels: Tensor, count: int, seed: int = 0) -> list[Tensor]:
    """Positions of disjoint subsets of equal size, up to one, with each class in its share.

    Args:
        labels: ``(N,)`` int64.
        count: How many subsets.
        seed: Of the draw.

    Raises:
        ValueError: There are not as many images.
    """
    if not 1 <= count <= len(labels):
        raise ValueError(f"disjoint_subsets: count must be in [1, {len(labels)}], the number of images, got {count}")
    # pieces in one: every so many-th image could always be of the same class, as the order goes through them in turn
    return list(stratified_order(labels, seed).tensor_split(count))
