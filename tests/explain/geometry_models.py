"""Classifiers whose boundaries have closed forms, for the tests of geometry."""

import torch
from torch import nn


class Affine(nn.Module):
    def __init__(self, seed=0, classes=4, pixels=16, dtype=torch.float64):
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, pixels, generator=draws, dtype=torch.float64).to(dtype))
        self.bias = nn.Parameter(0.1 * torch.randn(classes, generator=draws, dtype=torch.float64).to(dtype))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


class Sphere(nn.Module):
    """Logits (0, f) with f = ||x||^2 - R^2."""

    def __init__(self, radius):
        super().__init__()
        self.radius = radius

    def forward(self, x):
        f = x.flatten(1).square().sum(1) - self.radius**2
        return torch.stack([torch.zeros_like(f), f], 1)


def pictures(count=6, seed=0, low=0.4, high=0.6):
    draws = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, 1, 4, 4, generator=draws, dtype=torch.float64)
