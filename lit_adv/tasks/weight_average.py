"""The running average of a network's weights over its training."""

import copy

import torch
from torch import nn

from lit_adv.models import Classifier


def averaged_copy(model: Classifier) -> Classifier:
    """A copy that takes no gradients, the start of an average."""
    return copy.deepcopy(model).requires_grad_(False)


def update_average_(average: nn.Module, model: nn.Module, decay: float, updates: int) -> None:
    """average <- d average + (1 - d) model, for parameters and floating-point buffers; counters are copied.

    ``d = min(decay, (1 + updates) / (10 + updates))``, so that the weights from before the training are soon forgotten.

    Args:
        average: As `averaged_copy` makes it.
        model: The network in training.
        decay: In (0, 1).
        updates: How often the average has been updated before.
    """
    share = 1 - min(decay, (1 + updates) / (10 + updates))
    new = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, old in [*average.named_parameters(), *average.named_buffers()]:
            if old.is_floating_point():
                old.lerp_(new[name].detach().to(old.dtype), share)
            else:
                old.copy_(new[name])
