"""Adversarial weight perturbation: the gradient of a step is taken where the weights are a little worse."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class WeightPerturbation:
    """One ascent step of the weights before each training step, Wu et al. 2020, arXiv:2004.05884 (AWP, equation 8).

    Layer by layer w + v, v = gamma ||w|| g / ||g|| with the gradient g of the training loss. As in the authors' code
    biases and the parameters of normalisations (one dimension) stay. Several processes use the mean of their gradients,
    so that their weights stay the same.

    Args:
        model: The network in training; its buffers and ``.grad`` are left alone.
        gamma: Length of v as a share of ||w||.
    """

    def __init__(self, model: nn.Module, gamma: float) -> None:
        self.model = model
        self.gamma = gamma
        self._before: list[Tensor] = []

    def perturb(self, loss: Callable[[], Tensor]) -> None:
        """Moves the weights; `restore` puts them back, after the backward pass.

        Args:
            loss: Calls the network and gives the loss that the weights ascend.
        """
        weights = self._weights()
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
        for buffer, before in buffers:
            buffer.copy_(before)  # BatchNorm must not count this pass
        self._before = [weight.detach().clone() for weight in weights]
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                g = torch.zeros_like(weight) if gradient is None else gradient.detach().clone()
                if several:
                    dist.all_reduce(g)
                    g /= dist.get_world_size()
                length = torch.linalg.vector_norm(g).clamp(min=torch.finfo(g.dtype).tiny)
                weight.add_(g * (self.gamma * torch.linalg.vector_norm(weight) / length))

    def restore(self) -> None:
        """The weights as they were, bit for bit; nothing where they have not been moved."""
        before, self._before = self._before, []
        with torch.no_grad():
            for weight, value in zip(self._weights() if before else [], before, strict=True):
                weight.copy_(value)

    def _weights(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
